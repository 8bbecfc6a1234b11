//! Miner and validator as state machines over the seams.
//!
//! A node knows the chain, its store and its trainer only as traits, so the same code runs against a virtual clock and
//! an in-memory cloud in a simulation, and against an embedded chain and a real S3 server in `templar demo`; a client
//! for Bittensor is still to come.
//!
//! [`frame`] is what every duty of a node stands on: its context, the loop over the chain's heads, its local disk and its
//! on-chain record. [`pretrain`] is the duty of miners and validators in a pre-training run. What is due follows from
//! the newest finalised block alone, so a node that was away for an hour takes the same path as one that missed a block.

pub mod frame;
pub mod pretrain;
