//! `templar`: strangers' machines train one language model together.
//!
//! This crate is thin: a verb parses its arguments, calls a library crate, and shows the result. Exit codes: 0 done, 1
//! failed (the message says what happened, to what, and what to do next), 2 wrong usage, 3 what was checked does not hold,
//! 130 stopped by Ctrl-C, 141 stopped because whoever read standard output went away.

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
    let filter = log_filter(&cli.log);
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
        (None, Ok(End::Refuted)) => ExitCode::from(3),
        (None, Ok(End::Stopped)) => ExitCode::from(130),
        (None, Err(report)) => ExitCode::from(failure::exit_code(&report)),
    }
}

/// What is logged. The embedded S3 server's library logs every refused request as an error of its own: a guest with a
/// wrong clock or secret would flood the terminal of whoever serves it. The guest is told; here it takes `s3s=error`.
fn log_filter(chosen: &str) -> EnvFilter {
    EnvFilter::new(format!("s3s=off,{chosen}"))
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(chosen: &str) -> String {
        let (lines, filter) = (Lines::default(), log_filter(chosen));
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::error!(target: "s3s::ops", "refused");
            tracing::error!(target: "templar_store::server", "broken");
        });
        let bytes = lines.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn refused_requests_of_others_are_logged_only_if_asked_for() {
        for chosen in ["warn", "info"] {
            assert!(!logged(chosen).contains("refused") && logged(chosen).contains("broken"), "{}", logged(chosen));
        }
        assert!(logged("warn,s3s=error").contains("refused"));
    }
}
