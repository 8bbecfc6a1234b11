//! Proofs that a validator holds what counted last, so that nobody has a vote who only copies the others'.

use std::sync::Arc;

use templar_protocol::hash::Hash32;
use templar_protocol::possession::PayloadDigest;
use templar_protocol::roster::EntryId;
use templar_protocol::word::{Vote, VoteProof};

use crate::frame::context::Context;
use crate::frame::error::NodeError;
use crate::pretrain::replica::Replica;
use crate::pretrain::window::Window;

/// The payloads' digests of the window being judged and of the one before it, whose votes can be checked by now.
#[derive(Debug, Default)]
pub(super) struct Proofs {
    present: Option<Known>,
    before: Option<Known>,
}

#[derive(Debug)]
struct Known {
    window: u64,
    root: Hash32,
    /// Who could vote on it.
    voters: Vec<EntryId>,
    digest: PayloadDigest,
}

impl Proofs {
    /// Reads all payloads that the state at the start of `window` applied last. After a start they are fetched first.
    pub(super) async fn prepare(
        &mut self,
        ctx: &Arc<Context>,
        replica: &mut Replica,
        window: &Window,
        head: u64,
    ) -> Result<(), NodeError> {
        if self.present.as_ref().is_some_and(|known| known.window == window.number && known.root == window.base_digest)
        {
            return Ok(());
        }
        let (seed, applied) = (window.seed, replica.take_applied(ctx, head, window.base.settled).await?);
        let work = move || {
            let mut digest = PayloadDigest::new(&seed);
            for opened in &applied {
                digest.update(opened.contribution.payload());
            }
            digest
        };
        let digest = ctx.compute.run(work).await;
        let voters = window.roster.validators.iter().map(|validator| validator.entry).collect();
        let known = Known { window: window.number, root: window.base_digest, voters, digest };
        // After a return to another state the same window is judged anew.
        let before = self.present.replace(known);
        if let Some(before) = before.filter(|before| before.window != window.number) {
            self.before = Some(before);
        }
        Ok(())
    }

    /// The proof of `voter` in its vote on `window`, which starts from the state `root`, if this node can make it.
    pub(super) fn proof(&self, window: u64, root: Hash32, voter: &EntryId) -> Option<VoteProof> {
        let known = self.present.as_ref().filter(|known| known.window == window && known.root == root);
        known.map(|known| known.digest.proof(voter))
    }

    /// By validator of the roster of `window`: whether its vote on the window before stands on the state that this node
    /// had, and proves nothing. Whoever voted for another state holds other payloads, and who did not vote says nothing.
    pub(super) async fn denied(&self, ctx: &Context, window: &Window) -> Result<Vec<bool>, NodeError> {
        let validators = &window.roster.validators;
        let Some(known) = self.before.as_ref().filter(|known| known.window + 1 == window.number) else {
            return Ok(vec![false; validators.len()]);
        };
        let at_vote = ctx.snapshot(ctx.schedule.vote_deadline(known.window)).await?;
        let denied = validators.iter().map(|validator| {
            let vote = at_vote.commitment_of(&validator.entry).filter(|_| known.voters.contains(&validator.entry));
            let vote = vote.and_then(|commitment| Vote::read_proof(commitment, known.window as u32));
            vote.is_some_and(|(root, proof)| root == known.root && proof != known.digest.proof(&validator.entry))
        });
        Ok(denied.collect())
    }
}
