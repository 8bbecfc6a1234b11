//! A node's own disk: a SQLite database for what is small, files beside it for what is large.
//!
//! Files are written under a temporary name, synced and renamed before the database speaks of them, and one database
//! transaction moves from one consistent state to the next. So a process killed at any moment finds, at its next
//! start, the state after some window, complete.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension, params};
use templar_protocol::hash::Hash32;
use templar_protocol::layout::Layout;
use templar_protocol::run::{PROTOCOL_VERSION, RunId};
use templar_protocol::state::RunState;

use crate::error::NodeError;

/// States kept, so that a diverged node can go back without a download.
const STATES_KEPT: u64 = 3;

/// The local state of one node in one run.
#[derive(Debug)]
pub struct Local {
    folder: PathBuf,
    database: Connection,
}

impl Local {
    /// Opens or creates the state of `run` below `root`. Runs do not share anything.
    pub fn open(root: &Path, run: RunId) -> Result<Self, NodeError> {
        let folder = root.join(format!("v{PROTOCOL_VERSION}-{}", run.0.short()));
        let open = || -> Result<Connection, Failure> {
            fs::create_dir_all(&folder)?;
            let database = Connection::open(folder.join("node.sqlite"))?;
            database.execute_batch(
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
                 CREATE TABLE IF NOT EXISTS state (settled INTEGER PRIMARY KEY, bytes BLOB NOT NULL) STRICT;
                 CREATE TABLE IF NOT EXISTS value (name TEXT PRIMARY KEY, bytes BLOB NOT NULL) STRICT;",
            )?;
            Ok(database)
        };
        let database = open().map_err(|failure| failure.at(&folder))?;
        Ok(Self { folder, database })
    }

    /// All stored states of `run`, newest first.
    pub fn states(&self, run: RunId) -> Result<Vec<RunState>, NodeError> {
        let read = || -> Result<Vec<Vec<u8>>, Failure> {
            let mut query = self.database.prepare("SELECT bytes FROM state ORDER BY settled DESC")?;
            Ok(query.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?)
        };
        let rows = read().map_err(|failure| failure.at(&self.folder))?;
        Ok(rows.iter().filter_map(|bytes| RunState::from_bytes(bytes, run).ok()).collect())
    }

    /// θ of `state`; none if the file is missing or not what the state's root names.
    pub fn theta(&self, state: &RunState, layout: &Layout) -> Option<Vec<f32>> {
        let theta = self.read_floats(&theta_name(state.settled)).ok()?;
        (theta.len() == layout.len() && layout.state_root(&theta) == state.theta_root).then_some(theta)
    }

    /// Stores a state together with named values, as one step; forgets states too old to go back to.
    pub fn save(&mut self, state: &RunState, theta: &[f32], values: &[(&str, Vec<u8>)]) -> Result<(), NodeError> {
        let folder = self.folder.clone();
        let mut write = || -> Result<(), Failure> {
            write_file(&self.folder.join(theta_name(state.settled)), &to_bytes(theta))?;
            let transaction = self.database.transaction()?;
            transaction.execute(
                "INSERT OR REPLACE INTO state VALUES (?1, ?2)",
                params![state.settled as i64, state.to_bytes()],
            )?;
            for (name, bytes) in values {
                transaction.execute("INSERT OR REPLACE INTO value VALUES (?1, ?2)", params![name, bytes])?;
            }
            let oldest = state.settled.saturating_sub(STATES_KEPT - 1);
            let outdated: Vec<i64> = transaction
                .prepare("SELECT settled FROM state WHERE settled < ?1 OR settled > ?2")?
                .query_map(params![oldest as i64, state.settled as i64], |row| row.get(0))?
                .collect::<Result<_, _>>()?;
            for settled in &outdated {
                transaction.execute("DELETE FROM state WHERE settled = ?1", [settled])?;
            }
            transaction.commit()?;
            for settled in outdated {
                remove_if_there(&self.folder.join(theta_name(settled as u64)))?;
            }
            Ok(())
        };
        write().map_err(|failure| failure.at(&folder))
    }

