//! Networks on a virtual clock. A seed that shows a failure once shows it always.
//!
//! | what | module |
//! |---|---|
//! | one simulation: who takes part, what happens, what came of it | [`scenario`] |
//! | the nodes and what they share | [`world`] |
//! | what all nodes read from the chain alike, read once | `memo` |
//! | what the nodes train with | [`engine`] |
//! | failures of machines, links and services, drawn by seed | [`weather`] |
//! | what must hold whatever happens | [`invariants`] |
//! | one case of the proving ground, by seed or by command | [`case`] |
//! | many seeds, and the shortest case that shows a failure | [`campaign`] |
//! | what each adversary gains and costs | [`table`] |

pub mod campaign;
pub mod case;
pub mod engine;
pub mod invariants;
mod memo;
pub mod scenario;
pub mod table;
pub mod weather;
pub mod world;
