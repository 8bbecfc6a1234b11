//! What a miner does to its own bucket: put a contribution, publish its key, remove what is old. All of it beside the
//! node's loop, so that a bucket that hangs holds up neither the training nor the settling of windows, and each with the
//! block after which it is of no use any more.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use templar_record::trouble::Put;
use templar_store::{StoreError, keys};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use crate::frame::context::Context;
use crate::pretrain::pending::Pending;
use crate::pretrain::sweep;

/// One thing to do to the bucket. There is one task for each at a time, so as many as there are pending contributions,
/// times two, and one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Item {
    /// Ciphertext and header of a window.
    Contribution(u64),
    /// Its key: from then on everybody can read the contribution.
    Key(u64),
    /// Old contributions go.
    Removal,
}

/// What became of one.
#[derive(Debug)]
pub struct Done {
    pub item: Item,
    pub result: Result<(), StoreError>,
    pub comm_s: f64,
}

/// What is under way.
#[derive(Debug, Default)]
pub struct Uploads {
    tasks: JoinSet<Done>,
    /// By what is done: how to stop it, and the block at which that is due.
    under_way: BTreeMap<Item, (AbortHandle, u64)>,
    /// Ended, and not yet taken.
    done: Vec<Done>,
    /// Contributions to windows before this one have to go, once the removal that is under way has ended.
    remove_before: Option<u64>,
}

impl Item {
    /// As troubles name it; a removal has no window.
    pub fn put(self) -> Option<(u64, Put)> {
        match self {
            Self::Contribution(window) => Some((window, Put::Contribution)),
            Self::Key(window) => Some((window, Put::Key)),
            Self::Removal => None,
        }
    }
}

impl Uploads {
    /// Uploads ciphertext and header; to be followed by
    /// [`Publisher::ensure_header`](crate::frame::publisher::Publisher::ensure_header).
    pub fn contribution(&mut self, ctx: &Arc<Context>, pending: &Pending, deadline_block: u64) {
        let item = Item::Contribution(pending.window);
        if self.under_way.contains_key(&item) {
            return;
        }
        let (ctx, window) = (ctx.clone(), pending.window);
        let (ciphertext, header) = (pending.ciphertext(), Bytes::from(pending.header.to_bytes()));
        self.start(item, deadline_block, async move {
            ctx.store.put(&keys::window_payload(ctx.run, window), ciphertext).await?;
            ctx.store.put(&keys::window_header(ctx.run, window), header).await
        });
    }

    /// Publishes the key.
    pub fn key(&mut self, ctx: &Arc<Context>, pending: &Pending, deadline_block: u64) {
        let item = Item::Key(pending.window);
        if self.under_way.contains_key(&item) {
            return;
        }
        let (ctx, window) = (ctx.clone(), pending.window);
        let key = Bytes::copy_from_slice(pending.key.as_bytes());
        self.start(item, deadline_block, async move { ctx.store.put(&keys::window_key(ctx.run, window), key).await });
    }

    /// Contributions to windows before `keep_from` have to go.
    pub fn remove_before(&mut self, keep_from: u64) {
        self.remove_before = Some(keep_from);
    }

    /// Begins to remove them, unless a removal is under way.
    pub fn tidy(&mut self, ctx: &Arc<Context>, deadline_block: u64) {
        if self.under_way.contains_key(&Item::Removal) {
            return;
        }
        let Some(keep_from) = self.remove_before.take() else { return };
        let ctx = ctx.clone();
        self.start(Item::Removal, deadline_block, async move {
            // By name first: that needs no right to list.
            if let Some(window) = keep_from.checked_sub(1) {
                for key in [keys::window_key, keys::window_header, keys::window_payload] {
                    ctx.store.delete(&key(ctx.run, window)).await?;
                }
            }
            sweep::windows(&ctx, keep_from).await
        });
    }

    fn start(
        &mut self,
        item: Item,
        deadline_block: u64,
        work: impl Future<Output = Result<(), StoreError>> + Send + 'static,
    ) {
        let started = Instant::now();
        let task = self.tasks.spawn(async move {
            let result = work.await;
            Done { item, result, comm_s: started.elapsed().as_secs_f64() }
        });
        self.under_way.insert(item, (task, deadline_block));
    }

    /// Ends when something is done; then [`Uploads::take`] has it. Never ends if nothing is under way. Dropping it loses
    /// nothing.
    pub async fn arrival(&mut self) {
        loop {
            match self.tasks.join_next().await {
                Some(Ok(done)) => return self.done.push(done),
                Some(Err(error)) if error.is_cancelled() => {}
                // It stays under way until its deadline, and is reported then.
                Some(Err(error)) => tracing::error!(%error, "an upload broke its task"),
                None => return std::future::pending().await,
            }
        }
    }

    pub fn take(&mut self) -> Vec<Done> {
        let mut done = std::mem::take(&mut self.done);
        // What was given up has been told already.
        done.retain(|done| self.under_way.remove(&done.item).is_some());
        done
    }

    /// Gives up what is of no use any more at `head`.
    pub fn expire(&mut self, head: u64) -> Vec<(Item, u64)> {
        let late = self.under_way.iter().filter(|(_, (_, deadline))| head >= *deadline);
        let late: Vec<(Item, u64)> = late.map(|(item, (_, deadline))| (*item, *deadline)).collect();
        for (item, _) in &late {
            if let Some((task, _)) = self.under_way.remove(item) {
                task.abort();
            }
        }
        late
    }
}
