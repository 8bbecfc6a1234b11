//! The suite that every store passes, on both of them and on a layer.

use templar_protocol::locator::{Locator, Role};
use templar_store::conformance::{check_rights, check_store};
use templar_store::{
    BucketSpec, MemoryCloud, MemoryStore, S3Options, S3Server, S3Store, Store, StoreLayer, dev_credentials,
};

#[tokio::test]
async fn memory_store() {
    let cloud = MemoryCloud::new();
    let (a, b) = (cloud.create_bucket("alice"), cloud.create_bucket("bob"));
    check_store(&cloud.store(a.clone()), &cloud.store(b.clone())).await;
    check_rights(&|own| Box::new(cloud.store(own)), &a, &b).await;
}

/// Changes nothing.
struct Clear(MemoryStore);

impl StoreLayer for Clear {
    fn inner(&self) -> &dyn Store {
        &self.0
    }
}

#[tokio::test]
async fn a_layer_that_overrides_nothing_is_the_store_below() {
    let cloud = MemoryCloud::new();
    let (a, b) = (cloud.create_bucket("alice"), cloud.create_bucket("bob"));
    let open = |own| Clear(cloud.store(own));
    check_store(&open(a.clone()), &open(b.clone())).await;
    check_rights(&|own| Box::new(open(own)), &a, &b).await;
}

#[tokio::test]
async fn s3_store_over_the_embedded_server() {
    let root = tempfile::tempdir().unwrap();
    let buckets = ["alice", "bob"].map(|name| {
        let (write, read) = dev_credentials(1, name);
        BucketSpec { name: name.into(), write, read }
    });
    let server = S3Server::start(root.path(), "127.0.0.1:0".parse().unwrap(), buckets.into()).await.unwrap();
    let (a, b) = (server.own_bucket("alice").unwrap(), server.own_bucket("bob").unwrap());
    assert!(Locator::new(Role::Miner, a.locator.clone()).encode().is_ok(), "a local locator fits a commitment field");
    let options = S3Options { allow_http_loopback: true, ..S3Options::default() };
    let open = |own| S3Store::new(own, options.clone()).unwrap();
    check_store(&open(a.clone()), &open(b.clone())).await;
    check_rights(&|own| Box::new(open(own)), &a, &b).await;
    server.shutdown().await;
}
