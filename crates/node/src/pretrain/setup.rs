//! A node of a run from its parts.

use std::path::PathBuf;
use std::sync::Arc;

use templar_chain::{Chain, Pacer};
use templar_data::Dataset;
use templar_protocol::keys::Keypair;
use templar_protocol::run::RunSpec;
use templar_record::event::{NodeEvent, Role};
use templar_store::Store;
use templar_train::Trainer;
use tokio::sync::{mpsc, watch};

use crate::frame::context::{Compute, Context};
use crate::frame::drive::drive;
use crate::frame::error::NodeError;
use crate::frame::events::Events;
use crate::frame::files::Disk;
use crate::frame::local::{Local, Saving};
use crate::frame::origin::Origin;
use crate::frame::signals::Signals;
use crate::pretrain::miner::Miner;
use crate::pretrain::validator::{Validator, ValidatorOptions};

/// Everything that a node is made of.
#[expect(missing_debug_implementations, reason = "seams and keys have nothing to show")]
pub struct Setup {
    /// Its name in events.
    pub name: String,
    pub role: Role,
    pub spec: RunSpec,
    pub keypair: Keypair,
    pub chain: Arc<dyn Chain>,
    /// Present if the chain is a development chain that waits for this node.
    pub pacer: Option<Pacer>,
    pub store: Arc<dyn Store>,
    pub dataset: Arc<Dataset>,
    /// For a run that starts from weights: where they are.
    pub weights: Option<Origin>,
    pub trainer: Box<dyn Trainer>,
    /// The folder of its local state, by run and hotkey.
    pub state_folder: PathBuf,
    /// The kind of disk that holds this folder.
    pub disk: Disk,
    pub saving: Saving,
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
            // Work is dropped at any point. Even a node that is killed loses nothing.
            () = stopped(&mut stop) => Ok(()),
            ended = work => ended,
        };
        // Computations on their own threads notice it at their next step.
        signals.stop();
        ended
    }

    async fn work(self, signals: Signals) -> Result<(), NodeError> {
        let events = Events::new(self.name, self.events);
        let Self { spec, keypair, chain, store, dataset, weights, compute, .. } = self;
        let ctx = Context::new(spec, keypair, chain, store, dataset, events, compute).await?;
        let ctx = Arc::new(ctx.starting_from(weights)?);
        ctx.published.at_start().await?;
        let local = Local::open(&self.state_folder, ctx.run, &ctx.keypair.hotkey(), self.disk)?;
        match self.role {
            Role::Miner => {
                let miner = Miner::open(ctx.clone(), signals.clone(), local, self.trainer, self.saving).await?;
                drive(miner, &ctx, &signals, self.pacer.as_ref()).await
            }
            Role::Validator => {
                let validator = Validator::open(ctx.clone(), signals.clone(), local, self.trainer, self.options);
                Box::pin(drive(validator.await?, &ctx, &signals, self.pacer.as_ref())).await
            }
        }
    }
}

/// Ends when `stop` is true, or when its sender is gone.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}
