//! Local networks of real parts, on this machine's loopback interface unless nodes of other machines are to join.
//!
//! [`network`] describes what a network is made of. [`services`] starts its S3 server, chain and dataset, and [`crew`]
//! runs the nodes up to the last window. [`demo`] runs them in one process, [`localnet`] each in its own process.
//! [`guest`] is somebody else's node. [`needs`] checks whether this machine can hold a network at all, [`kept`] keeps
//! in its folder what it needs to resume after a kill, [`export`] makes the result from that folder, and [`audit`] verifies
//! its history. [`initial`] reads the model that a run starts from.

pub mod audit;
pub mod crew;
pub mod demo;
pub mod error;
pub mod export;
mod final_theta;
pub mod guest;
pub mod initial;
pub mod kept;
mod last_words;
mod listing;
pub mod localnet;
pub mod needs;
pub mod network;
pub mod services;
mod steps;
mod wait;
