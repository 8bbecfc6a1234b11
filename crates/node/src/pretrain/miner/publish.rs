//! From a sealed contribution to its published key.

use std::collections::VecDeque;

use templar_protocol::header::Header;
use templar_record::event::Event;
use templar_record::outcome::Miss;
use templar_record::trouble::Trouble;

use crate::frame::error::NodeError;
use crate::pretrain::miner::Miner;
use crate::pretrain::pending::{Pending, Stage};
use crate::pretrain::upload::{Done, Item, Late, Refusal};
use crate::pretrain::window::committed_header;

impl Miner {
    /// Takes each pending contribution as far as it gets by `head`: upload and commitment before the put deadline, the
    /// key after it, if the chain had the header in time. Returns the first error, after trying each.
    pub(super) async fn publish(&mut self, head: u64) -> Result<(), NodeError> {
        self.give_up_late(head).await;
        self.uploads.tidy(&self.ctx, head + self.ctx.spec.windows.blocks);
        let mut result = self.decide(head).await;
        for nth in 0..self.pending.len() {
            result = result.and(self.publish_one(nth, head).await);
        }
        result
    }

    /// Finds out of each pending contribution whose put deadline is past by `head` whether the chain had its header in
    /// time. Error feedback follows from that, so it comes before a window is settled.
    pub(super) async fn decide(&mut self, head: u64) -> Result<(), NodeError> {
        let mut result = Ok(());
        for nth in 0..self.pending.len() {
            let put_deadline = self.ctx.schedule.put_deadline(self.pending[nth].window);
            let is_open = matches!(self.pending[nth].stage(), Stage::Sealed | Stage::Uploaded | Stage::Committed);
            if is_open && head >= put_deadline {
                result = result.and(self.open_or_lose(nth, put_deadline).await);
            }
        }
        let all = std::mem::take(&mut self.pending);
        let (lost, kept): (VecDeque<_>, _) = all.into_iter().partition(|one| matches!(one.stage(), Stage::Lost(_)));
        self.pending = kept;
        if !lost.is_empty() {
            for pending in &lost {
                if let Stage::Lost(miss) = pending.stage() {
                    self.outcomes.miss(pending.window, miss.clone());
                }
                self.lose_feedback(pending.window);
            }
            self.save()?;
        }
        result
    }

    async fn publish_one(&mut self, nth: usize, head: u64) -> Result<(), NodeError> {
        let pending = &self.pending[nth];
        let put_deadline = self.ctx.schedule.put_deadline(pending.window);
        let vote_deadline = self.ctx.schedule.vote_deadline(pending.window);
        match pending.stage() {
            Stage::Published | Stage::Lost(_) => return Ok(()),
            Stage::Sealed if head < put_deadline => {
                self.uploads.contribution(&self.ctx, pending, put_deadline);
                return Ok(());
            }
            Stage::Uploaded | Stage::Committed if head < put_deadline => return self.commit(nth, head).await,
            // A key that comes after the votes is of no use to anybody.
            Stage::Opened if head < vote_deadline => self.uploads.key(&self.ctx, pending, vote_deadline),
            // It could not be found out yet whether the chain had its header in time.
            Stage::Sealed | Stage::Uploaded | Stage::Committed | Stage::Opened => {}
        }
        Ok(())
    }

    /// Makes sure that the header's hash gets onto the chain. Ciphertext and header are in the bucket.
    async fn commit(&mut self, nth: usize, head: u64) -> Result<(), NodeError> {
        let pending = &mut self.pending[nth];
        let entry = pending.header.header.entry;
        self.seat.publisher.ensure_header(&self.ctx, &entry, &pending.word(), head).await?;
        if *pending.stage() == Stage::Uploaded {
            pending.advance(Stage::Committed);
        }
        Ok(())
    }

