//! Seams with a closure in them: what goes through is changed, and all else is that of the seam below.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use templar_chain::{Chain, ChainError, ChainLayer};
use templar_node::pretrain::setup::Setup;
use templar_protocol::bucket::BucketLocator;
use templar_protocol::keys::Keypair;
use templar_protocol::locator::{Locator, Role};
use templar_protocol::roster::{EntryId, Snapshot};
use templar_store::{Store, StoreError, StoreLayer};
use templar_train::{StepStats, TrainError, TrainJob, TrainOutcome, Trainer, TrainerLayer};

/// What is put instead of an object.
type Forge = Box<dyn FnMut(&str, Bytes) -> Vec<(String, Bytes)> + Send>;

/// A store that puts something else than its owner wants.
struct Forging {
    honest: Arc<dyn Store>,
    forge: Mutex<Forge>,
}

#[async_trait]
impl StoreLayer for Forging {
    fn inner(&self) -> &dyn Store {
        &*self.honest
    }

    async fn put(&self, key: &str, bytes: Bytes) -> Result<(), StoreError> {
        let objects = (self.forge.lock().unwrap_or_else(PoisonError::into_inner))(key, bytes);
        for (key, bytes) in objects {
            self.honest.put(&key, bytes).await?;
        }
        Ok(())
    }
}

/// The node, with what `forge` makes of its uploads.
pub fn forge_uploads(setup: Setup, forge: impl FnMut(&str, Bytes) -> Vec<(String, Bytes)> + Send + 'static) -> Setup {
    Setup { store: Arc::new(Forging { honest: setup.store, forge: Mutex::new(Box::new(forge)) }), ..setup }
}

type Rewrite = Box<dyn FnMut(&mut [Vec<u8>]) + Send>;

/// A chain that gets its node's commitments rewritten.
struct Rewriting {
    honest: Arc<dyn Chain>,
    rewrite: Mutex<Rewrite>,
}

#[async_trait]
impl ChainLayer for Rewriting {
    fn inner(&self) -> &dyn Chain {
        &*self.honest
    }

    async fn submit_commitment(&self, key: &Keypair, netuid: u16, mut fields: Vec<Vec<u8>>) -> Result<(), ChainError> {
        (self.rewrite.lock().unwrap_or_else(PoisonError::into_inner))(&mut fields);
        self.honest.submit_commitment(key, netuid, fields).await
    }
}

/// The node, with its commitments as `rewrite` leaves them.
pub fn rewrite_commitments(setup: Setup, rewrite: impl FnMut(&mut [Vec<u8>]) + Send + 'static) -> Setup {
    Setup { chain: Arc::new(Rewriting { honest: setup.chain, rewrite: Mutex::new(Box::new(rewrite)) }), ..setup }
}

/// What a trainer tells after each step, and how it learns that it is to stop.
pub type OnStep<'a> = &'a mut dyn FnMut(&StepStats) -> ControlFlow<()>;

type Train = Box<dyn FnMut(&mut dyn Trainer, &TrainJob<'_>, OnStep<'_>) -> Result<TrainOutcome, TrainError> + Send>;

/// A trainer that learns something else.
struct Retraining {
    honest: Box<dyn Trainer>,
    train: Train,
}

impl TrainerLayer for Retraining {
    fn inner(&self) -> &dyn Trainer {
        &*self.honest
    }

    fn inner_mut(&mut self) -> &mut dyn Trainer {
        &mut *self.honest
    }

    fn train(&mut self, job: &TrainJob<'_>, on_step: OnStep<'_>) -> Result<TrainOutcome, TrainError> {
        (self.train)(&mut *self.honest, job, on_step)
    }
}

/// The node, whose trainings are what `train` makes of its trainer and of a job.
pub fn retrain(
    setup: Setup,
    train: impl FnMut(&mut dyn Trainer, &TrainJob<'_>, OnStep<'_>) -> Result<TrainOutcome, TrainError> + Send + 'static,
) -> Setup {
    Setup { trainer: Box::new(Retraining { honest: setup.trainer, train: Box::new(train) }), ..setup }
}

