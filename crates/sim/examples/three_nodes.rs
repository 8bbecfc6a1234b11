//! A network of three nodes in memory trains for four windows and prints its roots.
//!
//! `cargo run --release -p templar-sim --example three_nodes`

#![allow(clippy::print_stdout, reason = "what an example prints is its result")]

use std::error::Error;

use templar_sim::r#virtual::scenario::Scenario;

const SEED: u64 = 1;

fn main() -> Result<(), Box<dyn Error>> {
    let (miners, validators, windows) = (2, 1, 4);
    let folder = tempfile::tempdir()?;
    let outcome = Scenario::new(miners, validators, windows, SEED).run(folder.path());
    for window in &outcome.report.windows {
        println!("{}", serde_json::to_string(&window.state_root)?);
    }
    for node in &outcome.report.nodes {
        println!("{} ends with {}", serde_json::to_string(&node.role)?, serde_json::to_string(&node.final_state_root)?);
    }
    if let Some((name, error)) = outcome.failures.first() {
        return Err(format!("node {name} ended: {error}").into());
    }
    Ok(())
}