    pub fn value(&self, name: &str) -> Result<Option<Vec<u8>>, NodeError> {
        let read = || self.database.query_row("SELECT bytes FROM value WHERE name = ?1", [name], |row| row.get(0));
        read().optional().map_err(|error| Failure::from(error).at(&self.folder))
    }

    pub fn set_value(&self, name: &str, bytes: &[u8]) -> Result<(), NodeError> {
        let write = || self.database.execute("INSERT OR REPLACE INTO value VALUES (?1, ?2)", params![name, bytes]);
        write().map(|_| ()).map_err(|error| Failure::from(error).at(&self.folder))
    }

    /// Stores a large value under a name that its content gives, and returns the name.
    pub fn put_file(&self, kind: &str, bytes: &[u8]) -> Result<String, NodeError> {
        let name = format!("{kind}-{}.bin", Hash32::of(bytes).short());
        let path = self.folder.join(&name);
        write_file(&path, bytes).map_err(|error| Failure::from(error).at(&path))?;
        Ok(name)
    }

    /// A large value; none if the file is missing or unreadable.
    pub fn file(&self, name: &str) -> Option<Vec<u8>> {
        fs::read(self.folder.join(name)).ok()
    }

    /// Removes the files of a kind other than `keep`.
    pub fn retain_files(&self, kind: &str, keep: &[&str]) -> Result<(), NodeError> {
        let sweep = || -> io::Result<()> {
            for item in fs::read_dir(&self.folder)? {
                let name = item?.file_name();
                let Some(name) = name.to_str() else { continue };
                if name.starts_with(&format!("{kind}-")) && !keep.contains(&name) {
                    remove_if_there(&self.folder.join(name))?;
                }
            }
            Ok(())
        };
        sweep().map_err(|error| Failure::from(error).at(&self.folder))
    }

    fn read_floats(&self, name: &str) -> io::Result<Vec<f32>> {
        Ok(from_bytes(&fs::read(self.folder.join(name))?))
    }
}

fn theta_name(settled: u64) -> String {
    format!("theta-{settled:08}.bin")
}

/// Little-endian bytes of f32 values.
pub fn to_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// The inverse of [`to_bytes`]; a tail shorter than a value is dropped, and the caller checks the length.
pub fn from_bytes(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|value| f32::from_le_bytes(*value)).collect()
}

fn write_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = fs::File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

enum Failure {
    Io(io::Error),
    Database(rusqlite::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Database(error)
    }
}

impl Failure {
    fn at(self, path: &Path) -> NodeError {
        let reason = match self {
            Self::Io(error) => error.to_string(),
            Self::Database(error) => error.to_string(),
        };
        NodeError::Local { path: path.display().to_string(), reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(settled: u64, layout: &Layout, theta: &[f32]) -> RunState {
        RunState {
            run: RunId(Hash32::of(b"run")),
            settled,
            previous: Hash32::default(),
            theta_root: layout.state_root(theta),
            cursor: 0,
            outer_steps: 0,
            exclusions: vec![],
        }
    }

    #[test]
    fn reopened_state_is_the_last_complete_one() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new([("w".to_owned(), vec![3])]);
        let run = RunId(Hash32::of(b"run"));
        for settled in 0..5u64 {
            let theta = [settled as f32, 1.0, 2.0];
            let mut local = Local::open(folder.path(), run).unwrap();
            local.save(&state(settled, &layout, &theta), &theta, &[("scores", vec![settled as u8])]).unwrap();
        }
        let local = Local::open(folder.path(), run).unwrap();
        let states = local.states(run).unwrap();
        assert_eq!(states.iter().map(|state| state.settled).collect::<Vec<_>>(), [4, 3, 2]);
        assert_eq!(local.theta(&states[0], &layout).unwrap(), [4.0, 1.0, 2.0]);
        assert_eq!(local.value("scores").unwrap(), Some(vec![4]));
        assert!(Local::open(folder.path(), RunId(Hash32::of(b"other"))).unwrap().states(run).unwrap().is_empty());

        fs::write(local.folder.join(theta_name(4)), to_bytes(&[4.0, 1.0, 9.0])).unwrap();
        assert!(local.theta(&states[0], &layout).is_none(), "a flipped bit is not θ");
    }
}
