//! The dev chain from outside: its rules, its pace, and its wire.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

mod pacing;
mod rpc;
mod rules;

use templar_chain::{DevChain, DevConfig, conformance};
use templar_protocol::keys::Keypair;

const NETUID: u16 = 3;

/// A chain in memory with these neurons, (name, stake), registered in block 1.
fn chain_with(config: DevConfig, neurons: &[(&str, u64)]) -> DevChain {
    let chain = DevChain::open(None, config).unwrap();
    for (name, stake_rao) in neurons {
        chain.register(key(name).hotkey(), *stake_rao).unwrap();
    }
    chain.produce_block().unwrap();
    chain
}

fn key(name: &str) -> Keypair {
    Keypair::insecure_dev(1, name)
}

fn config() -> DevConfig {
    DevConfig { netuid: NETUID, ..conformance::dev_config() }
}
