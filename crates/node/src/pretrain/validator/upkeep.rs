//! The upkeep of a validator's own bucket, beside everything else: a sweep at the start, then checkpoints. One task
//! runs at a time, and each is given up at a certain block.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use templar_protocol::hash::Hash32;
use templar_record::trouble::Trouble;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;

use crate::frame::context::Context;
use crate::pretrain::checkpoint::{Renewal, Renewed, Retention};
use crate::pretrain::sweep::{self, Swept};
use crate::pretrain::upload::PATIENCE;
use crate::pretrain::validator::held::Held;

/// Incomplete checkpoints that are remembered; older ones wait for the sweep of the next start.
const INCOMPLETE_MAX: usize = 64;

/// Digests of the checkpoints in the bucket, and the work on it.
#[derive(Debug)]
pub(super) struct Upkeep {
    /// Oldest first.
    pub(super) checkpoints: Vec<Hash32>,
    /// Digests of checkpoints that may be in it in part, oldest first: the next one that gets there removes them. The
    /// disk need not know them, since a start sweeps them.
    pub(super) incomplete: Vec<Hash32>,
    work: Work,
    /// When it began.
    since: Instant,
    tasks: JoinSet<Done>,
    ended: Option<Result<Done, JoinError>>,
}

/// The task under way, and the block at which it is given up.
#[derive(Clone, Copy, Debug)]
enum Work {
    Nothing,
    Sweep { until: u64 },
    Checkpoint { settled: u64, digest: Hash32, until: u64 },
}

#[derive(Debug)]
enum Done {
    Swept(Swept),
    Renewed(Renewed),
}

impl Upkeep {
    pub(super) fn new(checkpoints: Vec<Hash32>) -> Self {
        let (incomplete, since) = (Vec::new(), Instant::now());
        Self { checkpoints, incomplete, work: Work::Nothing, since, tasks: JoinSet::new(), ended: None }
    }

    /// Begins a sweep, which brings the own bucket in line with what this node has recorded.
    pub(super) fn sweep(
        &mut self,
        ctx: &Arc<Context>,
        served: Range<u64>,
        retention: Retention,
        held: VecDeque<(u64, Hash32)>,
        until: u64,
    ) {
        let (ctx, published) = (ctx.clone(), self.checkpoints.clone());
        (self.work, self.since) = (Work::Sweep { until }, Instant::now());
        self.tasks.spawn(async move { Done::Swept(sweep::validator(&ctx, served, retention, held, published).await) });
    }

    /// Begins to publish a checkpoint, unless something is still under way.
    pub(super) async fn renew(&mut self, ctx: &Arc<Context>, renewal: Renewal, until: u64) {
        let settled = renewal.state.run.settled;
        if !matches!(self.work, Work::Nothing) {
            return ctx.trouble(Trouble::CheckpointLeftOut { settled }).await;
        }
        let digest = renewal.state.run.digest();
        (self.work, self.since) = (Work::Checkpoint { settled, digest, until }, Instant::now());
        let ctx = ctx.clone();
        self.tasks.spawn(async move { Done::Renewed(renewal.run(ctx).await) });
    }

    /// Waits until the task under way has ended; then [`Upkeep::note`] is due. Waits for ever if there is none.
    pub(super) async fn arrival(&mut self) {
        match self.tasks.join_next().await {
            Some(ended) => self.ended = Some(ended),
            None => std::future::pending().await,
        }
    }

    /// Takes in the task that has ended, and returns whether there was one.
    pub(super) async fn note(&mut self, ctx: &Context, held: &mut Held) -> bool {
        let Some(ended) = self.ended.take() else { return false };
        self.work = Work::Nothing;
        match ended {
            Ok(Done::Swept(swept)) => {
                held.correct(swept.found, &swept.gone);
                self.checkpoints = swept.published;
                if let Err(error) = swept.result {
                    // Objects left over cost storage, nothing else.
                    ctx.trouble(Trouble::Sweep { cause: error.to_string() }).await;
                }
            }
            Ok(Done::Renewed(renewed)) => {
                (self.checkpoints, self.incomplete) = (renewed.published, renewed.incomplete);
                held.correct(Vec::new(), &renewed.released);
                if let Err(error) = renewed.result {
                    // The next one is as good.
                    let (settled, cause) = (renewed.settled, error.to_string());
                    ctx.trouble(Trouble::CheckpointFailed { settled, cause }).await;
                }
            }
            Err(error) => tracing::error!(%error, "the upkeep of this node's bucket broke its task"),
        }
        true
    }

    /// Gives up what has taken too long at `head`. What a sweep left in the bucket is swept at the next start, and what
    /// a checkpoint left, by the next one. A paced chain may pass many blocks in a moment, so time must have passed too.
    pub(super) async fn expire(&mut self, ctx: &Context, head: u64) {
        if self.since.elapsed() < PATIENCE {
            return;
        }
        let cause = |until: u64| format!("it took longer than until block {until}");
        let trouble = match self.work {
            Work::Sweep { until } if head >= until => Trouble::Sweep { cause: cause(until) },
            Work::Checkpoint { settled, digest, until } if head >= until => {
                self.incomplete.retain(|incomplete| *incomplete != digest);
                self.incomplete.push(digest);
                if self.incomplete.len() > INCOMPLETE_MAX {
                    self.incomplete.remove(0);
                }
                Trouble::CheckpointFailed { settled, cause: cause(until) }
            }
            _ => return,
        };
        (self.work, self.tasks, self.ended) = (Work::Nothing, JoinSet::new(), None);
        ctx.trouble(trouble).await;
    }
}
