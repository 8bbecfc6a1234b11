//! `templar`: strangers' machines train one language model together.
//!
//! Thin: a verb parses its arguments, calls a library crate, and shows what comes back. Exit codes: 0 done, 1 failed
//! (the message says what happened, to what, and what to do next), 2 wrong usage, 130 stopped by Ctrl-C.

#![allow(clippy::print_stdout, reason = "what a verb prints is its result")]

mod commands;
mod config;
mod metrics;
mod progress;
mod show;
mod stop;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use color_eyre::eyre::Result;
use tracing_subscriber::EnvFilter;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Strangers' machines train one language model together.
#[derive(Debug, Parser)]
#[command(name = "templar", version, max_term_width = 100)]
struct Cli {
    /// What to log to standard error, as in `info` or `templar_node=debug`.
    #[arg(long, global = true, env = "TEMPLAR_LOG", default_value = "warn", value_parser = filter)]
    log: String,
    /// TOML file with options of the verb, named as on the command line; that and TEMPLAR_* take precedence.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Train a small model on a whole network in this process: no account, file, GPU or connection needed.
    Demo(commands::demo::Demo),
    /// The same network with every node a process of its own; what dies is started again.
    Localnet(commands::localnet::Localnet),
    /// Mine: train on assigned data, publish what was learned, be paid for what it was worth.
    Miner(commands::node::Miner),
    /// Validate: judge contributions, vote on them, measure what they were worth, set weights.
    Validator(commands::node::Validator),
    /// For rehearsals only: a miner that misbehaves.
    #[command(hide = true)]
    Adversary(commands::adversary::Adversary),
    /// Make, show and check a run's specification.
    #[command(subcommand)]
    Run(commands::run::Run),
    /// Make and show hotkeys.
    #[command(subcommand)]
    Key(commands::key::Key),
    /// Make, show and check datasets.
    #[command(subcommand)]
    Data(commands::data::Data),
    /// Rehearse the protocol under a virtual clock: the same seed gives the same event log.
    Sim(commands::sim::Sim),
    /// Continue a text with a model that `--out` has written.
    Generate(commands::generate::Generate),
    /// Measure parts of the system on this machine.
    #[command(subcommand)]
    Bench(commands::bench::Bench),
}

/// How a verb ended, when it did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Done,
    Stopped,
}

/// Checks what to log.
fn filter(text: &str) -> Result<String, tracing_subscriber::filter::ParseError> {
    EnvFilter::try_new(text).map(|_| text.to_owned())
}

fn main() -> ExitCode {
    let cli = config::parse();
    let filter = EnvFilter::new(&cli.log);
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match run(cli.verb) {
        Ok(End::Done) => ExitCode::SUCCESS,
        Ok(End::Stopped) => ExitCode::from(130),
        Err(report) => {
            let mut causes: Vec<String> = report.chain().map(ToString::to_string).collect();
            // Many messages end with their cause: said once is enough.
            causes.dedup_by(|cause, before| before.contains(cause.as_str()));
            eprintln!("error: {}", causes.join("\n  because: "));
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<End> {
    match verb {
        Verb::Demo(demo) => demo.run(),
        Verb::Localnet(localnet) => localnet.run(),
        Verb::Miner(miner) => miner.run(),
        Verb::Validator(validator) => validator.run(),
        Verb::Adversary(adversary) => adversary.run(),
        Verb::Run(run) => run.run(),
        Verb::Key(key) => key.run(),
        Verb::Data(data) => data.run(),
        Verb::Sim(sim) => sim.run(),
        Verb::Generate(generate) => generate.run(),
        Verb::Bench(bench) => bench.run(),
    }
}
