//! A node's own disk: a SQLite database for what is small, files beside it for what is large.
//!
//! Files are written under a temporary name, synced and renamed before the database names them, and one database
//! transaction moves from one consistent state to the next. So a process killed at any moment finds, at its next
//! start, the state after some window, complete. The database is locked while a node has it open, so that no two
//! processes sign for one hotkey from one folder. What the database holds is listed in [`crate::frame::records`].

mod database;

use std::path::Path;
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, params};
use templar_protocol::hash::Hash32;
use templar_protocol::keys::Hotkey;
use templar_protocol::layout::Layout;
use templar_protocol::run::{PROTOCOL_VERSION, RunId};
use templar_protocol::state::RunState;

use crate::frame::error::NodeError;
use crate::frame::files::{Damage, Disk, Failure, Files};
use crate::frame::floats::from_bytes;
use crate::frame::records::{self, Record, RecordError, StateRecord, Stored, ThetaRecord};
use crate::frame::theta;

/// Patches on one whole θ. Each is read at a start, and damage to the whole θ takes all of them with it.
const PATCHES_MAX: usize = 15;
/// Bytes written to the database after which its log is folded back into it.
const FOLD_BYTES: u64 = 1 << 20;

/// How much of the state that only it has a miner writes per window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Saving {
    /// Everything, exactly: a miner that is killed continues as if it had not been. 12 bytes per parameter and window.
    Exact,
    /// Error feedback in bf16, the optimiser's moments every 16th window: 2.5 bytes per parameter and window. A restart
    /// costs precision, but nothing that was learned.
    Sparing,
}

/// The local state of one node in one run.
#[derive(Debug)]
pub struct Local {
    files: Files,
    database: Connection,
    /// What [`Local::save`] wrote last. It need not be written again, and a patch starts from it.
    saved: Option<Saved>,
    unfolded_bytes: u64,
}

#[derive(Debug)]
struct Saved {
    settled: u64,
    root: Hash32,
    theta: Arc<Vec<f32>>,
    record: ThetaRecord,
}

impl Local {
    /// Opens or creates the state of `hotkey` in `run` below `root`. Neither runs nor hotkeys share anything, nor do
    /// versions of the protocol.
    ///
    /// Fails with [`NodeError::InUse`] while another process has it open, and with [`NodeError::LocalRecord`] if a
    /// newer release wrote it.
    pub fn open(root: &Path, run: RunId, hotkey: &Hotkey, disk: Disk) -> Result<Self, NodeError> {
        // Both hashes in full, because shorter names can be made to collide.
        let folder = root.join(format!("v{PROTOCOL_VERSION}-{}-{}", run.0, hotkey));
        let database = database::connect(&folder, disk).map_err(|failure| failure.at(&folder))?;
        let local = Self { files: Files::new(folder, disk), database, saved: None, unfolded_bytes: 0 };
        database::check_format(&local.database, local.files.folder())?;
        Ok(local)
    }

    /// The folder of the state.
    pub fn folder(&self) -> &Path {
        self.files.folder()
    }

    /// All stored states of `run`, newest first.
    pub fn states(&self, run: RunId) -> Result<Vec<RunState>, NodeError> {
        let rows: Vec<(i64, Vec<u8>)> =
            database::rows(&self.database, "SELECT settled, bytes FROM state ORDER BY settled DESC")
                .map_err(|f| self.failed(f))?;
        let state = |(_, bytes): (i64, Vec<u8>)| {
            let record = self.decode::<StateRecord>(&bytes)?;
            RunState::from_bytes(&record.state, run).map_err(|error| {
                let source = RecordError::Layout { version: StateRecord::VERSION, reason: error.to_string() };
                database::unreadable(self.folder(), StateRecord::NAME, source)
            })
        };
        rows.into_iter().map(state).collect()
    }

    /// θ of `state`, which has passed the check of its root.
    pub fn theta(&self, state: &RunState, layout: &Layout) -> Result<Vec<f32>, Damage> {
        let record = self.theta_record(state.settled).map_err(|error| Damage { cause: error.to_string() })?;
        let record = record.ok_or_else(|| Damage { cause: "the database does not have it".to_owned() })?;
        let mut theta = from_bytes(&self.files.read(&record.whole)?);
        for name in &record.patches {
            if !theta::apply(&mut theta, &self.files.read(name)?) {
                return Err(Damage { cause: format!("{name} is not a patch of it") });
            }
        }
        if theta.len() != layout.len() || layout.state_root(&theta) != state.theta_root {
            return Err(Damage { cause: format!("{} is not what the state's root names", record.whole) });
        }
        Ok(theta)
    }

    fn theta_record(&self, settled: u64) -> Result<Option<ThetaRecord>, NodeError> {
        let read = || {
            self.database.query_row("SELECT bytes FROM state WHERE settled = ?1", [settled as i64], |row| row.get(0))
        };
        let bytes: Option<Vec<u8>> = read().optional().map_err(|error| self.failed(error.into()))?;
        bytes.map(|bytes| Ok(self.decode::<StateRecord>(&bytes)?.theta)).transpose()
    }

