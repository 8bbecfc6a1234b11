//! The miner: train on the assigned samples, seal, commit, open, and keep what was not certified for the next window.
//!
//! `train` leads from a window to a pseudo-gradient, `seal` from there to a sealed contribution on disk, `publish` to
//! its published key, and `outcomes` reports how the window ended.

mod feedback;
mod job;
mod outcomes;
mod publish;
mod seal;
mod train;

use std::collections::VecDeque;
use std::sync::Arc;

use templar_record::event::{Event, Role};
use templar_record::outcome::{Miss, Outcome};
use templar_record::trouble::{LocalPart, Trouble};
use templar_train::{TrainOutcome, Trainer};

use crate::frame::context::Context;
use crate::frame::drive::{Duty, Steps};
use crate::frame::error::NodeError;
use crate::frame::local::{Local, Saving};
use crate::frame::records::OptimiserRecord;
use crate::frame::signals::Signals;
use crate::pretrain::miner::feedback::ErrorFeedback;
use crate::pretrain::miner::job::{Finished, Job};
use crate::pretrain::miner::outcomes::Outcomes;
use crate::pretrain::pending::{Owed, Pending, Stage};
use crate::pretrain::refusals::Refusals;
use crate::pretrain::replica::Settled;
use crate::pretrain::seat::{Progress, Seat};
use crate::pretrain::upload::Uploads;
use crate::pretrain::window::Window;

/// Windows for which a miner keeps its objects in its bucket.
const WINDOWS_KEPT: u64 = 4;

/// A miner of one run.
pub struct Miner {
    ctx: Arc<Context>,
    seat: Seat,
    signals: Signals,
    /// Absent while it trains.
    trainer: Option<Box<dyn Trainer>>,
    saving: Saving,
    work: Work,
    /// The next window to train in.
    next_window: u64,
    error_feedback: ErrorFeedback,
    /// Where the optimiser's moments are on disk.
    moments: Option<OptimiserRecord>,
    /// Committed and not settled, oldest first.
    pending: VecDeque<Pending>,
    /// Payloads that did not count, until a committed header has them back in its error feedback; oldest first.
    owed: Vec<Owed>,
    uploads: Uploads,
    refusals: Refusals,
    /// Whether it was told that old objects stay in the bucket, and that is still so.
    is_sweep_told: bool,
    outcomes: Outcomes,
    /// The newest block.
    head: u64,
}

/// What the miner does in the present window.
#[derive(Debug, Default)]
enum Work {
    /// Nothing, until the next one begins.
    #[default]
    Idle,
    Training(Window),
    /// Trained, but it is not known yet whether the chain had the last header in time.
    Trained(Window, TrainOutcome),
}

impl Work {
    /// The window in question.
    fn window(&self) -> Option<u64> {
        match self {
            Self::Idle => None,
            Self::Training(window) | Self::Trained(window, _) => Some(window.number),
        }
    }
}

impl std::fmt::Debug for Miner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Miner")
            .field("entry", &self.seat.entry)
            .field("next_window", &self.next_window)
            .finish_non_exhaustive()
    }
}

