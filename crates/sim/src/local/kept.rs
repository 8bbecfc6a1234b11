//! What a network keeps in its folder besides the nodes' own files, so that it can resume after a kill, and so that its
//! model and report can be made from the folder alone.
//!
//! | file | what |
//! |---|---|
//! | `network.toml` | how the network was started |
//! | `run.toml` | the run; it is written last, so a folder without it was never fully set up |
//! | `events.jsonl` | every event that was heard, see [`templar_record::log`] |
//! | `lock` | locked while a process runs the network, or exports it |

mod definition;
mod files;

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Instant;

use templar_protocol::run::RunSpec;
use templar_record::event::{Event, NodeEvent};
use templar_record::log::{self, Writer};
use templar_record::recorder::{Participant, Recorder};

pub use crate::local::kept::definition::{Definition, Invited, MINERS_MAX, Ring, VALIDATORS_MAX, WINDOWS_MAX};
pub use crate::local::kept::files::{EVENTS, KeptError};
use crate::local::kept::files::{LOCK, RUN, io, replace, text};
use crate::plan::Member;

/// The development chain's database.
pub(crate) const CHAIN: &str = "chain.sqlite";

/// What an earlier start may have left of a network that was never set up.
const LEFTOVERS: [&str; 7] = ["dataset", "weights", "s3", "nodes", "guests", EVENTS, CHAIN];

/// A network's folder, locked for this process.
#[derive(Debug)]
pub struct Kept {
    folder: PathBuf,
    _lock: File,
    pub definition: Definition,
    /// The run, if the network was set up before.
    pub spec: Option<RunSpec>,
    /// All events so far.
    pub(crate) recorder: Recorder,
    /// How long earlier starts ran, and when this one began.
    ran_before_s: f64,
    opened: Instant,
    /// `None` once writing has failed.
    log: Option<Writer<File>>,
}

impl Kept {
    /// Opens the folder of a network that is to start or to resume.
    pub(crate) fn open(folder: &Path, now: &Definition) -> Result<Self, KeptError> {
        fs::create_dir_all(folder).map_err(io(folder))?;
        let lock = lock(folder)?;
        let name = || folder.display().to_string();
        let (opened, mut definition) = (Instant::now(), now.clone());
        let mut spec = None;
        if Definition::is_in(folder) {
            let was = Definition::read(folder)?;
            if was.verb != now.verb {
                return Err(KeptError::OtherVerb { folder: name(), was: was.verb.verb(), is: now.verb.verb() });
            }
            if let Some((option, was, is)) = was.difference(now) {
                return Err(KeptError::Differs { folder: name(), option, was, is });
            }
            (definition.chain, definition.buckets, definition.wall_s) = (was.chain, was.buckets, was.wall_s);
            spec = read_run(folder)?;
            if spec.is_none() {
                remove_leftovers(folder)?;
            } else {
                definition.keep_guests(was.guests);
            }
        }
        let recorder = replay(folder, &definition)?;
        let everybody = definition.miners + definition.validators;
        let last = definition.windows - 1;
        if spec.is_some() && (recorder.settled(last) >= everybody || recorder.validated(last)) {
            let trained = (0..WINDOWS_MAX).take_while(|window| recorder.settled(*window) > 0).count() as u64;
            return Err(KeptError::Finished { folder: name(), trained, windows: definition.windows });
        }
        // A refusal changes nothing.
        definition.write(folder)?;
        let log = Some(append(&folder.join(EVENTS))?);
        let (folder, ran_before_s) = (folder.to_path_buf(), definition.wall_s);
        Ok(Self { folder, _lock: lock, definition, spec, recorder, ran_before_s, opened, log })
    }

    /// Opens the folder of a network that ran, for reading.
    pub(crate) fn read(folder: &Path) -> Result<(Self, RunSpec), KeptError> {
        let definition = Definition::read(folder)?;
        let lock = lock(folder)?;
        let never = || KeptError::NeverStood { folder: folder.display().to_string() };
        let spec = read_run(folder)?.ok_or_else(never)?;
        let recorder = replay(folder, &definition)?;
        let (folder, ran_before_s, opened) = (folder.to_path_buf(), definition.wall_s, Instant::now());
        let kept = Self { folder, _lock: lock, definition, spec: None, recorder, ran_before_s, opened, log: None };
        Ok((kept, spec))
    }

