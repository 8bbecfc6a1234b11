//! The dev chain's database: the newest state of every neuron, and every state that a snapshot ever showed.
//!
//! History is one row per change of a neuron, valid from a block on, so a snapshot as of any past block is one
//! indexed look-up per uid. Nothing is pruned: a dev chain's history is bounded by its life and the disk alone.

use std::path::Path;

use borsh::BorshDeserialize;
use rusqlite::{Connection, OptionalExtension, Transaction, params};
use templar_protocol::{keys::Hotkey, roster::Neuron};

use super::{
    config::DevConfig,
    error::DevError,
    subnet::{NeuronState, Subnet},
};

/// Rises with every change of the tables or of what their blobs hold.
const FORMAT: i32 = 1;

const TABLES: &str = "
    CREATE TABLE chain (id INTEGER PRIMARY KEY CHECK (id = 0), config TEXT NOT NULL, subnet BLOB NOT NULL) STRICT;
    CREATE TABLE blocks (number INTEGER PRIMARY KEY, timestamp_ms INTEGER NOT NULL) STRICT;
    CREATE TABLE neurons (uid INTEGER PRIMARY KEY, state BLOB NOT NULL) STRICT;
    CREATE TABLE history (uid INTEGER, valid_from INTEGER, neuron BLOB NOT NULL,
        PRIMARY KEY (uid, valid_from)) STRICT, WITHOUT ROWID;
    CREATE TABLE nonces (hotkey BLOB PRIMARY KEY, nonce INTEGER NOT NULL) STRICT, WITHOUT ROWID;
";

/// The database of one dev chain, exclusively ours while open.
#[derive(Debug)]
pub(super) struct Storage {
    db: Connection,
}

/// What the database held when it was opened.
pub(super) struct Stored {
    pub(super) number: u64,
    pub(super) timestamp_ms: u64,
    pub(super) subnet: Subnet,
}

impl Storage {
    /// Opens or creates the database; `None` keeps it in memory.
    pub(super) fn open(path: Option<&Path>, config: &DevConfig) -> Result<(Self, Stored), DevError> {
        let name = path.map_or_else(|| "memory".to_owned(), |path| path.display().to_string());
        let connect = || -> rusqlite::Result<Connection> {
            let db = match path {
                Some(path) => Connection::open(path)?,
                None => Connection::open_in_memory()?,
            };
            db.busy_timeout(std::time::Duration::from_secs(2))?;
            // Exclusive: two processes on one chain would each make its blocks. WAL with NORMAL loses nothing when
            // the process is killed, and at worst the last blocks when the machine is.
            db.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
            if path.is_some() {
                db.pragma_update(None, "journal_mode", "WAL")?;
                db.pragma_update(None, "synchronous", "NORMAL")?;
            }
            Ok(db)
        };
        let db = connect().map_err(|error| opening(&name, &error))?;
        let mut storage = Self { db };
        if storage.is_new().map_err(|error| opening(&name, &error))? {
            storage.create(config)?;
        }
        storage.check_format(&name)?;
        storage.check_config(&name, config)?;
        let stored = storage.load(&name)?;
        Ok((storage, stored))
    }

    fn is_new(&self) -> rusqlite::Result<bool> {
        let tables: i64 = self.db.query_row("SELECT COUNT(*) FROM sqlite_schema", [], |row| row.get(0))?;
        Ok(tables == 0)
    }

    fn create(&mut self, config: &DevConfig) -> Result<(), DevError> {
        let subnet = borsh::to_vec(&Subnet::default()).expect("memory accepts every byte");
        let mut create = || -> rusqlite::Result<()> {
            let transaction = self.db.transaction_with_behavior(rusqlite::TransactionBehavior::Exclusive)?;
            transaction.execute_batch(TABLES)?;
            transaction.pragma_update(None, "user_version", FORMAT)?;
            transaction
                .execute("INSERT INTO chain VALUES (0, ?1, ?2)", params![config_json(config).to_string(), subnet])?;
            let timestamp_ms = config.timestamps.of_block(0, 0);
            transaction.execute("INSERT INTO blocks VALUES (0, ?1)", [timestamp_ms as i64])?;
            transaction.commit()
        };
        create().map_err(|error| failed("was created", &error))
    }

    fn check_format(&self, name: &str) -> Result<(), DevError> {
        let format: i32 = self
            .db
            .pragma_query_value(None, "user_version", |row| row.get(0))
            .map_err(|error| opening(name, &error))?;
        if format != FORMAT {
            let reason = format!("format {format} instead of {FORMAT}");
            return Err(DevError::NotADevChain { path: name.to_owned(), reason });
        }
        Ok(())
    }

    fn check_config(&self, name: &str, config: &DevConfig) -> Result<(), DevError> {
        let stored: String = self
            .db
            .query_row("SELECT config FROM chain", [], |row| row.get(0))
            .map_err(|error| opening(name, &error))?;
        let stored: serde_json::Value = serde_json::from_str(&stored).map_err(|error| damaged(name, &error))?;
        let given = config_json(config);
        if stored == given {
            return Ok(());
        }
        let settings = given.as_object().into_iter().flatten();
        let differing: Vec<String> = settings
            .filter(|(key, value)| stored.get(key) != Some(value))
            .map(|(key, value)| format!("{key} = {} there, {value} given", stored.get(key).unwrap_or(&"?".into())))
            .collect();
        Err(DevError::OtherConfig { path: name.to_owned(), differing: differing.join("; ") })
    }

