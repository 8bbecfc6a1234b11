//! Rehearsals: the same node code as on a real network, in ever more real surroundings.
//!
//! | ring | chain | storage | training | time | module |
//! |---|---|---|---|---|---|
//! | simulation | dev chain in memory | in-memory cloud | synthetic | virtual | [`virtual`](mod@virtual) |
//! | demo | dev chain over JSON-RPC | S3 server on loopback | the real engine | paced by the nodes | [`local::demo`] |
//! | localnet | the same | the same | the same, one process per node | a fixed interval | [`local::localnet`] |
//!
//! [`plan`] says who takes part and makes the run's specification. [`zoo`] holds what nodes do wrong: this crate alone wraps a
//! node's behaviour. [`chain_record`] is what the development chain adds to the report.
//!
//! ```
//! use templar_sim::r#virtual::scenario::Scenario;
//!
//! // Three miners, the last of which publishes noise, and two validators train for two windows with seed 7.
//! let mut scenario = Scenario::new(3, 2, 2, 7);
//! scenario.plan.adversaries = vec!["noise".parse()?];
//! let folder = tempfile::tempdir()?;
//! let outcome = scenario.run(folder.path());
//!
//! assert!(outcome.failures.is_empty());
//! assert!(outcome.report.windows.iter().all(|window| window.certified && window.one_root));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod chain_record;
pub mod local;
pub mod plan;
pub mod r#virtual;
pub mod zoo;