    /// Records where the network is served, and then that it is set up.
    pub(crate) fn stands(&mut self, spec: &RunSpec, chain: SocketAddr, buckets: SocketAddr) -> Result<(), KeptError> {
        (self.definition.chain, self.definition.buckets) = (Some(chain), Some(buckets));
        self.definition.write(&self.folder)?;
        replace(&self.folder.join(RUN), &spec.to_toml())
    }

    /// Records how long the network has run, all its starts together.
    pub(crate) fn note_time(&mut self) {
        self.definition.wall_s = self.ran_before_s + self.opened.elapsed().as_secs_f64();
        if let Err(error) = self.definition.write(&self.folder) {
            tracing::debug!("{error}");
        }
    }

    /// Windows that some node has already settled, and those that were validated.
    pub(crate) fn progress(&self) -> (u64, u64) {
        let all = 0..self.definition.windows;
        let settled = all.clone().take_while(|window| self.recorder.settled(*window) > 0).count() as u64;
        (settled, all.take_while(|window| self.recorder.validated(*window)).count() as u64)
    }

    /// Records an event. A log that cannot be written is reported once, and does not stop the network.
    pub(crate) fn hear(&mut self, event: &NodeEvent) {
        let is_first = matches!(event.event, Event::Settled { window, .. } if self.recorder.settled(window) == 0);
        self.recorder.record(event);
        if is_first {
            self.note_time();
        }
        if let Some(log) = &mut self.log
            && let Err(error) = log.write(event)
        {
            tracing::warn!("{error}");
            self.log = None;
        }
    }
}

/// The database of a network's chain, which must be there: opening it would make a new one.
pub(crate) fn chain_of(folder: &Path) -> Result<PathBuf, KeptError> {
    let path = folder.join(CHAIN);
    if path.is_file() {
        return Ok(path);
    }
    let reason = "the network's chain is missing: copy the whole folder".to_owned();
    Err(KeptError::Malformed { path: path.display().to_string(), reason })
}

/// Members and guests, as the report lists them.
pub(crate) fn participants(members: &[Member], guests: &[Invited]) -> Vec<Participant> {
    let guest = |guest: &Invited| Participant {
        name: guest.name.clone(),
        role: guest.role,
        behaviour: "guest".to_owned(),
        hotkey: guest.hotkey,
    };
    members.iter().map(Member::participant).chain(guests.iter().map(guest)).collect()
}

fn replay(folder: &Path, definition: &Definition) -> Result<Recorder, KeptError> {
    let members =
        crate::plan::members(definition.seed, definition.miners, definition.validators, &definition.adversaries);
    let mut recorder = Recorder::new(participants(&members, &definition.guests));
    let path = folder.join(EVENTS);
    match File::open(&path) {
        Ok(file) => {
            for event in log::read(BufReader::new(file)) {
                recorder.record(&event?);
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(io(&path)(error)),
    }
    Ok(recorder)
}

/// Opens the log for appending. A line that a kill cut off is ended first.
fn append(path: &Path) -> Result<Writer<File>, KeptError> {
    let open = || -> std::io::Result<Writer<File>> {
        let mut file = OpenOptions::new().create(true).read(true).append(true).open(path)?;
        let mut bytes = file.metadata()?.len();
        if bytes > 0 {
            let mut last = [0];
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                file.write_all(b"\n")?;
                bytes += 1;
            }
        }
        Ok(Writer::new(file, bytes))
    };
    open().map_err(io(path))
}

fn lock(folder: &Path) -> Result<File, KeptError> {
    let path = folder.join(LOCK);
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(io(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(KeptError::InUse { folder: folder.display().to_string() }),
        Err(TryLockError::Error(error)) => Err(io(&path)(error)),
    }
}

fn read_run(folder: &Path) -> Result<Option<RunSpec>, KeptError> {
    let path = folder.join(RUN);
    if !path.exists() {
        return Ok(None);
    }
    let malformed = |error: templar_protocol::run::RunSpecError| KeptError::Malformed {
        path: path.display().to_string(),
        reason: error.to_string(),
    };
    RunSpec::from_toml(&text(&path)?).map(Some).map_err(malformed)
}

fn remove_leftovers(folder: &Path) -> Result<(), KeptError> {
    for name in LEFTOVERS {
        let path = folder.join(name);
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        match removed {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io(&path)(error)),
            _ => {}
        }
    }
    for suffix in ["-wal", "-shm"] {
        let _ = fs::remove_file(folder.join(format!("chain.sqlite{suffix}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
