//! `templar`: strangers' machines train one language model together.
//!
//! This crate is thin: a verb parses its arguments, calls a library crate, and shows the result. Exit codes: 0 done, 1
//! failed (the message says what happened, to what, and what to do next), 2 wrong usage, 130 stopped by Ctrl-C, 141
//! stopped because whoever read standard output went away.

mod cli;
mod commands;
mod config;
mod end;
mod failure;
mod files;
mod metrics;
mod numbers;
mod output;
mod outputs;
#[cfg(test)]
mod pages;
mod progress;
mod show;
mod stop;
mod watch;

use std::io::{ErrorKind, IsTerminal as _};
use std::process::ExitCode;

use tracing_subscriber::EnvFilter;

use crate::end::End;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = match config::parse() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    output::choose(cli.json);
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let filter = EnvFilter::new(&cli.log);
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours).init();
    let ended = cli.verb.run();
    stop::yield_to_signal();
    if let Err(report) = &ended {
        failure::tell(report);
    }
    match (output::failure(), ended) {
        (Some(error), _) if error.kind() == ErrorKind::BrokenPipe => ExitCode::from(141),
        (Some(error), _) => {
            eprintln!("error: standard output cannot be written: {error}; name a file on a disk with space");
            ExitCode::FAILURE
        }
        (None, Ok(End::Done)) => ExitCode::SUCCESS,
        (None, Ok(End::Stopped)) => ExitCode::from(130),
        (None, Err(report)) => ExitCode::from(if failure::is_usage(&report) { 2 } else { 1 }),
    }
}