    /// The put deadline is past: whether the chain had the header by then decides.
    async fn open_or_lose(&mut self, nth: usize, put_deadline: u64) -> Result<(), NodeError> {
        let at_put = self.ctx.snapshot(put_deadline).await?;
        let pending = &mut self.pending[nth];
        let header: &Header = &pending.header.header;
        if committed_header(pending.window, &header.entry, &at_put) != Some(header.hash()) {
            let is_uploaded = *pending.stage() != Stage::Sealed;
            pending.advance(Stage::Lost(if is_uploaded { Miss::CommittedTooLate } else { Miss::UploadTooLate }));
            return Ok(());
        }
        // On disk before it is public: a node that dies in between must not send the same values again.
        pending.advance(Stage::Opened);
        let (window, settled) = (pending.window, self.ctx.schedule.settled_before(pending.window));
        self.error_feedback.confirm(window);
        self.owed.retain(|owed| owed.window >= settled);
        self.save()
    }

    /// What the chain did not have in time never left the error feedback.
    pub(super) fn lose_feedback(&mut self, window: u64) {
        if let Some(cause) = self.error_feedback.lose(&self.seat.local, window) {
            self.outcomes.miss(window, Miss::ErrorFeedbackLost { cause });
        }
    }

    /// Tells of uploads whose deadline is past, unless their bucket's refusal was told. What that costs shows when the
    /// window is settled.
    async fn give_up_late(&mut self, head: u64) {
        for Late { item, deadline_block, is_refused } in self.uploads.expire(head) {
            if is_refused {
                continue;
            }
            match item.put() {
                Some((window, put)) => {
                    self.ctx.trouble(Trouble::UploadGivenUp { window, put, deadline_block }).await;
                }
                None => self.tell_sweep("old contributions were not deleted within a window".to_owned()).await,
            }
        }
    }

    /// Takes in what has become of uploads.
    pub(super) async fn take_uploads(&mut self) {
        for Refusal { item, error, deadline_block } in self.uploads.take_refusals() {
            if let Some((window, put)) = item.put()
                && self.refusals.note()
            {
                let cause = error.to_string();
                self.ctx.trouble(Trouble::UploadRefused { window, put, cause, deadline_block }).await;
            }
        }
        for Done { item, result: ended, comm_s } in self.uploads.take() {
            match (item, ended) {
                // What is put ends well, or is given up.
                (Item::Contribution(_) | Item::Key(_), Err(_)) => {}
                (Item::Removal, Ok(())) => self.is_sweep_told = false,
                (Item::Removal, Err(error)) => self.tell_sweep(error.to_string()).await,
                (Item::Contribution(window), Ok(())) => {
                    self.refusals.end(&self.ctx).await;
                    self.note_uploaded(window, comm_s).await;
                }
                (Item::Key(window), Ok(())) => {
                    self.refusals.end(&self.ctx).await;
                    self.note_published(window).await;
                }
            }
        }
    }

    /// Tells that old objects stay in the bucket: once, until one removal succeeds.
    async fn tell_sweep(&mut self, cause: String) {
        if !std::mem::replace(&mut self.is_sweep_told, true) {
            self.ctx.trouble(Trouble::Sweep { cause }).await;
        }
    }

    async fn note_uploaded(&mut self, window: u64, comm_s: f64) {
        let sealed = |one: &&mut Pending| one.window == window && *one.stage() == Stage::Sealed;
        if let Some(pending) = self.pending.iter_mut().find(sealed) {
            pending.advance(Stage::Uploaded);
            let payload_bytes = pending.header.header.ciphertext_bytes;
            self.ctx.emit(Event::Sealed { window, payload_bytes, comm_s }).await;
        }
    }

    async fn note_published(&mut self, window: u64) {
        let opened = |one: &&mut Pending| one.window == window && *one.stage() == Stage::Opened;
        if let Some(pending) = self.pending.iter_mut().find(opened) {
            pending.advance(Stage::Published);
            self.ctx.emit(Event::Opened { window }).await;
        }
    }
}
