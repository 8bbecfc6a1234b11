//! Whether anybody could write into this node's bucket.
//!
//! What a node publishes on chain must only read. An operator who mixes up two credentials would let every stranger
//! replace this node's objects. So the node tries what a stranger could: it puts an object into its own bucket with the
//! published credential, and one without any. Nobody else's bucket is ever tried.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use templar_protocol::run::RunId;
use templar_record::event::Event;
use templar_record::trouble::Trouble;
use templar_store::{Store, StoreError, Stranger, keys};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::frame::error::NodeError;
use crate::frame::events::Events;

/// How long the start waits for the answer. After that the node goes on, and publishes nothing until it comes.
const START_PATIENCE: Duration = Duration::from_secs(10);
/// Longest time for one attempt: slow buckets are given more than a fast one needs, and a silent one is asked again.
const PATIENCE: Duration = Duration::from_mins(1);
/// Pause before a bucket that gave no answer is tried again: doubled each time, from the first value to the second.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// What is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Known {
    /// The bucket has not answered.
    Nothing,
    /// The published credential was denied, and so was whoever has none.
    OnlyReads,
    /// The bucket took an object.
    Writes(Stranger),
}

/// The proof, and the task that tries to get it.
pub struct Published {
    known: watch::Receiver<Known>,
    bucket: String,
    /// The id of the published credential.
    access_key_id: String,
    /// Ends with this.
    _task: Mutex<JoinSet<()>>,
}

impl fmt::Debug for Published {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Published").field("known", &*self.known.borrow()).finish_non_exhaustive()
    }
}

impl Published {
    /// Begins to try.
    pub fn new(store: &Arc<dyn Store>, events: &Events, run: RunId) -> Self {
        let (sender, known) = watch::channel(Known::Nothing);
        let own = store.own();
        let (bucket, access_key_id) = (own.bucket.clone(), own.access_key_id.clone());
        let mut task = JoinSet::new();
        task.spawn(try_until_known(store.clone(), events.clone(), keys::probe(run), sender));
        Self { known, bucket, access_key_id, _task: Mutex::new(task) }
    }

    /// Waits for the answer, but not for long: a bucket that is down keeps no node from following the chain.
    pub async fn at_start(&self) -> Result<(), NodeError> {
        let mut known = self.known.clone();
        let _ = tokio::time::timeout(START_PATIENCE, known.wait_for(|known| *known != Known::Nothing)).await;
        self.is_proven().map(|_| ())
    }

    /// Whether the locator may be published: false as long as nothing is known. Fails if anybody could write.
    pub fn is_proven(&self) -> Result<bool, NodeError> {
        let (bucket, access_key_id) = (self.bucket.clone(), self.access_key_id.clone());
        match &*self.known.borrow() {
            Known::Nothing => Ok(false),
            Known::OnlyReads => Ok(true),
            Known::Writes(Stranger::Published) => Err(NodeError::PublishedKeyWrites { bucket, access_key_id }),
            Known::Writes(Stranger::Nobody) => Err(NodeError::AnybodyWrites { bucket }),
        }
    }
}

async fn try_until_known(store: Arc<dyn Store>, events: Events, key: String, known: watch::Sender<Known>) {
    let (mut pause, mut is_told) = (PAUSE_MIN, false);
    loop {
        let attempt = tokio::time::timeout(PATIENCE, attempt(&*store, &key)).await;
        let cause = match attempt {
            Ok(Ok(found)) => {
                known.send_replace(found);
                return;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {} s", PATIENCE.as_secs()),
        };
        if !std::mem::replace(&mut is_told, true) {
            events.emit(Event::Trouble { trouble: Trouble::Unproven { cause } }).await;
        }
        tokio::time::sleep(pause).await;
        pause = (2 * pause).min(PAUSE_MAX);
    }
}

/// Tries both. Fails if the bucket does not say whether the published credential may write. Whoever has none is answered in
/// many ways, none of which means that the bucket took the object.
async fn attempt(store: &dyn Store, key: &str) -> Result<Known, StoreError> {
    let bytes = || Bytes::from_static(b"written by this node itself, to see whether anybody could; it may be deleted");
    match store.put_as(Stranger::Published, key, bytes()).await {
        Ok(()) => return Ok(retracted(store, key, Stranger::Published).await),
        Err(StoreError::Denied { .. }) => {}
        Err(error) => return Err(error),
    }
    match store.put_as(Stranger::Nobody, key, bytes()).await {
        Ok(()) => Ok(retracted(store, key, Stranger::Nobody).await),
        Err(error @ StoreError::Timeout { .. }) => Err(error),
        Err(_) => Ok(Known::OnlyReads),
    }
}

/// Deletes the object. That it was written is what counts, whether or not it can be deleted.
async fn retracted(store: &dyn Store, key: &str, who: Stranger) -> Known {
    if let Err(error) = store.delete(key).await {
        tracing::warn!(%error, "the probe {key} stays in this node's own bucket");
    }
    Known::Writes(who)
}
