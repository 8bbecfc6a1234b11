//! A miner's work on its own bucket: put a contribution, publish its key, remove old ones. All of it runs beside the
//! node's loop, so that a bucket that hangs holds up neither the training nor the settling of windows, and each task is
//! given up at the block after which it is of no use. What the bucket refuses is put again, with pauses, until that
//! block.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use templar_record::trouble::Put;
use templar_store::{StoreError, keys};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use crate::frame::context::Context;
use crate::pretrain::pauses::Pauses;
use crate::pretrain::pending::Pending;
use crate::pretrain::sweep;

/// Work that no deadline of the protocol hangs on gets at least this time, however fast the blocks come.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// One task on the bucket. Each runs once at a time, so there are at most two per pending contribution, and one more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Item {
    /// Ciphertext and header of a window.
    Contribution(u64),
    /// Its key: from then on everybody can read the contribution.
    Key(u64),
    /// Removal of old contributions.
    Removal,
}

/// The result of a task.
#[derive(Debug)]
pub struct Done {
    pub item: Item,
    pub result: Result<(), StoreError>,
    pub comm_s: f64,
}

/// Something that the bucket refused, and that is put again until `deadline_block`.
#[derive(Debug)]
pub struct Refusal {
    pub item: Item,
    pub error: StoreError,
    pub deadline_block: u64,
}

/// Something given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Late {
    pub item: Item,
    pub deadline_block: u64,
    /// Whether a [`Refusal`] of it was handed out.
    pub is_refused: bool,
}

/// The tasks under way.
#[derive(Debug)]
pub struct Uploads {
    tasks: JoinSet<Done>,
    under_way: BTreeMap<Item, UnderWay>,
    /// The first refusal of each upload, and where it comes from.
    refusals: mpsc::UnboundedReceiver<(Item, StoreError)>,
    refused: mpsc::UnboundedSender<(Item, StoreError)>,
    /// Refusals that have come, and are not yet taken.
    news: Vec<(Item, StoreError)>,
    /// Tasks that have ended, and were not taken yet.
    done: Vec<Done>,
    /// Contributions to windows before this one are removed once the removal that is under way has ended.
    remove_before: Option<u64>,
}

/// How to stop it, and the block at which that is due.
#[derive(Debug)]
struct UnderWay {
    task: AbortHandle,
    since: Instant,
    deadline_block: u64,
    is_refused: bool,
}

/// What an upload says to the first refusal.
struct Complaint {
    item: Item,
    refused: Option<mpsc::UnboundedSender<(Item, StoreError)>>,
}

impl Complaint {
    /// Puts until it succeeds.
    async fn put(&mut self, ctx: &Context, key: &str, bytes: Bytes) {
        let mut pauses = Pauses::default();
        while let Err(error) = ctx.store.put(key, bytes.clone()).await {
            if let Some(refused) = self.refused.take() {
                // Whoever would hear it is gone: so is this task, soon.
                let _ = refused.send((self.item, error));
            }
            pauses.pause().await;
        }
    }
}

impl Default for Uploads {
    fn default() -> Self {
        let (refused, refusals) = mpsc::unbounded_channel();
        let (tasks, under_way) = (JoinSet::new(), BTreeMap::new());
        Self { tasks, under_way, refusals, refused, news: Vec::new(), done: Vec::new(), remove_before: None }
    }
}

impl Item {
    /// The window and the kind, as troubles name them; a removal has none.
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
        let (ctx, window, mut complaint) = (ctx.clone(), pending.window, self.complaint(item));
        let (ciphertext, header) = (pending.ciphertext(), Bytes::from(pending.header.to_bytes()));
        self.start(item, deadline_block, async move {
            complaint.put(&ctx, &keys::window_payload(ctx.run, window), ciphertext).await;
            complaint.put(&ctx, &keys::window_header(ctx.run, window), header).await;
            Ok(())
        });
    }

    /// Publishes the key.
    pub fn key(&mut self, ctx: &Arc<Context>, pending: &Pending, deadline_block: u64) {
        let item = Item::Key(pending.window);
        if self.under_way.contains_key(&item) {
            return;
        }
        let (ctx, window, mut complaint) = (ctx.clone(), pending.window, self.complaint(item));
        let key = Bytes::copy_from_slice(pending.key.as_bytes());
        self.start(item, deadline_block, async move {
            complaint.put(&ctx, &keys::window_key(ctx.run, window), key).await;
            Ok(())
        });
    }

    fn complaint(&self, item: Item) -> Complaint {
        Complaint { item, refused: Some(self.refused.clone()) }
    }

    /// Asks for the removal of contributions to windows before `keep_from`.
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
            // By name first, which needs no right to list.
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
        self.under_way.insert(item, UnderWay { task, since: started, deadline_block, is_refused: false });
    }

    /// Ends when something is done or refused; then [`Uploads::take`] and [`Uploads::take_refusals`] have it. Never
    /// ends if nothing is under way. Dropping it loses nothing.
    pub async fn arrival(&mut self) {
        loop {
            tokio::select! {
                biased;
                Some(refusal) = self.refusals.recv() => return self.news.push(refusal),
                Some(ended) = self.tasks.join_next() => match ended {
                    Ok(done) => return self.done.push(done),
                    Err(error) if error.is_cancelled() => {}
                    // It stays under way until its deadline, and is reported then.
                    Err(error) => tracing::error!(%error, "an upload broke its task"),
                },
            }
        }
    }

    /// Refusals of what is still under way: one for each upload.
    pub fn take_refusals(&mut self) -> Vec<Refusal> {
        let mut refusals = Vec::new();
        for (item, error) in std::mem::take(&mut self.news) {
            if let Some(upload) = self.under_way.get_mut(&item) {
                upload.is_refused = true;
                refusals.push(Refusal { item, error, deadline_block: upload.deadline_block });
            }
        }
        refusals
    }

    pub fn take(&mut self) -> Vec<Done> {
        let mut done = std::mem::take(&mut self.done);
        // Tasks that were given up have already been reported.
        done.retain(|done| self.under_way.remove(&done.item).is_some());
        done
    }

    /// Gives up tasks that are of no use any more at `head`.
    pub fn expire(&mut self, head: u64) -> Vec<Late> {
        let is_late = |item: &Item, upload: &mut UnderWay| {
            head >= upload.deadline_block && (*item != Item::Removal || upload.since.elapsed() >= PATIENCE)
        };
        let late = self.under_way.extract_if(.., is_late);
        late.map(|(item, UnderWay { task, deadline_block, is_refused, .. })| {
            task.abort();
            Late { item, deadline_block, is_refused }
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_removal_gets_its_time_however_fast_the_blocks_come_and_an_upload_ends_at_its_block() {
        let mut uploads = Uploads::default();
        for item in [Item::Removal, Item::Key(3)] {
            uploads.start(item, 21, pending());
        }
        let given_up = |uploads: &mut Uploads| uploads.expire(21).into_iter().map(|late| late.item).collect::<Vec<_>>();
        assert_eq!(given_up(&mut uploads), [Item::Key(3)]);
        tokio::time::advance(PATIENCE).await;
        assert_eq!(given_up(&mut uploads), [Item::Removal]);
    }
}
