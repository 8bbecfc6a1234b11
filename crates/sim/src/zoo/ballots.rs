//! Validators whose votes and weights are others than their honest core's.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use futures::StreamExt;
use templar_chain::{Chain, ChainError, ChainLayer};
use templar_node::pretrain::setup::Setup;
use templar_protocol::clock::Schedule;
use templar_protocol::commitment::Commitment;
use templar_protocol::keys::{Hotkey, Keypair};
use templar_protocol::roster::{Roster, Snapshot, Uid};
use templar_protocol::run::RunSpec;
use templar_protocol::word::{self, Vote};

use crate::zoo::layers::window_of;

/// Bytes of a vote besides its bitmaps: tag, window, root, and proof.
const FIXED_BYTES: usize = 53;

/// What a validator sees on the chain when it votes.
#[derive(Debug)]
pub struct View {
    pub own: Hotkey,
    pub window: u32,
    pub roster: Roster,
    pub now: Snapshot,
    /// Candidates and validators, rounded up to whole bytes of a vote.
    bits: (usize, usize),
}

impl View {
    async fn read(
        chain: &dyn Chain,
        spec: &RunSpec,
        own: Hotkey,
        window: u64,
        vote: &[u8],
    ) -> Result<Self, ChainError> {
        let netuid = spec.chain.netuid;
        let at = Schedule::new(spec).snapshot_block(window);
        let listed = chain.snapshot(netuid, at).await?;
        let earlier = chain.snapshot(netuid, at.saturating_sub(spec.roster.stake_age_blocks)).await?;
        let roster = Roster::new(window, &listed, &earlier, spec);
        let now = chain.snapshot(netuid, chain.head().await?.number).await?;
        let validators = roster.validators.len().div_ceil(8);
        let candidates = vote.len().saturating_sub(FIXED_BYTES + validators) / 2;
        Ok(Self { own, window: window as u32, roster, now, bits: (8 * candidates, 8 * validators) })
    }

    /// The vote in a commitment, with as many bits as its bytes have.
    pub fn vote(&self, commitment: &Commitment) -> Option<Vote> {
        Vote::read(commitment, self.window, self.bits.0, self.bits.1).ok()
    }

    /// The vote on this window, among those that are on the chain by now, of the validator with the most stake.
    pub fn vote_of_another(&self) -> Option<Vote> {
        let others = self.roster.validators.iter().filter(|validator| validator.entry.hotkey != self.own);
        let votes = others.filter_map(|other| {
            let vote = self.now.commitment_of(&other.entry).and_then(|commitment| self.vote(commitment));
            vote.map(|vote| (other.stake_rao, vote))
        });
        votes.max_by_key(|(stake_rao, _)| *stake_rao).map(|(_, vote)| vote)
    }
}

/// When a vote is handed to the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// As soon as the honest core has made up its mind.
    Now,
    /// For the last block in which it counts, when the others' votes can be read.
    Last,
}

type RewriteVote = Box<dyn FnMut(&mut Vote, &View) + Send>;

struct Voting {
    honest: Arc<dyn Chain>,
    spec: RunSpec,
    when: When,
    rewrite: Arc<Mutex<RewriteVote>>,
    /// The last window whose vote waits for its block.
    waiting: Mutex<Option<u64>>,
}

#[async_trait]
impl ChainLayer for Voting {
    fn inner(&self) -> &dyn Chain {
        &*self.honest
    }

    async fn submit_commitment(&self, key: &Keypair, netuid: u16, fields: Vec<Vec<u8>>) -> Result<(), ChainError> {
        let Some(window) = fields.get(2).and_then(|vote| window_of(vote)) else {
            return self.honest.submit_commitment(key, netuid, fields).await;
        };
        let ballot = Ballot {
            chain: self.honest.clone(),
            spec: self.spec.clone(),
            key: key.clone(),
            fields,
            rewrite: self.rewrite.clone(),
        };
        if self.when == When::Now {
            return ballot.hand_in(window).await;
        }
        let before = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).replace(window);
        if before != Some(window) {
            let last = Schedule::new(&self.spec).vote_deadline(window) - 1;
            let mut heads = self.honest.heads().await?;
            tokio::spawn(async move {
                while heads.next().await.is_some_and(|head| head.number < last) {}
                ballot.hand_in(window).await
            });
        }
        Ok(())
    }
}

/// A commitment with a vote in it, on its way to the chain.
struct Ballot {
    chain: Arc<dyn Chain>,
    spec: RunSpec,
    key: Keypair,
    fields: Vec<Vec<u8>>,
    rewrite: Arc<Mutex<RewriteVote>>,
}

impl Ballot {
    async fn hand_in(self, window: u64) -> Result<(), ChainError> {
        let Self { chain, spec, key, mut fields, rewrite } = self;
        let view = View::read(&*chain, &spec, key.hotkey(), window, &fields[2]).await?;
        if let Some(mut vote) = view.vote(&Commitment { block: 0, fields: fields.clone() }) {
            (rewrite.lock().unwrap_or_else(PoisonError::into_inner))(&mut vote, &view);
            fields = word::fields(&fields[0], None, Some(&vote));
        }
        chain.submit_commitment(&key, spec.chain.netuid, fields).await
    }
}

/// The validator, with its votes as `rewrite` leaves them.
pub fn rewrite_votes(setup: Setup, when: When, rewrite: impl FnMut(&mut Vote, &View) + Send + 'static) -> Setup {
    let rewrite: Arc<Mutex<RewriteVote>> = Arc::new(Mutex::new(Box::new(rewrite)));
    let (spec, waiting) = (setup.spec.clone(), Mutex::default());
    Setup { chain: Arc::new(Voting { honest: setup.chain, spec, when, rewrite, waiting }), ..setup }
}

/// The weights that a validator sets, by its honest ones and by what is on the chain.
type RewriteWeights = fn(&mut Vec<(Uid, u16)>, &Snapshot);

struct Weighing {
    honest: Arc<dyn Chain>,
    rewrite: RewriteWeights,
}

#[async_trait]
impl ChainLayer for Weighing {
    fn inner(&self) -> &dyn Chain {
        &*self.honest
    }

    async fn submit_weights(
        &self,
        key: &Keypair,
        netuid: u16,
        mut weights: Vec<(Uid, u16)>,
        version_key: u64,
    ) -> Result<(), ChainError> {
        let now = self.honest.snapshot(netuid, self.honest.head().await?.number).await?;
        (self.rewrite)(&mut weights, &now);
        if weights.is_empty() {
            return Ok(());
        }
        self.honest.submit_weights(key, netuid, weights, version_key).await
    }
}

/// The validator, with its weights as `rewrite` leaves them; none are set where it leaves none.
pub fn rewrite_weights(setup: Setup, rewrite: RewriteWeights) -> Setup {
    Setup { chain: Arc::new(Weighing { honest: setup.chain, rewrite }), ..setup }
}
