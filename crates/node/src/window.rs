//! A window as every node derives it from the run and the finalised chain.

use templar_data::Split;
use templar_protocol::assignment::{Assignment, window_seed};
use templar_protocol::candidates::{self, Candidate};
use templar_protocol::hash::Hash32;
use templar_protocol::header::{HeaderContext, possession_proof, sample_digest};
use templar_protocol::roster::{EntryId, Roster, Snapshot};
use templar_protocol::state::RunState;

use crate::core::Core;
use crate::error::NodeError;

/// Participants, candidates and assignment of one window.
#[derive(Clone, Debug)]
pub struct Window {
    pub number: u64,
    pub roster: Roster,
    pub seed: Hash32,
    pub candidates: Vec<Candidate>,
    pub assignment: Assignment,
    /// The state that the window starts from, and its digest.
    pub base: RunState,
    pub base_digest: Hash32,
}

impl Window {
    /// `base` is the state after [`templar_protocol::clock::Schedule::settled_before`] windows.
    pub async fn load(core: &Core, number: u64, base: &RunState) -> Result<Self, NodeError> {
        assert_eq!(base.settled, core.schedule.settled_before(number), "not the base of window {number}");
        let samples = core.dataset.samples(Split::Train);
        let mut cursor = base.cursor;
        for earlier in base.settled..number {
            let (roster, seed) = participants(core, earlier).await?;
            cursor = Assignment::new(&core.spec, cursor, &roster, &seed, samples).next_cursor();
        }
        let (roster, seed) = participants(core, number).await?;
        let assignment = Assignment::new(&core.spec, cursor, &roster, &seed, samples);
        let candidates = candidates::select(number, &roster, base, &core.spec.roster, &seed);
        Ok(Self { number, roster, seed, candidates, assignment, base: base.clone(), base_digest: base.digest() })
    }

    /// What the header of `entry` has to say in this window, whose base has the parameters `theta`. Reads and hashes
    /// the whole slice. Fails if this node's own copy of the data is damaged there.
    pub fn context(&self, core: &Core, entry: &EntryId, theta: &[f32]) -> Result<HeaderContext, NodeError> {
        let slice = self.assignment.slice(entry);
        // The last window of an epoch deals short slices, which miners go through again.
        let tokens_max =
            if slice.is_empty() { 0 } else { core.spec.slice_samples() * u64::from(core.spec.model.seq_len) };
        let hashes = slice.into_iter().map(|sample| core.dataset.sample_hash(Split::Train, sample));
        Ok(HeaderContext {
            run: core.run,
            window: self.number,
            entry: *entry,
            base: self.base_digest,
            sample_digest: sample_digest(&hashes.collect::<Result<Vec<_>, _>>()?),
            possession: possession_proof(theta, &entry.hotkey, &self.seed),
            ciphertext_bytes_max: Self::ciphertext_bytes_max(core),
            tokens_max,
        })
    }

    /// Bytes of the largest ciphertext that is valid in this run.
    pub fn ciphertext_bytes_max(core: &Core) -> u64 {
        core.codec.max_payload_bytes() + templar_protocol::seal::SEAL_OVERHEAD_BYTES
    }
}

/// Roster and seed of a window: functions of finalised chain state alone.
pub async fn participants(core: &Core, window: u64) -> Result<(Roster, Hash32), NodeError> {
    let block = core.schedule.snapshot_block(window);
    let now = core.snapshot(block).await?;
    let earlier = core.snapshot(block.saturating_sub(core.spec.roster.stake_age_blocks)).await?;
    let seed = window_seed(core.run, window, &now.block_hash);
    Ok((Roster::new(&now, &earlier, &core.spec.roster), seed))
}

/// The commitment of `entry` in `snapshot`, if any.
pub fn commitment_of<'a>(snapshot: &'a Snapshot, entry: &EntryId) -> Option<&'a templar_protocol::roster::Commitment> {
    snapshot.find(entry).and_then(|neuron| neuron.commitment.as_ref())
}
