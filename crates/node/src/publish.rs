//! A node's own publications: its commitment on chain and the objects in its bucket.

use bytes::Bytes;
use templar_protocol::roster::EntryId;
use templar_protocol::word::{self, HeaderWord, Vote};
use templar_store::keys;

use crate::core::Core;
use crate::error::NodeError;
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
    /// Where the listing was last looked at, so that it is not read at every block.
    listing_checked_at: Option<u64>,
}

impl Board {
    pub fn new(core: &Core) -> Result<Self, NodeError> {
        let bucket = core.store.own().encode()?;
        let fields = word::fields(&bucket, None, None);
        Ok(Self { bucket, fields, submitted_at: None, listing_checked_at: None })
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
        if !listed {
            core.chain.submit_commitment(&core.keypair, core.spec.chain.netuid, self.fields.clone()).await?;
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
        core.chain.submit_commitment(&core.keypair, core.spec.chain.netuid, fields.clone()).await?;
        (self.fields, self.submitted_at) = (fields, Some(head));
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
