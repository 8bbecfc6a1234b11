//! On-chain records: what a node commits for a window, in at most 128 bytes per field.
//!
//! A commitment has three fields: the locator ([`crate::locator`]), a miner's header record, a validator's vote.
//! Each new commitment replaces the last, so a record is read as of the block of its deadline, from finalised state.

use crate::commitment::Commitment;
use crate::hash::Hash32;

const LOCATOR_FIELD: usize = 0;
const HEADER_FIELD: usize = 1;
const VOTE_FIELD: usize = 2;
const HEADER_TAG: u8 = 1;
const VOTE_TAG: u8 = 2;

/// A miner's promise: the hash of its header for a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderWord {
    pub window: u32,
    pub header_hash: Hash32,
}

/// A validator's vote on a window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vote {
    pub window: u32,
    /// Digest of the [`crate::state::RunState`] that the window starts from, as this validator has it.
    pub root: Hash32,
    /// By candidate: whether its contribution passed every check.
    pub accept: Vec<bool>,
    /// By candidate: whether signed evidence excludes it for a while.
    pub exclude: Vec<bool>,
    /// By validator of the roster: whether its last vote proved nothing, so that its next ones should not count.
    pub deny: Vec<bool>,
    /// Proof that the voter holds the payloads that were accepted last ([`crate::possession`]).
    pub proof: VoteProof,
}

/// Bytes by which a vote proves possession: enough that nobody guesses them, and few enough for the field.
pub type VoteProof = [u8; 16];

/// Why a field of a commitment is not the expected record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WordError {
    #[error("the commitment has no such field")]
    Absent,
    #[error("its tag {0} is unknown")]
    Tag(u8),
    #[error("it has {found} bytes instead of {expected}")]
    Length { found: usize, expected: usize },
    #[error("it is about window {found}, not {expected}")]
    Window { found: u32, expected: u32 },
    #[error("bits are set beyond the last candidate or validator")]
    Padding,
}

/// The fields of a commitment, for a node whose first field is `locator`.
pub fn fields(locator: &[u8], header: Option<&HeaderWord>, vote: Option<&Vote>) -> Vec<Vec<u8>> {
    let mut fields = vec![locator.to_vec(), header.map(HeaderWord::encode).unwrap_or_default()];
    if let Some(vote) = vote {
        fields.push(vote.encode());
    } else if header.is_none() {
        fields.truncate(LOCATOR_FIELD + 1);
    }
    fields
}

impl HeaderWord {
    fn encode(&self) -> Vec<u8> {
        let mut field = vec![HEADER_TAG];
        field.extend_from_slice(&self.window.to_le_bytes());
        field.extend_from_slice(self.header_hash.as_bytes());
        field
    }

    /// Reads the header record for `window` from a stranger's commitment.
    pub fn read(commitment: &Commitment, window: u32) -> Result<Self, WordError> {
        let body = body(commitment, HEADER_FIELD, HEADER_TAG, window)?;
        let hash = body.try_into().map_err(|_| WordError::Length { found: body.len() + 5, expected: 37 })?;
        Ok(Self { window, header_hash: Hash32(hash) })
    }
}

impl Vote {
    fn encode(&self) -> Vec<u8> {
        let mut field = vec![VOTE_TAG];
        field.extend_from_slice(&self.window.to_le_bytes());
        field.extend_from_slice(self.root.as_bytes());
        field.extend(bitmap(&self.accept));
        field.extend(bitmap(&self.exclude));
        field.extend(bitmap(&self.deny));
        field.extend(self.proof);
        field
    }

    /// The window of the vote that a commitment carries, whatever else is in it.
    pub fn read_window(commitment: &Commitment) -> Option<u32> {
        let head = commitment.fields.get(VOTE_FIELD)?.first_chunk::<5>()?;
        (head[0] == VOTE_TAG).then(|| u32::from_le_bytes([head[1], head[2], head[3], head[4]]))
    }

    /// The bytes of the field, for whoever keeps them for auditors.
    pub fn field(commitment: &Commitment) -> &[u8] {
        commitment.fields.get(VOTE_FIELD).map_or(&[], Vec::as_slice)
    }

    /// Reads only the root of a vote on `window`, whatever the number of candidates.
    pub fn read_root(commitment: &Commitment, window: u32) -> Result<Hash32, WordError> {
        let body = body(commitment, VOTE_FIELD, VOTE_TAG, window)?;
        let root = body.first_chunk().ok_or(WordError::Length { found: body.len() + 5, expected: 37 })?;
        Ok(Hash32(*root))
    }

    /// Reads only the root of a vote on `window` and its proof, whatever the numbers of candidates and validators.
    pub fn read_proof(commitment: &Commitment, window: u32) -> Option<(Hash32, VoteProof)> {
        let body = body(commitment, VOTE_FIELD, VOTE_TAG, window).ok()?;
        let (root, rest) = body.split_first_chunk()?;
        Some((Hash32(*root), *rest.last_chunk()?))
    }

