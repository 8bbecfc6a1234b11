//! `cargo xtask check` runs what CI runs, cheapest first, and stops at the first failure.
//!
//! `cargo xtask` lists the other commands. Only the standard library is used here: this program is built before
//! anything else, on every machine that works on the project.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "what a command prints is its result")]

mod python;
mod search;
mod steps;

use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "\
cargo xtask check [STEP]   everything that CI runs, cheapest first; with STEP, that step alone
cargo xtask long           the tests that take minutes, one after the other
cargo xtask pages          regenerate the generated pages of docs/
cargo xtask tools          install the tools that `check` needs (typos, cargo-deny, mdbook, numpy)
cargo xtask steps          list the steps of `check`";

/// What went wrong, as it is told.
type Failure = String;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["check"] => steps::check(None),
        ["check", step] => steps::check(Some(step)),
        ["long"] => steps::long(),
        ["pages"] => steps::pages(true),
        ["tools"] => python::install(),
        ["steps"] => {
            steps::list();
            Ok(())
        }
        ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            Ok(())
        }
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// The root of the workspace.
fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}
