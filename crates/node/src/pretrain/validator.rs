//! The validator: open what was committed, vote, settle, measure what each contribution did, and set weights.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use templar_data::Split;
use templar_incentive::score::ScoreBook;
use templar_protocol::fault::Fault;
use templar_protocol::hash::Hash32;
use templar_protocol::roster::Uid;
use templar_protocol::word::Vote;
use templar_store::keys;
use templar_train::Trainer;
use tokio::task::JoinSet;

use crate::frame::context::Context;
use crate::frame::drive::{Duty, Steps};
use crate::frame::error::NodeError;
use crate::frame::local::Local;
use crate::frame::records::{CheckpointsRecord, HeldRecord, ScoresRecord, VoteRecord};
use crate::frame::signals::Signals;
use crate::pretrain::checkpoint::{Renewal, Renewed};
use crate::pretrain::evaluate::{Evaluated, Task, drawn_miners};
use crate::pretrain::fetch::Opened;
use crate::pretrain::intake::Intake;
use crate::pretrain::replica::Settled;
use crate::pretrain::seat::{Progress, Seat};
use crate::pretrain::state::State;
use crate::pretrain::sweep;
use crate::pretrain::window::Window;
use templar_record::event::{Event, Role};
use templar_record::trouble::Trouble;

/// Evaluations that may wait; when a validator is slower than the windows, the oldest is dropped.
const TASKS_MAX: usize = 2;

/// What a validator does beyond its duty.
#[derive(Clone, Copy, Debug, Default)]
pub struct ValidatorOptions {
    /// Samples of held-out text on which θ is validated after each window; 0 for none.
    pub validation_samples: u64,
}

/// A validator of one run.
pub struct Validator {
    ctx: Arc<Context>,
    seat: Seat,
    signals: Signals,
    options: ValidatorOptions,
    /// Absent while it evaluates.
    trainer: Option<Box<dyn Trainer>>,
    book: ScoreBook,
    /// The newest block.
    head: u64,
    /// The window whose contributions come in now.
    intake: Option<Intake>,
    /// The vote that must get onto the chain.
    vote: Option<Vote>,
    /// Voted on and not settled yet, oldest first.
    judged: VecDeque<Intake>,
    tasks: VecDeque<Task>,
    evaluating: Option<u64>,
    next_vote: u64,
    /// A window at which weights are due was settled, and none were set since.
    weights_due: bool,
    /// Digests of the checkpoints in this node's bucket, oldest first.
    checkpoints: Vec<Hash32>,
    /// The upload of a checkpoint, beside everything else: one at a time.
    renewing: JoinSet<Renewed>,
    /// One that has ended.
    renewed: Option<Renewed>,
    /// Contributions that this node serves because it voted for them: window and header hash, oldest first.
    held: VecDeque<(u64, Hash32)>,
}

/// An evaluation that is under way.
type Job = BoxFuture<'static, Evaluated>;

impl std::fmt::Debug for Validator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Validator")
            .field("entry", &self.seat.entry)
            .field("next_vote", &self.next_vote)
            .finish_non_exhaustive()
    }
}

impl Validator {
    /// Takes up where the local state ends.
    pub async fn open(
        ctx: Arc<Context>,
        signals: Signals,
        local: Local,
        trainer: Box<dyn Trainer>,
        options: ValidatorOptions,
    ) -> Result<Self, NodeError> {
        let seat = Seat::open(ctx.clone(), local, Role::Validator).await?;
        let settled = seat.replica.newest().run.settled;
        let book = seat.local.get::<ScoresRecord>()?.unwrap_or_default().book;
        let checkpoints = seat.local.get::<CheckpointsRecord>()?.unwrap_or_default().digests;
        let held = seat.local.get::<HeldRecord>()?.unwrap_or_default().contributions;
        let vote: Option<Vote> = seat.local.get::<VoteRecord>()?.map(Vote::from);
        let vote = vote.filter(|vote| u64::from(vote.window) >= settled);
        let next_vote = vote.as_ref().map_or(settled, |vote| u64::from(vote.window) + 1);
        let mut validator = Self {
            ctx,
            seat,
            signals,
            options,
            trainer: Some(trainer),
            book,
            head: 0,
            intake: None,
            vote,
            judged: VecDeque::new(),
            tasks: VecDeque::new(),
            evaluating: None,
            next_vote,
            weights_due: false,
            checkpoints,
            renewing: JoinSet::new(),
            renewed: None,
            held: held.into(),
        };
        validator.sweep().await?;
        Ok(validator)
    }

