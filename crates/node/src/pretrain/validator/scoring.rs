//! What contributions were worth, and the weights that follow from it.

use std::collections::VecDeque;
use std::sync::Arc;

use futures::future::BoxFuture;
use templar_data::Split;
use templar_incentive::score::ScoreBook;
use templar_record::event::Event;
use templar_record::trouble::Trouble;
use templar_train::Trainer;

use crate::frame::context::Context;
use crate::frame::error::NodeError;
use crate::frame::local::Local;
use crate::frame::records::ScoresRecord;
use crate::frame::signals::Signals;
use crate::pretrain::evaluate::{Evaluated, Task};
use crate::pretrain::window::Window;

/// Most evaluations that may wait.
const TASKS_MAX: usize = 2;

/// An evaluation that is under way.
pub(super) type Job = BoxFuture<'static, Evaluated>;

/// The ratings, and the trainer that measures for them.
pub(super) struct Scoring {
    book: ScoreBook,
    trainer: Engine,
    /// Evaluations that wait, oldest first.
    tasks: VecDeque<Task>,
    /// A window after which weights are due was settled, and none have been set since.
    weights_due: bool,
}

enum Engine {
    Free(Box<dyn Trainer>),
    /// It evaluates this window.
    Busy(u64),
}

impl Scoring {
    pub(super) fn new(book: ScoreBook, trainer: Box<dyn Trainer>) -> Self {
        Self { book, trainer: Engine::Free(trainer), tasks: VecDeque::new(), weights_due: false }
    }

    /// When a validator is slower than the windows, the oldest evaluation is dropped.
    pub(super) fn add(&mut self, task: Task) {
        self.tasks.push_back(task);
        while self.tasks.len() > TASKS_MAX {
            self.tasks.pop_front();
        }
    }

    /// Drops evaluations that are based on a state that was replaced.
    pub(super) fn clear(&mut self) {
        self.tasks.clear();
    }

    /// The windows whose evaluation is to come.
    pub(super) fn outstanding(&self) -> impl Iterator<Item = u64> {
        let busy = match &self.trainer {
            Engine::Free(_) => None,
            Engine::Busy(window) => Some(*window),
        };
        busy.into_iter().chain(self.tasks.iter().map(|task| task.window))
    }

    pub(super) fn start(&mut self, ctx: &Arc<Context>, signals: &Signals) -> Option<Job> {
        let window = self.tasks.front()?.window;
        match std::mem::replace(&mut self.trainer, Engine::Busy(window)) {
            Engine::Free(trainer) => {
                let task = self.tasks.pop_front()?;
                Some(task.run(ctx.clone(), signals.clone(), trainer))
            }
            busy @ Engine::Busy(_) => {
                self.trainer = busy;
                None
            }
        }
    }

    /// The trainer is back.
    pub(super) async fn take(
        &mut self,
        ctx: &Context,
        local: &mut Local,
        evaluated: Evaluated,
    ) -> Result<(), NodeError> {
        self.trainer = Engine::Free(evaluated.trainer);
        let window = evaluated.window;
        let report = match evaluated.report {
            Ok(report) => report,
            Err(error) => {
                ctx.trouble(Trouble::Evaluation { window, cause: error.to_string() }).await;
                return Ok(());
            }
        };
        for (entry, observation) in report.observations {
            self.book.observe(entry, &observation, &ctx.spec.scoring);
            let score = self.book.rating(&entry).score();
            ctx.emit(Event::Observed { window, uid: entry.uid, observation, score }).await;
        }
        local.set(&ScoresRecord { book: self.book.clone() })?;
        if let Some(loss) = report.held_out_loss {
            let bytes_per_token = ctx.dataset.manifest().bytes_per_token(Split::HeldOut);
            let bits_per_byte = loss / std::f64::consts::LN_2 / bytes_per_token;
            ctx.emit(Event::Validated { window, loss, bits_per_byte }).await;
        }
        Ok(())
    }

    /// A window was settled: weights may be due after it.
    pub(super) fn note_settled(&mut self, ctx: &Context, window: u64) {
        self.weights_due |= (window + 1).is_multiple_of(ctx.spec.scoring.weights_every_windows);
    }

    /// Sets weights if they are due. After a failure it tries again after the next window.
    pub(super) async fn weigh(&mut self, ctx: &Context, window: &Window, head: u64) {
        if !self.weights_due {
            return;
        }
        match self.set_weights(ctx, window, head).await {
            Ok(()) => self.weights_due = false,
            Err(error) => {
                ctx.trouble(Trouble::Weights { window: window.number, cause: error.to_string() }).await;
            }
        }
    }

    /// Hands the scores of the miners of `window` to the chain. A uid may belong to somebody else by now: an entry that
    /// loses its registration loses its rating, and so is not paid.
    async fn set_weights(&mut self, ctx: &Context, window: &Window, head: u64) -> Result<(), NodeError> {
        let netuid = ctx.spec.chain.netuid;
        let now = ctx.snapshot(head).await?;
        self.book.retain(|entry| now.find(entry).is_some());
        let weights = self.book.weights(&window.roster);
        if weights.is_empty() {
            return Ok(());
        }
        let version_key = ctx.chain.hyperparams(netuid).await?.weights_version_key;
        ctx.chain.submit_weights(&ctx.keypair, netuid, weights.clone(), version_key).await?;
        ctx.emit(Event::Weighed { window: window.number, weights }).await;
        Ok(())
    }
}
