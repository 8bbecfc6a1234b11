//! Miner and validator as state machines over the seams.
//!
//! A node knows the chain, its store and its trainer only as traits, so the same code runs against a virtual clock and
//! an in-memory cloud in a simulation, and against an embedded chain and a real S3 server in `templar demo`; a client
//! for Bittensor is still to come. What is due follows from the newest finalised block alone: [`node::Node::run`] hands
//! each head to [`miner::Miner::on_head`] or [`validator::Validator::on_head`], which do whatever is due by then and may
//! be called again at any time. A node that was away for an hour takes the same path as one that missed a block.
//!
//! The life of a window, one module a step: [`window`] (who, whose, which samples) → [`miner`] (train) → [`pending`]
//! (seal) → [`publish`] (upload, commit, open) → [`intake`] (fetch, check) → [`validator`] (vote) → [`replica`]
//! (certificate, outer step) → [`evaluate`] (what it was worth). [`seat`] is what both have in common, [`local`] the
//! node's own disk, [`checkpoint`] what a newcomer starts from, [`events`] what everybody else gets to see.

pub mod checkpoint;
pub mod core;
pub mod dataset;
pub mod error;
pub mod evaluate;
pub mod events;
pub mod fetch;
pub mod intake;
pub mod local;
pub mod miner;
pub mod node;
pub mod pending;
pub mod publish;
pub mod replica;
pub mod seat;
pub mod signals;
pub mod sweep;
pub mod validator;
pub mod window;
