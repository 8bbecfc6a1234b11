//! How a failed verb reports: in words on standard error, or with `--json` as one JSON document on standard output.

use std::error::Error;
use std::fmt;

use color_eyre::Report;
use serde_json::{Value, json};
use templar_chain::ChainError;
use templar_data::{OpenError, PrepareError, ReadError};
use templar_host::connection::ConnectError;
use templar_node::frame::dataset::DatasetError;
use templar_node::frame::error::NodeError;
use templar_node::frame::weights::WeightsError;
use templar_protocol::run::RunSpecError;
use templar_sim::local::audit::ServeError;
use templar_sim::local::error::NetworkError;
use templar_sim::local::export::ExportError;
use templar_sim::local::kept::KeptError;
use templar_sim::local::needs::NeedsError;
use templar_store::StoreError;
use templar_train::TrainError;

use crate::output::{self, is_json, say};

/// A failure whose code no type of a library says. It reads as its cause does.
#[derive(Debug)]
struct Coded {
    code: &'static str,
    cause: Box<dyn Error + Send + Sync>,
}

impl fmt::Display for Coded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cause.fmt(f)
    }
}

impl Error for Coded {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause.source()
    }
}

/// Gives a failure its code.
pub(crate) fn coded(code: &'static str) -> impl Fn(Report) -> Report {
    move |report| Report::new(Coded { code, cause: report.into() })
}

/// The exit code of a verb that failed.
pub(crate) fn exit_code(report: &Report) -> u8 {
    match code(report) {
        // Only the verb could tell that the command line was wrong.
        "usage" => 2,
        "invariant" | "replay" => 3,
        _ => 1,
    }
}

/// Says that a signal ended the verb.
pub(crate) fn tell_stopped() {
    if is_json() {
        let stopped = document("stopped", &["stopped by Ctrl-C or SIGTERM before it was done".to_owned()]);
        output::write_last(format_args!("{stopped}"));
    }
}

/// Says why a verb failed.
pub(crate) fn tell(report: &Report) {
    let causes = causes(report);
    if is_json() {
        say!("{}", document(code(report), &causes));
    } else {
        eprintln!("error: {}", output::plain(&causes.join("\n  because: ")));
    }
}

/// Says what is wrong with the usage, without what the parser adds for people.
pub(crate) fn tell_usage(message: &str) {
    let message = message.strip_prefix("error: ").unwrap_or(message);
    let is_ornament = |part: &&str| part.starts_with("Usage:") || part.starts_with("For more information");
    let parts = message.trim_end().split("\n\n").filter(|part| !is_ornament(part));
    say!("{}", document("usage", &parts.map(|part| part.trim().to_owned()).collect::<Vec<_>>()));
}

fn document(code: &str, causes: &[String]) -> Value {
    let (message, because) = causes.split_first().map_or(("", [].as_slice()), |(first, rest)| (first.as_str(), rest));
    // Several things beside each other have a line each.
    let message = message.lines().map(str::trim).collect::<Vec<_>>().join("; ").replace(":; ", ": ");
    let because: Vec<&str> = because.iter().flat_map(|cause| cause.lines()).map(str::trim).collect();
    json!({ "error": { "code": code, "message": message, "because": because } })
}

/// The message and its causes, outermost first. Many messages end with their cause, which is not repeated.
fn causes(report: &Report) -> Vec<String> {
    let mut causes: Vec<String> = report.chain().map(ToString::to_string).collect();
    causes.dedup_by(|cause, before| before.contains(cause.as_str()));
    causes
}

/// The code of the first error in the chain that has one.
fn code(report: &Report) -> &'static str {
    report.chain().find_map(code_of).unwrap_or("other")
}

