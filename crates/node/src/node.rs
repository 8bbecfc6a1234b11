//! The loop that drives a miner or a validator: one block after the other, and the long computation beside it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use templar_chain::Chain;
use templar_data::Dataset;
use templar_protocol::keys::Keypair;
use templar_protocol::run::RunSpec;
use templar_store::Store;
use templar_train::Trainer;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::core::{Compute, Core};
use crate::error::NodeError;
use crate::evaluate::Evaluated;
use crate::events::{Event, Events, NodeEvent, Role};
use crate::local::Local;
use crate::miner::{self, Miner};
use crate::seat::Steps;
use crate::signals::Signals;
use crate::validator::{self, Validator, ValidatorOptions};

/// Pause before what failed is tried again, where no new block comes first.
const RETRY: Duration = Duration::from_millis(500);
/// Pause before the chain is asked again after its connection was lost.
const RECONNECT: Duration = Duration::from_secs(1);

/// What it takes to run a node.
#[expect(missing_debug_implementations, reason = "seams and keys have nothing to show")]
pub struct Setup {
    /// Its name in events.
    pub name: String,
    pub role: Role,
    pub spec: RunSpec,
    pub keypair: Keypair,
    pub chain: Arc<dyn Chain>,
    pub store: Arc<dyn Store>,
    pub dataset: Arc<Dataset>,
    pub trainer: Box<dyn Trainer>,
    /// Where its local state lies, by run and hotkey.
    pub state_folder: PathBuf,
    pub options: ValidatorOptions,
    pub compute: Compute,
    pub events: mpsc::Sender<NodeEvent>,
}

impl Setup {
    /// Runs the node until `stop` is true.
    pub async fn run(self, mut stop: watch::Receiver<bool>) -> Result<(), NodeError> {
        let signals = Signals::default();
        let work = Box::pin(self.work(signals.clone()));
        let ended = tokio::select! {
            biased;
            // Work is dropped wherever it is. A node that is killed loses nothing, and this is milder.
            () = stopped(&mut stop) => Ok(()),
            ended = work => ended,
        };
        // What computes on threads of its own sees it at its next step.
        signals.stop();
        ended
    }

    async fn work(self, signals: Signals) -> Result<(), NodeError> {
        let events = Events::new(self.name, self.events);
        let core =
            Core::new(self.spec, self.keypair, self.chain, self.store, self.dataset, events, self.compute).await?;
        let core = Arc::new(core);
        let local = Local::open(&self.state_folder, core.run, &core.keypair.hotkey())?;
        let node = match self.role {
            Role::Miner => {
                Node::Miner(Box::new(Miner::open(core.clone(), signals.clone(), local, self.trainer).await?))
            }
            Role::Validator => Node::Validator(Box::new(
                Validator::open(core.clone(), signals.clone(), local, self.trainer, self.options).await?,
            )),
        };
        node.run(&core, &signals).await
    }
}

/// Ends when `stop` is true, or nobody is left to say so.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// A node of one run.
#[derive(Debug)]
pub enum Node {
    Miner(Box<Miner>),
    Validator(Box<Validator>),
}

/// The long computation of a node.
enum Job {
    Train(miner::Job),
    Evaluate(validator::Job),
}

enum Done {
    Trained(Box<miner::Finished>),
    Evaluated(Box<Evaluated>),
}

impl Node {
    /// Runs for ever. Only errors that no retry can mend end it.
    pub async fn run(mut self, core: &Arc<Core>, signals: &Signals) -> Result<(), NodeError> {
        let (newest, mut heads) = watch::channel(0);
        // Ends with this future.
        let mut watching = JoinSet::new();
        watching.spawn(watch_heads(core.clone(), signals.clone(), newest));
        let mut job: Option<Job> = None;
        let (mut paced, mut retry) = (None, false);
        loop {
            let result = tokio::select! {
                biased;
                done = finish(&mut job) => self.on_job(done).await.map(|next| (next, retry)),
                changed = heads.changed() => {
                    changed.expect("the chain is watched as long as the node runs");
                    let head = *heads.borrow_and_update();
                    self.on_head(head).await
                }
                () = self.arrival() => self.on_arrival().await.map(|steps| (None, retry || steps.failed)),
                () = tokio::time::sleep(RETRY), if retry => self.on_head(signals.head()).await,
            };
            match result {
                Ok((next, again)) => (job, retry) = (job.or(next), again),
                Err(error) if error.is_fatal() => return Err(error),
                Err(error) => {
                    retry = true;
                    core.emit(Event::Trouble { what: error.to_string() }).await;
                }
            }
            let through = self.paced_through();
            // Lets a paced development chain go on as far as this node is concerned.
            if !retry && paced != Some(through) && core.chain.pace(&core.keypair.hotkey(), through).await.is_ok() {
                paced = Some(through);
            }
        }
    }

    /// The next job, if there is one, and whether something failed and is to be tried again.
    async fn on_head(&mut self, head: u64) -> Result<(Option<Job>, bool), NodeError> {
        match self {
            Self::Miner(miner) => {
                let (job, steps) = miner.on_head(head).await?;
                Ok((job.map(Job::Train), steps.failed))
            }
            Self::Validator(validator) => {
                let (job, steps) = validator.on_head(head).await?;
                Ok((job.map(Job::Evaluate), steps.failed))
            }
        }
    }

    /// Ends when something that a validator waits for has come.
    async fn arrival(&mut self) {
        match self {
            Self::Miner(_) => std::future::pending().await,
            Self::Validator(validator) => validator.arrival().await,
        }
    }

    async fn on_arrival(&mut self) -> Result<Steps, NodeError> {
        match self {
            Self::Miner(_) => Ok(Steps::default()),
            Self::Validator(validator) => validator.on_arrival().await,
        }
    }

    async fn on_job(&mut self, done: Done) -> Result<Option<Job>, NodeError> {
        match (self, done) {
            (Self::Miner(miner), Done::Trained(finished)) => {
                miner.on_job(*finished).await?;
                Ok(None)
            }
            (Self::Validator(validator), Done::Evaluated(evaluated)) => {
                Ok(validator.on_job(*evaluated).await?.map(Job::Evaluate))
            }
            _ => Ok(None),
        }
    }

    fn paced_through(&self) -> u64 {
        match self {
            Self::Miner(miner) => miner.paced_through(),
            Self::Validator(validator) => validator.paced_through(),
        }
    }
}

/// Follows the chain, whatever else the node is busy with: a training must see its deadline come.
async fn watch_heads(core: Arc<Core>, signals: Signals, newest: watch::Sender<u64>) {
    loop {
        match core.chain.heads().await {
            Ok(mut heads) => {
                while let Some(head) = heads.next().await {
                    signals.set_head(head.number);
                    newest.send_replace(head.number);
                }
            }
            Err(error) => core.emit(Event::Trouble { what: format!("no heads from the chain: {error}") }).await,
        }
        tokio::time::sleep(RECONNECT).await;
    }
}

async fn finish(job: &mut Option<Job>) -> Done {
    let done = match job {
        Some(Job::Train(work)) => Done::Trained(Box::new(work.await)),
        Some(Job::Evaluate(work)) => Done::Evaluated(Box::new(work.await)),
        None => std::future::pending::<BoxFuture<'static, Done>>().await.await,
    };
    *job = None;
    done
}
