//! The zoo of adversaries. They misbehave through the seams: the node's own code stays honest, its trainer or store does
//! not.

use std::ops::ControlFlow;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use templar_node::pretrain::setup::Setup;
use templar_protocol::bucket::BucketLocator;
use templar_protocol::hash::Hasher;
use templar_record::engine::EngineStats;
use templar_store::{ObjectInfo, Store, StoreError};
use templar_train::{StepStats, TokenBatch, TrainError, TrainJob, TrainOutcome, Trainer};

use crate::plan::Behaviour;

/// A node with this behaviour.
pub fn misbehave(behaviour: Behaviour, setup: Setup) -> Setup {
    match behaviour {
        Behaviour::Honest => setup,
        Behaviour::Noise => Setup { trainer: Box::new(NoiseTrainer { honest: setup.trainer }), ..setup },
        Behaviour::Withhold => Setup { store: Arc::new(WithholdingStore { honest: setup.store }), ..setup },
    }
}

/// Replaces what was learned by noise of the same size.
struct NoiseTrainer {
    honest: Box<dyn Trainer>,
}

impl Trainer for NoiseTrainer {
    fn train(
        &mut self,
        job: &TrainJob<'_>,
        on_step: &mut dyn FnMut(&StepStats) -> ControlFlow<()>,
    ) -> Result<TrainOutcome, TrainError> {
        let mut outcome = self.honest.train(job, on_step)?;
        let mut hasher = Hasher::new("templar adversary noise");
        let mut stream = hasher.update_value(&job.first_step).clone().into_stream();
        stream.shuffle(&mut outcome.delta);
        for value in &mut outcome.delta {
            *value *= if stream.next_u64() & 1 == 0 { 1.0 } else { -1.0 };
        }
        Ok(outcome)
    }

    fn evaluate(&mut self, theta: &[f32], batch: &TokenBatch) -> Result<Vec<f64>, TrainError> {
        self.honest.evaluate(theta, batch)
    }

    fn export_state(&self) -> Vec<u8> {
        self.honest.export_state()
    }

    fn import_state(&mut self, bytes: &[u8]) -> Result<(), TrainError> {
        self.honest.import_state(bytes)
    }

    fn stats(&self) -> Option<EngineStats> {
        self.honest.stats()
    }
}

/// Loses the keys that the node means to publish.
struct WithholdingStore {
    honest: Arc<dyn Store>,
}

#[async_trait]
impl Store for WithholdingStore {
    fn own(&self) -> &BucketLocator {
        self.honest.own()
    }

    async fn put(&self, key: &str, bytes: Bytes) -> Result<(), StoreError> {
        if key.ends_with("/key") {
            return Ok(());
        }
        self.honest.put(key, bytes).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.honest.delete(key).await
    }

    async fn list(&self, prefix: &str, max: usize) -> Result<Vec<ObjectInfo>, StoreError> {
        self.honest.list(prefix, max).await
    }

    async fn get(&self, from: &BucketLocator, key: &str, max_bytes: u64) -> Result<Bytes, StoreError> {
        self.honest.get(from, key, max_bytes).await
    }
}