    /// Stores a state together with named records, as one step; forgets states too old to go back to, and those after
    /// it that the network did not certify.
    pub fn save(&mut self, state: &RunState, theta: &Arc<Vec<f32>>, values: &[Stored]) -> Result<(), NodeError> {
        let (settled, root) = (state.settled, state.theta_root);
        let is_new = self.saved.as_ref().is_none_or(|saved| (saved.settled, saved.root) != (settled, root));
        let record = self.write_theta(state, theta)?;
        let row = Stored::of(&StateRecord { state: state.to_bytes(), theta: record.clone() });
        let bytes: u64 = values.iter().chain([&row]).map(|stored| stored.bytes.len() as u64).sum();
        let kept = database::save_rows(&mut self.database, settled, &row, values);
        let kept = kept.map_err(|error| self.failed(Failure::from(error).of(bytes)))?;
        self.saved = Some(Saved { settled, root, theta: theta.clone(), record });
        if is_new {
            let mut names = Vec::new();
            for row in &kept {
                names.extend(self.decode::<StateRecord>(row)?.theta.files().map(str::to_owned));
            }
            // By what the folder holds, not by what was just dropped: a crash may have left files that no state names.
            self.retain_files("theta", &names.iter().map(String::as_str).collect::<Vec<_>>())?;
        }
        self.fold(bytes)
    }

    /// The files of θ: those of the last state if it has the same θ, else a patch on them if that is shorter.
    fn write_theta(&self, state: &RunState, theta: &[f32]) -> Result<ThetaRecord, NodeError> {
        if let Some(saved) = &self.saved {
            if saved.root == state.theta_root {
                return Ok(saved.record.clone());
            }
            let name = theta_name(state, "patch");
            // A node that goes back comes by a state again whose patch stands on another state, and which others stand
            // on.
            if saved.record.patches.len() < PATCHES_MAX
                && !self.files.has(&name)
                && let Some(patch) = theta::patch(&saved.theta, theta)
            {
                self.files.write(&name, &patch)?;
                let mut record = saved.record.clone();
                record.patches.push(name);
                return Ok(record);
            }
        }
        let name = theta_name(state, "bin");
        self.files.write_floats(&name, theta)?;
        Ok(ThetaRecord { whole: name, patches: Vec::new() })
    }

    /// A stored record; `None` if none was stored.
    pub fn get<R: Record>(&self) -> Result<Option<R>, NodeError> {
        let read = || self.database.query_row("SELECT bytes FROM value WHERE name = ?1", [R::NAME], |row| row.get(0));
        let bytes: Option<Vec<u8>> = read().optional().map_err(|error| self.failed(error.into()))?;
        bytes.map(|bytes| self.decode(&bytes)).transpose()
    }

    pub fn set<R: Record>(&mut self, record: &R) -> Result<(), NodeError> {
        let Stored { name, bytes } = Stored::of(record);
        let write = self.database.execute("INSERT OR REPLACE INTO value VALUES (?1, ?2)", params![name, bytes]);
        write.map_err(|error| self.failed(Failure::from(error).of(bytes.len() as u64)))?;
        self.fold(bytes.len() as u64)
    }

    /// Folds the database's log back into it from time to time. No other process reads it, so this never has to wait.
    fn fold(&mut self, bytes: u64) -> Result<(), NodeError> {
        self.unfolded_bytes += bytes;
        if self.unfolded_bytes < FOLD_BYTES {
            return Ok(());
        }
        self.unfolded_bytes = 0;
        let folded = self.database.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        folded.map_err(|error| self.failed(Failure::from(error).of(FOLD_BYTES)))
    }

    /// Stores a large value under a name derived from its content, and returns the name.
    pub fn put_file(&self, kind: &str, bytes: &[u8]) -> Result<String, NodeError> {
        self.files.put(kind, bytes)
    }

    /// Reads a large value, and checks that its content matches its name.
    pub fn file(&self, name: &str) -> Result<Vec<u8>, Damage> {
        self.files.get(name)
    }

    /// Removes all files of a kind except `keep`.
    pub fn retain_files(&self, kind: &str, keep: &[&str]) -> Result<(), NodeError> {
        self.files.retain(kind, keep)
    }

    fn decode<R: Record>(&self, bytes: &[u8]) -> Result<R, NodeError> {
        records::decode(bytes).map_err(|source| database::unreadable(self.folder(), R::NAME, source))
    }

    fn failed(&self, failure: Failure) -> NodeError {
        failure.at(self.folder())
    }
}

/// With the root: a state that took another's place has other files, so that neither is ever overwritten.
fn theta_name(state: &RunState, kind: &str) -> String {
    format!("theta-{:08}-{}.{kind}", state.settled, state.theta_root.short())
}

#[cfg(test)]
mod tests;
