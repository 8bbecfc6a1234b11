//! The zoo: what nodes of a rehearsal do wrong. The node's own code stays honest; what it is made of does not.
//!
//! | what | module |
//! |---|---|
//! | attacks, one file each, and the one table of them | [`attack`] |
//! | failures of machines and services, one file each | [`failure`] |
//! | what an attack is: its name, what it tries, what stops it | [`kind`] |
//! | seams with a closure in them, of which most attacks are made | [`layers`] |
//! | the same for votes and weights | [`ballots`] |
//! | what nodes of one kind share | [`in_common`] |
//!
//! Whatever misbehaves is a function from a node's parts to other parts ([`Setup`]):
//!
//! ```
//! use templar_node::pretrain::setup::Setup;
//! use templar_sim::r#virtual::scenario::Scenario;
//! use templar_sim::zoo::attack::{self, garbled_object};
//!
//! # let folder = std::env::temp_dir().join(format!("templar-zoo-{}", std::process::id()));
//! let mut scenario = Scenario::new(3, 2, 2, 1);
//! // By kind, as in `templar sim --adversary withhold`: the last miner is one.
//! scenario.plan.adversaries = vec![attack::withhold::KIND];
//! // By name, with what only this scenario needs: a key of 31 bytes, in one window.
//! scenario.wrap("miner-1", |setup: Setup| {
//!     garbled_object::wrap(setup, |window| (window == 1).then_some(garbled_object::Garbled::ShortKey))
//! });
//! let outcome = scenario.run(&folder);
//! assert_eq!(outcome.report.nodes[2].behaviour, "withhold");
//! assert!(outcome.report.windows[1].faults.iter().any(|fault| fault.uid.0 == 1));
//! # std::fs::remove_dir_all(folder).unwrap();
//! ```
//!
//! [`Setup`]: templar_node::pretrain::setup::Setup

pub mod attack;
pub mod ballots;
pub mod failure;
pub mod in_common;
pub mod kind;
pub mod layers;
