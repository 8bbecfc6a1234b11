//! One module per verb.

pub(crate) mod adversary;
pub(crate) mod bench;
pub(crate) mod campaign;
pub(crate) mod corpus;
pub(crate) mod data;
pub(crate) mod demo;
pub(crate) mod engine;
pub(crate) mod export;
pub(crate) mod generate;
pub(crate) mod key;
pub(crate) mod localnet;
pub(crate) mod model_folder;
pub(crate) mod network;
pub(crate) mod node;
pub(crate) mod replay;
pub(crate) mod run;
pub(crate) mod sim;
pub(crate) mod table;
pub(crate) mod tenure;
