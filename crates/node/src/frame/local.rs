//! A node's own disk: a SQLite database for what is small, files beside it for what is large.
//!
//! Files are written under a temporary name, synced and renamed before the database speaks of them, and one database
//! transaction moves from one consistent state to the next. So a process killed at any moment finds, at its next
//! start, the state after some window, complete. The database is locked while a node has it open, so that no two
//! processes sign for one hotkey from one folder. What the database holds is listed in [`crate::frame::records`].

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Transaction, params};
use templar_protocol::hash::Hash32;
use templar_protocol::keys::Hotkey;
use templar_protocol::layout::Layout;
use templar_protocol::run::{PROTOCOL_VERSION, RunId};
use templar_protocol::state::RunState;

use crate::frame::error::NodeError;
use crate::frame::files::{self, Damage, Disk, Failure, Files};
use crate::frame::records::{self, Record, RecordError, StateRecord, Stored, ThetaRecord};
use crate::frame::theta;

/// States kept, so that a diverged node can go back without a download.
const STATES_KEPT: u64 = 3;
/// Patches on one whole θ. Each is read at a start, and damage to the whole θ takes all of them with it.
const PATCHES_MAX: usize = 15;
/// How long to wait for a process that is about to end to give the database free.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
/// What the database's tables and records look like: 0, those of the first release, had no versions.
const FORMAT: i64 = 1;
/// Bytes given to the database after which its log is folded back into it.
const FOLD_BYTES: u64 = 1 << 20;

/// How much of what is its own alone a miner writes at each window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Saving {
    /// All, bit by bit: a miner that is killed goes on as if it had not been. 12 bytes a parameter and window.
    Exact,
    /// Error feedback in bf16, the optimiser's moments every 16th window: 2.5 bytes a parameter and window. A restart costs
    /// precision, and no learning.
    Sparing,
}

/// The local state of one node in one run.
#[derive(Debug)]
pub struct Local {
    files: Files,
    database: Connection,
    /// What [`Local::save`] wrote last: what need not be written again, and what a patch starts from.
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
    /// Opens or creates the state of `hotkey` in `run` below `root`. Neither runs nor hotkeys share anything. A folder of
    /// an older release is brought up to date.
    ///
    /// Fails with [`NodeError::InUse`] while another process has it open, and with [`NodeError::LocalRecord`] if a newer
    /// release wrote it.
    pub fn open(root: &Path, run: RunId, hotkey: &Hotkey, disk: Disk) -> Result<Self, NodeError> {
        // Both in full: shorter names can be made to collide.
        let folder = root.join(format!("v{PROTOCOL_VERSION}-{}-{}", run.0, hotkey));
        let database = connect(&folder, disk).map_err(|failure| failure.at(&folder))?;
        let mut local = Self { files: Files::new(folder, disk), database, saved: None, unfolded_bytes: 0 };
        local.migrate()?;
        Ok(local)
    }

    /// Where it lies.
    pub fn folder(&self) -> &Path {
        self.files.folder()
    }

    /// Gives the records of the first release their versions, all in one step.
    fn migrate(&mut self) -> Result<(), NodeError> {
        let folder = self.folder().to_owned();
        let failed = |failure: Failure| failure.at(&folder);
        let format: i64 = self
            .database
            .query_row("PRAGMA user_version", [], |row| row.get(0))
            .map_err(|error| failed(error.into()))?;
        if format > FORMAT {
            let source = RecordError::Newer { found: format, newest: FORMAT };
            return Err(unreadable(&folder, "database", source));
        }
        if format == FORMAT {
            return Ok(());
        }
        let transaction = self.database.transaction().map_err(|error| failed(error.into()))?;
        let values: Vec<(String, Vec<u8>)> = rows(&transaction, "SELECT name, bytes FROM value").map_err(failed)?;
        for (name, bytes) in values {
            let bytes = records::migrate(&name, bytes).map_err(|(name, source)| unreadable(&folder, &name, source))?;
            let update = transaction.execute("UPDATE value SET bytes = ?2 WHERE name = ?1", params![name, bytes]);
            update.map_err(|error| failed(error.into()))?;
        }
        let states: Vec<(i64, Vec<u8>)> = rows(&transaction, "SELECT settled, bytes FROM state").map_err(failed)?;
        for (settled, bytes) in states {
            let bytes = Stored::of(&StateRecord::unversioned(settled as u64, bytes)).bytes;
            let update = transaction.execute("UPDATE state SET bytes = ?2 WHERE settled = ?1", params![settled, bytes]);
            update.map_err(|error| failed(error.into()))?;
        }
        let end = || -> rusqlite::Result<()> {
            transaction.pragma_update(None, "user_version", FORMAT)?;
            transaction.commit()
        };
        end().map_err(|error| failed(error.into()))
    }

