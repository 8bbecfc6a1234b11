//! Contributions from strangers' buckets: fetched by name, trusted by hash, opened and decoded.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use templar_codec::Contribution;
use templar_protocol::bucket::BucketLocator;
use templar_protocol::fault::FaultKind;
use templar_protocol::hash::{Hash32, Hasher};
use templar_protocol::header::{HEADER_BYTES_MAX, Header, HeaderContext, SignedHeader};
use templar_protocol::roster::{Miner, Uid, Validator};
use templar_protocol::seal::{OpenError, SealKey};
use templar_store::{StoreError, keys};
use tokio::time::Instant;

use crate::frame::access::is_answer;
use crate::frame::context::Context;
use crate::pretrain::window::Window;
use templar_record::event::Event;

/// A contribution that passed every check, with everything that others need to open it too.
#[derive(Debug)]
pub struct Opened {
    pub header: SignedHeader,
    pub ciphertext: Bytes,
    pub key: SealKey,
    pub contribution: Contribution,
}

/// Why a contribution is not here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// The fault is known.
    Fault(FaultKind),
    /// No bucket has answered so far. If this node is not to blame, this is the fault.
    Silence { fault: FaultKind, cause: String },
}

impl Obstacle {
    /// An oversized object is the miner's fault; an unavailable one is the storage's, or is not there yet.
    fn new(error: &StoreError, oversized: FaultKind, unavailable: FaultKind) -> Self {
        match error {
            StoreError::TooLarge { .. } => Self::Fault(oversized),
            error if is_answer(error) => Self::Fault(unavailable),
            error => Self::Silence { fault: unavailable, cause: error.to_string() },
        }
    }

    /// The obstacle while an answer is pending.
    pub fn awaiting(fault: FaultKind) -> Self {
        Self::Silence { fault, cause: "no answer so far".to_owned() }
    }

    pub fn fault(&self) -> FaultKind {
        match self {
            Self::Fault(fault) | Self::Silence { fault, .. } => *fault,
        }
    }

    /// Why no answer came, if none came.
    pub fn silence(&self) -> Option<&str> {
        match self {
            Self::Fault(_) => None,
            Self::Silence { cause, .. } => Some(cause),
        }
    }
}

impl From<FaultKind> for Obstacle {
    fn from(fault: FaultKind) -> Self {
        Self::Fault(fault)
    }
}

/// Where the objects of one contribution are.
#[derive(Clone, Debug)]
pub struct Location {
    /// Whose bucket it is.
    pub owner: Uid,
    pub window: u64,
    pub bucket: BucketLocator,
    pub header: String,
    pub payload: String,
    pub key: String,
}

impl Location {
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

/// Whom to ask for copies of a contribution: each node asks in an order of its own, so that no validator is everybody's
/// first, and none can take a place before the others.
pub fn holders<'a>(ctx: &Context, validators: &'a [Validator], committed: &Hash32) -> Vec<&'a Validator> {
    let mut hasher = Hasher::new("templar v2 rescue order");
    hasher.update(ctx.keypair.hotkey().as_bytes()).update(committed.as_bytes());
    let mut holders: Vec<_> = validators.iter().collect();
    holders.sort_by_cached_key(|validator| hasher.clone().update(validator.entry.hotkey.as_bytes()).finish());
    holders
}

/// The committed header, checked.
pub async fn header(
    ctx: &Context,
    location: &Location,
    committed: &Hash32,
    context: Option<&HeaderContext>,
) -> Result<SignedHeader, Obstacle> {
    let bytes = ctx.get(&location.bucket, &location.header, HEADER_BYTES_MAX).await;
    let bytes =
        bytes.map_err(|error| Obstacle::new(&error, FaultKind::HeaderMalformed, FaultKind::HeaderUnavailable))?;
    let signed = SignedHeader::from_bytes(&bytes, committed)?;
    context.map_or(Ok(()), |context| context.check(&signed.header))?;
    Ok(signed)
}

/// The ciphertext that `header` names. Its size is checked before anything is downloaded.
pub async fn ciphertext(ctx: &Context, location: &Location, header: &SignedHeader) -> Result<Bytes, Obstacle> {
    let expected_bytes = header.header.ciphertext_bytes;
    let bytes = ctx.get(&location.bucket, &location.payload, expected_bytes).await;
    let bytes =
        bytes.map_err(|error| Obstacle::new(&error, FaultKind::PayloadMismatch, FaultKind::PayloadUnavailable))?;
    if bytes.len() as u64 != expected_bytes || Hash32::of(&bytes) != header.header.ciphertext_hash {
        return Err(FaultKind::PayloadMismatch.into());
    }
    Ok(bytes)
}

