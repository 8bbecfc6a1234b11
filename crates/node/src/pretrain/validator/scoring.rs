//! What contributions were worth, and the weights that follow from it.
//!
//! The rules are those of `templar_incentive`. Every change of the book is an event, so that the log alone gives the same
//! weights again.

use std::collections::VecDeque;
use std::sync::Arc;

use futures::future::BoxFuture;
use templar_data::Split;
use templar_incentive::charge::is_void;
use templar_incentive::pay::PayBook;
use templar_protocol::roster::EntryId;
use templar_record::event::Event;
use templar_record::judgement::{Evaluation, Judgement};
use templar_record::trouble::Trouble;
use templar_train::Trainer;

use crate::frame::context::Context;
use crate::frame::error::NodeError;
use crate::frame::local::Local;
use crate::frame::records::PayRecord;
use crate::frame::signals::Signals;
use crate::pretrain::evaluate::{Evaluated, Task};
use crate::pretrain::window::Window;

/// Most evaluations that may wait.
const TASKS_MAX: usize = 2;

/// An evaluation that is under way.
pub(super) type Job = BoxFuture<'static, Evaluated>;

/// The book of miners, and the trainer that measures for it.
pub(super) struct Scoring {
    book: PayBook,
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
    pub(super) fn new(book: PayBook, trainer: Box<dyn Trainer>) -> Self {
        Self { book, trainer: Engine::Free(trainer), tasks: VecDeque::new(), weights_due: false }
    }

    /// Tells with which book this node starts.
    pub(super) async fn tell(&mut self, ctx: &Context) {
        let book = borsh::to_vec(&self.book).expect("memory accepts every byte");
        ctx.emit(Event::BookOpened { scoring: ctx.spec.scoring.clone(), book }).await;
    }

    /// Takes a settled window into the book. Returns whether its contributions may be evaluated: not if this node failed
    /// in too much of the window to judge anybody.
    pub(super) async fn settle(
        &mut self,
        ctx: &Context,
        local: &mut Local,
        judgement: Judgement,
    ) -> Result<bool, NodeError> {
        self.book.settle(&judgement, &ctx.spec.scoring);
        local.set(&self.record())?;
        let may_evaluate = !is_void(&judgement);
        ctx.emit(Event::Judged { judgement }).await;
        Ok(may_evaluate)
    }

    pub(super) fn is_new(&self, entry: &EntryId) -> bool {
        self.book.is_new(entry)
    }

    fn record(&self) -> PayRecord {
        PayRecord { book: self.book.clone() }
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
        if !report.evaluations.is_empty() {
            self.evaluate(ctx, local, window, report.evaluations).await?;
        }
        if let Some(loss) = report.held_out_loss {
            let bytes_per_token = ctx.dataset.manifest().bytes_per_token(Split::HeldOut);
            let bits_per_byte = loss / std::f64::consts::LN_2 / bytes_per_token;
            ctx.emit(Event::Validated { window, loss, bits_per_byte }).await;
        }
        Ok(())
    }

    async fn evaluate(
        &mut self,
        ctx: &Context,
        local: &mut Local,
        window: u64,
        evaluations: Vec<Evaluation>,
    ) -> Result<(), NodeError> {
        self.book.evaluate(&evaluations, &ctx.spec.scoring);
        local.set(&self.record())?;
        let score = |entry: &EntryId| (entry.uid, self.book.rating(entry).mean_value().unwrap_or(0.0));
        let scores = evaluations.iter().map(|evaluation| score(&evaluation.entry)).collect();
        ctx.emit(Event::Evaluated { window, evaluations, scores }).await;
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

    /// Hands the weights that follow from the book to the chain. A uid may belong to somebody else by now: an entry that
    /// loses its registration loses its record, and so is not paid.
    async fn set_weights(&mut self, ctx: &Context, window: &Window, head: u64) -> Result<(), NodeError> {
        let netuid = ctx.spec.chain.netuid;
        let now = ctx.snapshot(head).await?;
        // The book and its record change together: what the chain does not take is no event.
        let mut book = self.book.clone();
        let forgotten = book.gone(now.neurons.iter().map(|neuron| &neuron.entry));
        book.forget(&forgotten);
        let weights = book.weights(&ctx.spec.scoring);
        let version_key = ctx.chain.hyperparams(netuid).await?.weights_version_key;
        ctx.chain.submit_weights(&ctx.keypair, netuid, weights.clone(), version_key).await?;
        self.book = book;
        ctx.emit(Event::Weighed { window: window.number, forgotten, weights }).await;
        Ok(())
    }
}
