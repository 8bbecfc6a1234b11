//! Rehearsals: the same node code as on a real network, in ever more real surroundings.
//!
//! | ring | chain | storage | training | time | module |
//! |---|---|---|---|---|---|
//! | simulation | dev chain in memory | in-memory cloud | synthetic | virtual | [`simulation`] |
//! | demo | dev chain over JSON-RPC | S3 server on loopback | the real engine | paced by the nodes | [`demo`] |
//! | localnet | the same | the same | the same, a process a node | a fixed interval | [`localnet`] |
//!
//! [`plan`] says who takes part and makes the run's specification, [`world`] starts the real parts, [`network`] watches
//! over them to the last window. [`connect`] is a node's way in, [`engine`] what it trains with. [`adversary`] misbehaves
//! through the seams, and [`report`] turns events into the document of a run.

pub mod adversary;
pub mod connect;
pub mod demo;
pub mod engine;
pub mod localnet;
pub mod network;
pub mod plan;
pub mod report;
pub mod simulation;
pub mod world;
