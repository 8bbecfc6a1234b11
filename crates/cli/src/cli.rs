//! The verbs and what all of them take.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use color_eyre::eyre::Result;
use tracing_subscriber::EnvFilter;

use crate::commands;
use crate::end::End;
use crate::stop;

/// Strangers' machines train one language model together.
#[derive(Debug, Parser)]
#[command(name = "templar", version, max_term_width = 100)]
pub(crate) struct Cli {
    /// What to log to standard error, as in `info` or `templar_node=debug`.
    #[arg(long, global = true, env = "TEMPLAR_LOG", default_value = "warn", value_parser = filter)]
    pub(crate) log: String,
    /// TOML file with options of the verb, named as on the command line; the command line and TEMPLAR_* take
    /// precedence.
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Print JSON for programs instead of text for people: one document, or events as JSON lines. A failure is
    /// then also one document on standard output.
    #[arg(long, global = true, env = "TEMPLAR_JSON")]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Train a small model on a whole network in this process: no account, file, GPU or connection needed.
    Demo(commands::demo::Demo),
    /// The same network with each node in its own process; nodes that die are restarted.
    Localnet(commands::localnet::Localnet),
    /// Mine: train on assigned data, publish what was learned, be paid for what it was worth.
    Miner(commands::node::Miner),
    /// Validate: judge contributions, vote on them, measure what they were worth, set weights.
    Validator(commands::node::Validator),
    /// For rehearsals only: a miner that misbehaves.
    #[command(hide = true)]
    Adversary(commands::adversary::Adversary),
    /// Export a network's model and report from its folder.
    Export(commands::export::Export),
    Replay(commands::replay::Replay),
    Explain(commands::replay::Explain),
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

impl Verb {
    pub(crate) fn run(self) -> Result<End> {
        if !self.ends_cleanly() {
            stop::end_at_once();
        }
        match self {
            Self::Demo(demo) => demo.run(),
            Self::Localnet(localnet) => localnet.run(),
            Self::Miner(miner) => miner.run(),
            Self::Validator(validator) => validator.run(),
            Self::Adversary(adversary) => adversary.run(),
            Self::Export(export) => export.run(),
            Self::Replay(replay) => replay.run(),
            Self::Explain(explain) => explain.run(),
            Self::Run(run) => run.run(),
            Self::Key(key) => key.run(),
            Self::Data(data) => data.run(),
            Self::Sim(sim) => sim.run(),
            Self::Generate(generate) => generate.run(),
            Self::Bench(bench) => bench.run(),
        }
    }

    /// Whether a signal asks the verb to stop, so that it can leave things in order.
    fn ends_cleanly(&self) -> bool {
        matches!(self, Self::Demo(_) | Self::Localnet(_) | Self::Miner(_) | Self::Validator(_) | Self::Adversary(_))
    }
}

/// Checks a filter of log lines.
fn filter(text: &str) -> Result<String, tracing_subscriber::filter::ParseError> {
    EnvFilter::try_new(text).map(|_| text.to_owned())
}
