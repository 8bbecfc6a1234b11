//! Why a node's process ended, from the end of its log: there it has written its output too.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

use serde::Deserialize;
use templar_record::event::NodeEvent;

/// The end of the log that is read.
const TAIL_BYTES: u64 = 64 << 10;
/// Longest quotation, in characters.
const QUOTED_MAX: usize = 400;
/// Codes of failures that a restart with the same options meets again: `docs/errors.md` lists all codes.
const PERMANENT: [&str; 4] = ["usage", "run", "local-state", "io"];

/// Why a process ended, in its own words, and what helps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LastWords {
    pub(crate) text: String,
    pub(crate) cure: Cure,
}

/// Whether a node that ended is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cure {
    Restart,
    /// The next start would end alike.
    None,
}

/// The document with which a verb ends that fails with `--json`.
#[derive(Deserialize)]
struct Document {
    error: Failure,
}

#[derive(Deserialize)]
struct Failure {
    code: String,
    message: String,
    #[serde(default)]
    because: Vec<String>,
}

/// What a process says in its log from byte `start` on.
pub(crate) fn last_words(log: &Path, start: u64) -> LastWords {
    let tail = tail(log, start).unwrap_or_default();
    let mut lines = tail.lines().rev().map(str::trim).filter(|line| !line.is_empty());
    let document = lines.clone().find_map(|line| serde_json::from_str::<Document>(line).ok());
    if let Some(Document { error: Failure { code, message, because } }) = document {
        let cure = if PERMANENT.contains(&code.as_str()) { Cure::None } else { Cure::Restart };
        return LastWords { text: quoted(&[vec![message], because].concat().join(": ")), cure };
    }
    // A panic, the system's loader, or nothing because it was killed.
    let line = lines.find(|line| !is_progress(line));
    LastWords { text: line.map_or_else(|| "it left no message".to_owned(), quoted), cure: Cure::Restart }
}

/// Whether a line tells of an event, or of what went well.
fn is_progress(line: &str) -> bool {
    let level = line.split_whitespace().nth(1);
    matches!(level, Some("INFO" | "DEBUG" | "TRACE")) || serde_json::from_str::<NodeEvent>(line).is_ok()
}

fn tail(log: &Path, start: u64) -> std::io::Result<String> {
    let mut file = File::open(log)?;
    let start = start.max(file.metadata()?.len().saturating_sub(TAIL_BYTES));
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Without control characters, and not too long for a terminal.
fn quoted(text: &str) -> String {
    let shown: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(QUOTED_MAX).collect();
    if text.chars().count() > QUOTED_MAX { format!("{shown}…") } else { shown }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_says_why_its_process_ended_and_whether_a_restart_helps() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let words = |text: &str, start| {
            std::fs::write(&log, text).unwrap();
            last_words(&log, start)
        };
        let of = |text: &str, cure| LastWords { text: text.to_owned(), cure };
        let document =
            |code: &str| format!(r#"{{"error":{{"code":"{code}","message":"no","because":["it is bad"]}}}}"#);
        let event = r#"{"node":"a","event":"opened","window":1}"#;
        for code in PERMANENT {
            let said = format!("{event}\n{}\nWARN later\n", document(code));
            assert_eq!(words(&said, 0), of("no: it is bad", Cure::None), "{code}");
        }
        for code in ["chain", "storage", "engine", "node", "other"] {
            assert_eq!(words(&document(code), 0), of("no: it is bad", Cure::Restart), "{code}");
        }
        let earlier = document("usage") + "\n";
        let start = earlier.len() as u64;
        assert_eq!(words(&format!("{earlier}thread panicked\n{event}\n"), start), of("thread panicked", Cure::Restart));
        let info = "2026-01-01T00:00:00Z  INFO templar_node: it went well";
        assert_eq!(words(&format!("{earlier}{event}\n{info}\n"), start), of("it left no message", Cure::Restart));
        let long = words(&"é\u{1b}".repeat(1000), 0).text;
        assert!(long.chars().count() == QUOTED_MAX + 1 && !long.contains('\u{1b}'), "{long}");
    }
}
