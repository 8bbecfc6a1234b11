//! A clock that is wrong.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use templar_node::pretrain::setup::Setup;
use templar_protocol::bucket::BucketLocator;
use templar_store::{ObjectInfo, Store, StoreError, StoreLayer};
use tokio::time::Instant;

/// An hour: services tolerate a quarter of one.
const AHEAD_S: i64 = 3600;

/// A store whose node's clock is wrong for a while: every service refuses it, but for one that looks at no clock.
struct Skewed {
    honest: Arc<dyn Store>,
    since: Instant,
    span: Range<Duration>,
    lenient: String,
}

impl Skewed {
    fn check(&self, bucket: &str) -> Result<(), StoreError> {
        let is_wrong = bucket != self.lenient && self.span.contains(&self.since.elapsed());
        // The store calls its owner's bucket that.
        let bucket = if bucket == self.honest.own().bucket { "own" } else { bucket }.to_owned();
        if is_wrong { Err(StoreError::ClockSkew { bucket, ahead_s: Some(AHEAD_S) }) } else { Ok(()) }
    }

    fn check_own(&self) -> Result<(), StoreError> {
        self.check(&self.honest.own().bucket)
    }
}

#[async_trait]
impl StoreLayer for Skewed {
    fn inner(&self) -> &dyn Store {
        &*self.honest
    }

    async fn put(&self, key: &str, bytes: Bytes) -> Result<(), StoreError> {
        self.check_own()?;
        self.honest.put(key, bytes).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.check_own()?;
        self.honest.delete(key).await
    }

    async fn list(&self, prefix: &str, max: usize) -> Result<Vec<ObjectInfo>, StoreError> {
        self.check_own()?;
        self.honest.list(prefix, max).await
    }

    async fn get(&self, from: &BucketLocator, key: &str, max_bytes: u64) -> Result<Bytes, StoreError> {
        self.check(&from.bucket)?;
        self.honest.get(from, key, max_bytes).await
    }
}

/// The node's clock is an hour ahead for a while, counted from its start, and only the bucket `lenient` lets it in. It
/// learns that from what the services answer: it waits, and blames nobody.
pub fn wrap(setup: Setup, span: Range<Duration>, lenient: &str) -> Setup {
    let (since, lenient) = (Instant::now(), lenient.to_owned());
    Setup { store: Arc::new(Skewed { honest: setup.store, since, span, lenient }), ..setup }
}
