//! Certified checkpoints in validators' buckets: how a newcomer gets θ without trusting anybody.
//!
//! A checkpoint is named by the digest of its [`RunState`]. Whoever knows from the chain that the digest is certified
//! needs no signature: the state hashes to the digest, and θ to the root in the state.

use std::sync::Arc;

use bytes::Bytes;
use templar_protocol::bucket::BucketLocator;
use templar_protocol::hash::Hash32;
use templar_protocol::roster::Roster;
use templar_protocol::state::{RunState, STATE_BYTES_MAX};
use templar_store::{StoreError, keys};

use crate::core::Core;
use crate::local::{from_bytes, to_bytes};
use crate::replica::State;

/// Values in one part of θ: 64 MiB.
const PART_VALUES: usize = 16 << 20;
/// Checkpoints that a validator keeps: the newest may not be certified yet.
const KEPT: usize = 3;

/// Publishes `state` in this node's bucket, with the state before it, from which a delayed window starts. θ first, so
/// that whoever sees the state finds it whole.
pub async fn publish(core: &Core, state: &State, previous: Option<&RunState>) -> Result<(), StoreError> {
    let digest = state.run.digest();
    if let Some(previous) = previous {
        let key = keys::checkpoint_previous(core.run, &digest);
        core.store.put(&key, Bytes::from(previous.to_bytes())).await?;
    }
    for (part, values) in state.theta.chunks(PART_VALUES).enumerate() {
        let key = keys::checkpoint_theta(core.run, &digest, part as u32);
        core.store.put(&key, Bytes::from(to_bytes(values))).await?;
    }
    core.store.put(&keys::checkpoint_state(core.run, &digest), Bytes::from(state.run.to_bytes())).await
}

/// Removes a checkpoint that newer ones have replaced; the state first, so that nobody starts on half of one.
pub async fn retire(core: &Core, published: &mut Vec<Hash32>) -> Result<(), StoreError> {
    while published.len() > KEPT {
        let digest = published[0];
        core.store.delete(&keys::checkpoint_state(core.run, &digest)).await?;
        core.store.delete(&keys::checkpoint_previous(core.run, &digest)).await?;
        for part in 0..core.codec.layout().len().div_ceil(PART_VALUES) {
            core.store.delete(&keys::checkpoint_theta(core.run, &digest, part as u32)).await?;
        }
        published.remove(0);
    }
    Ok(())
}

/// The checkpoint with a certified digest and the state before it, from the first validator that serves it whole and
/// true.
pub async fn fetch(core: &Core, roster: &Roster, digest: &Hash32) -> Option<(State, Option<RunState>)> {
    for validator in &roster.validators {
        let bucket = &validator.bucket;
        let state = keys::checkpoint_state(core.run, digest);
        let Some(run) = run_state(core, bucket, &state, digest).await else { continue };
        let length = core.codec.layout().len();
        let mut theta = Vec::with_capacity(length);
        for part in 0..length.div_ceil(PART_VALUES) {
            let bytes_max = 4 * PART_VALUES.min(length - part * PART_VALUES) as u64;
            let key = keys::checkpoint_theta(core.run, digest, part as u32);
            let Ok(bytes) = core.store.get(bucket, &key, bytes_max).await else { break };
            theta.extend(from_bytes(&bytes));
        }
        if theta.len() == length && core.codec.layout().state_root(&theta) == run.theta_root {
            let previous = keys::checkpoint_previous(core.run, digest);
            let previous = run_state(core, bucket, &previous, &run.previous).await;
            return Some((State { run, theta: Arc::new(theta) }, previous));
        }
    }
    None
}

async fn run_state(core: &Core, bucket: &BucketLocator, key: &str, digest: &Hash32) -> Option<RunState> {
    let bytes = core.store.get(bucket, key, STATE_BYTES_MAX).await.ok()?;
    let run = RunState::from_bytes(&bytes, core.run).ok()?;
    (run.digest() == *digest).then_some(run)
}
