//! The miner: train on the assigned samples, seal, commit, open, and keep what was not certified for the next window.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;

use futures::future::BoxFuture;
use templar_data::Split;
use templar_protocol::roster::EntryId;
use templar_train::{TokenBatch, TrainError, TrainJob, TrainOutcome, Trainer};
use tokio::time::Instant;

use crate::core::Core;
use crate::error::NodeError;
use crate::events::{Event, Role};
use crate::local::{Local, from_bytes, to_bytes};
use crate::pending::Pending;
use crate::publish::Board;
use crate::replica::{Replica, committed_header};
use crate::signals::Signals;
use crate::window::Window;

/// Windows for which a miner keeps its objects in its bucket.
const WINDOWS_KEPT: u64 = 4;

/// A miner of one run.
pub struct Miner {
    core: Arc<Core>,
    signals: Signals,
    entry: EntryId,
    local: Local,
    replica: Replica,
    board: Board,
    /// Absent while it trains.
    trainer: Option<Box<dyn Trainer>>,
    /// e: what was learned and not yet certified.
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
pub type Job = BoxFuture<'static, Finished>;

impl std::fmt::Debug for Miner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Miner")
            .field("entry", &self.entry)
            .field("next_window", &self.next_window)
            .finish_non_exhaustive()
    }
}

impl Miner {
    /// Takes up where the local state ends.
    pub async fn open(
        core: Arc<Core>,
        signals: Signals,
        mut local: Local,
        mut trainer: Box<dyn Trainer>,
    ) -> Result<Self, NodeError> {
        let entry = core.own_entry().await?;
        let board = Board::new(&core)?;
        let replica = Replica::open(&core, &mut local).await?;
        let newest = &replica.newest().run;
        let (settled, state_root) = (newest.settled, newest.theta_root);
        core.emit(Event::Started { uid: entry.uid, role: Role::Miner, settled, state_root }).await;
        let error_feedback = load_error_feedback(&core, &local)?;
        if let Some(state) = load_file(&local, "optimiser")?
            && let Err(error) = trainer.import_state(&state)
        {
            core.emit(Event::Trouble { what: format!("optimiser state is not usable, starting afresh: {error}") })
                .await;
        }
        let pending = Pending::load(&local)?.into_iter().collect();
        let mut miner = Self {
            core,
            signals,
            entry,
            local,
            replica,
            board,
            trainer: Some(trainer),
            error_feedback,
            next_window: 0,
            training: None,
            trained: None,
            pending,
        };
        miner.next_window = miner.pending.back().map_or(0, |pending| pending.window + 1);
        miner.drop_skipped();
        Ok(miner)
    }

    /// Everything that is due at `head`. Returns a training to run, if one is.
    pub async fn on_head(&mut self, head: u64) -> Result<Option<Job>, NodeError> {
        self.settle(head).await?;
        self.publish(head).await?;
        self.board.keep_listed(&self.core, &self.entry, head).await?;
        if let Some((window, outcome)) = self.trained.take() {
            self.seal_when_settled(window, outcome, head).await?;
        }
        self.start_training(head).await
    }