    /// Brings what is in the own bucket in line with what this node knows to be there.
    async fn sweep(&mut self) -> Result<(), NodeError> {
        let keep_from = self.held_from(self.seat.replica.newest().run.settled);
        let mut swept = sweep::held(&self.ctx, keep_from, &mut self.held).await;
        if swept.is_ok() {
            swept = sweep::checkpoints(&self.ctx, &mut self.checkpoints).await;
        }
        if let Err(error) = swept {
            // What is left over costs storage, nothing else.
            self.ctx.trouble(Trouble::Sweep { cause: error.to_string() }).await;
        }
        self.seat.local.set(&CheckpointsRecord { digests: self.checkpoints.clone() })?;
        self.save_held()
    }

    /// When waiting for contributions ends, to leave time for the vote to get onto the chain.
    fn last_call(&self, window: u64) -> u64 {
        let (put, vote) = (self.ctx.schedule.put_deadline(window), self.ctx.schedule.vote_deadline(window));
        vote - ((vote - put) / 3).max(1)
    }

    async fn settle(&mut self, head: u64) -> Result<(), NodeError> {
        loop {
            let opened: Vec<Arc<Opened>> = self.judged.iter().flat_map(Intake::opened).collect();
            match self.seat.advance(head, &opened).await? {
                Progress::Nothing => return Ok(()),
                Progress::Settled(settled) => self.after_settling(*settled, head).await?,
                Progress::Adopted => {
                    (self.intake, self.vote) = (None, None);
                    self.judged.clear();
                    self.tasks.clear();
                    self.seat.save(&[])?;
                }
            }
        }
    }

    /// What follows from a settled window. Only the own disk can fail here: the window is settled once.
    async fn after_settling(&mut self, settled: Settled, head: u64) -> Result<(), NodeError> {
        let newest = self.seat.replica.newest().clone();
        self.seat.save(&[])?;
        let window = settled.certificate.window;
        let judged = self.judged.iter().position(|intake| intake.window.number == window);
        if let Some(intake) = judged.and_then(|nth| self.judged.remove(nth))
            && let (Some(base), Some(put_hash)) = (settled.base_theta, intake.put_hash())
        {
            let validation =
                (self.options.validation_samples > 0).then(|| (newest.theta.clone(), self.options.validation_samples));
            self.tasks.push_back(Task::new(&self.ctx, &self.seat.entry, &intake, &put_hash, base, validation));
            while self.tasks.len() > TASKS_MAX {
                self.tasks.pop_front();
            }
        }
        self.weights_due |= (window + 1).is_multiple_of(self.ctx.spec.scoring.weights_every_windows);
        let head = head.max(self.signals.head());
        // A replay comes by windows that others have long done with: its duties are those of the newest.
        if self.ctx.schedule.vote_deadline(window + 1) <= head {
            return Ok(());
        }
        if self.weights_due {
            match self.set_weights(&settled.window, head).await {
                Ok(()) => self.weights_due = false,
                Err(error) => {
                    self.ctx.trouble(Trouble::Weights { window, cause: error.to_string() }).await;
                }
            }
        }
        if newest.run.settled.is_multiple_of(self.ctx.spec.windows.checkpoint_every_windows) {
            self.renew_checkpoint(newest).await;
        }
        Ok(())
    }

    /// Begins to publish a checkpoint, unless the one before it is still under way.
    async fn renew_checkpoint(&mut self, state: State) {
        let settled = state.run.settled;
        if !self.renewing.is_empty() {
            return self.ctx.trouble(Trouble::CheckpointLeftOut { settled }).await;
        }
        let keep_from = self.held_from(settled - 1);
        let renewal = Renewal {
            state,
            previous: self.seat.replica.previous().cloned(),
            published: self.checkpoints.clone(),
            expired: self.held.iter().filter(|(window, _)| *window < keep_from).copied().collect(),
        };
        self.renewing.spawn(renewal.run(self.ctx.clone()));
    }

    /// Takes in what became of a checkpoint.
    async fn note_renewed(&mut self) -> Result<(), NodeError> {
        let Some(renewed) = self.renewed.take() else { return Ok(()) };
        self.checkpoints = renewed.published;
        self.seat.local.set(&CheckpointsRecord { digests: self.checkpoints.clone() })?;
        self.held.retain(|held| !renewed.released.contains(held));
        self.save_held()?;
        if let Err(error) = renewed.result {
            // The next one is as good.
            let (settled, cause) = (renewed.settled, error.to_string());
            self.ctx.trouble(Trouble::CheckpointFailed { settled, cause }).await;
        }
        Ok(())
    }

