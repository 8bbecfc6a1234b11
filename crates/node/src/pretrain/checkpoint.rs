//! Certified checkpoints in validators' buckets: how a newcomer gets θ without trusting anybody.
//!
//! A checkpoint is named by the digest of its [`RunState`]. Whoever knows from the chain that the digest is certified
//! needs no signature: the state hashes to the digest, and the list of the parts' digests to the root in the state. So a
//! wrong part is known when it arrives, before another is fetched; who served one is not asked again for a while.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use templar_protocol::bucket::BucketLocator;
use templar_protocol::fault::CheckpointFault;
use templar_protocol::hash::{Hash32, Hasher};
use templar_protocol::layout::{PART_VALUES, part_hash};
use templar_protocol::roster::{EntryId, Roster, Validator};
use templar_protocol::state::{RunState, STATE_BYTES_MAX};
use templar_store::{StoreError, keys};

use crate::frame::context::Context;
use crate::frame::error::NodeError;
use crate::frame::floats::{from_bytes, to_bytes};
use crate::pretrain::fetch::SMALL_PATIENCE;
use crate::pretrain::state::State;
use templar_record::event::Event;

/// Checkpoints that a validator keeps: the newest may not be certified yet.
const KEPT: usize = 3;
/// Longest time that a validator may take to serve all of θ: this long, and a second per this many bytes.
const THETA_PATIENCE: Duration = Duration::from_mins(1);
const THETA_BYTES_PER_S: u64 = 4 << 20;
/// Pause before a part that was unavailable is asked for again.
const RETRY: Duration = Duration::from_secs(2);

/// A checkpoint to publish, and what it replaces in the own bucket.
#[derive(Debug)]
pub struct Renewal {
    pub state: State,
    /// The state before it, from which a delayed window starts.
    pub previous: Option<RunState>,
    /// Digests of the checkpoints in the bucket, oldest first.
    pub published: Vec<Hash32>,
    /// Digests of checkpoints of which parts may be in the bucket: their upload failed, or was given up.
    pub incomplete: Vec<Hash32>,
    /// Contributions that an older checkpoint already contains, so that they no longer need to be served.
    pub expired: Vec<(u64, Hash32)>,
    /// Whether they stay all the same.
    pub retention: Retention,
}

/// How long a validator serves the contributions that it voted for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Retention {
    /// As long as its votes promise: until a later checkpoint is certified.
    #[default]
    Promised,
    /// For good, and others that counted as well: so that every θ can be computed from the first one.
    ForGood,
}

/// The result of a [`Renewal`].
#[derive(Debug)]
pub struct Renewed {
    pub settled: u64,
    /// Digests of the checkpoints in the bucket now, oldest first.
    pub published: Vec<Hash32>,
    /// Digests of checkpoints of which parts may be in it.
    pub incomplete: Vec<Hash32>,
    /// Contributions that were removed from the bucket, or that are there for good and need no more attention.
    pub released: Vec<(u64, Hash32)>,
    /// Why it is incomplete, if it is. The next one is as good.
    pub result: Result<(), StoreError>,
}

impl Renewal {
    /// Publishes the checkpoint, then retires what it replaces. Takes as long as the upload of θ.
    pub async fn run(mut self, ctx: Arc<Context>) -> Renewed {
        let (settled, mut released) = (self.state.run.settled, Vec::new());
        let result = self.steps(&ctx, &mut released).await;
        Renewed { settled, published: self.published, incomplete: self.incomplete, released, result }
    }

    async fn steps(&mut self, ctx: &Context, released: &mut Vec<(u64, Hash32)>) -> Result<(), StoreError> {
        let digest = self.state.run.digest();
        // Before anything of it is in the bucket.
        self.incomplete.retain(|incomplete| *incomplete != digest);
        self.incomplete.push(digest);
        publish(ctx, &self.state, self.previous.as_ref()).await?;
        self.incomplete.pop();
        // A replay reaches the same states again.
        self.published.retain(|published| *published != digest);
        self.published.push(digest);
        retire(ctx, &mut self.published, KEPT).await?;
        self.incomplete.retain(|incomplete| !self.published.contains(incomplete));
        retire(ctx, &mut self.incomplete, 0).await?;
        for &(window, header) in &self.expired {
            if self.retention == Retention::Promised {
                for key in [keys::held_header, keys::held_key, keys::held_payload] {
                    ctx.store.delete(&key(ctx.run, window, &header)).await?;
                }
            }
            released.push((window, header));
        }
        Ok(())
    }
}

