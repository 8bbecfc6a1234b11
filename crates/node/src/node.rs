//! The loop that drives a miner or a validator: one block after the other, and the long computation beside it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use templar_chain::{Chain, Head};
use templar_data::Dataset;
use templar_protocol::keys::Keypair;
use templar_protocol::run::RunSpec;
use templar_store::Store;
use templar_train::Trainer;
use tokio::sync::{mpsc, watch};

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
    pub async fn run(self, stop: watch::Receiver<bool>) -> Result<(), NodeError> {
        let events = Events::new(self.name, self.events);
        let core =
            Core::new(self.spec, self.keypair, self.chain, self.store, self.dataset, events, self.compute).await?;
        let core = Arc::new(core);
        let local = Local::open(&self.state_folder, core.run, &core.keypair.hotkey())?;
        let signals = Signals::default();
        let node = match self.role {
            Role::Miner => {
                Node::Miner(Box::new(Miner::open(core.clone(), signals.clone(), local, self.trainer).await?))
            }
            Role::Validator => {
                Node::Validator(Box::new(Validator::open(core.clone(), local, self.trainer, self.options).await?))
            }
        };
        node.run(&core, &signals, stop).await
    }
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
    /// Runs until `stop` is true. Only errors that no retry can mend end it earlier.
    pub async fn run(
        mut self,
        core: &Core,
        signals: &Signals,
        mut stop: watch::Receiver<bool>,
    ) -> Result<(), NodeError> {
        let mut job: Option<Job> = None;
        let mut paced = None;
        while !*stop.borrow() {
            let Some(mut heads) = subscribe(core).await else {
                tokio::select! { biased; _ = stop.changed() => {}, () = tokio::time::sleep(RECONNECT) => {} }
                continue;
            };
            let mut retry = false;
            loop {
                let result = tokio::select! {
                    biased;
                    _ = stop.changed() => { signals.stop(); return Ok(()) }
                    done = finish(&mut job) => self.on_job(done).await.map(|next| (next, retry)),
                    head = heads.next() => match head {
                        Some(head) => { signals.set_head(head.number); self.on_head(head.number).await }
                        None => break,
                    },
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
        Ok(())
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

async fn subscribe(core: &Core) -> Option<futures::stream::BoxStream<'static, Head>> {
    match core.chain.heads().await {
        Ok(heads) => Some(heads),
        Err(error) => {
            core.emit(Event::Trouble { what: format!("no heads from the chain: {error}") }).await;
            None
        }
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
