//! The validator: open what was committed, vote, settle, measure what each contribution did, and set weights.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use templar_data::Split;
use templar_protocol::fault::Fault;
use templar_protocol::hash::Hash32;
use templar_protocol::roster::{EntryId, Uid};
use templar_protocol::score::ScoreBook;
use templar_protocol::word::Vote;
use templar_store::keys;
use templar_train::Trainer;
use tokio::time::Instant;

use crate::checkpoint;
use crate::core::Core;
use crate::error::NodeError;
use crate::evaluate::{Evaluated, Task, drawn_miners};
use crate::events::{Event, Role};
use crate::fetch::Opened;
use crate::intake::Intake;
use crate::local::Local;
use crate::publish::Board;
use crate::replica::{Replica, Settled, State};
use crate::window::Window;

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
    core: Arc<Core>,
    entry: EntryId,
    options: ValidatorOptions,
    local: Local,
    replica: Replica,
    board: Board,
    /// Absent while it evaluates.
    trainer: Option<Box<dyn Trainer>>,
    book: ScoreBook,
    /// The window whose contributions come in now.
    intake: Option<Intake>,
    /// The vote that must get onto the chain.
    vote: Option<Vote>,
    /// Voted on and not settled yet, oldest first.
    judged: VecDeque<Intake>,
    tasks: VecDeque<Task>,
    evaluating: Option<u64>,
    next_vote: u64,
    /// Digests of the checkpoints in this node's bucket, oldest first.
    checkpoints: Vec<Hash32>,
    /// Contributions that this node serves because it voted for them: window and header hash, oldest first.
    held: VecDeque<(u64, Hash32)>,
}

/// An evaluation that is under way.
pub type Job = BoxFuture<'static, Evaluated>;

impl std::fmt::Debug for Validator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Validator")
            .field("entry", &self.entry)
            .field("next_vote", &self.next_vote)
            .finish_non_exhaustive()
    }
}

impl Validator {
    /// Takes up where the local state ends.
    pub async fn open(
        core: Arc<Core>,
        mut local: Local,
        trainer: Box<dyn Trainer>,
        options: ValidatorOptions,
    ) -> Result<Self, NodeError> {
        let entry = core.own_entry().await?;
        let board = Board::new(&core)?;
        let replica = Replica::open(&core, &mut local).await?;
        let newest = &replica.newest().run;
        let (settled, state_root) = (newest.settled, newest.theta_root);
        core.emit(Event::Started { uid: entry.uid, role: Role::Validator, settled, state_root }).await;
        let book = restore(&local, "scores")?;
        let checkpoints = restore(&local, "checkpoints")?;
        let held: Vec<(u64, Hash32)> = restore(&local, "held")?;
        let (window, root, accept, exclude) = restore::<(u32, Hash32, Vec<bool>, Vec<bool>)>(&local, "vote")?;
        let voted = !accept.is_empty() && u64::from(window) >= settled;
        let vote = voted.then_some(Vote { window, root, accept, exclude });
        let next_vote = vote.as_ref().map_or(settled, |vote| u64::from(vote.window) + 1);
        Ok(Self {
            core,
            entry,
            options,
            local,
            replica,
            board,
            trainer: Some(trainer),
            book,
            intake: None,
            vote,
            judged: VecDeque::new(),
            tasks: VecDeque::new(),
            evaluating: None,
            next_vote,
            checkpoints,
            held: held.into(),
        })
    }

    /// Everything that is due at `head`. Returns an evaluation to run, if one is.
    pub async fn on_head(&mut self, head: u64) -> Result<Option<Job>, NodeError> {
        self.settle(head).await?;
        self.board.keep_listed(&self.core, &self.entry, head).await?;
        self.confirm_vote(head).await?;
        self.judge(head).await?;
        Ok(self.start_evaluation())
    }

    /// The trainer is back.
    pub async fn on_job(&mut self, evaluated: Evaluated) -> Result<Option<Job>, NodeError> {
        self.trainer = Some(evaluated.trainer);
        self.evaluating = None;
        let window = evaluated.window;
        match evaluated.report {
            Ok(report) => {
                for (entry, observation) in report.observations {
                    self.book.observe(entry, &observation, &self.core.spec.scoring);
                    let score = self.book.rating(&entry).score();
                    self.core.emit(Event::Observed { window, uid: entry.uid, observation, score }).await;
                }
                self.local.set_value("scores", &borsh::to_vec(&self.book).expect("plain values"))?;
                if let Some(loss) = report.held_out_loss {
                    let bytes_per_token = self.core.dataset.manifest().bytes_per_token(Split::HeldOut);
                    let bits_per_byte = loss / std::f64::consts::LN_2 / bytes_per_token;
                    self.core.emit(Event::Validated { window, loss, bits_per_byte }).await;
                }
            }
            Err(error) => {
                let what = format!("evaluation of window {window}: {error}");
                self.core.emit(Event::Trouble { what }).await;
            }
        }
        Ok(self.start_evaluation())
    }

