//! What a validator keeps for auditors: the inputs of every window that it settles, and the state after it.
//!
//! Both are small, and named by their digests, which the next votes certify: whoever knows one certified state finds all
//! before it. They are put beside everything else, one window after the other, and stay for good.

use std::sync::Arc;

use bytes::Bytes;
use templar_protocol::hash::Hash32;
use templar_protocol::inputs::WindowInputs;
use templar_protocol::state::RunState;
use templar_record::trouble::Trouble;
use templar_store::keys;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::task::JoinSet;

use crate::frame::context::Context;
use crate::frame::error::NodeError;
use crate::pretrain::pauses::Pauses;
use crate::pretrain::window::participants;

/// Windows that wait for a bucket which takes nothing; at most some 8 MB.
const QUEUE_MAX: usize = 64;

/// The way of settled windows into the own bucket.
#[derive(Debug)]
pub(super) struct Archive {
    queue: mpsc::Sender<Entry>,
    /// Ends with this.
    _task: JoinSet<()>,
    /// Windows are being left out, which is told once.
    is_full: bool,
}

/// A window to archive.
#[derive(Debug)]
struct Entry {
    window: u64,
    /// Names and bytes of its objects, in the order in which they are put: whoever finds the state finds its inputs.
    objects: [(String, Bytes); 2],
}

impl Entry {
    fn new(ctx: &Context, inputs: &WindowInputs, state: &RunState) -> Self {
        let digest: Hash32 = state.digest();
        let inputs_object = (keys::archive_inputs(ctx.run, &state.inputs), inputs.to_bytes().into());
        let state_object = (keys::archive_state(ctx.run, &digest), state.to_bytes().into());
        Self { window: inputs.window, objects: [inputs_object, state_object] }
    }

    /// Puts its objects, each until the bucket takes it. Tells the first refusal.
    async fn put(self, ctx: &Context) {
        let mut pauses = Pauses::default();
        let mut is_told = false;
        for (key, bytes) in self.objects {
            while let Err(error) = ctx.store.put(&key, bytes.clone()).await {
                if !std::mem::replace(&mut is_told, true) {
                    let (window, cause) = (self.window, error.to_string());
                    ctx.trouble(Trouble::ArchiveRefused { window, cause }).await;
                }
                pauses.pause().await;
            }
        }
    }
}

impl Archive {
    /// `stored` are the states on this node's disk, whose windows it may not have archived before it ended.
    pub(super) fn new(ctx: &Arc<Context>, stored: Vec<RunState>) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE_MAX);
        let mut task = JoinSet::new();
        task.spawn(work(ctx.clone(), stored, waiting));
        Self { queue, _task: task, is_full: false }
    }

    /// Archives a window that was just settled, and the `state` after it. Never waits: if the bucket has taken nothing
    /// for long, the window is left out. Other validators have it.
    pub(super) async fn add(&mut self, ctx: &Context, inputs: &WindowInputs, state: &RunState) {
        match self.queue.try_send(Entry::new(ctx, inputs, state)) {
            Ok(()) => self.is_full = false,
            Err(TrySendError::Full(entry)) if !std::mem::replace(&mut self.is_full, true) => {
                ctx.trouble(Trouble::ArchiveLeftOut { window: entry.window }).await;
            }
            Err(_) => {}
        }
    }
}

async fn work(ctx: Arc<Context>, stored: Vec<RunState>, mut waiting: mpsc::Receiver<Entry>) {
    for state in stored {
        match restored(&ctx, &state).await {
            Ok(Some(entry)) => entry.put(&ctx).await,
            Ok(None) => {}
            Err(error) => tracing::info!(settled = state.settled, %error, "a window is not archived once more"),
        }
    }
    while let Some(entry) = waiting.recv().await {
        entry.put(&ctx).await;
    }
}

/// The last window of a state from the disk, as the chain still has it.
async fn restored(ctx: &Context, state: &RunState) -> Result<Option<Entry>, NodeError> {
    let Some(window) = state.settled.checked_sub(1) else { return Ok(None) };
    let (roster, _, snapshot_hash) = participants(ctx, window).await?;
    let at_put = ctx.snapshot(ctx.schedule.put_deadline(window)).await?;
    let at_vote = ctx.snapshot(ctx.schedule.vote_deadline(window)).await?;
    let inputs = WindowInputs::new(window, snapshot_hash, &roster, &at_put, &at_vote);
    Ok((inputs.digest() == state.inputs).then(|| Entry::new(ctx, &inputs, state)))
}
