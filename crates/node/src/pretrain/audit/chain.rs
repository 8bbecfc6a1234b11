//! What the chain itself still says of a run: what is certified last, and whether archived inputs are what was on it.

use templar_chain::{Chain, ChainError};
use templar_protocol::certificate::certified_root;
use templar_protocol::clock::Schedule;
use templar_protocol::hash::Hash32;
use templar_protocol::inputs::WindowInputs;
use templar_protocol::locator::{Locator, Role};
use templar_protocol::roster::{Roster, Snapshot};
use templar_protocol::run::{RunSpec, VALIDATORS_MAX};
use templar_protocol::standing::Standing;

use crate::pretrain::audit::error::AuditError;
use crate::pretrain::audit::sources::Source;

/// Windows in which a certificate is looked for, newest first.
const SEARCH_WINDOWS: u64 = 64;

/// How much of a window's inputs the chain still has, all of which is as they say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compared {
    All,
    Hashes,
    Nothing,
}

/// The chain of a run.
pub(super) struct Records<'a> {
    spec: &'a RunSpec,
    schedule: Schedule,
    chain: &'a dyn Chain,
}

impl<'a> Records<'a> {
    pub(super) fn new(spec: &'a RunSpec, chain: &'a dyn Chain) -> Self {
        Self { spec, schedule: Schedule::new(spec), chain }
    }

    /// The newest window whose votes certify the state that it starts from, and the digest of that.
    pub(super) async fn newest_certified(&self) -> Result<(u64, Hash32), AuditError> {
        let head = self.chain.head().await?.number;
        let at = self.schedule.window_at(head).map_or(0, |window| window + 1);
        let voted: Vec<u64> = (0..at).filter(|window| self.schedule.vote_deadline(*window) <= head).collect();
        for &window in voted.iter().rev().take(SEARCH_WINDOWS as usize) {
            let (_, roster) = self.roster(window).await?;
            let at_vote = self.snapshot(self.schedule.vote_deadline(window)).await?;
            if let Some(root) = certified_root(window, &roster, &Standing::default(), &at_vote) {
                return Ok((window, root));
            }
        }
        Err(AuditError::NoCertificate { windows: SEARCH_WINDOWS.min(voted.len() as u64) })
    }

    /// Compares archived inputs with the chain, as far as that serves what was there then. Fails with what differs.
    pub(super) async fn compare(&self, inputs: &WindowInputs) -> Result<Compared, String> {
        let window = inputs.window;
        let blocks = [
            ("snapshot", self.schedule.snapshot_block(window), inputs.snapshot_hash),
            ("put deadline", self.schedule.put_deadline(window), inputs.put_hash),
        ];
        for (name, block, archived) in blocks {
            match self.chain.block_hash(block).await {
                Ok(found) if found != archived => {
                    return Err(format!(
                        "its inputs say that the block of its {name} ({block}) has hash {archived}, but the chain has {found}"
                    ));
                }
                Ok(_) => {}
                Err(_) => return Ok(Compared::Nothing),
            }
        }
        let Ok(found) = self.inputs(window).await else { return Ok(Compared::Hashes) };
        match difference(inputs, &found) {
            None => Ok(Compared::All),
            Some(what) => Err(format!("its archived inputs differ from the chain in {what}")),
        }
    }

    async fn inputs(&self, window: u64) -> Result<WindowInputs, ChainError> {
        let (now, roster) = self.roster(window).await?;
        let at_put = self.snapshot(self.schedule.put_deadline(window)).await?;
        let at_vote = self.snapshot(self.schedule.vote_deadline(window)).await?;
        Ok(WindowInputs::new(window, now.block_hash, &roster, &at_put, &at_vote))
    }

    async fn roster(&self, window: u64) -> Result<(Snapshot, Roster), ChainError> {
        let block = self.schedule.snapshot_block(window);
        let now = self.snapshot(block).await?;
        let earlier = self.snapshot(block.saturating_sub(self.spec.roster.stake_age_blocks)).await?;
        let roster = Roster::new(window, &now, &earlier, self.spec);
        Ok((now, roster))
    }

    async fn snapshot(&self, block: u64) -> Result<Snapshot, ChainError> {
        self.chain.snapshot(self.spec.chain.netuid, block).await
    }
}

/// In what two inputs of one window differ, if they do.
fn difference(archived: &WindowInputs, found: &WindowInputs) -> Option<String> {
    let entries = |inputs: &WindowInputs| -> Vec<_> { inputs.miners.iter().map(|miner| miner.entry).collect() };
    if entries(archived) != entries(found) {
        return Some("the list of miners".to_owned());
    }
    let voters = |inputs: &WindowInputs| -> Vec<_> { inputs.validators.iter().map(|voter| voter.entry).collect() };
    if voters(archived) != voters(found) {
        return Some("the list of validators".to_owned());
    }
    let miner = archived.miners.iter().zip(&found.miners).find(|(archived, found)| archived != found);
    let voter = archived.validators.iter().zip(&found.validators).find(|(archived, found)| archived != found);
    let miner = miner.map(|(miner, _)| format!("what miner uid {} had there", miner.entry.uid));
    miner.or_else(|| voter.map(|(voter, _)| format!("what validator uid {} had there", voter.entry.uid)))
}

/// The validators' buckets at the newest block, those of the most stake first.
pub(super) async fn validators(chain: &dyn Chain, spec: &RunSpec) -> Result<Vec<Source>, ChainError> {
    let head = chain.head().await?.number;
    let mut neurons = chain.snapshot(spec.chain.netuid, head).await?.neurons;
    neurons.sort_by_key(|neuron| (std::cmp::Reverse(neuron.stake_rao), neuron.entry.uid));
    let sources = neurons.iter().filter_map(|neuron| {
        let locator = Locator::decode(neuron.commitment.as_ref()?.fields.first()?).ok()?;
        let owner = format!("uid {}", neuron.entry.uid);
        (locator.role == Role::Validator).then_some(Source { owner, bucket: locator.bucket })
    });
    Ok(sources.take(VALIDATORS_MAX).collect())
}