    /// The trainer is back.
    pub async fn on_job(&mut self, finished: Finished) -> Result<(), NodeError> {
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
        };
        self.core.emit(trained).await;
        let head = self.signals.head();
        self.seal_when_settled(window, outcome, head).await
    }

    /// The last block before which this miner has nothing outstanding.
    pub fn paced_through(&self) -> u64 {
        let unopened = self.pending.iter().filter(|pending| !pending.opened);
        let keys = unopened.map(|pending| self.core.schedule.put_deadline(pending.window));
        let unsealed = self.training.iter().chain(self.trained.iter().map(|(window, _)| window));
        let trainings = unsealed.map(|window| window.number).chain([self.next_window]);
        keys.chain(trainings.map(|window| self.stop_block(window) - 1)).min().expect("there is always a next window")
    }

    /// When training must end to leave time for the upload and the commitment.
    fn stop_block(&self, window: u64) -> u64 {
        let margin = (self.core.spec.windows.put_block / 5).max(1);
        self.core.schedule.put_deadline(window) - margin
    }

    async fn miss(&mut self, window: u64, reason: &str) -> Result<(), NodeError> {
        self.core.emit(Event::Missed { window, reason: reason.to_owned() }).await;
        Ok(())
    }

    async fn settle(&mut self, head: u64) -> Result<(), NodeError> {
        let mut resynchronised = false;
        loop {
            match self.replica.advance(&self.core, head, &[]).await {
                Ok(None) => return Ok(()),
                Ok(Some(settled)) => {
                    let window = settled.certificate.window;
                    let counted = settled.certificate.accepted().contains(&self.entry);
                    self.settle_pending(window, counted)?;
                    self.board.sweep(&self.core, window, WINDOWS_KEPT).await;
                }
                // Once a block: if that does not help, the next block may bring what does.
                Err(error) if error.needs_resynchronisation() && !resynchronised => {
                    resynchronised = true;
                    self.core.emit(Event::Trouble { what: error.to_string() }).await;
                    self.replica.resynchronise(&self.core, &mut self.local, head).await?;
                    self.drop_skipped();
                    self.save()?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Error feedback is reduced only by what was certified.
    fn settle_pending(&mut self, window: u64, counted: bool) -> Result<(), NodeError> {
        let settled = self.pending.iter().position(|pending| pending.window == window);
        if let Some(pending) = settled.and_then(|nth| self.pending.remove(nth))
            && counted
            && let Ok(contribution) = self.core.codec.decode(pending.payload.clone())
        {
            contribution.subtract_from(&mut self.error_feedback);
        }
        self.save()
    }

    /// Windows that a checkpoint jumped over are not settled here. Whatever was opened in them probably counted: to lose
    /// it is better than to send it twice.
    fn drop_skipped(&mut self) {
        let settled = self.replica.newest().run.settled;
        let all = std::mem::take(&mut self.pending);
        let (skipped, kept): (VecDeque<_>, VecDeque<_>) = all.into_iter().partition(|pending| pending.window < settled);
        self.pending = kept;
        for pending in skipped.iter().filter(|pending| pending.opened) {
            if let Ok(contribution) = self.core.codec.decode(pending.payload.clone()) {
                contribution.subtract_from(&mut self.error_feedback);
            }
        }
    }

    fn save(&mut self) -> Result<(), NodeError> {
        let error = self.local.put_file("error", &to_bytes(&self.error_feedback))?;
        let optimiser = match &self.trainer {
            Some(trainer) => Some(self.local.put_file("optimiser", &trainer.export_state())?),
            None => load_name(&self.local, "optimiser")?,
        };
        let (pending, payloads) = Pending::store(self.pending.make_contiguous(), &self.local)?;
        let mut values = vec![("error", error.clone().into_bytes()), ("pending", pending)];
        values.extend(optimiser.iter().map(|name| ("optimiser", name.clone().into_bytes())));
        let newest = self.replica.newest();
        self.local.save(&newest.run, &newest.theta, &values)?;
        self.local.retain_files("error", &[&error])?;
        self.local.retain_files("optimiser", &optimiser.iter().map(String::as_str).collect::<Vec<_>>())?;
        self.local.retain_files("payload", &payloads.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Takes each pending contribution as far as it gets by `head`: upload and commitment before the put deadline, the
    /// key after it, if the chain had the header in time.
    async fn publish(&mut self, head: u64) -> Result<(), NodeError> {
        let core = &self.core;
        for pending in self.pending.iter_mut().filter(|pending| !pending.opened) {
            let (window, deadline) = (pending.window, core.schedule.put_deadline(pending.window));
            if head < deadline {
                if !pending.uploaded {
                    let started = Instant::now();
                    self.board.put_contribution(core, pending).await?;
                    pending.uploaded = true;
                    let (comm_s, values) = (started.elapsed().as_secs_f64(), pending.values);
                    let payload_bytes = pending.header.header.ciphertext_bytes;
                    core.emit(Event::Sealed { window, payload_bytes, values, comm_s }).await;
                }
                self.board.ensure_header(core, &self.entry, &pending.word(), head).await?;
                continue;
            }
            let at_put = core.snapshot(deadline).await?;
            if committed_header(window, &self.entry, &at_put) == Some(pending.header.header.hash()) {
                self.board.put_key(core, pending).await?;
                core.emit(Event::Opened { window }).await;
            } else {
                let reason = "the chain did not include its header by the put deadline".to_owned();
                core.emit(Event::Missed { window, reason }).await;
                pending.lost = true;
                continue;
            }
            pending.opened = true;
        }
        self.pending.retain(|pending| !pending.lost);
        Ok(())
    }

    async fn start_training(&mut self, head: u64) -> Result<Option<Job>, NodeError> {
        let Some(number) = self.core.schedule.window_at(head) else { return Ok(None) };
        if number < self.next_window || self.training.is_some() || self.trained.is_some() {
            return Ok(None);
        }
        if head >= self.stop_block(number) {
            self.next_window = number + 1;
            return Ok(None);
        }
        let Some(base) = self.replica.base(&self.core, number).cloned() else { return Ok(None) };
        let window = Window::load(&self.core, number, &base.run).await?;
        let samples = window.assignment.slice(&self.entry);
        self.next_window = number + 1;
        if samples.is_empty() {
            self.miss(number, "not in the roster of this window").await?;
            return Ok(None);
        }
        let Some(trainer) = self.trainer.take() else { return Ok(None) };
        self.training = Some(window);
        let first_step = base.run.outer_steps * u64::from(self.core.spec.inner.steps);
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
        let (core, signals, started) = (self.core.clone(), self.signals.clone(), Instant::now());
        let work = move || {
            let mut on_step = |_: &_| {
                if signals.head() >= stop_block || signals.stopped() {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            };
            let outcome = batches(&core, &samples).and_then(|batches| {
                Ok(trainer.train(&TrainJob { theta: &theta, batches: &batches, first_step }, &mut on_step)?)
            });
            (trainer, outcome)
        };
        let done = self.core.compute.run(work);
        Box::pin(async move {
            let (trainer, outcome) = done.await;
            Finished { trainer, outcome, compute_s: started.elapsed().as_secs_f64() }
        })
    }

    async fn seal_when_settled(&mut self, window: Window, outcome: TrainOutcome, head: u64) -> Result<(), NodeError> {
        if self.replica.newest().run.settled < window.number {
            self.trained = Some((window, outcome));
            return Ok(());
        }
        if head >= self.core.schedule.put_deadline(window.number) {
            self.core.codec.accumulate(&mut self.error_feedback, &outcome.delta);
            // Nothing is lost: it stays in the error feedback, and the next payload carries it.
            self.save()?;
            return self.miss(window.number, "trained past the put deadline").await;
        }
        let Some(base) = self.replica.base(&self.core, window.number).cloned() else { return Ok(()) };
        let (codec, delta) = (self.core.codec.clone(), outcome.delta);
        let mut error_feedback = std::mem::take(&mut self.error_feedback);
        let encode = move || (codec.encode(&mut error_feedback, &delta), error_feedback);
        let (payload, error_feedback) = self.core.compute.run(encode).await;
        self.error_feedback = error_feedback;
        let pending = Pending::new(&self.core, &self.entry, &window, &base.theta, payload?, outcome.tokens)?;
        self.pending.push_back(pending);
        self.save()?;
        self.publish(head).await
    }
}

/// One batch an inner step; a slice shorter than the window's steps is gone through again.
fn batches(core: &Core, samples: &[u64]) -> Result<Vec<TokenBatch>, NodeError> {
    let (steps, sequences) = (core.spec.inner.steps as usize, core.spec.inner.batch_sequences as usize);
    let mut order = samples.iter().cycle();
    (0..steps)
        .map(|_| batch(core, Split::Train, &order.by_ref().take(sequences).copied().collect::<Vec<_>>()))
        .collect()
}

/// The tokens of samples as one batch.
pub fn batch(core: &Core, split: Split, samples: &[u64]) -> Result<TokenBatch, NodeError> {
    let seq_len = core.spec.model.seq_len as usize;
    let mut tokens = Vec::with_capacity(samples.len() * seq_len);
    for &sample in samples {
        tokens.extend(core.dataset.sample(split, sample)?);
    }
    Ok(TokenBatch::new(samples.len(), seq_len, tokens).map_err(|source| TrainError::Batch { batch: 0, source })?)
}

fn load_name(local: &Local, name: &str) -> Result<Option<String>, NodeError> {
    Ok(local.value(name)?.and_then(|bytes| String::from_utf8(bytes).ok()))
}

fn load_file(local: &Local, name: &str) -> Result<Option<Vec<u8>>, NodeError> {
    Ok(load_name(local, name)?.and_then(|file| local.file(&file)))
}

fn load_error_feedback(core: &Core, local: &Local) -> Result<Vec<f32>, NodeError> {
    let stored = load_file(local, "error")?.map(|bytes| from_bytes(&bytes));
    let length = core.codec.layout().len();
    let usable = stored.filter(|e| e.len() == length && e.iter().all(|value| value.is_finite()));
    Ok(usable.unwrap_or_else(|| vec![0.0; length]))
}