/// The published key.
pub async fn key(ctx: &Context, location: &Location) -> Result<SealKey, Obstacle> {
    let bytes = ctx.get(&location.bucket, &location.key, 32).await;
    let bytes = bytes.map_err(|error| Obstacle::new(&error, FaultKind::KeyMismatch, FaultKind::NotOpened))?;
    SealKey::from_bytes(&bytes).map_err(|_| FaultKind::KeyMismatch.into())
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
/// Longest time that one bucket may take to serve a small certified object.
pub const SMALL_PATIENCE: Duration = Duration::from_secs(10);
/// The same for the own bucket, which is the last to be asked: the node's loop waits for it where nobody has an object.
const OWN_PATIENCE: Duration = Duration::from_secs(3);
/// The same for a ciphertext.
const PATIENCE: Duration = Duration::from_mins(2);
/// How long to wait for the buckets asked so far before the next one is asked, too.
const STAGGER: Duration = Duration::from_secs(2);
/// While a bucket that has served header and key sends a ciphertext, the next one is asked only if this many bytes per
/// second would have brought it: a copy per bucket of a gigabyte would choke the link that all of them come through.
const DOWNLOAD_BYTES_PER_S: u64 = 16 << 20;

/// A contribution that several buckets may serve, and what of it is here.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub committed: Hash32,
    /// What its header must say, unless it is certified.
    pub context: Option<Arc<HeaderContext>>,
    pub header: Option<SignedHeader>,
    pub ciphertext: Option<Bytes>,
}

/// All of a contribution that is certified, from whichever of `locations` serves it first.
pub async fn certified(ctx: &Context, locations: &[Location], committed: &Hash32) -> Option<Arc<Opened>> {
    let wanted = Wanted { committed: *committed, context: None, header: None, ciphertext: None };
    first(ctx, locations, &wanted).await
}

/// All of a contribution, from whichever of `locations` serves it first. The first is asked first, the next one as soon as
/// that fails or is slow, so a slow bucket holds nobody up.
pub async fn first(ctx: &Context, locations: &[Location], wanted: &Wanted) -> Option<Arc<Opened>> {
    let mut waiting = locations.iter();
    let download = Download::default();
    let mut asked = FuturesUnordered::new();
    let mut next = Instant::now() + STAGGER;
    loop {
        if asked.is_empty() {
            asked.push(whole_from(ctx, waiting.next()?, wanted, &download));
            next = Instant::now() + STAGGER;
        }
        tokio::select! {
            biased;
            Some(answer) = asked.next() => if answer.is_some() { return answer },
            () = tokio::time::sleep_until(next), if waiting.len() > 0 => {
                if let Some(due) = download.due().filter(|due| *due > next) {
                    next = due;
                    continue;
                }
                asked.extend(waiting.next().map(|location| whole_from(ctx, location, wanted, &download)));
                next = Instant::now() + STAGGER;
            }
        }
    }
}

/// When the newest download of a ciphertext should be done, if one is under way.
#[derive(Debug, Default)]
struct Download(Mutex<Option<Instant>>);

impl Download {
    fn due(&self) -> Option<Instant> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, due: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = due;
    }

    fn begin(&self, bytes: u64) {
        self.set(Some(Instant::now() + STAGGER + Duration::from_secs(bytes / DOWNLOAD_BYTES_PER_S)));
    }
}

/// A contribution from one location. Small objects come first: they show whether the rest is worth fetching.
async fn whole_from(ctx: &Context, location: &Location, wanted: &Wanted, download: &Download) -> Option<Arc<Opened>> {
    let patience = if location.bucket == *ctx.store.own() { OWN_PATIENCE } else { SMALL_PATIENCE };
    let attempt = async {
        let header = match &wanted.header {
            Some(header) => header.clone(),
            None => in_time(ctx, patience, header(ctx, location, &wanted.committed, wanted.context.as_deref())).await?,
        };
        if header.header.ciphertext_bytes > Window::ciphertext_bytes_max(ctx) {
            return Err(FaultKind::PayloadTooLarge.into());
        }
        let key = in_time(ctx, patience, key(ctx, location)).await?;
        if key.commitment() != header.header.key_commitment {
            return Err(FaultKind::KeyMismatch.into());
        }
        let ciphertext = if let Some(ciphertext) = &wanted.ciphertext {
            ciphertext.clone()
        } else {
            download.begin(header.header.ciphertext_bytes);
            let ciphertext = in_time(ctx, PATIENCE, ciphertext(ctx, location, &header)).await;
            download.set(None);
            ciphertext?
        };
        Ok(open(ctx, header, ciphertext, key).await?)
    };
    match attempt.await.map_err(|obstacle: Obstacle| obstacle.fault()) {
        Ok(opened) => Some(opened),
        // Most locations do not have all of it, or not yet, which is not worth a report.
        Err(fault) if fault.is_absence() => None,
        // What the miner signed is not the fault of whoever serves it.
        Err(fault) if wanted.context.is_some() && !fault.is_in_transit() => None,
        Err(fault) => {
            ctx.emit(Event::Misserved { window: location.window, uid: location.owner, fault }).await;
            None
        }
    }
}

async fn in_time<T>(
    ctx: &Context,
    patience: Duration,
    answer: impl Future<Output = Result<T, Obstacle>>,
) -> Result<T, Obstacle> {
    tokio::time::timeout(patience, answer).await.unwrap_or_else(|_| {
        ctx.access.note_silence();
        Err(Obstacle::awaiting(FaultKind::PayloadUnavailable))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_large_download_has_time_before_another_copy_is_asked_for() {
        let download = Download::default();
        assert_eq!(download.due(), None);
        download.begin(1 << 20);
        assert_eq!(download.due(), Some(Instant::now() + STAGGER));
        download.begin(1600 << 20);
        assert_eq!(download.due(), Some(Instant::now() + STAGGER + Duration::from_secs(100)));
    }
}
