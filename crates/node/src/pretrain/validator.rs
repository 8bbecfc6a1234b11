//! The validator: open what was committed, vote, settle, measure what each contribution did, and set weights.
//!
//! | what | module |
//! |---|---|
//! | the window being judged, up to the vote | `judge` |
//! | the copies of what it votes for, in its own bucket | `held` |
//! | that it holds what counted last, and who else does | `proofs` |
//! | sweeps and checkpoints, beside everything else | `upkeep` |
//! | what it has on record of a settled window | `judgement` |
//! | its book of miners, and the weights that follow | `scoring` |
//! | what auditors read, in its own bucket | `archive` |
//! | how each window ended for it | `endings` |

mod archive;
mod endings;
mod held;
mod judge;
mod judgement;
mod proofs;
mod scoring;
mod upkeep;

use std::sync::Arc;

use templar_protocol::roster::EntryId;
use templar_protocol::word::Vote;
use templar_record::event::Role;
use templar_train::Trainer;

use crate::frame::context::Context;
use crate::frame::drive::{Duty, Steps};
use crate::frame::error::NodeError;
use crate::frame::local::Local;
use crate::frame::records::{CheckpointsRecord, HeldRecord, PayRecord, Stored, VoteRecord};
use crate::frame::signals::Signals;
use crate::pretrain::checkpoint::{Renewal, Retention};
use crate::pretrain::evaluate::{Evaluated, Task};
use crate::pretrain::replica::Settled;
use crate::pretrain::seat::{Progress, Seat};
use crate::pretrain::state::State;
use crate::pretrain::validator::archive::Archive;
use crate::pretrain::validator::endings::Endings;
use crate::pretrain::validator::held::Held;
use crate::pretrain::validator::judge::Judge;
use crate::pretrain::validator::judgement::{contributions, judgement};
use crate::pretrain::validator::scoring::{Job, Scoring};
use crate::pretrain::validator::upkeep::Upkeep;

/// What a validator does beyond its duties.
#[derive(Clone, Copy, Debug, Default)]
pub struct ValidatorOptions {
    /// Samples of held-out text on which θ is validated after each window; 0 for none.
    pub validation_samples: u64,
    pub retention: Retention,
}

/// A validator of one run.
pub struct Validator {
    ctx: Arc<Context>,
    seat: Seat,
    signals: Signals,
    options: ValidatorOptions,
    /// The newest block.
    head: u64,
    judge: Judge,
    upkeep: Upkeep,
    archive: Archive,
    scoring: Scoring,
}

impl std::fmt::Debug for Validator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Validator")
            .field("entry", &self.seat.entry)
            .field("window", &self.judge.window())
            .finish_non_exhaustive()
    }
}

impl Validator {
    /// Resumes from the local state.
    pub async fn open(
        ctx: Arc<Context>,
        signals: Signals,
        local: Local,
        trainer: Box<dyn Trainer>,
        options: ValidatorOptions,
    ) -> Result<Self, NodeError> {
        let head = ctx.chain.head().await?.number;
        let mut endings = Endings::load(&ctx, &local, head)?;
        let mut seat = Seat::open(ctx.clone(), local, Role::Validator).await?;
        let settled = seat.replica.newest().run.settled;
        let book = seat.local.get::<PayRecord>()?.unwrap_or_default().book;
        let checkpoints = seat.local.get::<CheckpointsRecord>()?.unwrap_or_default().digests;
        let served = seat.local.get::<HeldRecord>()?.unwrap_or_default().contributions;
        let vote = seat.local.get::<VoteRecord>()?.map(Vote::from);
        let vote = vote.filter(|vote| u64::from(vote.window) >= settled);
        let (mut upkeep, held) = (Upkeep::new(checkpoints), Held::new(served));
        // It may have voted on windows that it has not settled.
        let delay_windows = u64::from(ctx.spec.windows.delay_windows);
        let served = held_from(&ctx, settled)..settled + delay_windows + 1;
        upkeep.sweep(&ctx, served, options.retention, held.served().clone(), head + ctx.spec.windows.blocks);
        let archive = Archive::new(&ctx, seat.local.states(ctx.run)?);
        seat.local.set(&endings.record(settled))?;
        endings.jump(&ctx, settled).await;
        let judge = Judge::new(ctx.clone(), settled, vote, held, endings);
        let mut scoring = Scoring::new(book, trainer);
        scoring.tell(&ctx).await;
        Ok(Self { ctx, seat, signals, options, head, judge, upkeep, archive, scoring })
    }

