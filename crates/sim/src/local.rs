//! Local networks of real parts, on this machine's loopback interface unless nodes of other machines are to join.
//!
//! [`network`] says what a network is made of. [`services`] starts its S3 server, chain and dataset, [`crew`] watches over
//! the nodes to the last window. [`demo`] runs them in one process, [`localnet`] each in a process of its own. [`guest`] is
//! somebody else's node. [`needs`] says whether this machine can hold a network at all, [`kept`] what a network keeps in
//! its folder to go on after a kill, and [`export`] makes the result from that folder.

pub mod crew;
pub mod demo;
pub mod error;
pub mod export;
pub mod guest;
pub mod kept;
pub mod localnet;
pub mod needs;
pub mod network;
pub mod services;
mod steps;
mod wait;
