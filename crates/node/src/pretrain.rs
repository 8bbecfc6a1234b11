//! The duty of a pre-training run.
//!
//! The life of a window, one module per step: [`window`] (who, whose, which samples) → [`miner`] (train) → [`pending`]
//! (seal) → [`upload`] (publish, open) → [`intake`] (fetch, check) → [`validator`] (vote) → [`replica`] (certificate,
//! outer step) → [`evaluate`] (what it was worth). [`seat`] is what miner and validator have in common, [`state`] what
//! a window leaves behind, [`checkpoint`] what a newcomer starts from, [`audit`] all of it once more for whoever trusts
//! nobody.

pub mod audit;
pub mod batches;
pub mod checkpoint;
pub mod evaluate;
pub mod fetch;
pub mod intake;
pub mod miner;
mod pauses;
pub mod pending;
mod refusals;
pub mod replica;
pub mod seat;
pub mod setup;
pub mod state;
pub mod sweep;
pub mod upload;
pub mod validator;
pub mod window;
