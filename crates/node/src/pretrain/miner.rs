//! The miner: train on the assigned samples, seal, commit, open, and keep what was not certified for the next window.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;

use futures::future::BoxFuture;
use templar_codec::EncodeError;
use templar_protocol::roster::EntryId;
use templar_train::{TrainJob, TrainOutcome, Trainer};
use tokio::time::Instant;

use crate::frame::context::Context;
use crate::frame::drive::{Duty, Steps};
use crate::frame::error::NodeError;
use crate::frame::local::{Local, from_bytes, to_bytes};
use crate::pretrain::batches::batches;
use crate::pretrain::pending::Pending;
use templar_record::event::{Event, Role};
use templar_record::trouble::Trouble;

use crate::frame::signals::Signals;
use crate::pretrain::seat::{Progress, Seat};
use crate::pretrain::window::{Window, committed_header};
use crate::pretrain::{sweep, upload};

/// Windows for which a miner keeps its objects in its bucket.
const WINDOWS_KEPT: u64 = 4;

/// A miner of one run.
pub struct Miner {
    ctx: Arc<Context>,
    seat: Seat,
    signals: Signals,
    /// Absent while it trains.
    trainer: Option<Box<dyn Trainer>>,
    /// e: what was learned and not yet sent.
    error_feedback: Vec<f32>,
    /// The next window to train in.
    next_window: u64,
    training: Option<Window>,
    /// Trained, but windows before it are not settled yet: only with a delay of one window.
    trained: Option<(Window, TrainOutcome)>,
    /// Committed and not settled, oldest first.
    pending: VecDeque<Pending>,
}

/// A trainer and what it did.
#[expect(missing_debug_implementations, reason = "a trainer has nothing to show")]
pub struct Finished {
    trainer: Box<dyn Trainer>,
    outcome: Result<TrainOutcome, NodeError>,
    compute_s: f64,
}

/// A training that is under way.
type Job = BoxFuture<'static, Finished>;

impl std::fmt::Debug for Miner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Miner")
            .field("entry", &self.seat.entry)
            .field("next_window", &self.next_window)
            .finish_non_exhaustive()
    }
}

impl Miner {
    /// Takes up where the local state ends.
    pub async fn open(
        ctx: Arc<Context>,
        signals: Signals,
        local: Local,
        mut trainer: Box<dyn Trainer>,
    ) -> Result<Self, NodeError> {
        let seat = Seat::open(ctx.clone(), local, Role::Miner).await?;
        let error_feedback = load_error_feedback(&ctx, &seat.local)?;
        if let Some(state) = load_file(&seat.local, "optimiser")?
            && let Err(error) = trainer.import_state(&state)
        {
            ctx.trouble(Trouble::OptimiserLost { cause: error.to_string() }).await;
        }
        let pending = Pending::load(&seat.local)?.into_iter().collect();
        let mut miner = Self {
            ctx,
            seat,
            signals,
            trainer: Some(trainer),
            error_feedback,
            next_window: 0,
            training: None,
            trained: None,
            pending,
        };
        miner.next_window = miner.pending.back().map_or(0, |pending| pending.window + 1);
        miner.drop_skipped();
        miner.sweep().await;
        Ok(miner)
    }

    /// Removes old contributions from the own bucket, those to windows that were jumped over too.
    async fn sweep(&mut self) {
        let keep_from = self.seat.replica.newest().run.settled.saturating_sub(WINDOWS_KEPT);
        if let Err(error) = sweep::windows(&self.ctx, keep_from).await {
            self.ctx.trouble(Trouble::Sweep { cause: error.to_string() }).await;
        }
    }

    /// The trainer is back.
    async fn take_trained(&mut self, finished: Finished) -> Result<(), NodeError> {
        let engine = finished.trainer.stats();
        self.trainer = Some(finished.trainer);
        let Some(window) = self.training.take() else { return Ok(()) };
        let outcome = match finished.outcome {
            Ok(outcome) if outcome.tokens > 0 => outcome,
            Ok(_) => return self.miss(window.number, "no inner step ended in time").await,
            Err(error) => return self.miss(window.number, &format!("training failed: {error}")).await,
        };
        let mean = outcome.steps.iter().map(|step| step.loss).sum::<f64>() / outcome.steps.len() as f64;
        let trained = Event::Trained {
            window: window.number,
            steps: outcome.steps.len() as u64,
            tokens: outcome.tokens,
            train_loss: mean,
            compute_s: finished.compute_s,
            engine,
        };
        self.ctx.emit(trained).await;
        let head = self.signals.head();
        self.seal_when_settled(window, outcome, head).await
    }

