//! A node's own disk: a SQLite database for what is small, files beside it for what is large.
//!
//! Files are written under a temporary name, synced and renamed before the database speaks of them, and one database
//! transaction moves from one consistent state to the next. So a process killed at any moment finds, at its next
//! start, the state after some window, complete. The database is locked while a node has it open, so that no two
//! processes sign for one hotkey from one folder.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use borsh::{BorshDeserialize, BorshSerialize};
use rusqlite::{Connection, OptionalExtension, params};
use templar_protocol::hash::Hash32;
use templar_protocol::keys::Hotkey;
use templar_protocol::layout::Layout;
use templar_protocol::run::{PROTOCOL_VERSION, RunId};
use templar_protocol::state::RunState;

use crate::frame::error::NodeError;

/// States kept, so that a diverged node can go back without a download.
const STATES_KEPT: u64 = 3;
/// How long to wait for a process that is about to end to give the database free.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// The local state of one node in one run.
#[derive(Debug)]
pub struct Local {
    folder: PathBuf,
    database: Connection,
    /// Windows settled and root of θ that [`Local::save`] wrote last: what need not be written again.
    saved: Option<(u64, Hash32)>,
}

impl Local {
    /// Opens or creates the state of `hotkey` in `run` below `root`. Neither runs nor hotkeys share anything.
    ///
    /// Fails with [`NodeError::InUse`] while another process has it open.
    pub fn open(root: &Path, run: RunId, hotkey: &Hotkey) -> Result<Self, NodeError> {
        // Both in full: shorter names can be made to collide.
        let folder = root.join(format!("v{PROTOCOL_VERSION}-{}-{}", run.0, hotkey));
        let open = || -> Result<Connection, Failure> {
            fs::create_dir_all(&folder)?;
            let database = Connection::open(folder.join("node.sqlite"))?;
            database.busy_timeout(LOCK_PATIENCE)?;
            // The empty transaction takes the lock, which an exclusive database keeps until it is closed.
            database.execute_batch(
                "PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
                 CREATE TABLE IF NOT EXISTS state (settled INTEGER PRIMARY KEY, bytes BLOB NOT NULL) STRICT;
                 CREATE TABLE IF NOT EXISTS value (name TEXT PRIMARY KEY, bytes BLOB NOT NULL) STRICT;
                 BEGIN EXCLUSIVE; COMMIT;",
            )?;
            Ok(database)
        };
        let database = open().map_err(|failure| failure.at(&folder))?;
        Ok(Self { folder, database, saved: None })
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

    /// Stores a state together with named values, as one step; forgets states too old to go back to, and those of a
    /// future that did not come to be.
    pub fn save(&mut self, state: &RunState, theta: &[f32], values: &[(&str, Vec<u8>)]) -> Result<(), NodeError> {
        let folder = self.folder.clone();
        let saved = (state.settled, state.theta_root);
        let is_new = self.saved != Some(saved);
        let mut write = || -> Result<Vec<String>, Failure> {
            if is_new {
                write_file(&self.folder.join(theta_name(state.settled)), &to_bytes(theta))?;
            }
            let transaction = self.database.transaction()?;
            transaction.execute(
                "INSERT OR REPLACE INTO state VALUES (?1, ?2)",
                params![state.settled as i64, state.to_bytes()],
            )?;
            for (name, bytes) in values {
                transaction.execute("INSERT OR REPLACE INTO value VALUES (?1, ?2)", params![name, bytes])?;
            }
            let oldest = state.settled.saturating_sub(STATES_KEPT - 1);
            transaction.execute(
                "DELETE FROM state WHERE settled < ?1 OR settled > ?2",
                params![oldest as i64, state.settled as i64],
            )?;
            let kept = transaction
                .prepare("SELECT settled FROM state")?
                .query_map([], |row| Ok(theta_name(row.get::<_, i64>(0)? as u64)))?
                .collect::<Result<_, _>>()?;
            transaction.commit()?;
            Ok(kept)
        };
        let kept = write().map_err(|failure| failure.at(&folder))?;
        self.saved = Some(saved);
        // By what is there rather than by what was just dropped: a crash may have left files that no state names.
        if is_new { self.retain_files("theta", &kept.iter().map(String::as_str).collect::<Vec<_>>()) } else { Ok(()) }
    }

    /// A stored value; none if there is none, or not one of this type.
    pub fn get<T: BorshDeserialize>(&self, name: &str) -> Result<Option<T>, NodeError> {
        Ok(self.value(name)?.and_then(|bytes| borsh::from_slice(&bytes).ok()))
    }

    pub fn set<T: BorshSerialize + ?Sized>(&self, name: &str, value: &T) -> Result<(), NodeError> {
        self.set_value(name, &borsh::to_vec(value).expect("memory accepts every byte"))
    }

    fn value(&self, name: &str) -> Result<Option<Vec<u8>>, NodeError> {
        let read = || self.database.query_row("SELECT bytes FROM value WHERE name = ?1", [name], |row| row.get(0));
        read().optional().map_err(|error| Failure::from(error).at(&self.folder))
    }

    fn set_value(&self, name: &str, bytes: &[u8]) -> Result<(), NodeError> {
        let write = || self.database.execute("INSERT OR REPLACE INTO value VALUES (?1, ?2)", params![name, bytes]);
        write().map(|_| ()).map_err(|error| Failure::from(error).at(&self.folder))
    }

    /// Stores a large value under a name that its content gives, and returns the name.
    pub fn put_file(&self, kind: &str, bytes: &[u8]) -> Result<String, NodeError> {
        let name = file_name(kind, bytes);
        let path = self.folder.join(&name);
        if path.exists() {
            return Ok(name);
        }
        write_file(&path, bytes).map_err(|error| Failure::from(error).at(&path))?;
        Ok(name)
    }

    /// A large value; none if the file is missing, unreadable, or not what its name says.
    pub fn file(&self, name: &str) -> Option<Vec<u8>> {
        let bytes = fs::read(self.folder.join(name)).ok()?;
        let (kind, _) = name.split_once('-')?;
        (file_name(kind, &bytes) == name).then_some(bytes)
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

fn file_name(kind: &str, bytes: &[u8]) -> String {
    format!("{kind}-{}.bin", Hash32::of(bytes))
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
    fs::rename(&temporary, path)?;
    // The new name has to be on disk too before the database speaks of it.
    #[cfg(unix)]
    if let Some(folder) = path.parent() {
        fs::File::open(folder)?.sync_all()?;
    }
    Ok(())
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
        if let Self::Database(error) = &self
            && error.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy)
        {
            return NodeError::InUse { path: path.display().to_string() };
        }
        let reason = match self {
            Self::Io(error) => error.to_string(),
            Self::Database(error) => error.to_string(),
        };
        NodeError::Local { path: path.display().to_string(), reason }
    }
}

#[cfg(test)]
mod tests {
    use templar_protocol::keys::Keypair;

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

