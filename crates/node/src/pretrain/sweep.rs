//! What a node finds in its own bucket when it starts: objects that a crash, a lost disk or a jump over windows left
//! behind. Objects that somebody may still need are taken over, the rest is deleted.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use templar_protocol::hash::Hash32;
use templar_store::{StoreError, keys};

use crate::frame::context::Context;
use crate::pretrain::checkpoint::Retention;

/// Most objects in one sweep; the rest is swept at the next start.
const OBJECTS_MAX: usize = 10_000;

/// Deletes this node's contributions to windows before `keep_from`.
pub async fn windows(ctx: &Context, keep_from: u64) -> Result<(), StoreError> {
    for key in list(ctx, &keys::windows(ctx.run)).await? {
        if segment::<u64>(&key, 3).is_some_and(|window| window < keep_from) {
            ctx.store.delete(&key).await?;
        }
    }
    Ok(())
}

/// The result of a validator's sweep.
#[derive(Debug)]
pub struct Swept {
    /// Contributions that it serves and had lost track of. It voted for them, and so promised to serve them.
    pub found: Vec<(u64, Hash32)>,
    /// Contributions that no longer need to be served, and have been deleted.
    pub gone: Vec<(u64, Hash32)>,
    /// Digests of the whole checkpoints in the bucket, oldest first.
    pub published: Vec<Hash32>,
    /// Why the sweep is incomplete, if it is.
    pub result: Result<(), StoreError>,
}

/// Brings a validator's bucket in line with what it knows to be there: contributions to the windows `served`, which may
/// be more than are in the bucket yet, and the checkpoints `published`. What auditors read stays.
pub async fn validator(
    ctx: &Context,
    served: Range<u64>,
    retention: Retention,
    known: VecDeque<(u64, Hash32)>,
    mut published: Vec<Hash32>,
) -> Swept {
    let (mut found, mut gone) = (Vec::new(), Vec::new());
    let folders = match retention {
        Retention::Promised => vec![keys::held(ctx.run)],
        // Older windows may be many, and none of them is to be deleted.
        Retention::ForGood => served.clone().map(|window| keys::held_window(ctx.run, window)).collect(),
    };
    let mut result = Ok(());
    for folder in folders {
        if result.is_ok() {
            result = held(ctx, &folder, served.start, &known, &mut found, &mut gone).await;
        }
    }
    if result.is_ok() {
        result = checkpoints(ctx, &mut published).await;
    }
    Swept { found, gone, published, result }
}

/// Deletes contributions to windows before `keep_from` that this node has served, and finds those of later ones that
/// are not among the `known`.
async fn held(
    ctx: &Context,
    folder: &str,
    keep_from: u64,
    known: &VecDeque<(u64, Hash32)>,
    found: &mut Vec<(u64, Hash32)>,
    gone: &mut Vec<(u64, Hash32)>,
) -> Result<(), StoreError> {
    for key in list(ctx, folder).await? {
        let (Some(window), Some(header)) = (segment::<u64>(&key, 3), segment::<Hash32>(&key, 4)) else { continue };
        if window < keep_from {
            ctx.store.delete(&key).await?;
            // In the order of keys the header comes first, and the payload last.
            if key.ends_with("/payload") {
                gone.push((window, header));
            }
        } else if key.ends_with("/header") && !known.contains(&(window, header)) {
            // The payload is put last, so the whole contribution is there.
            found.push((window, header));
        }
    }
    Ok(())
}

/// Deletes pieces of checkpoints that were never completed, and adds to `published` whole ones that this node
/// has lost track of, as the oldest.
async fn checkpoints(ctx: &Context, published: &mut Vec<Hash32>) -> Result<(), StoreError> {
    let mut found: BTreeMap<Hash32, Vec<String>> = BTreeMap::new();
    for key in list(ctx, &keys::checkpoints(ctx.run)).await? {
        if let Some(digest) = segment(&key, 3) {
            found.entry(digest).or_default().push(key);
        }
    }
    found.retain(|digest, _| !published.contains(digest));
    for (digest, keys_found) in found {
        // The state is put last, so the whole checkpoint is there.
        if keys_found.contains(&keys::checkpoint_state(ctx.run, &digest)) {
            published.insert(0, digest);
            continue;
        }
        for key in keys_found {
            ctx.store.delete(&key).await?;
        }
    }
    Ok(())
}

async fn list(ctx: &Context, folder: &str) -> Result<Vec<String>, StoreError> {
    let objects = ctx.store.list(folder, OBJECTS_MAX).await?;
    Ok(objects.into_iter().map(|object| object.key).collect())
}

/// The segment of a key with this number, `v1/RUN/…`, if it is a value of this type.
fn segment<T: std::str::FromStr>(key: &str, nth: usize) -> Option<T> {
    key.split('/').nth(nth)?.parse().ok()
}
