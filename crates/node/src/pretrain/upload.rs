//! A miner's own contributions in its bucket: put, opened, removed.

use bytes::Bytes;
use templar_store::keys;

use crate::frame::context::Context;
use crate::frame::error::NodeError;
use crate::pretrain::pending::Pending;

/// Uploads ciphertext and header; to be followed by [`Publisher::ensure_header`](crate::frame::publisher::Publisher::ensure_header).
pub async fn contribution(ctx: &Context, pending: &Pending) -> Result<(), NodeError> {
    ctx.store.put(&keys::window_payload(ctx.run, pending.window), pending.ciphertext.clone()).await?;
    let header = Bytes::from(pending.header.to_bytes());
    ctx.store.put(&keys::window_header(ctx.run, pending.window), header).await?;
    Ok(())
}

/// Publishes the key: from here on everybody can read the contribution.
pub async fn key(ctx: &Context, pending: &Pending) -> Result<(), NodeError> {
    let key = Bytes::copy_from_slice(pending.key.as_bytes());
    ctx.store.put(&keys::window_key(ctx.run, pending.window), key).await?;
    Ok(())
}

/// Removes this node's contribution to the window `kept` before `window`. What fails now is left to [`crate::pretrain::sweep`].
pub async fn remove(ctx: &Context, window: u64, kept: u64) {
    let Some(old) = window.checked_sub(kept) else { return };
    for key in [keys::window_key, keys::window_header, keys::window_payload] {
        if let Err(error) = ctx.store.delete(&key(ctx.run, old)).await {
            tracing::warn!(window = old, %error, "an old contribution stays in the bucket");
        }
    }
}