impl Miner {
    /// Resumes from the local state.
    pub async fn open(
        ctx: Arc<Context>,
        signals: Signals,
        local: Local,
        mut trainer: Box<dyn Trainer>,
        saving: Saving,
    ) -> Result<Self, NodeError> {
        let seat = Seat::open(ctx.clone(), local, Role::Miner).await?;
        let (mut error_feedback, damage) = ErrorFeedback::load(&seat.local, ctx.codec.layout().len())?;
        if let Some(cause) = damage {
            ctx.trouble(Trouble::LocalDamage { what: LocalPart::ErrorFeedback, cause }).await;
        }
        let (moments, damage) = load_moments(&seat.local, trainer.as_mut())?;
        if let Some(cause) = damage {
            ctx.trouble(Trouble::LocalDamage { what: LocalPart::Optimiser, cause }).await;
        }
        let restored = Pending::load(&seat.local)?;
        let is_undecided = |window| restored.whole.iter().any(|pending| pending.window == window);
        // A payload of its own that it does not have any more may be owed: what e would be is not known.
        if !restored.damaged.is_empty() || error_feedback.undecided().is_some_and(|window| !is_undecided(window)) {
            error_feedback.reset();
        }
        for (window, cause) in restored.damaged {
            ctx.trouble(Trouble::LocalDamage { what: LocalPart::Pending { window }, cause }).await;
        }
        let outcomes = Outcomes::load(&seat.local, seat.replica.newest().run.settled)?;
        let mut miner = Self {
            ctx,
            seat,
            signals,
            trainer: Some(trainer),
            saving,
            work: Work::Idle,
            next_window: 0,
            error_feedback,
            moments,
            pending: restored.whole.into(),
            owed: restored.owed,
            uploads: Uploads::default(),
            refusals: Refusals::default(),
            is_sweep_told: false,
            outcomes,
            head: 0,
        };
        let head = miner.ctx.chain.head().await?.number;
        // What cannot be found out now is tried again at the first block.
        if let Err(error) = miner.decide(head).await
            && error.is_fatal()
        {
            return Err(error);
        }
        miner.next_window = miner.pending.back().map_or(0, |pending| pending.window + 1);
        miner.drop_skipped();
        if miner.outcomes.has_news() {
            miner.save()?;
            miner.tell_outcomes().await;
        }
        miner.remove_old();
        Ok(miner)
    }

    async fn settle(&mut self, head: u64) -> Result<(), NodeError> {
        loop {
            match self.seat.advance(head, &[]).await? {
                Progress::Nothing => return Ok(()),
                Progress::Settled(settled) => {
                    self.seat.replica.forget_applied();
                    self.settle_pending(*settled)?;
                    self.tell_outcomes().await;
                    self.remove_old();
                }
                Progress::Adopted => {
                    self.drop_skipped();
                    self.save()?;
                    self.tell_outcomes().await;
                    self.remove_old();
                }
            }
        }
    }

    /// What did not count goes back into the error feedback with the next contribution.
    fn settle_pending(&mut self, settled: Settled) -> Result<(), NodeError> {
        let Settled { window, certificate, is_applied, .. } = settled;
        let nth = self.pending.iter().position(|pending| pending.window == window.number);
        let pending = nth.and_then(|nth| self.pending.remove(nth));
        let entry = pending.as_ref().map_or(self.seat.entry, |pending| pending.header.header.entry);
        let miss = self.missed(window.number, pending.as_ref());
        let outcome = outcomes::outcome(&window, &certificate, is_applied, &entry, miss, &self.ctx.spec.roster);
        // A window that a node goes back to is settled again.
        self.owed.retain(|owed| owed.window != window.number || outcome != Outcome::Counted);
        match pending {
            Some(pending) if pending.is_opened() && outcome != Outcome::Counted => {
                self.owed.push(Owed { window: pending.window, payload: pending.payload });
            }
            Some(pending) if self.error_feedback.undecided() == Some(pending.window) => self.error_feedback.reset(),
            _ => {}
        }
        self.outcomes.settle(window.number, outcome);
        self.save()
    }

    /// Why it contributed nothing to a window that is being settled; `None` if its contribution was opened.
    fn missed(&self, window: u64, pending: Option<&Pending>) -> Option<Miss> {
        match pending.map(Pending::stage) {
            Some(Stage::Published) => None,
            Some(Stage::Lost(miss)) => Some(miss.clone()),
            Some(_) => Some(Miss::KeyTooLate),
            // The vote deadline is past, and so is the put deadline.
            None if self.work.window() == Some(window) => Some(Miss::TrainedTooLate),
            None => Some(self.outcomes.missed(window).cloned().unwrap_or(Miss::NoTimeLeft)),
        }
    }