    /// When training must end to leave time for the upload and the commitment.
    fn stop_block(&self, window: u64) -> u64 {
        let margin = (self.ctx.spec.windows.put_block / 5).max(1);
        self.ctx.schedule.put_deadline(window) - margin
    }

    async fn miss(&mut self, window: u64, reason: &str) -> Result<(), NodeError> {
        self.ctx.emit(Event::Missed { window, reason: reason.to_owned() }).await;
        Ok(())
    }

    async fn settle(&mut self, head: u64) -> Result<(), NodeError> {
        loop {
            match self.seat.advance(head, &[]).await? {
                Progress::Nothing => return Ok(()),
                Progress::Settled(settled) => {
                    let window = settled.certificate.window;
                    self.settle_pending(window, settled.certificate.accepted())?;
                    upload::remove(&self.ctx, window, WINDOWS_KEPT).await;
                }
                Progress::Adopted => {
                    self.drop_skipped();
                    self.save()?;
                    self.sweep().await;
                }
            }
        }
    }

    /// In the end error feedback is reduced only by what was certified.
    fn settle_pending(&mut self, window: u64, accepted: &[EntryId]) -> Result<(), NodeError> {
        let settled = self.pending.iter().position(|pending| pending.window == window);
        if let Some(pending) = settled.and_then(|nth| self.pending.remove(nth))
            && !accepted.contains(&pending.header.header.entry)
        {
            self.take_back(&pending.payload);
        }
        self.save()
    }

    /// Windows that a checkpoint jumped over are not settled here. Whatever was opened in them probably counted: to lose
    /// it is better than to send it twice.
    fn drop_skipped(&mut self) {
        let settled = self.seat.replica.newest().run.settled;
        let all = std::mem::take(&mut self.pending);
        let (skipped, kept): (VecDeque<_>, VecDeque<_>) = all.into_iter().partition(|pending| pending.window < settled);
        self.pending = kept;
        for pending in skipped.iter().filter(|pending| !pending.opened) {
            self.take_back(&pending.payload);
        }
    }

    /// Puts back into the error feedback what was taken out of it for `payload`, which did not count.
    fn take_back(&mut self, payload: &[u8]) {
        if let Ok(contribution) = self.ctx.codec.decode(payload.to_vec()) {
            contribution.add_scaled(&mut self.error_feedback, 1.0);
        }
    }

