//! A window as every node derives it from the run and the finalised chain.

use templar_data::Split;
use templar_protocol::assignment::{Assignment, Cursor, window_seed};
use templar_protocol::candidates::{self, Candidate};
use templar_protocol::hash::Hash32;
use templar_protocol::header::{HeaderContext, sample_digest};
use templar_protocol::possession;
use templar_protocol::roster::{EntryId, Roster, Snapshot};
use templar_protocol::state::RunState;
use templar_protocol::word::HeaderWord;

use crate::frame::context::Context;
use crate::frame::error::NodeError;

/// Participants, candidates and assignment of one window.
#[derive(Clone, Debug)]
pub struct Window {
    pub number: u64,
    pub roster: Roster,
    pub seed: Hash32,
    /// Hash of the block of its snapshot.
    pub snapshot_hash: Hash32,
    pub candidates: Vec<Candidate>,
    pub assignment: Assignment,
    /// The state that the window starts from, and its digest.
    pub base: RunState,
    pub base_digest: Hash32,
}

impl Window {
    /// `base` is the state after [`templar_protocol::clock::Schedule::settled_before`] windows; `cursor` is where all
    /// windows before this one end, settled or not.
    pub async fn load(ctx: &Context, number: u64, base: &RunState, cursor: Cursor) -> Result<Self, NodeError> {
        assert_eq!(base.settled, ctx.schedule.settled_before(number), "not the base of window {number}");
        let (roster, seed, snapshot_hash) = participants(ctx, number).await?;
        let candidates = candidates::select(number, &roster, &base.standing, &ctx.spec.roster, &seed);
        let samples = ctx.dataset.samples(Split::Train);
        let assignment = Assignment::new(&ctx.spec, number, cursor, &candidates, &seed, samples);
        let (base, base_digest) = (base.clone(), base.digest());
        Ok(Self { number, roster, seed, snapshot_hash, candidates, assignment, base, base_digest })
    }

    /// What the header of `entry` must say in this window, whose base has the parameters `theta`. Reads and hashes
    /// the whole slice. Fails if this node's own copy of the data is damaged there.
    pub fn context(&self, ctx: &Context, entry: &EntryId, theta: &[f32]) -> Result<HeaderContext, NodeError> {
        let slice = self.assignment.slice(entry);
        // The last window of an epoch deals short slices, which miners repeat.
        let tokens_max = if slice.is_empty() { 0 } else { ctx.spec.slice_tokens(self.number) };
        let hashes = slice.into_iter().map(|sample| ctx.dataset.sample_hash(Split::Train, sample));
        Ok(HeaderContext {
            run: ctx.run,
            window: self.number,
            entry: *entry,
            base: self.base_digest,
            sample_digest: sample_digest(&hashes.collect::<Result<Vec<_>, _>>()?),
            possession: possession::of_theta(theta, &entry.hotkey, &self.seed),
            ciphertext_bytes_max: Self::ciphertext_bytes_max(ctx),
            steps_max: ctx.spec.inner.steps_of(self.number),
            tokens_max,
        })
    }

    /// Whether a contribution of `entry` may count.
    pub fn is_candidate(&self, entry: &EntryId) -> bool {
        self.candidates.iter().any(|candidate| candidate.entry == *entry)
    }

    /// Bytes of the largest ciphertext that is valid in this run.
    pub fn ciphertext_bytes_max(ctx: &Context) -> u64 {
        ctx.codec.max_payload_bytes() + templar_protocol::seal::SEAL_OVERHEAD_BYTES
    }
}

/// Roster, seed and block hash of a window's snapshot: functions of finalised chain state alone.
pub async fn participants(ctx: &Context, window: u64) -> Result<(Roster, Hash32, Hash32), NodeError> {
    let block = ctx.schedule.snapshot_block(window);
    let now = ctx.snapshot(block).await?;
    let earlier = ctx.snapshot(block.saturating_sub(ctx.spec.roster.stake_age_blocks)).await?;
    let seed = window_seed(ctx.run, window, &now.block_hash);
    Ok((Roster::new(window, &now, &earlier, &ctx.spec), seed, now.block_hash))
}

/// The header hash that a miner had on chain at the put deadline.
pub fn committed_header(window: u64, entry: &EntryId, at_put: &Snapshot) -> Option<Hash32> {
    let commitment = at_put.commitment_of(entry)?;
    HeaderWord::read(commitment, window as u32).ok().map(|word| word.header_hash)
}
