//! The database of a node's local state: its tables, its lock, and its format.

use std::fs;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, Transaction, params};

use crate::frame::error::NodeError;
use crate::frame::files::{Disk, Failure};
use crate::frame::records::{RecordError, Stored};

/// States kept, so that a diverged node can go back without a download.
const STATES_KEPT: u64 = 3;
/// How long to wait for a process that is about to end to release the database.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
/// Number of the layout of the database's tables. Each protocol version has folders of its own.
pub(super) const FORMAT: i64 = 1;

/// Opens or creates the database in `folder`, and keeps it from all other processes.
pub(super) fn connect(folder: &Path, disk: Disk) -> Result<Connection, Failure> {
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
pub(super) fn save_rows(
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
pub(super) fn rows<A: rusqlite::types::FromSql, B: rusqlite::types::FromSql>(
    database: &Connection,
    query: &str,
) -> Result<Vec<(A, B)>, Failure> {
    let mut query = database.prepare(query)?;
    let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Marks a new database with its format, and refuses one that a newer release wrote.
pub(super) fn check_format(database: &Connection, folder: &Path) -> Result<(), NodeError> {
    let failed = |error: rusqlite::Error| Failure::from(error).at(folder);
    let found: i64 = database.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(failed)?;
    match found {
        0 => database.pragma_update(None, "user_version", FORMAT).map_err(failed),
        FORMAT => Ok(()),
        _ => Err(unreadable(folder, "database", RecordError::Newer { found, newest: FORMAT })),
    }
}

/// A record that this release cannot read.
pub(super) fn unreadable(folder: &Path, record: &str, source: RecordError) -> NodeError {
    NodeError::LocalRecord { path: folder.display().to_string(), record: record.to_owned(), source }
}
