//! Seams with a lie in them: all else goes through to the honest one.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use templar_chain::{Chain, ChainError, Head, Hyperparams};
use templar_protocol::bucket::BucketLocator;
use templar_protocol::hash::Hash32;
use templar_protocol::keys::Keypair;
use templar_protocol::roster::{Snapshot, Uid};
use templar_store::{ObjectInfo, Store, StoreError};
use templar_train::{StepStats, TokenBatch, TrainError, TrainJob, TrainOutcome, Trainer};

/// What is put instead of an object.
type Put = Box<dyn FnMut(&str, Bytes) -> Vec<(String, Bytes)> + Send>;

/// A store that puts something else than its owner wants.
struct Forging {
    honest: Arc<dyn Store>,
    put: Mutex<Put>,
}

pub(crate) fn forging(
    honest: Arc<dyn Store>,
    put: impl FnMut(&str, Bytes) -> Vec<(String, Bytes)> + Send + 'static,
) -> Arc<dyn Store> {
    Arc::new(Forging { honest, put: Mutex::new(Box::new(put)) })
}

#[async_trait]
impl Store for Forging {
    fn own(&self) -> &BucketLocator {
        self.honest.own()
    }

    async fn put(&self, key: &str, bytes: Bytes) -> Result<(), StoreError> {
        let objects = (self.put.lock().unwrap())(key, bytes);
        for (key, bytes) in objects {
            self.honest.put(&key, bytes).await?;
        }
        Ok(())
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

type Rewrite = Box<dyn FnMut(&mut [Vec<u8>]) + Send>;

/// A chain that gets its node's commitments rewritten.
struct Rewriting {
    honest: Arc<dyn Chain>,
    rewrite: Mutex<Rewrite>,
}

pub(crate) fn rewriting(
    honest: Arc<dyn Chain>,
    rewrite: impl FnMut(&mut [Vec<u8>]) + Send + 'static,
) -> Arc<dyn Chain> {
    Arc::new(Rewriting { honest, rewrite: Mutex::new(Box::new(rewrite)) })
}

#[async_trait]
impl Chain for Rewriting {
    async fn genesis(&self) -> Result<Hash32, ChainError> {
        self.honest.genesis().await
    }

    async fn head(&self) -> Result<Head, ChainError> {
        self.honest.head().await
    }

    async fn heads(&self) -> Result<BoxStream<'static, Head>, ChainError> {
        self.honest.heads().await
    }

    async fn block_hash(&self, block: u64) -> Result<Hash32, ChainError> {
        self.honest.block_hash(block).await
    }

    async fn snapshot(&self, netuid: u16, block: u64) -> Result<Snapshot, ChainError> {
        self.honest.snapshot(netuid, block).await
    }

    async fn hyperparams(&self, netuid: u16) -> Result<Hyperparams, ChainError> {
        self.honest.hyperparams(netuid).await
    }

    async fn submit_commitment(&self, key: &Keypair, netuid: u16, mut fields: Vec<Vec<u8>>) -> Result<(), ChainError> {
        (self.rewrite.lock().unwrap())(&mut fields);
        self.honest.submit_commitment(key, netuid, fields).await
    }

    async fn submit_weights(
        &self,
        key: &Keypair,
        netuid: u16,
        weights: Vec<(Uid, u16)>,
        version_key: u64,
    ) -> Result<(), ChainError> {
        self.honest.submit_weights(key, netuid, weights, version_key).await
    }
}

type Alter = fn(&TrainJob<'_>, &mut TrainOutcome);

/// A trainer that learns something else.
struct Altering {
    honest: Box<dyn Trainer>,
    alter: Alter,
}

pub(crate) fn altering(honest: Box<dyn Trainer>, alter: Alter) -> Box<dyn Trainer> {
    Box::new(Altering { honest, alter })
}

impl Trainer for Altering {
    fn train(
        &mut self,
        job: &TrainJob<'_>,
        on_step: &mut dyn FnMut(&StepStats) -> ControlFlow<()>,
    ) -> Result<TrainOutcome, TrainError> {
        let mut outcome = self.honest.train(job, on_step)?;
        (self.alter)(job, &mut outcome);
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
}
