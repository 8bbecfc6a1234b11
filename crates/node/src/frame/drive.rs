//! The loop that drives a duty: one block after the other, and the long computation beside it.

use std::future::{Future, pending};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use templar_chain::Pacer;
use templar_record::trouble::Trouble;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::frame::context::Context;
use crate::frame::error::NodeError;
use crate::frame::signals::Signals;

/// Pause before a failed step is retried, unless a new block comes first.
const RETRY: Duration = Duration::from_millis(500);
/// Pause before the chain is asked again after its connection was lost.
const RECONNECT: Duration = Duration::from_secs(1);

/// A long computation beside the loop, and its result.
pub type Job<D> = BoxFuture<'static, <D as Duty>::Done>;

/// What a node does at each block. It may be asked at any block, in any state, and again for the same block.
pub trait Duty: Send {
    /// The result of its long computation.
    type Done: Send + 'static;

    /// Does what is due at `head`. Returns a computation to run, if one is due, and whether to retry something soon.
    fn on_head(&mut self, head: u64) -> impl Future<Output = Result<(Option<Job<Self>>, Steps), NodeError>> + Send;

    /// Takes in the result of the computation, and returns the next one, if it is due.
    fn on_job(&mut self, done: Self::Done) -> impl Future<Output = Result<Option<Job<Self>>, NodeError>> + Send;

    /// Ends when something else that it waits for has arrived; then [`Duty::on_arrival`] is due. Dropping it loses
    /// nothing.
    fn arrival(&mut self) -> impl Future<Output = ()> + Send {
        pending()
    }

    fn on_arrival(&mut self) -> impl Future<Output = Result<Steps, NodeError>> + Send {
        async { Ok(Steps::default()) }
    }

    /// The last block before which it has nothing outstanding: a paced development chain may continue up to there.
    fn paced_through(&self) -> u64;
}

/// Steps that do not depend on each other: a step that fails or waits must not hold up the next.
#[derive(Debug, Default)]
pub struct Steps {
    /// Whether one failed, and should be tried again soon.
    pub failed: bool,
}

impl Steps {
    /// The result of a step. An error that no retry can fix is returned; any other is reported as an event.
    pub async fn take<T>(&mut self, ctx: &Context, step: Result<T, NodeError>) -> Result<Option<T>, NodeError> {
        match step {
            Ok(done) => Ok(Some(done)),
            Err(error) if error.is_fatal() => Err(error),
            Err(error) => {
                self.failed = true;
                ctx.failed(&error).await;
                Ok(None)
            }
        }
    }
}

/// Drives `duty` for ever. Only errors that no retry can fix end it. `pacer` tells a development chain how far it may
/// continue without waiting for this node.
pub async fn drive<D: Duty>(
    mut duty: D,
    ctx: &Arc<Context>,
    signals: &Signals,
    pacer: Option<&Pacer>,
) -> Result<(), NodeError> {
    let (newest, mut heads) = watch::channel(0);
    // Ends with this future.
    let mut watching = JoinSet::new();
    watching.spawn(watch_heads(ctx.clone(), signals.clone(), newest));
    let mut job: Option<Job<D>> = None;
    let mut access = ctx.access.news();
    let (mut paced, mut retry) = (None, false);
    loop {
        let result = tokio::select! {
            biased;
            done = finish(&mut job) => duty.on_job(done).await.map(|next| (next, retry)),
            changed = heads.changed() => {
                changed.expect("the chain is watched as long as the node runs");
                let head = *heads.borrow_and_update();
                duty.on_head(head).await.map(|(next, steps)| (next, steps.failed))
            }
            () = duty.arrival() => duty.on_arrival().await.map(|steps| (None, retry || steps.failed)),
            // Work that waited for this node's access to storage continues in this block, not in the next.
            () = access.next() => duty.on_head(signals.head()).await.map(|(next, steps)| (next, steps.failed)),
            () = tokio::time::sleep(RETRY), if retry => {
                duty.on_head(signals.head()).await.map(|(next, steps)| (next, steps.failed))
            }
        };
        match result {
            Ok((next, again)) => (job, retry) = (job.or(next), again),
            Err(error) if error.is_fatal() => return Err(error),
            Err(error) => {
                retry = true;
                ctx.failed(&error).await;
            }
        }
        let through = duty.paced_through();
        if let Some(pacer) = pacer
            && !retry
            && paced != Some(through)
            && pacer.pace(&ctx.keypair.hotkey(), through).await.is_ok()
        {
            paced = Some(through);
        }
    }
}

/// Follows the chain whatever else the node is doing: a training must notice its deadline.
async fn watch_heads(ctx: Arc<Context>, signals: Signals, newest: watch::Sender<u64>) {
    loop {
        match ctx.chain.heads().await {
            Ok(mut heads) => {
                while let Some(head) = heads.next().await {
                    signals.set_head(head.number);
                    newest.send_replace(head.number);
                }
            }
            Err(error) => ctx.trouble(Trouble::NoHeads { cause: error.to_string() }).await,
        }
        tokio::time::sleep(RECONNECT).await;
    }
}

async fn finish<T>(job: &mut Option<BoxFuture<'static, T>>) -> T {
    let done = match job {
        Some(work) => work.await,
        None => pending().await,
    };
    *job = None;
    done
}