    async fn settle(&mut self, head: u64) -> Result<(), NodeError> {
        loop {
            match self.seat.advance(head, &self.judge.opened()).await? {
                Progress::Nothing => return Ok(()),
                Progress::Settled(settled) => self.after_settling(*settled, head).await?,
                Progress::Adopted => {
                    self.judge.start_over();
                    self.scoring.clear();
                    let settled = self.seat.replica.newest().run.settled;
                    self.save(settled)?;
                    self.judge.endings.jump(&self.ctx, settled).await;
                }
            }
        }
    }

    /// Puts the state after `settled` windows on disk, and records their ends as reported, which they are right after
    /// this.
    fn save(&mut self, settled: u64) -> Result<(), NodeError> {
        self.seat.save(&[Stored::of(&self.judge.endings.record(settled))])
    }

    /// Does what follows from a settled window. Only this node's disk can fail here, because the window is settled
    /// once.
    async fn after_settling(&mut self, settled: Settled, head: u64) -> Result<(), NodeError> {
        let newest = self.seat.replica.newest().clone();
        self.save(newest.run.settled)?;
        self.archive.add(&self.ctx, &settled.inputs, &newest.run).await;
        self.judge.endings.tell(&self.ctx, &self.seat.entry, &settled).await;
        let window = settled.certificate.window;
        self.score(&settled, &newest).await?;
        self.scoring.note_settled(&self.ctx, window);
        let head = head.max(self.signals.head());
        // A replay passes windows that others settled long ago: only the newest one brings duties.
        if self.ctx.schedule.vote_deadline(window + 1) <= head {
            return Ok(());
        }
        if self.options.retention == Retention::ForGood {
            for opened in self.seat.replica.applied(newest.run.settled) {
                self.judge.held.copy(&self.ctx, window, opened, head);
            }
        }
        self.scoring.weigh(&self.ctx, &settled.window, head).await;
        if newest.run.settled.is_multiple_of(self.ctx.spec.windows.checkpoint_every_windows) {
            self.renew_checkpoint(newest, head).await;
        }
        Ok(())
    }

    /// Takes a settled window into the book, and has its contributions evaluated if there is something to judge by.
    async fn score(&mut self, settled: &Settled, newest: &State) -> Result<(), NodeError> {
        let window = &settled.window;
        let intake = self.judge.take_judged(window.number);
        let applied = self.seat.replica.applied(window.number + 1);
        let contributions = contributions(intake.as_ref(), applied);
        let judgement = judgement(&self.ctx, settled, intake.as_ref(), applied);
        let may_evaluate = self.scoring.settle(&self.ctx, &mut self.seat.local, judgement).await?;
        let put_hash = intake.and_then(|intake| intake.put_hash());
        let (Some(base), Some(put_hash)) = (settled.base_theta.clone(), put_hash) else { return Ok(()) };
        let contributions = if may_evaluate { &contributions[..] } else { &[] };
        let is_new = |entry: &EntryId| self.scoring.is_new(entry);
        let mut task = Task::new(&self.ctx, &self.seat.entry, window, &put_hash, base, contributions, is_new);
        task.validate_on(newest.theta.clone(), self.options.validation_samples);
        self.scoring.add(task);
        Ok(())
    }