    fn save(&mut self) -> Result<(), NodeError> {
        let local = &self.seat.local;
        let error = local.put_file("error", &to_bytes(&self.error_feedback))?;
        let optimiser = match &self.trainer {
            Some(trainer) => Some(local.put_file("optimiser", &trainer.export_state())?),
            None => local.get::<String>("optimiser")?,
        };
        let (pending, payloads) = Pending::store(self.pending.make_contiguous(), local)?;
        let mut values = vec![("error", stored(&error)), ("pending", stored(&pending))];
        values.extend(optimiser.iter().map(|name| ("optimiser", stored(name))));
        self.seat.save(&values)?;
        let local = &self.seat.local;
        local.retain_files("error", &[&error])?;
        local.retain_files("optimiser", &optimiser.iter().map(String::as_str).collect::<Vec<_>>())?;
        local.retain_files("payload", &payloads.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Takes each pending contribution as far as it gets by `head`: upload and commitment before the put deadline, the
    /// key after it, if the chain had the header in time. Gives the first error, after a try at each.
    async fn publish(&mut self, head: u64) -> Result<(), NodeError> {
        let mut result = Ok(());
        for nth in 0..self.pending.len() {
            if self.pending[nth].published {
                continue;
            }
            let deadline = self.ctx.schedule.put_deadline(self.pending[nth].window);
            let step = if head < deadline { self.commit(nth, head).await } else { self.unseal(nth, deadline).await };
            result = result.and(step);
        }
        let all = std::mem::take(&mut self.pending);
        let (lost, kept): (VecDeque<_>, VecDeque<_>) = all.into_iter().partition(|pending| pending.lost);
        self.pending = kept;
        if !lost.is_empty() {
            for pending in &lost {
                self.take_back(&pending.payload);
            }
            self.save()?;
        }
        result
    }

    async fn commit(&mut self, nth: usize, head: u64) -> Result<(), NodeError> {
        let (ctx, pending) = (&self.ctx, &mut self.pending[nth]);
        if !pending.uploaded {
            let started = Instant::now();
            upload::contribution(ctx, pending).await?;
            pending.uploaded = true;
            let (window, payload_bytes) = (pending.window, pending.header.header.ciphertext_bytes);
            ctx.emit(Event::Sealed { window, payload_bytes, comm_s: started.elapsed().as_secs_f64() }).await;
        }
        let entry = pending.header.header.entry;
        self.seat.publisher.ensure_header(ctx, &entry, &pending.word(), head).await
    }

    /// Publishes the key of a contribution whose put `deadline` is past, if the chain had its header by then.
    async fn unseal(&mut self, nth: usize, deadline: u64) -> Result<(), NodeError> {
        let window = self.pending[nth].window;
        if !self.pending[nth].opened {
            let at_put = self.ctx.snapshot(deadline).await?;
            let header = &self.pending[nth].header.header;
            if committed_header(window, &header.entry, &at_put) != Some(header.hash()) {
                self.pending[nth].lost = true;
                return self.miss(window, "the chain did not include its header by the put deadline").await;
            }
            // On disk before it is public: whoever dies in between must not send the same values again.
            self.pending[nth].opened = true;
            Pending::save(self.pending.make_contiguous(), &self.seat.local)?;
        }
        upload::key(&self.ctx, &self.pending[nth]).await?;
        self.pending[nth].published = true;
        self.ctx.emit(Event::Opened { window }).await;
        Ok(())
    }

    async fn start_training(&mut self, head: u64) -> Result<Option<Job>, NodeError> {
        // What came before may have taken blocks.
        let head = head.max(self.signals.head());
        let Some(number) = self.ctx.schedule.window_at(head) else { return Ok(None) };
        if number < self.next_window || self.training.is_some() || self.trained.is_some() {
            return Ok(None);
        }
        if head >= self.stop_block(number) {
            self.next_window = number + 1;
            return Ok(None);
        }
        let Some(base) = self.seat.replica.base(&self.ctx, number).cloned() else { return Ok(None) };
        let window = Window::load(&self.ctx, number, &base.run).await?;
        let samples = window.assignment.slice(&self.seat.entry);
        self.next_window = number + 1;
        if samples.is_empty() {
            self.miss(number, "not in the roster of this window").await?;
            return Ok(None);
        }
        let Some(trainer) = self.trainer.take() else { return Ok(None) };
        self.training = Some(window);
        let first_step = base.run.outer_steps * u64::from(self.ctx.spec.inner.steps);
        Ok(Some(self.training_job(trainer, base.theta, samples, first_step, self.stop_block(number))))
    }

    fn training_job(
        &self,
        mut trainer: Box<dyn Trainer>,
        theta: Arc<Vec<f32>>,
        samples: Vec<u64>,
        first_step: u64,
        stop_block: u64,
    ) -> Job {
        let (ctx, signals, started) = (self.ctx.clone(), self.signals.clone(), Instant::now());
        let work = move || {
            let mut on_step = |_: &_| {
                if signals.head() >= stop_block || signals.stopped() {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            };
            let outcome = batches(&ctx, &samples).and_then(|batches| {
                Ok(trainer.train(&TrainJob { theta: &theta, batches: &batches, first_step }, &mut on_step)?)
            });
            (trainer, outcome)
        };
        let done = self.ctx.compute.run(work);
        Box::pin(async move {
            let (trainer, outcome) = done.await;
            Finished { trainer, outcome, compute_s: started.elapsed().as_secs_f64() }
        })
    }

    /// Seals what was learned in `window` and publishes it, once all windows before it are settled.
    async fn seal_when_settled(&mut self, window: Window, outcome: TrainOutcome, head: u64) -> Result<(), NodeError> {
        let number = window.number;
        if self.seat.replica.newest().run.settled < number {
            self.trained = Some((window, outcome));
            return Ok(());
        }
        let base = self.seat.replica.base(&self.ctx, number).cloned();
        let Some(base) = base.filter(|base| base.run.digest() == window.base_digest) else {
            return self.miss(number, "the state that it trained from was replaced").await;
        };
        if head >= self.ctx.schedule.put_deadline(number) {
            self.ctx.codec.accumulate(&mut self.error_feedback, &outcome.delta);
            // Nothing is lost: it stays in the error feedback, and the next payload carries it.
            self.save()?;
            return self.miss(number, "trained past the put deadline").await;
        }
        let payload = match self.encode(outcome.delta).await {
            Ok(payload) => payload,
            Err(error) => {
                self.error_feedback.fill(0.0);
                self.save()?;
                return self.miss(number, &format!("error feedback starts afresh: {error}")).await;
            }
        };
        let (ctx, entry) = (self.ctx.clone(), self.seat.entry);
        let context = move || window.context(&ctx, &entry, &base.theta);
        match self.ctx.compute.run(context).await {
            Ok(context) => self.pending.push_back(Pending::new(&self.ctx, &context, payload, outcome.tokens)),
            Err(error) => {
                self.take_back(&payload);
                self.save()?;
                return self.miss(number, &format!("its own data is damaged: {error}")).await;
            }
        }
        self.save()?;
        self.publish(head).await
    }

    /// e ← β·e + Δ, and its payload, which leaves e until it is known not to have counted.
    async fn encode(&mut self, delta: Vec<f32>) -> Result<Vec<u8>, EncodeError> {
        let codec = self.ctx.codec.clone();
        let mut error_feedback = std::mem::take(&mut self.error_feedback);
        let encode = move || (codec.encode(&mut error_feedback, &delta), error_feedback);
        let (payload, error_feedback) = self.ctx.compute.run(encode).await;
        self.error_feedback = error_feedback;
        payload
    }
}

impl Duty for Miner {
    type Done = Finished;

    /// Everything that is due at `head`: a training to run, if one is, and whether something should be tried again.
    async fn on_head(&mut self, head: u64) -> Result<(Option<Job>, Steps), NodeError> {
        let (ctx, mut steps) = (self.ctx.clone(), Steps::default());
        steps.take(&ctx, self.seat.renew_entry(head).await).await?;
        steps.take(&ctx, self.settle(head).await).await?;
        steps.take(&ctx, self.publish(head).await).await?;
        steps.take(&ctx, self.seat.keep_listed(head).await).await?;
        if let Some((window, outcome)) = self.trained.take() {
            steps.take(&ctx, self.seal_when_settled(window, outcome, head).await).await?;
        }
        let job = steps.take(&ctx, self.start_training(head).await).await?;
        Ok((job.flatten(), steps))
    }

    async fn on_job(&mut self, finished: Finished) -> Result<Option<Job>, NodeError> {
        self.take_trained(finished).await?;
        Ok(None)
    }

    /// The last block before which this miner has nothing outstanding.
    fn paced_through(&self) -> u64 {
        let unpublished = self.pending.iter().filter(|pending| !pending.published);
        let keys = unpublished.map(|pending| self.ctx.schedule.put_deadline(pending.window));
        let unsealed = self.training.iter().chain(self.trained.iter().map(|(window, _)| window));
        let trainings = unsealed.map(|window| window.number).chain([self.next_window]);
        keys.chain(trainings.map(|window| self.stop_block(window) - 1)).min().expect("there is always a next window")
    }
}

fn stored<T: borsh::BorshSerialize>(value: &T) -> Vec<u8> {
    borsh::to_vec(value).expect("memory accepts every byte")
}

fn load_file(local: &Local, name: &str) -> Result<Option<Vec<u8>>, NodeError> {
    Ok(local.get::<String>(name)?.and_then(|file| local.file(&file)))
}

fn load_error_feedback(ctx: &Context, local: &Local) -> Result<Vec<f32>, NodeError> {
    let stored = load_file(local, "error")?.map(|bytes| from_bytes(&bytes));
    let length = ctx.codec.layout().len();
    let usable = stored.filter(|e| e.len() == length && e.iter().all(|value| value.is_finite()));
    Ok(usable.unwrap_or_else(|| vec![0.0; length]))
}
