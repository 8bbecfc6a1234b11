//! Contributions from strangers' buckets: fetched by name, trusted by hash, opened and decoded.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use templar_codec::Contribution;
use templar_protocol::bucket::BucketLocator;
use templar_protocol::fault::FaultKind;
use templar_protocol::hash::Hash32;
use templar_protocol::header::{HEADER_BYTES_MAX, Header, HeaderContext, SignedHeader};
use templar_protocol::roster::{Miner, Uid, Validator};
use templar_protocol::seal::{OpenError, SealKey};
use templar_store::{StoreError, keys};

use crate::frame::context::Context;
use crate::pretrain::window::Window;
use templar_record::event::Event;

/// A contribution that passed every check, with all that others need to open it too.
#[derive(Debug)]
pub struct Opened {
    pub header: SignedHeader,
    pub ciphertext: Bytes,
    pub key: SealKey,
    pub contribution: Contribution,
}

/// Where the objects of one contribution lie.
#[derive(Clone, Debug)]
pub struct Place {
    /// Whose bucket it is.
    pub owner: Uid,
    pub window: u64,
    pub bucket: BucketLocator,
    pub header: String,
    pub payload: String,
    pub key: String,
}

impl Place {
    /// In the miner's own bucket.
    pub fn of_miner(ctx: &Context, miner: &Miner, window: u64) -> Self {
        Self {
            owner: miner.entry.uid,
            window,
            bucket: miner.bucket.clone(),
            header: keys::window_header(ctx.run, window),
            payload: keys::window_payload(ctx.run, window),
            key: keys::window_key(ctx.run, window),
        }
    }

    /// In the bucket of a validator that voted for it, by the hash of its header.
    pub fn of_holder(ctx: &Context, holder: &Validator, window: u64, header_hash: &Hash32) -> Self {
        Self {
            owner: holder.entry.uid,
            window,
            bucket: holder.bucket.clone(),
            header: keys::held_header(ctx.run, window, header_hash),
            payload: keys::held_payload(ctx.run, window, header_hash),
            key: keys::held_key(ctx.run, window, header_hash),
        }
    }
}

/// The committed header, in order.
pub async fn header(
    ctx: &Context,
    place: &Place,
    committed: &Hash32,
    context: Option<&HeaderContext>,
) -> Result<SignedHeader, FaultKind> {
    let bytes = ctx.store.get(&place.bucket, &place.header, HEADER_BYTES_MAX).await;
    let bytes = bytes.map_err(|error| fault(&error, FaultKind::HeaderMalformed, FaultKind::HeaderUnavailable))?;
    let signed = SignedHeader::from_bytes(&bytes, committed)?;
    context.map_or(Ok(()), |context| context.check(&signed.header))?;
    Ok(signed)
}

/// The ciphertext that `header` names. Its size is checked before anything is downloaded.
pub async fn ciphertext(ctx: &Context, place: &Place, header: &SignedHeader) -> Result<Bytes, FaultKind> {
    let expected_bytes = header.header.ciphertext_bytes;
    let bytes = ctx.store.get(&place.bucket, &place.payload, expected_bytes).await;
    let bytes = bytes.map_err(|error| fault(&error, FaultKind::PayloadMismatch, FaultKind::PayloadUnavailable))?;
    if bytes.len() as u64 != expected_bytes || Hash32::of(&bytes) != header.header.ciphertext_hash {
        return Err(FaultKind::PayloadMismatch);
    }
    Ok(bytes)
}

/// The published key.
pub async fn key(ctx: &Context, place: &Place) -> Result<SealKey, FaultKind> {
    let bytes = ctx.store.get(&place.bucket, &place.key, 32).await;
    let bytes = bytes.map_err(|error| fault(&error, FaultKind::KeyMismatch, FaultKind::NotOpened))?;
    SealKey::from_bytes(&bytes).map_err(|_| FaultKind::KeyMismatch)
}

/// Opens and decodes: the step from bytes to a contribution. Runs where `ctx.compute` says.
pub async fn open(
    ctx: &Context,
    header: SignedHeader,
    ciphertext: Bytes,
    key: SealKey,
) -> Result<Arc<Opened>, FaultKind> {
    let codec = ctx.codec.clone();
    let work = move || {
        let payload = key.open(ciphertext.to_vec(), &header.header.key_commitment).map_err(|error| match error {
            OpenError::NotAuthentic => FaultKind::SealBroken,
            _ => FaultKind::KeyMismatch,
        })?;
        let contribution = codec.decode(payload).map_err(|error| {
            let Header { window, entry, .. } = &header.header;
            tracing::info!(window, uid = entry.uid.0, %error, "a contribution does not decode");
            FaultKind::PayloadMalformed
        })?;
        Ok(Arc::new(Opened { header, ciphertext, key, contribution }))
    };
    ctx.compute.run(work).await
}

/// Contributions fetched at a time.
pub const PARALLEL_FETCHES: usize = 8;
/// Most time that one place may take to serve a small object that is certified.
pub const SMALL_PATIENCE: Duration = Duration::from_secs(10);
/// The same for a ciphertext.
const PATIENCE: Duration = Duration::from_mins(2);
/// How long the places asked so far are left alone before the next one is asked, too.
const STAGGER: Duration = Duration::from_secs(2);

/// All of a contribution that is certified, from whichever of `places` serves it first. The first is asked first, the
/// next one as soon as that fails or is slow, so a bucket that drips holds nobody up.
pub async fn certified(ctx: &Context, places: &[Place], committed: &Hash32) -> Option<Arc<Opened>> {
    let mut waiting = places.iter();
    let mut asked = FuturesUnordered::new();
    loop {
        if asked.is_empty() {
            asked.push(certified_from(ctx, waiting.next()?, committed));
        }
        tokio::select! {
            biased;
            Some(answer) = asked.next() => if answer.is_some() { return answer },
            () = tokio::time::sleep(STAGGER), if waiting.len() > 0 => {
                asked.extend(waiting.next().map(|place| certified_from(ctx, place, committed)));
            }
        }
    }
}

/// A certified contribution from one place. What is small comes first: it shows whether the rest is worth the while.
async fn certified_from(ctx: &Context, place: &Place, committed: &Hash32) -> Option<Arc<Opened>> {
    let attempt = async {
        let header = in_time(SMALL_PATIENCE, header(ctx, place, committed, None)).await?;
        if header.header.ciphertext_bytes > Window::ciphertext_bytes_max(ctx) {
            return Err(FaultKind::PayloadTooLarge);
        }
        let key = in_time(SMALL_PATIENCE, key(ctx, place)).await?;
        let ciphertext = in_time(PATIENCE, ciphertext(ctx, place, &header)).await?;
        open(ctx, header, ciphertext, key).await
    };
    match attempt.await {
        Ok(opened) => Some(opened),
        // Most places have not all, or not yet: that is no news.
        Err(fault) if fault.is_absence() => None,
        Err(fault) => {
            ctx.emit(Event::Misserved { window: place.window, uid: place.owner, fault }).await;
            None
        }
    }
}

async fn in_time<T>(patience: Duration, answer: impl Future<Output = Result<T, FaultKind>>) -> Result<T, FaultKind> {
    tokio::time::timeout(patience, answer).await.unwrap_or(Err(FaultKind::PayloadUnavailable))
}

/// An oversized object is the miner's lie; one that cannot be had is storage's fault or not there yet.
fn fault(error: &StoreError, oversized: FaultKind, unavailable: FaultKind) -> FaultKind {
    if matches!(error, StoreError::TooLarge { .. }) { oversized } else { unavailable }
}