    /// Hands the scores of the miners of `window` to the chain. A uid may be another's by now: with its registration an
    /// entry loses its rating, and so is paid nothing.
    async fn set_weights(&mut self, window: &Window, head: u64) -> Result<(), NodeError> {
        let (ctx, netuid) = (&self.ctx, self.ctx.spec.chain.netuid);
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

    /// The first window whose contributions this node still serves when it has settled `window`: until a checkpoint
    /// that contains them is certified.
    fn held_from(&self, window: u64) -> u64 {
        window.saturating_sub(2 * self.ctx.spec.windows.checkpoint_every_windows)
    }

    fn save_held(&mut self) -> Result<(), NodeError> {
        self.seat.local.set(&HeldRecord { contributions: self.held.iter().copied().collect() })
    }

    async fn confirm_vote(&mut self, head: u64) -> Result<(), NodeError> {
        let Some(vote) = &self.vote else { return Ok(()) };
        if head >= self.ctx.schedule.vote_deadline(u64::from(vote.window)) {
            self.vote = None;
            return Ok(());
        }
        self.seat.publisher.ensure_vote(&self.ctx, &self.seat.entry, vote, head).await
    }

    async fn judge(&mut self, head: u64) -> Result<(), NodeError> {
        while head >= self.ctx.schedule.vote_deadline(self.next_vote) {
            (self.intake, self.next_vote) = (None, self.next_vote + 1);
        }
        let window = self.next_vote;
        if head < self.ctx.schedule.first_block(window) {
            return Ok(());
        }
        let Some(base) = self.seat.replica.base(&self.ctx, window).cloned() else { return Ok(()) };
        if self.intake.as_ref().is_none_or(|intake| intake.window.number != window) {
            let loaded = Window::load(&self.ctx, window, &base.run).await?;
            self.intake = Some(Intake::new(&self.ctx, loaded, &base.theta).await);
        }
        let Some(intake) = &mut self.intake else { return Ok(()) };
        intake.read(&self.ctx, head).await?;
        if let Some(put_hash) = intake.put_hash() {
            let drawn = drawn_miners(&self.ctx, &self.seat.entry, &intake.window, &put_hash).0;
            intake.add(&self.ctx, drawn, &base.theta).await;
        }
        intake.fetch(&self.ctx, head);
        let is_due = intake.put_hash().is_some() && (intake.is_resolved() || head >= self.last_call(window));
        if is_due { self.cast_vote(head).await } else { Ok(()) }
    }

    async fn cast_vote(&mut self, head: u64) -> Result<(), NodeError> {
        let Some(intake) = &mut self.intake else { return Ok(()) };
        intake.close(&self.ctx).await;
        let window = intake.window.number;
        let root = intake.window.base_digest;
        let (candidates, comm_s) = (intake.window.candidates.len(), intake.open_s());
        let (mut accept, mut exclude, mut faults, mut accepted) = (vec![], vec![], vec![], vec![]);
        for (nth, (entry, verdict)) in intake.verdicts().enumerate() {
            if let Err(kind) = verdict {
                faults.push(Fault { entry: *entry, kind, attributed_to: kind.attributed_to() });
            }
            if nth < candidates {
                accept.push(verdict.is_ok());
                exclude.push(verdict.is_err_and(templar_protocol::fault::FaultKind::excludes));
                accepted.extend(verdict.ok().cloned());
            }
        }
        // To vote for a payload is to promise to serve it, so it is in this node's bucket before the vote is cast.
        for opened in &accepted {
            self.hold(window, opened).await?;
        }
        self.save_held()?;
        // On disk before it is on chain: a restarted validator says what it said.
        let vote = Vote { window: window as u32, root, accept, exclude };
        self.seat.local.set(&VoteRecord::from(&vote))?;
        (self.vote, self.next_vote) = (Some(vote), window + 1);
        let accept: Vec<Uid> = accepted.iter().map(|opened| opened.header.header.entry.uid).collect();
        self.ctx.emit(Event::Voted { window, accept, faults, comm_s }).await;
        self.judged.extend(self.intake.take());
        while self.judged.len() > TASKS_MAX {
            self.judged.pop_front();
        }
        self.confirm_vote(head).await
    }

    /// Puts a contribution into this node's bucket, unless it is there.
    async fn hold(&mut self, window: u64, opened: &Opened) -> Result<(), NodeError> {
        let header = opened.header.header.hash();
        if self.held.contains(&(window, header)) {
            return Ok(());
        }
        let (store, run) = (&self.ctx.store, self.ctx.run);
        store.put(&keys::held_payload(run, window, &header), opened.ciphertext.clone()).await?;
        store.put(&keys::held_key(run, window, &header), Bytes::copy_from_slice(opened.key.as_bytes())).await?;
        store.put(&keys::held_header(run, window, &header), Bytes::from(opened.header.to_bytes())).await?;
        self.held.push_back((window, header));
        Ok(())
    }

    fn start_evaluation(&mut self) -> Option<Job> {
        let trainer = self.trainer.take()?;
        let Some(task) = self.tasks.pop_front() else {
            self.trainer = Some(trainer);
            return None;
        };
        self.evaluating = Some(task.window);
        Some(task.run(self.ctx.clone(), self.signals.clone(), trainer))
    }
}

impl Duty for Validator {
    type Done = Evaluated;