    /// After a start or a state that was taken over: windows may have been jumped over. They are not settled here.
    /// Whether what was opened in them counted is not known: error feedback begins anew, because to lose something is better
    /// than to send it twice.
    fn drop_skipped(&mut self) {
        let settled = self.seat.replica.newest().run.settled;
        let all = std::mem::take(&mut self.pending);
        let (skipped, kept): (VecDeque<_>, VecDeque<_>) = all.into_iter().partition(|pending| pending.window < settled);
        self.pending = kept;
        for pending in &skipped {
            // Whether the chain had its header in time could not be found out either.
            let is_undecided = self.error_feedback.undecided() == Some(pending.window);
            if pending.is_opened() || is_undecided {
                self.error_feedback.reset();
                self.owed.clear();
            }
        }
        self.outcomes.skip_to(settled);
    }

    /// Reports how windows ended, now that the disk has it: a node that dies here may leave one out, but reports none
    /// twice.
    async fn tell_outcomes(&mut self) {
        for (window, outcome) in self.outcomes.take() {
            self.ctx.emit(Event::Ended { window, outcome }).await;
        }
    }

    /// Removes old contributions from its own bucket, including those to windows that were jumped over.
    fn remove_old(&mut self) {
        self.uploads.remove_before(self.seat.replica.newest().run.settled.saturating_sub(WINDOWS_KEPT));
    }
}

/// Gives the trainer the moments on disk. Returns where they are, and what is wrong with them, if something is.
fn load_moments(
    local: &Local,
    trainer: &mut dyn Trainer,
) -> Result<(Option<OptimiserRecord>, Option<String>), NodeError> {
    let Some(record) = local.get::<OptimiserRecord>()? else { return Ok((None, None)) };
    let file = local.file(&record.file).map_err(|damage| damage.cause);
    let imported = file.and_then(|state| trainer.import_state(&state).map_err(|error| error.to_string()));
    Ok(match imported {
        Ok(()) => (Some(record), None),
        Err(cause) => (None, Some(cause)),
    })
}

impl Duty for Miner {
    type Done = Finished;

    /// Does everything that is due at `head`. Returns a training to run, if one is due, and whether to retry something
    /// soon.
    async fn on_head(&mut self, head: u64) -> Result<(Option<Job>, Steps), NodeError> {
        self.head = head;
        let (ctx, mut steps) = (self.ctx.clone(), Steps::default());
        steps.take(&ctx, self.seat.renew_entry(head).await).await?;
        if steps.take(&ctx, self.decide(head).await).await?.is_some() {
            steps.take(&ctx, self.settle(head).await).await?;
        }
        steps.take(&ctx, self.publish(head).await).await?;
        steps.take(&ctx, self.seat.keep_listed(head).await).await?;
        steps.take(&ctx, self.seal_if_ready(head).await).await?;
        let job = steps.take(&ctx, self.start_training(head).await).await?;
        Ok((job.flatten(), steps))
    }

    async fn on_job(&mut self, finished: Finished) -> Result<Option<Job>, NodeError> {
        self.take_trained(finished).await?;
        Ok(None)
    }

    async fn arrival(&mut self) {
        self.uploads.arrival().await;
    }

    /// An upload has ended, well or not.
    async fn on_arrival(&mut self) -> Result<Steps, NodeError> {
        let (ctx, mut steps) = (self.ctx.clone(), Steps::default());
        self.take_uploads().await;
        let head = self.head.max(self.signals.head());
        steps.take(&ctx, self.publish(head).await).await?;
        Ok(steps)
    }

    /// The last block before which this miner has nothing outstanding.
    fn paced_through(&self) -> u64 {
        let outstanding = self.pending.iter().filter_map(|pending| match pending.stage() {
            // A commitment in the block after this one is in time.
            Stage::Sealed | Stage::Uploaded => Some(self.stop_block(pending.window) - 1),
            Stage::Committed | Stage::Opened => Some(self.ctx.schedule.put_deadline(pending.window)),
            Stage::Published | Stage::Lost(_) => None,
        });
        let trainings = self.work.window().into_iter().chain([self.next_window]);
        let trainings = trainings.map(|window| self.stop_block(window) - 1);
        outstanding.chain(trainings).min().expect("there is always a next window")
    }
}