    fn hotkey(name: &str) -> Hotkey {
        Keypair::insecure_dev(0, name).hotkey()
    }

    #[test]
    fn reopened_state_is_the_last_complete_one() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new([("w".to_owned(), vec![3])]);
        let run = RunId(Hash32::of(b"run"));
        let open = || Local::open(folder.path(), run, &hotkey("a")).unwrap();
        for settled in 0..5u64 {
            let theta = [settled as f32, 1.0, 2.0];
            open().save(&state(settled, &layout, &theta), &theta, &[("scores", vec![settled as u8])]).unwrap();
        }
        let mut local = open();
        let states = local.states(run).unwrap();
        assert_eq!(states.iter().map(|state| state.settled).collect::<Vec<_>>(), [4, 3, 2]);
        assert_eq!(local.theta(&states[0], &layout).unwrap(), [4.0, 1.0, 2.0]);
        assert_eq!(local.get::<u8>("scores").unwrap(), Some(4));
        let other = Local::open(folder.path(), RunId(Hash32::of(b"other")), &hotkey("a")).unwrap();
        assert!(other.states(run).unwrap().is_empty());

        fs::write(local.folder.join(theta_name(4)), to_bytes(&[4.0, 1.0, 9.0])).unwrap();
        assert!(local.theta(&states[0], &layout).is_none(), "a flipped bit is not θ");

        // Left behind by a crash between the commit and the removal.
        let orphan = local.folder.join(theta_name(1));
        fs::write(&orphan, b"old").unwrap();
        let theta = [5.0, 1.0, 2.0];
        local.save(&state(5, &layout, &theta), &theta, &[]).unwrap();
        assert!(!orphan.exists() && local.theta(&local.states(run).unwrap()[0], &layout).is_some());
    }

    #[test]
    fn a_folder_is_one_node_s_at_a_time_and_hotkeys_share_none() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunId(Hash32::of(b"run"));
        let first = Local::open(folder.path(), run, &hotkey("a")).unwrap();
        first.set("scores", &7u8).unwrap();
        let again = Local::open(folder.path(), run, &hotkey("a"));
        assert!(matches!(again, Err(NodeError::InUse { .. })), "{again:?}");
        let other = Local::open(folder.path(), run, &hotkey("b")).unwrap();
        assert_eq!(other.get::<u8>("scores").unwrap(), None);
        let mut similar = run;
        similar.0.0[31] ^= 1;
        let other = Local::open(folder.path(), similar, &hotkey("a")).unwrap();
        assert_eq!(other.get::<u8>("scores").unwrap(), None);
        drop(first);
        assert_eq!(Local::open(folder.path(), run, &hotkey("a")).unwrap().get::<u8>("scores").unwrap(), Some(7));
    }

    #[test]
    fn a_file_is_what_its_name_says_or_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let local = Local::open(folder.path(), RunId(Hash32::of(b"run")), &hotkey("a")).unwrap();
        let name = local.put_file("error", b"bytes").unwrap();
        assert_eq!(local.file(&name).unwrap(), b"bytes");
        fs::write(local.folder.join(&name), b"bites").unwrap();
        assert_eq!(local.file(&name), None);
    }
}
