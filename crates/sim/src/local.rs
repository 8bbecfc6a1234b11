//! Local networks of real parts, on this machine's loopback interface unless nodes of other machines are to join.
//!
//! [`network`] says what a network is made of. [`services`] starts its S3 server, chain and dataset, [`crew`] watches over
//! the nodes to the last window. [`demo`] runs them in one process, [`localnet`] each in a process of its own. [`guest`] is
//! a node of somebody else.

pub mod crew;
pub mod demo;
pub mod guest;
pub mod localnet;
pub mod network;
pub mod services;
mod wait;