/// θ is put first, so that whoever sees the state finds all of θ.
async fn publish(ctx: &Context, state: &State, previous: Option<&RunState>) -> Result<(), StoreError> {
    let digest = state.run.digest();
    if let Some(previous) = previous {
        let key = keys::checkpoint_previous(ctx.run, &digest);
        ctx.store.put(&key, Bytes::from(previous.to_bytes())).await?;
    }
    let (codec, theta) = (ctx.codec.clone(), state.theta.clone());
    let parts = ctx.compute.run(move || codec.layout().part_hashes(&theta)).await;
    let parts: Vec<u8> = parts.iter().flat_map(|hash| *hash.as_bytes()).collect();
    ctx.store.put(&keys::checkpoint_parts(ctx.run, &digest), Bytes::from(parts)).await?;
    for (part, values) in state.theta.chunks(PART_VALUES).enumerate() {
        let key = keys::checkpoint_theta(ctx.run, &digest, part as u32);
        ctx.store.put(&key, Bytes::from(to_bytes(values))).await?;
    }
    ctx.store.put(&keys::checkpoint_state(ctx.run, &digest), Bytes::from(state.run.to_bytes())).await
}

/// Removes checkpoints, oldest first, until so many are `kept`; the state first, so that nobody starts on half of one.
async fn retire(ctx: &Context, digests: &mut Vec<Hash32>, kept: usize) -> Result<(), StoreError> {
    while digests.len() > kept {
        let digest = digests[0];
        ctx.store.delete(&keys::checkpoint_state(ctx.run, &digest)).await?;
        ctx.store.delete(&keys::checkpoint_previous(ctx.run, &digest)).await?;
        ctx.store.delete(&keys::checkpoint_parts(ctx.run, &digest)).await?;
        for part in 0..ctx.codec.layout().parts() {
            ctx.store.delete(&keys::checkpoint_theta(ctx.run, &digest, part as u32)).await?;
        }
        digests.remove(0);
    }
    Ok(())
}

/// Validators that served a false or an endless checkpoint, and the window from which they are asked again: a lie
/// costs its victim one download per period of checkpoints.
pub type Backoff = BTreeMap<EntryId, u64>;

/// The checkpoint with a certified digest and the state before it, from the first validator that serves it whole and
/// true. Fails if this node's own access to storage does. Each node asks in an order of its own, so that no validator
/// is everybody's first; those that are backed off from in `window`, the newest, are left out.
pub async fn fetch(
    ctx: &Context,
    roster: &Roster,
    digest: &Hash32,
    window: u64,
    backoff: &mut Backoff,
    head: u64,
) -> Result<Option<(State, Option<RunState>)>, NodeError> {
    backoff.retain(|_, until| *until > window);
    for validator in in_order(ctx, roster, digest) {
        if backoff.contains_key(&validator.entry) {
            continue;
        }
        let before = ctx.access.tally();
        match fetch_from(ctx, &validator.bucket, digest).await {
            Ok(found) => return Ok(Some(found)),
            // If this node's own access is broken, no validator is to blame, and the others cannot be reached either.
            Err(_) if ctx.is_cut_off(head, before).await => return Err(NodeError::OwnStorage),
            // Most validators have published nothing under this digest, which is not worth a report.
            Err(None) => {}
            Err(Some(fault)) => {
                backoff.insert(validator.entry, window + ctx.spec.windows.checkpoint_every_windows);
                ctx.emit(Event::CheckpointRefused { uid: validator.entry.uid, digest: *digest, fault }).await;
            }
        }
    }
    Ok(None)
}

fn in_order<'a>(ctx: &Context, roster: &'a Roster, digest: &Hash32) -> Vec<&'a Validator> {
    let mut hasher = Hasher::new("templar v1 checkpoint order");
    hasher.update(ctx.keypair.hotkey().as_bytes()).update(digest.as_bytes());
    let mut validators: Vec<&Validator> = roster.validators.iter().collect();
    validators.sort_by_cached_key(|validator| hasher.clone().update(validator.entry.hotkey.as_bytes()).finish());
    validators
}

