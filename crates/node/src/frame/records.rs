//! What a node keeps in its database: every record and its version.
//!
//! A record's bytes are one byte with its version, then its fields in Borsh. Bytes that do not decode are a
//! [`RecordError`] and never `None`: an upgrade that changes a record must read the old layout, or say that it cannot.

use std::io;

use borsh::{BorshDeserialize, BorshSerialize};
use templar_incentive::pay::PayBook;
use templar_protocol::hash::Hash32;
use templar_protocol::header::SignedHeader;
use templar_protocol::roster::EntryId;
use templar_protocol::word::Vote;
use templar_record::outcome::Miss;

/// A named value of the database.
pub trait Record: BorshSerialize + BorshDeserialize {
    const NAME: &'static str;
    /// Rises with every change of the layout.
    const VERSION: u8 = 1;
}

/// Why the bytes of a record cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    #[error("it is empty")]
    Empty,
    #[error("it has version {found}, but this release reads none after {newest}")]
    Newer { found: i64, newest: i64 },
    #[error("its bytes are not those of version {version}: {reason}")]
    Layout { version: u8, reason: String },
}

/// A record as the database has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    pub name: &'static str,
    pub bytes: Vec<u8>,
}

impl Stored {
    pub fn of<R: Record>(record: &R) -> Self {
        let mut bytes = vec![R::VERSION];
        record.serialize(&mut bytes).expect("memory accepts every byte");
        Self { name: R::NAME, bytes }
    }
}

/// The inverse of [`Stored::of`].
pub fn decode<R: Record>(bytes: &[u8]) -> Result<R, RecordError> {
    let (&version, fields) = bytes.split_first().ok_or(RecordError::Empty)?;
    if version > R::VERSION {
        return Err(RecordError::Newer { found: version.into(), newest: R::VERSION.into() });
    }
    let layout = |error: io::Error| RecordError::Layout { version, reason: error.to_string() };
    borsh::from_slice(fields).map_err(layout)
}

/// How the values of a file are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum FloatFormat {
    F32,
    /// The upper half of an f32, rounded to the nearest: 8 bits of mantissa.
    Bf16,
}

/// e: what was learned and not yet sent. Without either, it is zeros.
#[derive(Clone, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct ErrorFeedbackRecord {
    /// The registration whose headers it follows from, and the window of the first of them.
    pub since: Option<(EntryId, u64)>,
    /// After the last header that the chain had in time.
    pub confirmed: Option<KeptFeedback>,
    /// After the newest one, of which that is not known yet.
    pub sealed: Option<KeptFeedback>,
}

/// e after the payload of one window left it, in a file of its own.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct KeptFeedback {
    pub file: String,
    pub format: FloatFormat,
    pub window: u64,
    /// Hash of that window's header.
    pub header: Hash32,
}

impl Record for ErrorFeedbackRecord {
    const NAME: &'static str = "error";
}

/// The inner optimiser's state, as the trainer exported it, in a file of its own.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct OptimiserRecord {
    pub file: String,
}

impl Record for OptimiserRecord {
    const NAME: &'static str = "optimiser";
}

/// What a miner sealed and has not seen decided, oldest first.
#[derive(Clone, Debug, Default, PartialEq, BorshSerialize, BorshDeserialize)]
pub struct PendingRecord {
    pub contributions: Vec<SealedRecord>,
    /// Window and file of payloads that did not count, and are still to go back into the error feedback.
    pub owed: Vec<(u64, String)>,
}

/// One sealed contribution. Its payload is in a file of its own.
#[derive(Clone, Debug, PartialEq, BorshSerialize, BorshDeserialize)]
pub struct SealedRecord {
    pub payload_file: String,
    pub header: SignedHeader,
    pub key: [u8; 32],
    /// The chain had its header in time: its key is public, or about to be.
    pub is_opened: bool,
}

impl Record for PendingRecord {
    const NAME: &'static str = "pending";
}

/// The newest vote: a restarted validator says what it said.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct VoteRecord {
    pub window: u32,
    pub root: Hash32,
    pub accept: Vec<bool>,
    pub exclude: Vec<bool>,
    pub deny: Vec<bool>,
    pub proof: [u8; 16],
}

impl From<&Vote> for VoteRecord {
    fn from(vote: &Vote) -> Self {
        let Vote { window, root, accept, exclude, deny, proof } = vote.clone();
        Self { window, root, accept, exclude, deny, proof }
    }
}

impl From<VoteRecord> for Vote {
    fn from(record: VoteRecord) -> Self {
        let VoteRecord { window, root, accept, exclude, deny, proof } = record;
        Self { window, root, accept, exclude, deny, proof }
    }
}

impl Record for VoteRecord {
    const NAME: &'static str = "vote";
}

/// A validator's book of miners.
#[derive(Clone, Debug, Default, PartialEq, BorshSerialize, BorshDeserialize)]
pub struct PayRecord {
    pub book: PayBook,
}

impl Record for PayRecord {
    const NAME: &'static str = "pay";
}

/// Digests of the checkpoints in a validator's bucket, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct CheckpointsRecord {
    pub digests: Vec<Hash32>,
}

impl Record for CheckpointsRecord {
    const NAME: &'static str = "checkpoints";
}

/// Contributions that a validator serves because it voted for them, oldest first: window and hash of the header.
#[derive(Clone, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct HeldRecord {
    pub contributions: Vec<(u64, Hash32)>,
}

impl Record for HeldRecord {
    const NAME: &'static str = "held";
}

/// The windows whose end this node has reported, so that each is reported once.
#[derive(Clone, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct OutcomesRecord {
    /// All windows before this one have been reported.
    pub next_window: u64,
    /// Why a miner handed in nothing for windows that are not settled yet.
    pub misses: Vec<(u64, Miss)>,
}

impl Record for OutcomesRecord {
    const NAME: &'static str = "outcomes";
}

/// A replicated state, and where its θ is. Stored in a table of its own, by the number of windows settled.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct StateRecord {
    /// The canonical bytes of the [`RunState`](templar_protocol::state::RunState).
    pub state: Vec<u8>,
    pub theta: ThetaRecord,
}

/// Files that make up a θ: a whole one, and what changed since.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct ThetaRecord {
    pub whole: String,
    /// In the order in which they are applied.
    pub patches: Vec<String>,
}

impl ThetaRecord {
    pub fn files(&self) -> impl Iterator<Item = &str> {
        [self.whole.as_str()].into_iter().chain(self.patches.iter().map(String::as_str))
    }
}

impl Record for StateRecord {
    const NAME: &'static str = "state";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_and_anything_else_is_an_error() {
        let record = CheckpointsRecord { digests: vec![Hash32::of(b"a")] };
        let bytes = Stored::of(&record).bytes;
        assert_eq!(decode::<CheckpointsRecord>(&bytes).unwrap(), record);
        assert_eq!(decode::<CheckpointsRecord>(b""), Err(RecordError::Empty));
        let mut newer = bytes.clone();
        newer[0] = 2;
        assert_eq!(decode::<CheckpointsRecord>(&newer), Err(RecordError::Newer { found: 2, newest: 1 }));
        let cut = decode::<CheckpointsRecord>(&bytes[..9]);
        assert!(matches!(cut, Err(RecordError::Layout { version: 1, .. })), "{cut:?}");
    }
}
