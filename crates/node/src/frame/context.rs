//! What miner and validator have in common: the run, the keys, and the seams.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use templar_chain::Chain;
use templar_codec::Codec;
use templar_data::Dataset;
use templar_protocol::bucket::BucketLocator;
use templar_protocol::clock::Schedule;
use templar_protocol::keys::{Hotkey, Keypair};
use templar_protocol::roster::{EntryId, Snapshot};
use templar_protocol::run::{RunId, RunSpec, Theta0Source};
use templar_store::{Store, StoreError, keys};

use crate::frame::access::{Access, Finding, Tally};
use crate::frame::dataset;
use crate::frame::error::NodeError;
use crate::frame::events::Events;
use crate::frame::origin::Origin;
use crate::frame::published::Published;
use templar_record::event::Event;
use templar_record::trouble::Trouble;

/// Where long computations run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compute {
    /// On their own threads, so that the node keeps watching the chain.
    Threads,
    /// Inline: for simulations, whose time does not pass meanwhile.
    Inline,
}

impl Compute {
    /// A future of `work`'s result that holds up only its own reader.
    pub fn run<T: Send + 'static>(self, work: impl FnOnce() -> T + Send + 'static) -> BoxFuture<'static, T> {
        match self {
            Self::Inline => Box::pin(async move { work() }),
            Self::Threads => Box::pin(async move {
                match tokio::task::spawn_blocking(work).await {
                    Ok(result) => result,
                    Err(error) => std::panic::resume_unwind(error.into_panic()),
                }
            }),
        }
    }
}

/// The run, this node's key, and its seams to the world.
pub struct Context {
    pub spec: RunSpec,
    pub run: RunId,
    pub schedule: Schedule,
    pub keypair: Keypair,
    pub chain: Arc<dyn Chain>,
    pub store: Arc<dyn Store>,
    pub dataset: Arc<Dataset>,
    /// Present if the run starts from weights.
    pub weights: Option<Origin>,
    pub codec: Codec,
    pub events: Events,
    pub compute: Compute,
    /// Decides whether the store is at fault, or this node.
    pub access: Access,
    /// Whether strangers could write into this node's bucket.
    pub published: Published,
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("run", &self.run)
            .field("hotkey", &self.keypair.hotkey())
            .finish_non_exhaustive()
    }
}

impl Context {
    /// Checks that chain and dataset are those of the run before anything else is done with them.
    pub async fn new(
        spec: RunSpec,
        keypair: Keypair,
        chain: Arc<dyn Chain>,
        store: Arc<dyn Store>,
        dataset: Arc<Dataset>,
        events: Events,
        compute: Compute,
    ) -> Result<Self, NodeError> {
        check_chain(&*chain, &spec).await?;
        dataset::check(&spec, dataset.manifest())?;
        let codec = Codec::new(Arc::new(spec.layout()), &spec.codec);
        let (run, schedule) = (spec.id(), Schedule::new(&spec));
        let access = Access::new(store.clone(), events.clone(), keys::windows(run));
        let published = Published::new(&store, &events, run);
        Ok(Self {
            spec,
            run,
            schedule,
            keypair,
            chain,
            store,
            dataset,
            weights: None,
            codec,
            events,
            compute,
            access,
            published,
        })
    }

    /// The same with the place of the weights that the run starts from, if it starts from any.
    pub fn starting_from(self, weights: Option<Origin>) -> Result<Self, NodeError> {
        let weights = weights.filter(|_| self.spec.theta0.source == Theta0Source::Weights);
        if self.spec.theta0.source == Theta0Source::Weights && weights.is_none() {
            return Err(NodeError::NoWeights { root: self.spec.theta0.root });
        }
        Ok(Self { weights, ..self })
    }

    pub async fn snapshot(&self, block: u64) -> Result<Snapshot, NodeError> {
        Ok(self.chain.snapshot(self.spec.chain.netuid, block).await?)
    }

    /// This node's registration at the newest finalised head.
    pub async fn own_entry(&self) -> Result<EntryId, NodeError> {
        registration(&*self.chain, &self.spec, self.keypair.hotkey()).await
    }

    /// Reads an object of anybody's bucket, and records the result in [`Context::access`].
    pub async fn get(&self, from: &BucketLocator, key: &str, bytes_max: u64) -> Result<Bytes, StoreError> {
        let result = self.store.get(from, key, bytes_max).await;
        self.access.note(from, key, &result).await;
        result
    }

    /// Whether this node is, or may be, to blame for what went unanswered since `before`. Waits a while for a probe if
    /// something did.
    pub async fn is_cut_off(&self, head: u64, before: Tally) -> bool {
        self.access.tally().unanswered > before.unanswered && self.access.find_out(head).await != Finding::Works
    }

    /// Whether nobody else has answered since `before`, though somebody was asked: then this node is isolated.
    pub async fn is_isolated(&self, before: Tally) -> bool {
        let now = self.access.tally();
        let is_isolated = now.unanswered > before.unanswered && now.answered == before.answered;
        if is_isolated {
            self.access.isolate("whoever should serve what is certified is silent".to_owned()).await;
        }
        is_isolated
    }

    pub async fn emit(&self, event: Event) {
        self.events.emit(event).await;
    }

    /// Reports a failure.
    pub async fn trouble(&self, trouble: Trouble) {
        self.emit(Event::Trouble { trouble }).await;
    }

    /// Reports that a step failed and will be retried.
    pub async fn failed(&self, error: &NodeError) {
        self.trouble(Trouble::Step { part: error.part(), cause: error.to_string() }).await;
    }
}

/// Checks that a chain is the one that the run lives on.
pub async fn check_chain(chain: &dyn Chain, spec: &RunSpec) -> Result<(), NodeError> {
    let (found, expected) = (chain.genesis().await?, spec.chain.genesis);
    if found == expected { Ok(()) } else { Err(NodeError::WrongChain { found, expected }) }
}

/// The registration of `hotkey` in the run's subnet at the newest finalised head.
pub async fn registration(chain: &dyn Chain, spec: &RunSpec, hotkey: Hotkey) -> Result<EntryId, NodeError> {
    let (netuid, head) = (spec.chain.netuid, chain.head().await?);
    let snapshot = chain.snapshot(netuid, head.number).await?;
    let own = snapshot.neurons.iter().find(|neuron| neuron.entry.hotkey == hotkey);
    own.map(|neuron| neuron.entry).ok_or(NodeError::NotRegistered { hotkey, netuid })
}