/// Fails without a fault if the bucket has no such checkpoint.
async fn fetch_from(
    ctx: &Context,
    bucket: &BucketLocator,
    digest: &Hash32,
) -> Result<(State, Option<RunState>), Option<CheckpointFault>> {
    let run = run_state(ctx, bucket, &keys::checkpoint_state(ctx.run, digest), digest).await?;
    let theta_bytes = 4 * ctx.codec.layout().len() as u64;
    let patience = THETA_PATIENCE + Duration::from_secs(theta_bytes / THETA_BYTES_PER_S);
    let theta = tokio::time::timeout(patience, theta(ctx, bucket, digest, &run.theta_root)).await;
    let theta = theta.unwrap_or_else(|_| {
        ctx.access.note_silence();
        Err(CheckpointFault::TooSlow)
    })?;
    let previous = keys::checkpoint_previous(ctx.run, digest);
    let previous = run_state(ctx, bucket, &previous, &run.previous).await.ok();
    if previous.is_none() && ctx.schedule.settled_before(run.settled) != run.settled {
        return Err(Some(CheckpointFault::PreviousMissing));
    }
    Ok((State { run, theta: Arc::new(theta) }, previous))
}

/// All parts of θ, each checked as it comes against the list of their digests, and that against the root.
async fn theta(
    ctx: &Context,
    bucket: &BucketLocator,
    digest: &Hash32,
    root: &Hash32,
) -> Result<Vec<f32>, CheckpointFault> {
    let (length, parts) = (ctx.codec.layout().len(), ctx.codec.layout().parts());
    let bytes = part(ctx, bucket, &keys::checkpoint_parts(ctx.run, digest), 32 * parts as u64).await?;
    let hashes: Vec<Hash32> = bytes.as_chunks().0.iter().map(|hash| Hash32(*hash)).collect();
    if ctx.codec.layout().root_of_parts(&hashes) != *root {
        return Err(CheckpointFault::ThetaMismatch);
    }
    let mut theta = Vec::with_capacity(length);
    for (nth, expected) in hashes.into_iter().enumerate() {
        let expected_bytes = 4 * PART_VALUES.min(length - nth * PART_VALUES) as u64;
        let key = keys::checkpoint_theta(ctx.run, digest, nth as u32);
        let bytes = part(ctx, bucket, &key, expected_bytes).await?;
        let (found, bytes) = ctx.compute.run(move || (part_hash(&bytes), bytes)).await;
        if found != expected {
            return Err(CheckpointFault::ThetaMismatch);
        }
        theta.extend(from_bytes(&bytes));
    }
    Ok(theta)
}

/// An object of exactly so many bytes.
async fn part(ctx: &Context, bucket: &BucketLocator, key: &str, bytes: u64) -> Result<Bytes, CheckpointFault> {
    let found = loop {
        match ctx.get(bucket, key, bytes).await {
            Ok(found) => break found,
            Err(StoreError::TooLarge { .. }) => return Err(CheckpointFault::ThetaLength),
            Err(error) if error.is_transient() => tokio::time::sleep(RETRY).await,
            Err(_) => return Err(CheckpointFault::ThetaMissing),
        }
    };
    if found.len() as u64 == bytes { Ok(found) } else { Err(CheckpointFault::ThetaLength) }
}

async fn run_state(
    ctx: &Context,
    bucket: &BucketLocator,
    key: &str,
    digest: &Hash32,
) -> Result<RunState, Option<CheckpointFault>> {
    let answer = tokio::time::timeout(SMALL_PATIENCE, ctx.get(bucket, key, STATE_BYTES_MAX)).await;
    let bytes = match answer {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(StoreError::TooLarge { .. })) => return Err(Some(CheckpointFault::StateMalformed)),
        Ok(Err(_)) => return Err(None),
        Err(_) => {
            ctx.access.note_silence();
            return Err(Some(CheckpointFault::TooSlow));
        }
    };
    let run = RunState::from_bytes(&bytes, ctx.run).map_err(|_| CheckpointFault::StateMalformed)?;
    if run.digest() == *digest { Ok(run) } else { Err(Some(CheckpointFault::StateMismatch)) }
}