fn code_of(error: &(dyn Error + 'static)) -> Option<&'static str> {
    if let Some(coded) = error.downcast_ref::<Coded>() {
        return Some(coded.code);
    }
    if let Some(error) = error.downcast_ref::<NetworkError>() {
        return Some(match error {
            NetworkError::Prepare(_) | NetworkError::Open(_) | NetworkError::Dataset(_) => "data",
            _ => "network",
        });
    }
    if let Some(error) = error.downcast_ref::<NodeError>() {
        return Some(code_of_node(error));
    }
    if let Some(error) = error.downcast_ref::<WeightsError>() {
        return Some(code_of_weights(error));
    }
    if let Some(error) = error.downcast_ref::<ConnectError>() {
        return Some(match error {
            ConnectError::Chain { .. } => "chain",
            ConnectError::Store(_) => "storage",
            ConnectError::Dataset(_) => "data",
            ConnectError::Seat(error) => code_of_node(error),
            ConnectError::Engine(_) => "engine",
            _ => "node",
        });
    }
    let kinds: [(bool, &str); 7] = [
        (error.is::<RunSpecError>(), "run"),
        (
            error.is::<OpenError>()
                || error.is::<PrepareError>()
                || error.is::<ReadError>()
                || error.is::<DatasetError>(),
            "data",
        ),
        (error.is::<ChainError>(), "chain"),
        (error.is::<StoreError>(), "storage"),
        (error.is::<TrainError>(), "engine"),
        (
            error.is::<KeptError>()
                || error.is::<ExportError>()
                || error.is::<ServeError>()
                || error.is::<NeedsError>(),
            "network",
        ),
        (error.is::<std::io::Error>(), "io"),
    ];
    kinds.into_iter().find_map(|(is, code)| is.then_some(code))
}

fn code_of_node(error: &NodeError) -> &'static str {
    match error {
        NodeError::InUse { .. }
        | NodeError::Local { .. }
        | NodeError::LocalRecord { .. }
        | NodeError::DiskFull { .. } => "local-state",
        NodeError::WrongDataset { .. } | NodeError::DatasetDoesNotFitModel { .. } | NodeError::Data(_) => "data",
        NodeError::WrongTheta0 { .. } | NodeError::NoWeights { .. } => "run",
        NodeError::Weights(error) => code_of_weights(error),
        NodeError::WrongChain { .. } | NodeError::NotRegistered { .. } | NodeError::Chain(_) => "chain",
        NodeError::PublishedKeyWrites { .. } | NodeError::AnybodyWrites { .. } => "credentials",
        NodeError::Bucket(_) | NodeError::Store(_) => "storage",
        NodeError::Train(_) => "engine",
        _ => "node",
    }
}

fn code_of_weights(error: &WeightsError) -> &'static str {
    match error {
        WeightsError::Store(_) => "storage",
        WeightsError::Io { .. } => "io",
        WeightsError::NotFinite { .. } => "run",
        _ => "data",
    }
}

#[cfg(test)]
mod tests {
    use color_eyre::eyre::{Context as _, eyre};

    use super::*;

    #[test]
    fn a_failure_has_the_code_of_its_first_typed_cause_and_says_nothing_twice() {
        let io = std::io::Error::other("the disk is gone");
        let report = Err::<(), _>(io).wrap_err("model.bin: the disk is gone").wrap_err("no model").unwrap_err();
        assert_eq!(code(&report), "io");
        assert_eq!(causes(&report), ["no model", "model.bin: the disk is gone"]);
        assert_eq!(code(&eyre!("no word of it")), "other");
        let local = NodeError::Local { path: "p".into(), reason: "r".into() };
        assert_eq!(code(&Report::new(local).wrap_err("node ended")), "local-state");
        let marked = coded("network")(eyre!("inner").wrap_err("outer")).wrap_err("advice");
        assert_eq!(
            (code(&marked), causes(&marked)),
            ("network", vec!["advice".into(), "outer".into(), "inner".into()])
        );
    }

    #[test]
    fn every_code_has_its_line_in_the_documentation() {
        let (page, source) = (include_str!("../../../docs/errors.md"), include_str!("failure.rs"));
        let source = source.split("mod tests").next().unwrap();
        let is_code =
            |text: &&str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
        let codes: Vec<&str> = source.split('"').skip(1).step_by(2).filter(is_code).collect();
        let codes: Vec<&str> =
            codes.into_iter().filter(|code| !["error", "code", "message", "because"].contains(code)).collect();
        assert!(codes.len() >= 11, "{codes:?}");
        for code in codes {
            assert!(page.contains(&format!("| `{code}` |")), "docs/errors.md does not list {code}");
        }
    }
}
