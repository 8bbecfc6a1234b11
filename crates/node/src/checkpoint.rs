//! Certified checkpoints in validators' buckets: how a newcomer gets θ without trusting anybody.
//!
//! A checkpoint is named by the digest of its [`RunState`]. Whoever knows from the chain that the digest is certified
//! needs no signature: the state hashes to the digest, and θ to the root in the state.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use templar_protocol::bucket::BucketLocator;
use templar_protocol::hash::Hash32;
use templar_protocol::roster::Roster;
use templar_protocol::state::{RunState, STATE_BYTES_MAX};
use templar_store::{StoreError, keys};

use crate::core::Core;
use crate::events::Event;
use crate::local::{from_bytes, to_bytes};
use crate::replica::State;

/// Values in one part of θ: 64 MiB.
const PART_VALUES: usize = 16 << 20;
/// Checkpoints that a validator keeps: the newest may not be certified yet.
const KEPT: usize = 3;
/// Most time that a validator may take to serve a state, and one part of θ.
const STATE_PATIENCE: Duration = Duration::from_secs(10);
const PART_PATIENCE: Duration = Duration::from_mins(2);

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
        match fetch_from(core, &validator.bucket, digest).await {
            Ok(found) => return Some(found),
            // Most validators have published nothing under this digest: that is no news.
            Err(Refusal::NotServed) => {}
            Err(Refusal::Untrue(what)) => {
                let what = format!("uid {} serves a checkpoint that is not one: {what}", validator.entry.uid);
                core.emit(Event::Trouble { what }).await;
            }
        }
    }
    None
}

/// Why a bucket gave no checkpoint.
enum Refusal {
    NotServed,
    /// It serves something else under a certified name, or only a piece.
    Untrue(String),
}

async fn fetch_from(
    core: &Core,
    bucket: &BucketLocator,
    digest: &Hash32,
) -> Result<(State, Option<RunState>), Refusal> {
    let run = run_state(core, bucket, &keys::checkpoint_state(core.run, digest), digest).await?;
    let length = core.codec.layout().len();
    let mut theta = Vec::with_capacity(length);
    for part in 0..length.div_ceil(PART_VALUES) {
        let bytes_max = 4 * PART_VALUES.min(length - part * PART_VALUES) as u64;
        let key = keys::checkpoint_theta(core.run, digest, part as u32);
        let bytes = tokio::time::timeout(PART_PATIENCE, core.store.get(bucket, &key, bytes_max)).await;
        let bytes = bytes.map_err(|_| Refusal::Untrue(format!("part {part} of θ comes too slowly")))?;
        let bytes = bytes.map_err(|error| Refusal::Untrue(format!("part {part} of θ: {error}")))?;
        theta.extend(from_bytes(&bytes));
    }
    if theta.len() != length {
        return Err(Refusal::Untrue(format!("θ has {} of {length} values", theta.len())));
    }
    let codec = core.codec.clone();
    let hash = move || (codec.layout().state_root(&theta), theta);
    let (root, theta) = core.compute.run(hash).await;
    if root != run.theta_root {
        return Err(Refusal::Untrue(format!("θ has root {root}, its state says {}", run.theta_root)));
    }
    let previous = keys::checkpoint_previous(core.run, digest);
    let previous = run_state(core, bucket, &previous, &run.previous).await.ok();
    Ok((State { run, theta: Arc::new(theta) }, previous))
}

async fn run_state(core: &Core, bucket: &BucketLocator, key: &str, digest: &Hash32) -> Result<RunState, Refusal> {
    let answer = tokio::time::timeout(STATE_PATIENCE, core.store.get(bucket, key, STATE_BYTES_MAX)).await;
    let bytes = match answer {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(error @ StoreError::TooLarge { .. })) => return Err(Refusal::Untrue(error.to_string())),
        _ => return Err(Refusal::NotServed),
    };
    let run = RunState::from_bytes(&bytes, core.run).map_err(|error| Refusal::Untrue(error.to_string()))?;
    if run.digest() == *digest { Ok(run) } else { Err(Refusal::Untrue("its state has another digest".to_owned())) }
}