    /// Reads the vote on `window`, which has `candidates` candidates and `validators` validators, from a stranger's
    /// commitment.
    pub fn read(commitment: &Commitment, window: u32, candidates: usize, validators: usize) -> Result<Self, WordError> {
        let body = body(commitment, VOTE_FIELD, VOTE_TAG, window)?;
        let (each, all) = (candidates.div_ceil(8), validators.div_ceil(8));
        let expected = 32 + 2 * each + all + size_of::<VoteProof>();
        if body.len() != expected {
            return Err(WordError::Length { found: body.len() + 5, expected: expected + 5 });
        }
        let (root, bits) = body.split_at(32);
        let (accept, bits) = bits.split_at(each);
        let (exclude, bits) = bits.split_at(each);
        let (deny, proof) = bits.split_at(all);
        Ok(Self {
            window,
            root: Hash32(root.try_into().expect("split at 32")),
            accept: unpack(accept, candidates)?,
            exclude: unpack(exclude, candidates)?,
            deny: unpack(deny, validators)?,
            proof: proof.try_into().expect("the length was checked"),
        })
    }
}

/// What follows tag and window.
fn body(commitment: &Commitment, field: usize, tag: u8, window: u32) -> Result<&[u8], WordError> {
    let bytes = commitment.fields.get(field).filter(|bytes| !bytes.is_empty()).ok_or(WordError::Absent)?;
    if bytes[0] != tag {
        return Err(WordError::Tag(bytes[0]));
    }
    let (head, body) = bytes.split_at_checked(5).ok_or(WordError::Length { found: bytes.len(), expected: 5 })?;
    let found = u32::from_le_bytes(head[1..].try_into().expect("four bytes"));
    if found != window {
        return Err(WordError::Window { found, expected: window });
    }
    Ok(body)
}

fn bitmap(bits: &[bool]) -> Vec<u8> {
    bits.chunks(8).map(|byte| byte.iter().rev().fold(0, |acc, &bit| acc << 1 | u8::from(bit))).collect()
}

fn unpack(bytes: &[u8], count: usize) -> Result<Vec<bool>, WordError> {
    let bits: Vec<bool> = bytes.iter().flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1 == 1)).collect();
    if bits[count..].iter().any(|&bit| bit) {
        return Err(WordError::Padding);
    }
    Ok(bits[..count].to_vec())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::commitment::FIELD_BYTES_MAX;
    use crate::run::{CANDIDATES_MAX, VALIDATORS_MAX};

    fn commitment(fields: Vec<Vec<u8>>) -> Commitment {
        Commitment { block: 1, fields }
    }

    #[test]
    fn a_vote_on_the_most_candidates_fits_its_field() {
        let vote = Vote {
            window: u32::MAX,
            root: Hash32::of(b"root"),
            accept: vec![true; CANDIDATES_MAX as usize],
            exclude: vec![false; CANDIDATES_MAX as usize],
            deny: vec![true; VALIDATORS_MAX],
            proof: [7; 16],
        };
        let fields = fields(b"bucket", None, Some(&vote));
        assert!(fields.iter().all(|field| field.len() <= FIELD_BYTES_MAX));
        let read = Vote::read(&commitment(fields.clone()), u32::MAX, CANDIDATES_MAX as usize, VALIDATORS_MAX);
        assert_eq!(read.unwrap(), vote);
        assert_eq!(Vote::read_window(&commitment(fields.clone())), Some(u32::MAX));
        assert_eq!(Vote::read_proof(&commitment(fields), u32::MAX), Some((vote.root, vote.proof)));
    }

    #[test]
    fn a_node_without_records_publishes_its_bucket_alone() {
        assert_eq!(fields(b"b", None, None), vec![b"b".to_vec()]);
        let record = HeaderWord { window: 3, header_hash: Hash32::of(b"h") };
        let read = |window| HeaderWord::read(&commitment(fields(b"b", Some(&record), None)), window);
        assert_eq!(read(3).unwrap(), record);
        assert_eq!(read(4).unwrap_err(), WordError::Window { found: 3, expected: 4 });
        assert_eq!(HeaderWord::read(&commitment(fields(b"b", None, None)), 3).unwrap_err(), WordError::Absent);
    }

    proptest! {
        #[test]
        fn votes_are_total_and_canonical(field in proptest::collection::vec(any::<u8>(), 0..140), n in 0usize..40, v in 0usize..20) {
            let bytes = commitment(vec![vec![], vec![], field.clone()]);
            let window = field.get(1..5).map_or(0, |w| u32::from_le_bytes(w.try_into().unwrap()));
            if let Ok(vote) = Vote::read(&bytes, window, n, v) {
                prop_assert_eq!(vote.encode(), field);
            }
        }

        #[test]
        fn votes_round_trip(accept in proptest::collection::vec(any::<bool>(), 0..256), root in any::<[u8; 32]>()) {
            let exclude: Vec<bool> = accept.iter().map(|a| !a).collect();
            let (n, deny) = (accept.len(), accept.iter().take(30).copied().collect::<Vec<bool>>());
            let v = deny.len();
            let vote = Vote { window: 9, root: Hash32(root), accept, exclude, deny, proof: [3; 16] };
            let read = Vote::read(&commitment(fields(b"b", None, Some(&vote))), 9, n, v).unwrap();
            prop_assert_eq!(read, vote);
        }
    }
}