/// The node, with what it learned as `alter` leaves it.
pub fn alter_training(setup: Setup, mut alter: impl FnMut(&TrainJob<'_>, &mut TrainOutcome) + Send + 'static) -> Setup {
    retrain(setup, move |honest, job, on_step| {
        let mut outcome = honest.train(job, on_step)?;
        alter(job, &mut outcome);
        Ok(outcome)
    })
}

/// The node, which does not train: it claims all steps, and `make` makes its pseudo-gradient of nothing but the job.
pub fn skip_training(setup: Setup, mut make: impl FnMut(&TrainJob<'_>) -> Vec<f32> + Send + 'static) -> Setup {
    // Whoever has not looked at a text claims the loss of guessing.
    let loss = f64::from(setup.spec.model.vocab_size).ln();
    retrain(setup, move |_, job, _| {
        let guess = StepStats { step: job.first_step, loss, grad_norm: 1.0, lr: 0.0, tokens: 0 };
        let mut outcome = TrainOutcome { delta: make(job), steps: Vec::new(), tokens: 0 };
        claim_all(job, guess, &mut outcome);
        Ok(outcome)
    })
}

/// Claims every step of the job, those that were not done as `like` was.
pub fn claim_all(job: &TrainJob<'_>, like: StepStats, outcome: &mut TrainOutcome) {
    let claimed = (job.first_step..).zip(job.batches).skip(outcome.steps.len());
    outcome.steps.extend(claimed.map(|(step, batch)| StepStats { step, tokens: batch.tokens.len() as u64, ..like }));
    outcome.tokens = outcome.steps.iter().map(|step| step.tokens).sum();
}

/// How many outer steps the base of a job has behind it: windows, but for those that were null. Only for runs without an
/// anneal, whose steps are counted otherwise.
pub fn outer_steps(job: &TrainJob<'_>) -> u64 {
    job.first_step / (job.batches.len() as u64).max(1)
}

/// The window and the name of an object, if a miner publishes it: `header`, `payload` or `key`.
pub fn published(key: &str) -> Option<(u64, &str)> {
    let mut segments = key.split('/').skip(2);
    let (folder, window, object) = (segments.next()?, segments.next()?, segments.next()?);
    let is_whole = folder == "w" && segments.next().is_none();
    is_whole.then_some((window.parse().ok()?, object))
}

/// All miners that the chain lists, with their buckets, in the order of uids.
pub fn listed_miners(now: &Snapshot) -> impl Iterator<Item = (EntryId, BucketLocator)> {
    now.neurons.iter().filter_map(|neuron| {
        let locator = Locator::decode(neuron.commitment.as_ref()?.fields.first()?).ok()?;
        (locator.role == Role::Miner).then_some((neuron.entry, locator.bucket))
    })
}

/// The window of which a header's word or a vote speaks.
pub fn window_of(word: &[u8]) -> Option<u64> {
    // A tag stands before it.
    let bytes = word.get(1..5)?.first_chunk()?;
    Some(u32::from_le_bytes(*bytes).into())
}

#[cfg(test)]
mod tests {
    use templar_protocol::hash::Hash32;
    use templar_protocol::run::RunId;
    use templar_protocol::word::{HeaderWord, fields};
    use templar_store::keys;

    use super::*;

    #[test]
    fn names_of_objects_are_read_as_the_store_writes_them() {
        let (run, hash) = (RunId(Hash32::of(b"run")), Hash32::of(b"header"));
        assert_eq!(published(&keys::window_header(run, 0)), Some((0, "header")));
        assert_eq!(published(&keys::window_payload(run, 12_345_678)), Some((12_345_678, "payload")));
        assert_eq!(published(&keys::window_key(run, 7)), Some((7, "key")));
        assert_eq!(published(&keys::held_key(run, 7, &hash)), None);
        assert_eq!(published(&keys::checkpoint_state(run, &hash)), None);
    }

    #[test]
    fn words_are_read_as_the_protocol_writes_them() {
        let word = HeaderWord { window: 70_000, header_hash: Hash32::of(b"header") };
        assert_eq!(window_of(&fields(b"bucket", Some(&word), None)[1]), Some(70_000));
        assert_eq!(window_of(b""), None);
    }
}