    fn load(&self, name: &str) -> Result<Stored, DevError> {
        let opening = |error: rusqlite::Error| opening(name, &error);
        let (number, timestamp_ms): (i64, i64) = self
            .db
            .query_row("SELECT number, timestamp_ms FROM blocks ORDER BY number DESC LIMIT 1", [], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .map_err(opening)?;
        let subnet: Vec<u8> = self.db.query_row("SELECT subnet FROM chain", [], |row| row.get(0)).map_err(opening)?;
        let mut subnet = Subnet::try_from_slice(&subnet).map_err(|error| damaged(name, &error))?;
        let mut query = self.db.prepare("SELECT uid, state FROM neurons ORDER BY uid").map_err(opening)?;
        let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).map_err(opening)?;
        for row in rows {
            let (uid, state): (i64, Vec<u8>) = row.map_err(opening)?;
            if uid != subnet.neurons.len() as i64 {
                return Err(damaged(name, &format!("uid {uid} follows {} others", subnet.neurons.len())));
            }
            subnet.neurons.push(NeuronState::try_from_slice(&state).map_err(|error| damaged(name, &error))?);
        }
        Ok(Stored { number: number as u64, timestamp_ms: timestamp_ms as u64, subnet })
    }

    /// Writes a block and what it changed, all or nothing.
    pub(super) fn write_block(
        &mut self,
        number: u64,
        timestamp_ms: u64,
        before: &Subnet,
        after: &Subnet,
        nonces: &[(Hotkey, u64)],
    ) -> Result<(), DevError> {
        let write = |transaction: &Transaction<'_>| -> rusqlite::Result<()> {
            transaction
                .prepare_cached("INSERT INTO blocks VALUES (?1, ?2)")?
                .execute([number as i64, timestamp_ms as i64])?;
            if (before.last_epoch_block, before.owner_rao) != (after.last_epoch_block, after.owner_rao) {
                let subnet = borsh::to_vec(after).expect("memory accepts every byte");
                transaction.prepare_cached("UPDATE chain SET subnet = ?1")?.execute([subnet])?;
            }
            for (uid, neuron) in after.neurons.iter().enumerate() {
                write_neuron(transaction, uid as u16, before.neurons.get(uid), neuron, number)?;
            }
            for (hotkey, nonce) in nonces {
                transaction
                    .prepare_cached("INSERT OR REPLACE INTO nonces VALUES (?1, ?2)")?
                    .execute(params![hotkey.as_bytes(), *nonce as i64])?;
            }
            Ok(())
        };
        let result = self.db.transaction().and_then(|transaction| {
            write(&transaction)?;
            transaction.commit()
        });
        result.map_err(|error| failed("wrote a block", &error))
    }

    /// The last nonce of a hotkey that a block included. It stays when a hotkey loses its place, so that its old calls
    /// stay invalid if it comes back.
    pub(super) fn nonce(&self, hotkey: &Hotkey) -> Result<Option<u64>, DevError> {
        let query = || -> rusqlite::Result<Option<i64>> {
            let mut query = self.db.prepare_cached("SELECT nonce FROM nonces WHERE hotkey = ?1")?;
            query.query_row([hotkey.as_bytes()], |row| row.get(0)).optional()
        };
        // Stored by the bits: SQLite has no unsigned integers.
        Ok(query().map_err(|error| failed("read a nonce", &error))?.map(|nonce| nonce as u64))
    }

    /// The neurons with uids below `uids` as of the end of `block`, which must be finalised.
    pub(super) fn neurons_at(&self, block: u64, uids: usize) -> Result<Vec<Neuron>, DevError> {
        let doing = "read a snapshot";
        let query = || -> rusqlite::Result<Vec<Vec<u8>>> {
            let mut query = self.db.prepare_cached(
                "SELECT neuron FROM history WHERE uid = ?1 AND valid_from <= ?2 ORDER BY valid_from DESC LIMIT 1",
            )?;
            let rows = (0..uids as i64).map(|uid| query.query_row([uid, block as i64], |row| row.get(0)).optional());
            rows.filter_map(Result::transpose).collect()
        };
        let rows = query().map_err(|error| failed(doing, &error))?;
        rows.iter()
            .map(|row| Neuron::try_from_slice(row))
            .collect::<Result<_, _>>()
            .map_err(|error| DevError::Storage { doing: doing.to_owned(), reason: error.to_string() })
    }
}

fn write_neuron(
    transaction: &Transaction<'_>,
    uid: u16,
    before: Option<&NeuronState>,
    after: &NeuronState,
    block: u64,
) -> rusqlite::Result<()> {
    if before == Some(after) {
        return Ok(());
    }
    let state = borsh::to_vec(after).expect("memory accepts every byte");
    transaction.prepare_cached("INSERT OR REPLACE INTO neurons VALUES (?1, ?2)")?.execute(params![uid, state])?;
    let visible = after.visible(uid);
    if before.map(|before| before.visible(uid)).as_ref() != Some(&visible) {
        let neuron = borsh::to_vec(&visible).expect("memory accepts every byte");
        transaction.prepare_cached("INSERT INTO history VALUES (?1, ?2, ?3)")?.execute(params![
            uid,
            block as i64,
            neuron
        ])?;
    }
    Ok(())
}

fn config_json(config: &DevConfig) -> serde_json::Value {
    serde_json::to_value(config).expect("a config has nothing that JSON lacks")
}

fn opening(path: &str, error: &rusqlite::Error) -> DevError {
    match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::NotADatabase | rusqlite::ErrorCode::DatabaseCorrupt) => damaged(path, error),
        _ => DevError::Storage { doing: format!("opened {path}"), reason: error.to_string() },
    }
}

fn damaged(path: &str, reason: &impl ToString) -> DevError {
    DevError::NotADevChain { path: path.to_owned(), reason: reason.to_string() }
}

fn failed(doing: &str, error: &rusqlite::Error) -> DevError {
    DevError::Storage { doing: doing.to_owned(), reason: error.to_string() }
}