    /// Begins to publish a checkpoint. It is given up when the one after the next is due.
    async fn renew_checkpoint(&mut self, state: State, head: u64) {
        let windows = &self.ctx.spec.windows;
        let until = head + 2 * windows.checkpoint_every_windows * windows.blocks;
        let keep_from = held_from(&self.ctx, state.run.settled - 1);
        let renewal = Renewal {
            state,
            previous: self.seat.replica.previous().cloned(),
            published: self.upkeep.checkpoints.clone(),
            incomplete: self.upkeep.incomplete.clone(),
            expired: self.judge.held.expired(keep_from),
            retention: self.options.retention,
        };
        self.upkeep.renew(&self.ctx, renewal, until).await;
    }

    /// Takes in the result of the upkeep of the bucket.
    async fn note_upkeep(&mut self) -> Result<(), NodeError> {
        if self.upkeep.note(&self.ctx, &mut self.judge.held).await {
            self.seat.local.set(&CheckpointsRecord { digests: self.upkeep.checkpoints.clone() })?;
            self.seat.local.set(&self.judge.held.record())?;
        }
        Ok(())
    }
}

/// The first window whose contributions a node still serves when it has settled `window`: until a checkpoint that
/// contains them is certified.
fn held_from(ctx: &Context, window: u64) -> u64 {
    window.saturating_sub(2 * ctx.spec.windows.checkpoint_every_windows)
}

impl Duty for Validator {
    type Done = Evaluated;

    /// Does everything that is due at `head`. Returns an evaluation to run, if one is due, and whether to retry
    /// something.
    async fn on_head(&mut self, head: u64) -> Result<(Option<Job>, Steps), NodeError> {
        self.head = head;
        let (ctx, mut steps) = (self.ctx.clone(), Steps::default());
        self.upkeep.expire(&ctx, head).await;
        steps.take(&ctx, self.seat.renew_entry(head).await).await?;
        steps.take(&ctx, self.settle(head).await).await?;
        steps.take(&ctx, self.seat.keep_listed(head).await).await?;
        steps.take(&ctx, self.judge.confirm_vote(&mut self.seat, head).await).await?;
        steps.take(&ctx, self.judge.judge(&mut self.seat, head).await).await?;
        Ok((self.scoring.start(&ctx, &self.signals), steps))
    }

    /// Waits until a fetch, a copy or an upload has ended, if one is under way; then [`Validator::on_arrival`] is due.
    async fn arrival(&mut self) {
        let Self { judge, upkeep, .. } = self;
        tokio::select! {
            biased;
            () = upkeep.arrival() => {}
            () = judge.arrival() => {}
        }
    }

    /// A contribution has arrived or failed, or a task on the bucket has ended.
    async fn on_arrival(&mut self) -> Result<Steps, NodeError> {
        let (ctx, mut steps) = (self.ctx.clone(), Steps::default());
        self.note_upkeep().await?;
        steps.take(&ctx, self.judge.judge(&mut self.seat, self.head).await).await?;
        Ok(steps)
    }

    async fn on_job(&mut self, evaluated: Evaluated) -> Result<Option<Job>, NodeError> {
        self.scoring.take(&self.ctx, &mut self.seat.local, evaluated).await?;
        Ok(self.scoring.start(&self.ctx, &self.signals))
    }

    /// The last block before which this validator has nothing outstanding.
    fn paced_through(&self) -> u64 {
        let schedule = &self.ctx.schedule;
        let vote = schedule.vote_deadline(self.judge.window()) - 1;
        let settle = schedule.vote_deadline(self.seat.replica.newest().run.settled);
        // The evaluation of a window is in the weights that are set when the next one is settled.
        let evaluation = self.scoring.outstanding().map(|window| schedule.vote_deadline(window + 1) - 1);
        evaluation.chain(self.judge.busy_at(self.head)).chain([vote, settle]).min().expect("not empty")
    }
}
