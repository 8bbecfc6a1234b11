//! A node's own publications: its commitment on chain and the objects in its bucket.

use bytes::Bytes;
use templar_chain::ChainError;
use templar_protocol::hash::Hash32;
use templar_protocol::roster::EntryId;
use templar_protocol::word::{self, HeaderWord, Vote};
use templar_store::keys;

use crate::core::Core;
use crate::error::NodeError;
use crate::events::{Event, Role};
use crate::pending::Pending;
use crate::window::commitment_of;

/// Blocks to wait for a submitted commitment before submitting it again.
const PATIENCE_BLOCKS: u64 = 3;

/// What this node wants to stand on the chain.
#[derive(Debug)]
pub struct Board {
    bucket: Vec<u8>,
    fields: Vec<Vec<u8>>,
    submitted_at: Option<u64>,
    /// The block from which the chain takes commitments again: this node has used up its quota.
    refused_until: u64,
    /// Where the listing was last looked at, so that it is not read at every block.
    listing_checked_at: Option<u64>,
}

impl Board {
    pub fn new(core: &Core) -> Result<Self, NodeError> {
        let bucket = core.store.own().encode()?;
        let fields = word::fields(&bucket, None, None);
        Ok(Self { bucket, fields, submitted_at: None, refused_until: 0, listing_checked_at: None })
    }

    /// Publishes the bucket if the chain does not have it, or will soon count this node as inactive.
    pub async fn keep_listed(&mut self, core: &Core, entry: &EntryId, head: u64) -> Result<(), NodeError> {
        let interval = (core.spec.roster.active_blocks / 4).max(1);
        if self.listing_checked_at.is_some_and(|at| head < at + interval) {
            return Ok(());
        }
        let snapshot = core.snapshot(head).await?;
        let listed = commitment_of(&snapshot, entry).is_some_and(|commitment| {
            let fresh = commitment.block + core.spec.roster.active_blocks / 2 > head;
            fresh && commitment.fields.first() == Some(&self.bucket)
        });
        if !listed && !self.submit(core, self.fields.clone(), head).await? {
            return Ok(());
        }
        self.listing_checked_at = Some(head);
        Ok(())
    }

    /// Makes sure that the header's hash gets onto the chain; to be called again at later blocks.
    pub async fn ensure_header(
        &mut self,
        core: &Core,
        entry: &EntryId,
        header: &HeaderWord,
        head: u64,
    ) -> Result<(), NodeError> {
        self.ensure(core, entry, word::fields(&self.bucket, Some(header), None), head).await
    }

    /// Makes sure that the vote gets onto the chain; to be called again at later blocks.
    pub async fn ensure_vote(&mut self, core: &Core, entry: &EntryId, vote: &Vote, head: u64) -> Result<(), NodeError> {
        self.ensure(core, entry, word::fields(&self.bucket, None, Some(vote)), head).await
    }

    async fn ensure(&mut self, core: &Core, entry: &EntryId, fields: Vec<Vec<u8>>, head: u64) -> Result<(), NodeError> {
        if fields == self.fields && self.submitted_at.is_some_and(|at| head < at + PATIENCE_BLOCKS) {
            return Ok(());
        }
        let snapshot = core.snapshot(head).await?;
        if commitment_of(&snapshot, entry).is_some_and(|commitment| commitment.fields == fields) {
            self.fields = fields;
            return Ok(());
        }
        if self.submit(core, fields.clone(), head).await? {
            (self.fields, self.submitted_at) = (fields, Some(head));
        }
        Ok(())
    }

    /// Hands a commitment to the chain; false while that takes none of this node's. A refusal for want of quota is told
    /// once: no try can help before the next epoch.
    async fn submit(&mut self, core: &Core, fields: Vec<Vec<u8>>, head: u64) -> Result<bool, NodeError> {
        // What is handed over now is in the next block at the earliest.
        if head + 1 < self.refused_until {
            return Ok(false);
        }
        let submitted = core.chain.submit_commitment(&core.keypair, core.spec.chain.netuid, fields).await;
        if let Err(ChainError::QuotaExceeded { resets_at_block, .. }) = submitted {
            self.refused_until = resets_at_block;
        }
        Ok(submitted.map(|()| true)?)
    }

    /// Says so if the words of a node of this role, one a window, do not fit the chain's quota.
    pub async fn check_quota(&self, core: &Core, role: Role) -> Result<(), NodeError> {
        let limits = core.chain.hyperparams(core.spec.chain.netuid).await?;
        let most = vec![false; (core.spec.roster.gather + core.spec.roster.reserve) as usize];
        let header = HeaderWord { window: 0, header_hash: Hash32::default() };
        let vote = Vote { window: 0, root: Hash32::default(), accept: most.clone(), exclude: most };
        let longest = match role {
            Role::Miner => word::fields(&self.bucket, Some(&header), None),
            Role::Validator => word::fields(&self.bucket, None, Some(&vote)),
        };
        let bytes: usize = longest.iter().map(Vec::len).sum();
        let cost_bytes = (bytes as u64).max(limits.commitment_min_cost_bytes);
        let windows = limits.tempo_blocks.div_ceil(core.spec.windows.blocks);
        let (needed_bytes, quota_bytes) = (windows * cost_bytes, limits.commitment_quota_bytes);
        if needed_bytes > quota_bytes {
            let tempo_blocks = limits.tempo_blocks;
            let what = format!(
                "the chain takes {quota_bytes} bytes of commitments in {tempo_blocks} blocks, and the {windows} windows that \
                 end in them need {needed_bytes}: some will miss this node's word; a run on this subnet needs longer windows"
            );
            core.emit(Event::Trouble { what }).await;
        }
        Ok(())
    }

    /// Uploads ciphertext and header; to be followed by [`Board::ensure_header`].
    pub async fn put_contribution(&self, core: &Core, pending: &Pending) -> Result<(), NodeError> {
        core.store.put(&keys::window_payload(core.run, pending.window), pending.ciphertext.clone()).await?;
        let header = Bytes::from(pending.header.to_bytes());
        core.store.put(&keys::window_header(core.run, pending.window), header).await?;
        Ok(())
    }

    pub async fn put_key(&self, core: &Core, pending: &Pending) -> Result<(), NodeError> {
        let key = Bytes::copy_from_slice(pending.key.as_bytes());
        core.store.put(&keys::window_key(core.run, pending.window), key).await?;
        Ok(())
    }

    /// Removes this node's contribution to the window `kept` before `window`. What fails now is left to [`crate::sweep`].
    pub async fn sweep(&self, core: &Core, window: u64, kept: u64) {
        let Some(old) = window.checked_sub(kept) else { return };
        for key in [keys::window_key, keys::window_header, keys::window_payload] {
            if let Err(error) = core.store.delete(&key(core.run, old)).await {
                tracing::warn!(window = old, %error, "an old contribution stays in the bucket");
            }
        }
    }
}