    /// Everything that is due at `head`: an evaluation to run, if one is, and whether something should be tried again.
    async fn on_head(&mut self, head: u64) -> Result<(Option<Job>, Steps), NodeError> {
        self.head = head;
        let (ctx, mut steps) = (self.ctx.clone(), Steps::default());
        steps.take(&ctx, self.seat.renew_entry(head).await).await?;
        steps.take(&ctx, self.settle(head).await).await?;
        steps.take(&ctx, self.seat.keep_listed(head).await).await?;
        steps.take(&ctx, self.confirm_vote(head).await).await?;
        steps.take(&ctx, self.judge(head).await).await?;
        Ok((self.start_evaluation(), steps))
    }

    /// Waits until a fetch or an upload has ended, if one is under way; then [`Validator::on_arrival`] is due.
    async fn arrival(&mut self) {
        let Self { intake, renewing, renewed, .. } = self;
        let fetched = async {
            match intake {
                Some(intake) => intake.arrival().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            Some(ended) = renewing.join_next() => match ended {
                Ok(done) => *renewed = Some(done),
                Err(error) => tracing::error!(%error, "the upload of a checkpoint broke its task"),
            },
            () = fetched => {}
        }
    }

    /// A contribution has come, or will not; or a checkpoint is in the bucket.
    async fn on_arrival(&mut self) -> Result<Steps, NodeError> {
        let (ctx, mut steps) = (self.ctx.clone(), Steps::default());
        self.note_renewed().await?;
        steps.take(&ctx, self.judge(self.head).await).await?;
        Ok(steps)
    }

    /// The trainer is back.
    async fn on_job(&mut self, evaluated: Evaluated) -> Result<Option<Job>, NodeError> {
        self.trainer = Some(evaluated.trainer);
        self.evaluating = None;
        let window = evaluated.window;
        match evaluated.report {
            Ok(report) => {
                for (entry, observation) in report.observations {
                    self.book.observe(entry, &observation, &self.ctx.spec.scoring);
                    let score = self.book.rating(&entry).score();
                    self.ctx.emit(Event::Observed { window, uid: entry.uid, observation, score }).await;
                }
                self.seat.local.set(&ScoresRecord { book: self.book.clone() })?;
                if let Some(loss) = report.held_out_loss {
                    let bytes_per_token = self.ctx.dataset.manifest().bytes_per_token(Split::HeldOut);
                    let bits_per_byte = loss / std::f64::consts::LN_2 / bytes_per_token;
                    self.ctx.emit(Event::Validated { window, loss, bits_per_byte }).await;
                }
            }
            Err(error) => {
                self.ctx.trouble(Trouble::Evaluation { window, cause: error.to_string() }).await;
            }
        }
        Ok(self.start_evaluation())
    }

    /// The last block before which this validator has nothing outstanding.
    fn paced_through(&self) -> u64 {
        let schedule = &self.ctx.schedule;
        let vote = schedule.vote_deadline(self.next_vote) - 1;
        let settle = schedule.vote_deadline(self.seat.replica.newest().run.settled);
        // Once keys may come, it looks at every block for those that are not there yet.
        let looking = self.intake.as_ref().filter(|intake| intake.put_hash().is_some() && !intake.is_resolved());
        let looking = looking.map(|_| self.head + 1);
        let fetching = self.intake.as_ref().is_some_and(Intake::is_fetching).then_some(self.head);
        // The evaluation of a window is in the weights that are set when the next one is settled.
        let evaluation = self.evaluating.into_iter().chain(self.tasks.iter().map(|task| task.window));
        let evaluation = evaluation.map(|window| schedule.vote_deadline(window + 1) - 1);
        evaluation.chain(fetching).chain(looking).chain([vote, settle]).min().expect("not empty")
    }
}