    /// The last block before which this validator has nothing outstanding.
    pub fn paced_through(&self) -> u64 {
        let schedule = &self.core.schedule;
        let vote = schedule.vote_deadline(self.next_vote) - 1;
        let settle = schedule.vote_deadline(self.replica.newest().run.settled);
        // The evaluation of a window is in the weights that are set when the next one is settled.
        let evaluation = self.evaluating.into_iter().chain(self.tasks.iter().map(|task| task.window));
        evaluation.map(|window| schedule.vote_deadline(window + 1) - 1).chain([vote, settle]).min().expect("not empty")
    }

    /// When waiting for contributions ends, to leave time for the vote to get onto the chain.
    fn last_call(&self, window: u64) -> u64 {
        let (put, vote) = (self.core.schedule.put_deadline(window), self.core.schedule.vote_deadline(window));
        vote - ((vote - put) / 3).max(1)
    }

    async fn settle(&mut self, head: u64) -> Result<(), NodeError> {
        let mut resynchronised = false;
        loop {
            let opened: Vec<Arc<Opened>> = self.judged.iter().flat_map(Intake::opened).collect();
            match self.replica.advance(&self.core, head, &opened).await {
                Ok(None) => return Ok(()),
                Ok(Some(settled)) => self.after_settling(settled, head).await?,
                // Once a block: if that does not help, the next block may bring what does.
                Err(error) if error.needs_resynchronisation() && !resynchronised => {
                    resynchronised = true;
                    self.core.emit(Event::Trouble { what: error.to_string() }).await;
                    self.replica.resynchronise(&self.core, &mut self.local, head).await?;
                    (self.intake, self.vote) = (None, None);
                    self.judged.clear();
                    let newest = self.replica.newest();
                    self.local.save(&newest.run, &newest.theta, &[])?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn after_settling(&mut self, settled: Settled, head: u64) -> Result<(), NodeError> {
        let newest = self.replica.newest().clone();
        self.local.save(&newest.run, &newest.theta, &[])?;
        let window = settled.certificate.window;
        let judged = self.judged.iter().position(|intake| intake.window.number == window);
        if let Some(intake) = judged.and_then(|nth| self.judged.remove(nth))
            && let Some(base) = settled.base_theta
        {
            let put_hash = self.core.chain.block_hash(self.core.schedule.put_deadline(window)).await?;
            let validation =
                (self.options.validation_samples > 0).then(|| (newest.theta.clone(), self.options.validation_samples));
            self.tasks.push_back(Task::new(&self.core, &self.entry, &intake, &put_hash, base, validation));
            while self.tasks.len() > TASKS_MAX {
                self.tasks.pop_front();
            }
        }
        if (window + 1).is_multiple_of(self.core.spec.scoring.weights_every_windows) {
            self.set_weights(&settled.window, head).await;
        }
        if newest.run.settled.is_multiple_of(self.core.spec.windows.checkpoint_every_windows)
            && let Err(error) = self.publish_checkpoint(&newest).await
        {
            // The next one is as good; the window itself is settled.
            self.core.emit(Event::Trouble { what: format!("checkpoint after window {window}: {error}") }).await;
        }
        Ok(())
    }

    async fn publish_checkpoint(&mut self, newest: &State) -> Result<(), NodeError> {
        checkpoint::publish(&self.core, newest, self.replica.previous()).await?;
        self.checkpoints.push(newest.run.digest());
        checkpoint::retire(&self.core, &mut self.checkpoints).await?;
        self.local.set_value("checkpoints", &borsh::to_vec(&self.checkpoints).expect("plain values"))?;
        self.release(newest.run.settled - 1).await
    }

    async fn set_weights(&mut self, window: &Window, head: u64) {
        self.book.retain(|entry| window.roster.miner(entry).is_some() || window.base.is_excluded(entry, window.number));
        let weights = self.book.weights(&window.roster);
        if weights.is_empty() {
            return;
        }
        let (key, netuid) = (&self.core.keypair, self.core.spec.chain.netuid);
        let event = match self.core.chain.submit_weights(key, netuid, weights.clone(), 0).await {
            Ok(()) => Event::Weighed { window: window.number, weights },
            Err(error) => Event::Trouble { what: format!("weights at block {head}: {error}") },
        };
        self.core.emit(event).await;
    }

    /// Serves contributions until a checkpoint that contains them is certified.
    async fn release(&mut self, window: u64) -> Result<(), NodeError> {
        let every = self.core.spec.windows.checkpoint_every_windows;
        let keep_from = window.saturating_sub(2 * every);
        while let Some(&(held, header)) = self.held.front()
            && held < keep_from
        {
            for key in [keys::held_header, keys::held_key, keys::held_payload] {
                self.core.store.delete(&key(self.core.run, held, &header)).await?;
            }
            self.held.pop_front();
        }
        self.save_held()
    }

    fn save_held(&mut self) -> Result<(), NodeError> {
        let held: &[(u64, Hash32)] = self.held.make_contiguous();
        self.local.set_value("held", &borsh::to_vec(held).expect("plain values"))
    }

    async fn confirm_vote(&mut self, head: u64) -> Result<(), NodeError> {
        let Some(vote) = &self.vote else { return Ok(()) };
        if head >= self.core.schedule.vote_deadline(u64::from(vote.window)) {
            self.vote = None;
            return Ok(());
        }
        self.board.ensure_vote(&self.core, &self.entry, vote, head).await
    }

    async fn judge(&mut self, head: u64) -> Result<(), NodeError> {
        while head >= self.core.schedule.vote_deadline(self.next_vote) {
            (self.intake, self.next_vote) = (None, self.next_vote + 1);
        }
        let window = self.next_vote;
        if head < self.core.schedule.first_block(window) {
            return Ok(());
        }
        let Some(base) = self.replica.base(&self.core, window).cloned() else { return Ok(()) };
        if self.intake.as_ref().is_none_or(|intake| intake.window.number != window) {
            let loaded = Window::load(&self.core, window, &base.run).await?;
            self.intake = Some(Intake::new(&self.core, loaded, &base.theta)?);
        }
        let Some(intake) = &mut self.intake else { return Ok(()) };
        let put_deadline = self.core.schedule.put_deadline(window);
        if head >= put_deadline {
            let put_hash = self.core.chain.block_hash(put_deadline).await?;
            for entry in drawn_miners(&self.core, &self.entry, intake, &put_hash).0 {
                intake.add(&self.core, entry, &base.theta)?;
            }
        }
        let started = Instant::now();
        intake.poll(&self.core, head).await?;
        let is_due = head >= put_deadline && (intake.is_resolved() || head >= self.last_call(window));
        if is_due { self.cast_vote(head, started).await } else { Ok(()) }
    }

    async fn cast_vote(&mut self, head: u64, started: Instant) -> Result<(), NodeError> {
        let Some(intake) = &mut self.intake else { return Ok(()) };
        intake.close(&self.core.spec);
        let window = intake.window.number;
        let root = intake.window.base_digest;
        let candidates = intake.window.candidates.len();
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
        let record = (vote.window, vote.root, &vote.accept, &vote.exclude);
        self.local.set_value("vote", &borsh::to_vec(&record).expect("plain values"))?;
        self.board.ensure_vote(&self.core, &self.entry, &vote, head).await?;
        let accept: Vec<Uid> = accepted.iter().map(|opened| opened.header.header.entry.uid).collect();
        let comm_s = started.elapsed().as_secs_f64();
        self.core.emit(Event::Voted { window, accept, faults, comm_s }).await;
        self.vote = Some(vote);
        self.next_vote = window + 1;
        self.judged.extend(self.intake.take());
        while self.judged.len() > TASKS_MAX {
            self.judged.pop_front();
        }
        Ok(())
    }

    async fn hold(&mut self, window: u64, opened: &Opened) -> Result<(), NodeError> {
        let header = opened.header.header.hash();
        let (store, run) = (&self.core.store, self.core.run);
        store.put(&keys::held_payload(run, window, &header), opened.ciphertext.clone()).await?;
        store.put(&keys::held_key(run, window, &header), Bytes::copy_from_slice(opened.key.as_bytes())).await?;
        store.put(&keys::held_header(run, window, &header), Bytes::from(opened.header.to_bytes())).await?;
        if !self.held.contains(&(window, header)) {
            self.held.push_back((window, header));
        }
        Ok(())
    }

    fn start_evaluation(&mut self) -> Option<Job> {
        let trainer = self.trainer.take()?;
        let Some(task) = self.tasks.pop_front() else {
            self.trainer = Some(trainer);
            return None;
        };
        self.evaluating = Some(task.window);
        Some(task.run(self.core.clone(), trainer))
    }
}

fn restore<T: borsh::BorshDeserialize + Default>(local: &Local, name: &str) -> Result<T, NodeError> {
    let stored = local.value(name)?;
    Ok(stored.and_then(|bytes| borsh::from_slice(&bytes).ok()).unwrap_or_default())
}
