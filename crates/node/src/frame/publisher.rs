//! A node's own publications: its commitment on chain and the objects in its bucket.

use templar_chain::ChainError;
use templar_protocol::commitment::Commitment;
use templar_protocol::hash::Hash32;
use templar_protocol::locator::Locator;
use templar_protocol::roster::EntryId;
use templar_protocol::run::VALIDATORS_MAX;
use templar_protocol::word::{self, HeaderWord, Vote};

use crate::frame::context::Context;
use crate::frame::error::NodeError;
use templar_record::event::Role;
use templar_record::trouble::Trouble;

/// Blocks to wait for a submitted commitment before submitting it again.
const PATIENCE_BLOCKS: u64 = 3;

/// What this node wants to have on the chain.
#[derive(Debug)]
pub struct Publisher {
    role: Role,
    locator: Vec<u8>,
    fields: Vec<Vec<u8>>,
    submitted_at: Option<u64>,
    /// This node has used up its quota: the block from which the chain takes its commitments again.
    refused_until: u64,
    /// The block at which the listing was last read, so that it is not read at every block.
    listing_checked_at: Option<u64>,
}

impl Publisher {
    pub fn new(ctx: &Context, role: Role) -> Result<Self, NodeError> {
        let locator = Locator::new(role, ctx.store.own().clone()).encode()?;
        let fields = word::fields(&locator, None, None);
        Ok(Self { role, locator, fields, submitted_at: None, refused_until: 0, listing_checked_at: None })
    }

    pub fn role(&self) -> Role {
        self.role
    }

    /// Publishes the locator if the chain does not have it, or counts this node as inactive or silent, or soon will. Not
    /// before it is proven that what is published cannot write.
    pub async fn keep_listed(&mut self, ctx: &Context, entry: &EntryId, head: u64) -> Result<(), NodeError> {
        let is_proven = ctx.published.is_proven()?;
        let interval = (ctx.spec.roster.active_blocks / 4).max(1);
        if self.listing_checked_at.is_some_and(|at| head < at + interval) {
            return Ok(());
        }
        let snapshot = ctx.snapshot(head).await?;
        let window = ctx.schedule.window_at(head).unwrap_or_default();
        let commitment = snapshot.commitment_of(entry);
        // Without access to storage it could not vote, and would only be in the way of those that can.
        let is_silent = self.role == Role::Validator
            && ctx.access.broken().is_none()
            && commitment
                .and_then(Vote::read_window)
                .is_some_and(|voted| u64::from(voted) + ctx.spec.roster.silent_windows <= window);
        let is_public = self.is_public(commitment);
        let is_fresh = |commitment: &Commitment| commitment.block + ctx.spec.roster.active_blocks / 2 > head;
        let is_listed = is_public && commitment.is_some_and(is_fresh);
        if !is_public && !is_proven {
            return Ok(());
        }
        if is_silent {
            // The way back into the roster is a commitment without the old vote.
            self.fields = word::fields(&self.locator, None, None);
        }
        if (is_silent || !is_listed) && !self.submit(ctx, self.fields.clone(), head).await? {
            return Ok(());
        }
        self.listing_checked_at = Some(head);
        Ok(())
    }

    /// Makes sure that the header's hash gets onto the chain; to be called again at later blocks.
    pub async fn ensure_header(
        &mut self,
        ctx: &Context,
        entry: &EntryId,
        header: &HeaderWord,
        head: u64,
    ) -> Result<(), NodeError> {
        self.ensure(ctx, entry, word::fields(&self.locator, Some(header), None), head).await
    }

    /// Makes sure that the vote gets onto the chain; to be called again at later blocks.
    pub async fn ensure_vote(
        &mut self,
        ctx: &Context,
        entry: &EntryId,
        vote: &Vote,
        head: u64,
    ) -> Result<(), NodeError> {
        self.ensure(ctx, entry, word::fields(&self.locator, None, Some(vote)), head).await
    }

    async fn ensure(
        &mut self,
        ctx: &Context,
        entry: &EntryId,
        fields: Vec<Vec<u8>>,
        head: u64,
    ) -> Result<(), NodeError> {
        if fields == self.fields && self.submitted_at.is_some_and(|at| head < at + PATIENCE_BLOCKS) {
            return Ok(());
        }
        let snapshot = ctx.snapshot(head).await?;
        let commitment = snapshot.commitment_of(entry);
        if commitment.is_some_and(|commitment| commitment.fields == fields) {
            self.fields = fields;
            return Ok(());
        }
        if !self.is_public(commitment) && !ctx.published.is_proven()? {
            return Ok(());
        }
        if self.submit(ctx, fields.clone(), head).await? {
            (self.fields, self.submitted_at) = (fields, Some(head));
        }
        Ok(())
    }

    /// Whether the chain has this node's locator already.
    fn is_public(&self, commitment: Option<&Commitment>) -> bool {
        commitment.is_some_and(|commitment| commitment.fields.first() == Some(&self.locator))
    }

    /// Hands a commitment to the chain; false while the chain takes none of this node's. A refusal for lack of quota is
    /// reported once: no retry can help before the next epoch.
    async fn submit(&mut self, ctx: &Context, fields: Vec<Vec<u8>>, head: u64) -> Result<bool, NodeError> {
        // A commitment handed over now is in the next block at the earliest.
        if head + 1 < self.refused_until {
            return Ok(false);
        }
        let submitted = ctx.chain.submit_commitment(&ctx.keypair, ctx.spec.chain.netuid, fields).await;
        if let Err(ChainError::QuotaExceeded { resets_at_block, .. }) = submitted {
            self.refused_until = resets_at_block;
        }
        Ok(submitted.map(|()| true)?)
    }

    /// Says so if this node's records, one per window, do not fit the chain's quota.
    pub async fn check_quota(&self, ctx: &Context) -> Result<(), NodeError> {
        let limits = ctx.chain.hyperparams(ctx.spec.chain.netuid).await?;
        let most = vec![false; (ctx.spec.roster.gather + ctx.spec.roster.reserve) as usize];
        let header = HeaderWord { window: 0, header_hash: Hash32::default() };
        let (root, deny) = (Hash32::default(), vec![false; VALIDATORS_MAX]);
        let vote = Vote { window: 0, root, accept: most.clone(), exclude: most, deny, proof: [0; 16] };
        let longest = match self.role {
            Role::Miner => word::fields(&self.locator, Some(&header), None),
            Role::Validator => word::fields(&self.locator, None, Some(&vote)),
        };
        let bytes: usize = longest.iter().map(Vec::len).sum();
        let cost_bytes = (bytes as u64).max(limits.commitment_min_cost_bytes);
        let windows = limits.tempo_blocks.div_ceil(ctx.spec.windows.blocks);
        let (needed_bytes, quota_bytes) = (windows * cost_bytes, limits.commitment_quota_bytes);
        if needed_bytes > quota_bytes {
            let tempo_blocks = limits.tempo_blocks;
            ctx.trouble(Trouble::QuotaTooSmall { quota_bytes, tempo_blocks, windows, needed_bytes }).await;
        }
        Ok(())
    }
}