    /// All stored states of `run`, newest first.
    pub fn states(&self, run: RunId) -> Result<Vec<RunState>, NodeError> {
        let rows: Vec<(i64, Vec<u8>)> = rows(&self.database, "SELECT settled, bytes FROM state ORDER BY settled DESC")
            .map_err(|f| self.failed(f))?;
        let state = |(_, bytes): (i64, Vec<u8>)| {
            let record = self.decode::<StateRecord>(&bytes)?;
            RunState::from_bytes(&record.state, run).map_err(|error| {
                let source = RecordError::Layout { version: StateRecord::VERSION, reason: error.to_string() };
                unreadable(self.folder(), StateRecord::NAME, source)
            })
        };
        rows.into_iter().map(state).collect()
    }

    /// θ of `state`, which has passed the check of its root.
    pub fn theta(&self, state: &RunState, layout: &Layout) -> Result<Vec<f32>, Damage> {
        let record = self.theta_record(state.settled).map_err(|error| Damage { cause: error.to_string() })?;
        let record = record.ok_or_else(|| Damage { cause: "the database does not have it".to_owned() })?;
        let mut theta = files::from_bytes(&self.files.read(&record.whole)?);
        for name in &record.patches {
            if !theta::apply(&mut theta, &self.files.read(name)?) {
                return Err(Damage { cause: format!("{name} is no patch of it") });
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

    /// Stores a state together with named records, as one step; forgets states too old to go back to, and those of a
    /// future that did not come to be.
    pub fn save(&mut self, state: &RunState, theta: &Arc<Vec<f32>>, values: &[Stored]) -> Result<(), NodeError> {
        let (settled, root) = (state.settled, state.theta_root);
        let is_new = self.saved.as_ref().is_none_or(|saved| (saved.settled, saved.root) != (settled, root));
        let record = self.write_theta(state, theta)?;
        let row = Stored::of(&StateRecord { state: state.to_bytes(), theta: record.clone() });
        let bytes: u64 = values.iter().chain([&row]).map(|stored| stored.bytes.len() as u64).sum();
        let kept = save_rows(&mut self.database, settled, &row, values);
        let kept = kept.map_err(|error| self.failed(Failure::from(error).of(bytes)))?;
        self.saved = Some(Saved { settled, root, theta: theta.clone(), record });
        if is_new {
            let mut names = Vec::new();
            for row in &kept {
                names.extend(self.decode::<StateRecord>(row)?.theta.files().map(str::to_owned));
            }
            // By what is there rather than by what was just dropped: a crash may have left files that no state names.
            self.retain_files("theta", &names.iter().map(String::as_str).collect::<Vec<_>>())?;
        }
        self.fold(bytes)
    }

    /// The files of θ: those of the last state if it has the same, else a patch on them where that pays.
    fn write_theta(&self, state: &RunState, theta: &[f32]) -> Result<ThetaRecord, NodeError> {
        if let Some(saved) = &self.saved {
            if saved.root == state.theta_root {
                return Ok(saved.record.clone());
            }
            let name = theta_name(state, "patch");
            // A node that goes back comes by a state again whose patch stands on another state, and which others stand on.
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

    /// A stored record; none if none was stored.
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

    /// Folds the database's log back into it now and then: nobody else reads it, so nothing is in the way.
    fn fold(&mut self, bytes: u64) -> Result<(), NodeError> {
        self.unfolded_bytes += bytes;
        if self.unfolded_bytes < FOLD_BYTES {
            return Ok(());
        }
        self.unfolded_bytes = 0;
        let folded = self.database.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        folded.map_err(|error| self.failed(Failure::from(error).of(FOLD_BYTES)))
    }

    /// Stores a large value under a name that its content gives, and returns the name.
    pub fn put_file(&self, kind: &str, bytes: &[u8]) -> Result<String, NodeError> {
        self.files.put(kind, bytes)
    }

    /// A large value, which is what its name says.
    pub fn file(&self, name: &str) -> Result<Vec<u8>, Damage> {
        self.files.get(name)
    }

    /// Removes the files of a kind other than `keep`.
    pub fn retain_files(&self, kind: &str, keep: &[&str]) -> Result<(), NodeError> {
        self.files.retain(kind, keep)
    }

    fn decode<R: Record>(&self, bytes: &[u8]) -> Result<R, NodeError> {
        records::decode(bytes).map_err(|source| unreadable(self.folder(), R::NAME, source))
    }

    fn failed(&self, failure: Failure) -> NodeError {
        failure.at(self.folder())
    }
}

fn connect(folder: &Path, disk: Disk) -> Result<Connection, Failure> {
    fs::create_dir_all(folder)?;
    let database = Connection::open(folder.join("node.sqlite"))?;
    database.busy_timeout(LOCK_PATIENCE)?;
    let pragmas = match disk {
        Disk::Durable => "PRAGMA journal_mode = WAL; PRAGMA journal_size_limit = 0; PRAGMA synchronous = FULL;",
        Disk::Volatile => "PRAGMA journal_mode = MEMORY; PRAGMA synchronous = OFF;",
    };
    // The empty transaction takes the lock, which an exclusive database keeps until it is closed.
    database.execute_batch(&format!(
        "PRAGMA locking_mode = EXCLUSIVE; {pragmas}
         CREATE TABLE IF NOT EXISTS state (settled INTEGER PRIMARY KEY, bytes BLOB NOT NULL) STRICT;
         CREATE TABLE IF NOT EXISTS value (name TEXT PRIMARY KEY, bytes BLOB NOT NULL) STRICT;
         BEGIN EXCLUSIVE; COMMIT;"
    ))?;
    Ok(database)
}

/// Writes a state's row and values; the rows of the states that are kept.
fn save_rows(
    database: &mut Connection,
    settled: u64,
    row: &Stored,
    values: &[Stored],
) -> rusqlite::Result<Vec<Vec<u8>>> {
    let transaction = database.transaction()?;
    transaction.execute("INSERT OR REPLACE INTO state VALUES (?1, ?2)", params![settled as i64, row.bytes])?;
    for Stored { name, bytes } in values {
        transaction.execute("INSERT OR REPLACE INTO value VALUES (?1, ?2)", params![name, bytes])?;
    }
    let oldest = settled.saturating_sub(STATES_KEPT - 1);
    transaction
        .execute("DELETE FROM state WHERE settled < ?1 OR settled > ?2", params![oldest as i64, settled as i64])?;
    let kept = kept_rows(&transaction)?;
    transaction.commit()?;
    Ok(kept)
}

fn kept_rows(transaction: &Transaction<'_>) -> rusqlite::Result<Vec<Vec<u8>>> {
    transaction.prepare("SELECT bytes FROM state")?.query_map([], |row| row.get(0))?.collect()
}

/// All rows of two columns.
fn rows<A: rusqlite::types::FromSql, B: rusqlite::types::FromSql>(
    database: &Connection,
    query: &str,
) -> Result<Vec<(A, B)>, Failure> {
    let mut query = database.prepare(query)?;
    let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// With the root: a state that took another's place has other files, so that neither is ever overwritten.
fn theta_name(state: &RunState, kind: &str) -> String {
    format!("theta-{:08}-{}.{kind}", state.settled, state.theta_root.short())
}

fn unreadable(folder: &Path, record: &str, source: RecordError) -> NodeError {
    NodeError::LocalRecord { path: folder.display().to_string(), record: record.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use templar_protocol::keys::Keypair;

    use super::*;
    use crate::frame::files::to_bytes;
    use crate::frame::records::{CheckpointsRecord, HeldRecord};

    const VALUES: usize = 400;

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

    fn open(folder: &Path, name: &str) -> Local {
        Local::open(folder, RunId(Hash32::of(b"run")), &hotkey(name), Disk::Durable).unwrap()
    }

    fn layout() -> Layout {
        Layout::new([("w".to_owned(), vec![VALUES as u64])])
    }

    /// Differs from its neighbours in one value.
    fn theta(settled: u64) -> Arc<Vec<f32>> {
        let mut theta = vec![1.0; VALUES];
        theta[settled as usize] = 2.0;
        Arc::new(theta)
    }

    fn held(window: u64) -> HeldRecord {
        HeldRecord { contributions: vec![(window, Hash32::default())] }
    }

    fn files(local: &Local, kind: &str) -> Vec<String> {
        let names = fs::read_dir(local.folder()).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|name| name.ends_with(kind)).collect();
        names.sort();
        names
    }

    #[test]
    fn going_back_to_a_patched_state_damages_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let (layout, run) = (layout(), RunId(Hash32::of(b"run")));
        let mut local = open(folder.path(), "a");
        // The state after two windows is a patch; the node goes back to it, and on from it another way.
        for (settled, values) in [(0, 0), (1, 1), (2, 2), (3, 3), (2, 2), (3, 13), (4, 14)] {
            let theta = theta(values);
            local.save(&state(settled, &layout, &theta), &theta, &[]).unwrap();
            let states = local.states(run).unwrap();
            assert!(states.iter().all(|state| local.theta(state, &layout).is_ok()), "after {settled}");
        }
        drop(local);
        let local = open(folder.path(), "a");
        let states = local.states(run).unwrap();
        assert_eq!(local.theta(&states[0], &layout).unwrap(), *theta(14));
        assert!(states.iter().all(|state| local.theta(state, &layout).is_ok()));
    }

    #[test]
    fn reopened_state_is_the_last_complete_one() {
        let folder = tempfile::tempdir().unwrap();
        let (layout, run) = (layout(), RunId(Hash32::of(b"run")));
        for settled in 0..5u64 {
            let theta = theta(settled);
            let values = [Stored::of(&held(settled))];
            open(folder.path(), "a").save(&state(settled, &layout, &theta), &theta, &values).unwrap();
        }
        let mut local = open(folder.path(), "a");
        let states = local.states(run).unwrap();
        assert_eq!(states.iter().map(|state| state.settled).collect::<Vec<_>>(), [4, 3, 2]);
        assert_eq!(local.theta(&states[0], &layout).unwrap(), *theta(4));
        assert_eq!(local.get::<HeldRecord>().unwrap(), Some(held(4)));
        let other = Local::open(folder.path(), RunId(Hash32::of(b"other")), &hotkey("a"), Disk::Durable).unwrap();
        assert!(other.states(run).unwrap().is_empty());

        let newest = local.folder().join(theta_name(&states[0], "bin"));
        let mut flipped = theta(4).to_vec();
        flipped[9] = 9.0;
        fs::write(&newest, to_bytes(&flipped)).unwrap();
        assert!(local.theta(&states[0], &layout).is_err(), "a flipped bit is not θ");

        // Left behind by a crash between the commit and the removal.
        let orphan = local.folder().join("theta-00000001-01234567.bin");
        fs::write(&orphan, b"old").unwrap();
        let theta = theta(5);
        local.save(&state(5, &layout, &theta), &theta, &[]).unwrap();
        assert!(!orphan.exists() && local.theta(&local.states(run).unwrap()[0], &layout).is_ok());
    }

    #[test]
    fn a_state_is_written_whole_now_and_then_and_else_as_what_changed() {
        let folder = tempfile::tempdir().unwrap();
        let (layout, run) = (layout(), RunId(Hash32::of(b"run")));
        let mut local = open(folder.path(), "a");
        let mut written = 0;
        for settled in 0..40 {
            let theta = theta(settled);
            local.save(&state(settled, &layout, &theta), &theta, &[]).unwrap();
            for (nth, state) in local.states(run).unwrap().iter().enumerate() {
                assert_eq!(local.theta(state, &layout).unwrap(), *self::theta(settled - nth as u64));
            }
            let name = self::theta_name(&state(settled, &layout, &theta), "bin");
            written += u64::from(files(&local, ".bin").contains(&name));
            assert!(files(&local, ".bin").len() <= 2 && files(&local, ".patch").len() <= PATCHES_MAX + 2);
        }
        assert_eq!(written, 40u64.div_ceil(PATCHES_MAX as u64 + 1));
        // A null window writes nothing.
        let before = (files(&local, ".bin"), files(&local, ".patch"));
        local.save(&state(40, &layout, &theta(39)), &theta(39), &[]).unwrap();
        assert_eq!((files(&local, ".bin"), files(&local, ".patch")), before);
        assert_eq!(local.theta(&local.states(run).unwrap()[0], &layout).unwrap(), *theta(39));
    }

    #[test]
    fn a_folder_is_one_node_s_at_a_time_and_hotkeys_share_none() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunId(Hash32::of(b"run"));
        let mut first = open(folder.path(), "a");
        first.set(&held(7)).unwrap();
        let again = Local::open(folder.path(), run, &hotkey("a"), Disk::Durable);
        assert!(matches!(again, Err(NodeError::InUse { .. })), "{again:?}");
        assert_eq!(open(folder.path(), "b").get::<HeldRecord>().unwrap(), None);
        let mut similar = run;
        similar.0.0[31] ^= 1;
        let other = Local::open(folder.path(), similar, &hotkey("a"), Disk::Durable).unwrap();
        assert_eq!(other.get::<HeldRecord>().unwrap(), None);
        drop(first);
        assert_eq!(open(folder.path(), "a").get::<HeldRecord>().unwrap(), Some(held(7)));
    }

    #[test]
    fn what_does_not_decode_is_an_error_with_a_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let mut local = open(folder.path(), "a");
        local.set(&CheckpointsRecord { digests: vec![Hash32::of(b"a")] }).unwrap();
        local.database.execute("UPDATE value SET bytes = x'0105'", []).unwrap();
        let error = local.get::<CheckpointsRecord>().unwrap_err();
        assert!(matches!(&error, NodeError::LocalRecord { record, .. } if record == "checkpoints"), "{error}");
        assert!(error.is_fatal() && error.to_string().contains("move the folder away"), "{error}");
        local.database.execute("INSERT INTO state VALUES (3, x'01')", []).unwrap();
        assert!(matches!(local.states(RunId(Hash32::of(b"run"))), Err(NodeError::LocalRecord { .. })));
        // A newer release's database is left alone.
        local.database.pragma_update(None, "user_version", FORMAT + 1).unwrap();
        drop(local);
        let newer = Local::open(folder.path(), RunId(Hash32::of(b"run")), &hotkey("a"), Disk::Durable);
        assert!(matches!(newer, Err(NodeError::LocalRecord { .. })), "{newer:?}");
    }

    #[test]
    fn the_log_is_folded_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut local = open(folder.path(), "a");
        let digests = (0..2000u32).map(|nth| Hash32::of(&nth.to_le_bytes())).collect();
        let record = CheckpointsRecord { digests };
        let path = local.folder().join("node.sqlite-wal");
        let mut sizes = Vec::new();
        for _ in 0..40 {
            local.set(&record).unwrap();
            sizes.push(fs::metadata(&path).map_or(0, |log| log.len()));
        }
        let most = *sizes.iter().max().unwrap();
        assert!(most > 0 && most < 3 * FOLD_BYTES, "{sizes:?}");
        assert!(sizes.iter().skip(2).any(|size| *size == 0), "{sizes:?}");
    }

    #[test]
    fn a_database_that_cannot_grow_says_so_and_keeps_what_it_has() {
        let folder = tempfile::tempdir().unwrap();
        let mut local = open(folder.path(), "a");
        local.set(&held(1)).unwrap();
        let pages: i64 = local.database.query_row("PRAGMA page_count", [], |row| row.get(0)).unwrap();
        local.database.pragma_update(None, "max_page_count", pages).unwrap();
        let many = CheckpointsRecord { digests: vec![Hash32::default(); 2000] };
        let error = local.set(&many).unwrap_err();
        assert!(matches!(error, NodeError::DiskFull { needed_bytes: 64_005, .. }), "{error}");
        drop(local);
        let local = open(folder.path(), "a");
        assert_eq!(local.get::<HeldRecord>().unwrap(), Some(held(1)));
        assert_eq!(local.get::<CheckpointsRecord>().unwrap(), None);
    }

    #[test]
    fn a_volatile_disk_has_the_same_states() {
        let folder = tempfile::tempdir().unwrap();
        let (layout, run, theta) = (layout(), RunId(Hash32::of(b"run")), theta(3));
        let open = |disk| Local::open(folder.path(), run, &hotkey("a"), disk).unwrap();
        open(Disk::Volatile).save(&state(3, &layout, &theta), &theta, &[Stored::of(&held(3))]).unwrap();
        for disk in [Disk::Durable, Disk::Volatile, Disk::Durable] {
            let local = open(disk);
            assert_eq!(local.theta(&local.states(run).unwrap()[0], &layout).unwrap(), *theta);
            assert_eq!(local.get::<HeldRecord>().unwrap(), Some(held(3)));
        }
    }
}
