//! Turns configuration into a running node of real parts.
//!
//! [`connection::Connection`] holds a node's whole configuration; its `open` connects to the chain and the bucket,
//! fetches the dataset, starts the engine, and hands back a [`templar_node::pretrain::setup::Setup`] that is ready to
//! run. Rehearsals build their nodes with this crate too; it knows nothing of them.
//!
//! | what | module |
//! |---|---|
//! | connects a node to its network | [`connection`] |
//! | its home folder: run, credentials, command line | [`home`] |
//! | what it trains and evaluates with | [`engine`] |
//! | the defaults of a run | [`defaults`] |
//! | how a node is doing on a development chain | [`standing`] |
//!
//! ```
//! use templar_host::engine::{Engine, EngineName};
//!
//! assert_eq!("builtin".parse::<EngineName>().unwrap(), EngineName::BuiltIn);
//! assert_eq!(Engine::default().arguments(), ["--engine", "builtin"]);
//! ```

pub mod connection;
pub mod defaults;
pub mod engine;
pub mod home;
pub mod standing;
