//! A client for each bucket in use, bounded: the chain may name any number of buckets.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::{BackoffConfig, RetryConfig};
use templar_protocol::bucket::BucketLocator;

use crate::error::StoreError;
use crate::s3::endpoint::{self, Trust};
use crate::s3::http::Connector;
use crate::s3::options::S3Options;

/// Clients by locator, made when first needed. They share pools of connections, one per [`Trust`].
#[derive(Debug)]
pub(super) struct Clients {
    options: S3Options,
    public: Connector,
    vouched: Connector,
    cache: Mutex<Cache>,
}

#[derive(Debug, Default)]
struct Cache {
    clients: HashMap<BucketLocator, (Arc<AmazonS3>, u64)>,
    /// Counts uses: the entry with the smallest number was used least recently.
    uses: u64,
}

impl Clients {
    pub(super) fn new(options: S3Options) -> Result<Self, StoreError> {
        let connector = |trust| Connector::new(trust).map_err(|e| StoreError::NoClient { source: Box::new(e) });
        Ok(Self {
            options,
            public: connector(Trust::Public)?,
            vouched: connector(Trust::Vouched)?,
            cache: Mutex::default(),
        })
    }

    /// The client for `locator`, if the endpoint policy allows one.
    pub(super) fn get(&self, locator: &BucketLocator) -> Result<Arc<AmazonS3>, StoreError> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.uses += 1;
        let now = cache.uses;
        if let Some((client, used)) = cache.clients.get_mut(locator) {
            *used = now;
            return Ok(Arc::clone(client));
        }
        let client = Arc::new(self.build(locator)?);
        if cache.clients.len() >= self.options.clients_max.max(1) {
            let oldest = cache.clients.iter().min_by_key(|(_, (_, used))| *used).map(|(locator, _)| locator.clone());
            if let Some(oldest) = oldest {
                cache.clients.remove(&oldest);
            }
        }
        cache.clients.insert(locator.clone(), (Arc::clone(&client), now));
        Ok(client)
    }

    /// A client for `locator` that is not kept.
    pub(super) fn build(&self, locator: &BucketLocator) -> Result<AmazonS3, StoreError> {
        built(self.builder(locator)?)
    }

    /// A client for the bucket of `locator` that shows no credential, and is not kept.
    pub(super) fn build_unsigned(&self, locator: &BucketLocator) -> Result<AmazonS3, StoreError> {
        built(self.builder(locator)?.with_skip_signature(true))
    }

    fn builder(&self, locator: &BucketLocator) -> Result<AmazonS3Builder, StoreError> {
        let options = &self.options;
        let (url, trust) = endpoint::judge(locator, options.allow_http_loopback, &options.vouched_endpoints)?;
        let connector = match trust {
            Trust::Public => self.public.clone(),
            Trust::Vouched => self.vouched.clone(),
        };
        let retry = RetryConfig {
            backoff: BackoffConfig::default(),
            max_retries: options.retries,
            retry_timeout: options.request_timeout,
        };
        let builder = AmazonS3Builder::new()
            .with_endpoint(url.origin().ascii_serialization())
            .with_allow_http(url.scheme() == "http")
            .with_virtual_hosted_style_request(false)
            .with_bucket_name(&locator.bucket)
            .with_region(&locator.region)
            .with_access_key_id(&locator.access_key_id)
            .with_secret_access_key(&locator.secret_access_key)
            .with_disable_bulk_delete(true)
            .with_retry(retry)
            .with_http_connector(connector);
        Ok(builder)
    }
}

fn built(builder: AmazonS3Builder) -> Result<AmazonS3, StoreError> {
    builder.build().map_err(|e| StoreError::NoClient { source: Box::new(e) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_client_goes_first() {
        let clients = Clients::new(S3Options { clients_max: 2, ..S3Options::default() }).unwrap();
        let locator = |n: u32| BucketLocator {
            endpoint: "https://example.com".into(),
            bucket: format!("bucket-{n}"),
            region: "local".into(),
            access_key_id: "id".into(),
            secret_access_key: "secret".into(),
        };
        for n in [0, 1, 0, 2] {
            clients.get(&locator(n)).unwrap();
        }
        let cache = clients.cache.lock().unwrap();
        assert_eq!(cache.clients.len(), 2);
        assert!(cache.clients.contains_key(&locator(0)) && cache.clients.contains_key(&locator(2)));
    }
}
