//! A cloud in memory, for simulation: many buckets, the rights of the real ones, and faults on a test's command.
//!
//! Nothing here waits by itself, so that runs under a paused clock are reproducible.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use templar_protocol::bucket::BucketLocator;

use crate::{Credential, ObjectInfo, OwnBucket, Store, StoreError, Stranger, dev_credentials, keys};

/// The endpoint that locators of a memory cloud carry. `.invalid` never resolves.
const ENDPOINT: &str = "https://memory.invalid";
const REGION: &str = "local";

/// What kind of operation a fault hook sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpKind {
    Put,
    Delete,
    List,
    Get,
}

/// An operation before it happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Op {
    pub kind: OpKind,
    /// The bucket of the node that acts.
    pub actor: String,
    /// The bucket acted upon.
    pub bucket: String,
    /// The object's key; the folder for [`OpKind::List`].
    pub key: String,
}

/// What goes wrong with an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The object cannot be found.
    NotFound,
    /// The service answers that it is unavailable; nothing is changed.
    Unavailable,
    /// The operation happens, but only after this time.
    Delay(Duration),
    /// A read returns the object with its first bit flipped. Other operations are unaffected.
    Corrupt,
}

type FaultHook = Box<dyn FnMut(&Op) -> Option<Fault> + Send>;

#[derive(Default)]
struct Inner {
    buckets: BTreeMap<String, Bucket>,
    fault: Option<FaultHook>,
}

struct Bucket {
    own: OwnBucket,
    objects: BTreeMap<String, Bytes>,
}

/// All buckets of a simulated network.
#[derive(Default)]
pub struct MemoryCloud(Mutex<Inner>);

impl fmt::Debug for MemoryCloud {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryCloud").field("buckets", &self.lock().buckets.keys()).finish_non_exhaustive()
    }
}

impl MemoryCloud {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Creates the bucket `name`, or returns it if it is there already.
    pub fn create_bucket(self: &Arc<Self>, name: &str) -> OwnBucket {
        let bucket = || {
            let (write, read) = dev_credentials(0, name);
            let locator = BucketLocator {
                endpoint: ENDPOINT.into(),
                bucket: name.into(),
                region: REGION.into(),
                access_key_id: read.access_key_id,
                secret_access_key: read.secret_access_key,
            };
            Bucket { own: OwnBucket { locator, write }, objects: BTreeMap::new() }
        };
        self.lock().buckets.entry(name.to_owned()).or_insert_with(bucket).own.clone()
    }

    /// The view of a node whose bucket is `own`.
    pub fn store(self: &Arc<Self>, own: OwnBucket) -> MemoryStore {
        MemoryStore { cloud: Arc::clone(self), own }
    }

    /// From now on asks `hook` before every operation what goes wrong with it. It must not call back into the cloud.
    pub fn set_fault(&self, hook: impl FnMut(&Op) -> Option<Fault> + Send + 'static) {
        self.lock().fault = Some(Box::new(hook));
    }

    /// The keys of a bucket's objects, in order.
    pub fn keys(&self, bucket: &str) -> Vec<String> {
        self.lock().buckets.get(bucket).map_or_else(Vec::new, |bucket| bucket.objects.keys().cloned().collect())
    }

    /// Removes the objects whose keys contain `part`, as the owner could do at any time.
    pub fn remove(&self, bucket: &str, part: &str) {
        if let Some(bucket) = self.lock().buckets.get_mut(bucket) {
            bucket.objects.retain(|key, _| !key.contains(part));
        }
    }

    /// A panicking hook leaves the buckets as they were: nothing is half done under this lock.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// The bucket, if `credential` opens it: the write credential for everything, the read credential for reading.
    fn open(&mut self, op: &Op, credential: &Credential) -> Result<&mut Bucket, StoreError> {
        let missing = || StoreError::NotFound { key: op.key.clone() };
        let bucket = self.buckets.get_mut(&op.bucket).ok_or_else(missing)?;
        let may_read = bucket.own.locator.access_key_id == credential.access_key_id
            && bucket.own.locator.secret_access_key == credential.secret_access_key;
        if bucket.own.write == *credential || (op.kind == OpKind::Get && may_read) {
            return Ok(bucket);
        }
        Err(StoreError::Denied { bucket: op.bucket.clone(), key: op.key.clone() })
    }
}

/// A node's view of a [`MemoryCloud`].
#[derive(Clone, Debug)]
pub struct MemoryStore {
    cloud: Arc<MemoryCloud>,
    own: OwnBucket,
}

impl MemoryStore {
    /// Asks the fault hook about `op`, and fails or waits as it says. Returns whether a read is to be corrupted.
    async fn suffer(&self, op: &Op) -> Result<bool, StoreError> {
        let fault = self.cloud.lock().fault.as_mut().and_then(|hook| hook(op));
        let (bucket, key) = (op.bucket.clone(), op.key.clone());
        match fault {
            None => Ok(false),
            Some(Fault::Corrupt) => Ok(true),
            Some(Fault::NotFound) => Err(StoreError::NotFound { key }),
            Some(Fault::Unavailable) => {
                let (endpoint, source) = ("memory".to_owned(), "injected fault".into());
                Err(StoreError::Unavailable { endpoint, bucket, key, source })
            }
            Some(Fault::Delay(time)) => {
                tokio::time::sleep(time).await;
                Ok(false)
            }
        }
    }

