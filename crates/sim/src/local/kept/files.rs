//! The files of a network's folder: their names, and how they are read and written whole.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;

use templar_record::log::LogError;

/// Names of the files.
pub(super) const DEFINITION: &str = "network.toml";
pub(super) const RUN: &str = "run.toml";
pub const EVENTS: &str = "events.jsonl";
pub(super) const LOCK: &str = "lock";
/// Ending of a file that is being written.
pub(super) const TEMPORARY: &str = "tmp";
/// Longest file that is read as a whole.
const TEXT_BYTES_MAX: u64 = 64 * 1024;

/// Why a folder cannot be used, or used again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeptError {
    #[error("{path}: {source}; check free space and permissions")]
    Io { path: String, source: std::io::Error },
    #[error("another process runs the network in {folder}, or exports it: wait for its end, or stop it")]
    InUse { folder: String },
    #[error("{path} is not the file that `templar demo` or `templar localnet` wrote: {reason}; name another folder")]
    Malformed { path: String, reason: String },
    #[error("{folder} holds no network: name a folder that `templar demo` or `templar localnet` was given as --folder")]
    NoNetwork { folder: String },
    #[error("the network in {folder} was stopped before it was set up: it has no result yet")]
    NeverStood { folder: String },
    #[error(
        "{folder} holds a network that was started with other options: --{option} was {was}, and is {is} now. Give the same \
         options to go on with it, or name another folder"
    )]
    Differs { folder: String, option: &'static str, was: String, is: String },
    #[error(
        "{folder} holds a network of `templar {was}`, which `templar {is}` cannot go on with: give templar {was} this \
         folder, or name another one"
    )]
    OtherVerb { folder: String, was: &'static str, is: &'static str },
    #[error(
        "the network in {folder} has trained {trained} windows, and --windows asks for {windows}. Keep its model with \
         `templar export {folder} --out DIR`, or give a greater --windows to train on"
    )]
    Finished { folder: String, trained: u64, windows: u64 },
    #[error(transparent)]
    Log(#[from] LogError),
}

pub(super) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> KeptError + '_ {
    move |source| KeptError::Io { path: path.display().to_string(), source }
}

pub(super) fn text(path: &Path) -> Result<String, KeptError> {
    let mut text = String::new();
    let file = File::open(path).map_err(io(path))?;
    file.take(TEXT_BYTES_MAX).read_to_string(&mut text).map_err(io(path))?;
    Ok(text)
}

/// Writes the whole file or nothing.
pub(super) fn replace(path: &Path, text: &str) -> Result<(), KeptError> {
    let temporary = path.with_extension(TEMPORARY);
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(io(path))
}