    /// Does `act` to the bucket of this store, with its write credential.
    async fn on_own<T>(&self, kind: OpKind, key: &str, act: impl FnOnce(&mut Bucket) -> T) -> Result<T, StoreError> {
        self.on_own_with(&self.own.write, kind, key, act).await
    }

    async fn on_own_with<T>(
        &self,
        credential: &Credential,
        kind: OpKind,
        key: &str,
        act: impl FnOnce(&mut Bucket) -> T,
    ) -> Result<T, StoreError> {
        let bucket = self.own.locator.bucket.clone();
        let op = Op { kind, actor: bucket.clone(), bucket, key: key.to_owned() };
        self.suffer(&op).await?;
        Ok(act(self.cloud.lock().open(&op, credential)?))
    }
}

#[async_trait]
impl Store for MemoryStore {
    fn own(&self) -> &BucketLocator {
        &self.own.locator
    }

    async fn put(&self, key: &str, bytes: Bytes) -> Result<(), StoreError> {
        keys::check(key)?;
        self.on_own(OpKind::Put, key, |bucket| drop(bucket.objects.insert(key.to_owned(), bytes))).await
    }

    async fn put_as(&self, who: Stranger, key: &str, bytes: Bytes) -> Result<(), StoreError> {
        keys::check(key)?;
        let credential = match who {
            Stranger::Published => Credential {
                access_key_id: self.own.locator.access_key_id.clone(),
                secret_access_key: self.own.locator.secret_access_key.clone(),
            },
            Stranger::Nobody => Credential { access_key_id: String::new(), secret_access_key: String::new() },
        };
        let put = |bucket: &mut Bucket| drop(bucket.objects.insert(key.to_owned(), bytes));
        self.on_own_with(&credential, OpKind::Put, key, put).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        keys::check(key)?;
        self.on_own(OpKind::Delete, key, |bucket| drop(bucket.objects.remove(key))).await
    }

    async fn list(&self, prefix: &str, max: usize) -> Result<Vec<ObjectInfo>, StoreError> {
        let folder = keys::check_folder(prefix)?;
        let start = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        self.on_own(OpKind::List, folder, |bucket| {
            let inside = bucket.objects.range(start.clone()..).take_while(|(key, _)| key.starts_with(&start));
            inside.take(max).map(|(key, body)| ObjectInfo { key: key.clone(), bytes: body.len() as u64 }).collect()
        })
        .await
    }

    async fn get(&self, from: &BucketLocator, key: &str, max_bytes: u64) -> Result<Bytes, StoreError> {
        keys::check(key)?;
        let actor = self.own.locator.bucket.clone();
        let op = Op { kind: OpKind::Get, actor, bucket: from.bucket.clone(), key: key.to_owned() };
        let corrupt = self.suffer(&op).await?;
        let credential =
            Credential { access_key_id: from.access_key_id.clone(), secret_access_key: from.secret_access_key.clone() };
        let body = {
            let mut inner = self.cloud.lock();
            let body = inner.open(&op, &credential)?.objects.get(key);
            body.cloned().ok_or_else(|| StoreError::NotFound { key: key.to_owned() })?
        };
        let bytes = body.len() as u64;
        if bytes > max_bytes {
            return Err(StoreError::TooLarge { key: key.to_owned(), bytes, max_bytes });
        }
        if corrupt && !body.is_empty() {
            let mut flipped = body.to_vec();
            flipped[0] ^= 1;
            return Ok(flipped.into());
        }
        Ok(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn faults_strike_whom_they_are_meant_for() {
        let cloud = MemoryCloud::new();
        let (a, b) = (cloud.store(cloud.create_bucket("aaa")), cloud.store(cloud.create_bucket("bbb")));
        a.put("x", "data".into()).await.unwrap();

        cloud.set_fault(|op| (op.kind == OpKind::Get && op.actor == "bbb").then_some(Fault::Corrupt));
        assert_eq!(&b.get(a.own(), "x", 9).await.unwrap()[..], b"eata");
        assert_eq!(&a.get(a.own(), "x", 9).await.unwrap()[..], b"data");

        let mut failures_left = 2;
        cloud.set_fault(move |_| {
            failures_left -= 1;
            (failures_left >= 0).then_some(Fault::Unavailable)
        });
        assert!(b.put("y", Bytes::new()).await.unwrap_err().is_transient());
        assert!(b.put("y", Bytes::new()).await.unwrap_err().is_transient());
        b.put("y", Bytes::new()).await.unwrap();

        let delay = Duration::from_millis(50);
        let start = tokio::time::Instant::now();
        cloud.set_fault(move |op| (op.key == "x").then_some(Fault::Delay(delay)));
        b.get(a.own(), "x", 9).await.unwrap();
        assert!(start.elapsed() >= delay);
    }
}
