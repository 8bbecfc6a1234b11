//! What every [`Store`] must do, as one suite: an implementation that passes it can stand behind a node.
//!
//! The functions panic where a store fails. They are public so that stores elsewhere can be held to them.

use bytes::Bytes;
use templar_protocol::bucket::BucketLocator;

use crate::{Credential, OwnBucket, Store, StoreError, Stranger};

/// Large enough to be uploaded in parts.
const LARGE_BYTES: usize = 20_000_000;

/// Checks what `a` and `b`, stores of two empty buckets in one cloud, do for their owners and for each other.
pub async fn check_store(a: &dyn Store, b: &dyn Store) {
    writes_are_read_by_everybody(a, b).await;
    sizes_are_checked(a, b).await;
    folders_are_listed(a).await;
    odd_keys_are_refused(a, b).await;
    wrong_locators_open_nothing(a, b).await;
}

/// Checks that a bucket's published read credential cannot write, and that one bucket's write credential does not open
/// another. `open` makes a store that uses the given bucket as its own.
pub async fn check_rights(open: &dyn Fn(OwnBucket) -> Box<dyn Store>, a: &OwnBucket, b: &OwnBucket) {
    let owner = open(a.clone());
    put(owner.as_ref(), "rights/kept", b"as it was").await;

    // What an owner finds out about its own bucket.
    for who in [Stranger::Published, Stranger::Nobody] {
        denied(&owner.put_as(who, "rights/kept", "overwritten".into()).await, &format!("{who:?}"));
    }
    let Credential { access_key_id, secret_access_key } = a.write.clone();
    let careless = OwnBucket {
        locator: BucketLocator { access_key_id, secret_access_key, ..a.locator.clone() },
        write: a.write.clone(),
    };
    let careless = open(careless);
    careless
        .put_as(Stranger::Published, "rights/mistake", "by anybody".into())
        .await
        .expect("it publishes its write key");
    denied(&careless.put_as(Stranger::Nobody, "rights/mistake", "by nobody".into()).await, "whoever has no credential");
    careless.delete("rights/mistake").await.expect("an owner deletes");

    let published = Credential {
        access_key_id: a.locator.access_key_id.clone(),
        secret_access_key: a.locator.secret_access_key.clone(),
    };
    let unknown = Credential { access_key_id: "nobody".into(), ..a.write.clone() };
    let guessed = Credential { secret_access_key: "guessed".into(), ..a.write.clone() };
    for (who, write) in
        [("read key", published), ("other owner", b.write.clone()), ("unknown", unknown), ("guess", guessed)]
    {
        let intruder = open(OwnBucket { locator: a.locator.clone(), write });
        let large = Bytes::from(vec![0; LARGE_BYTES]);
        denied(&intruder.put("rights/kept", "overwritten".into()).await, who);
        denied(&intruder.put("rights/large", large).await, who);
        denied(&intruder.delete("rights/kept").await, who);
        denied(&intruder.list("", 10).await.map(drop), who);
        let body = intruder.get(&a.locator, "rights/kept", 100).await.expect("the locator still reads");
        assert_eq!(&body[..], b"as it was", "{who} changed a foreign object");
    }
    let listed = owner.list("rights", 10).await.expect("an owner lists its bucket");
    assert_eq!(listed.len(), 1, "an intruder left something: {listed:?}");
}

async fn writes_are_read_by_everybody(a: &dyn Store, b: &dyn Store) {
    put(a, "v1/x/one", b"first").await;
    for reader in [a, b] {
        assert_eq!(&get(reader, a.own(), "v1/x/one").await[..], b"first");
    }
    put(a, "v1/x/one", b"second, and longer").await;
    assert_eq!(&get(b, a.own(), "v1/x/one").await[..], b"second, and longer");
    put(a, "v1/x/one", b"").await;
    assert!(get(b, a.own(), "v1/x/one").await.is_empty(), "an empty object is an object");

    put(b, "v1/x/one", b"of b").await;
    assert!(get(b, a.own(), "v1/x/one").await.is_empty(), "buckets share nothing");

    a.delete("v1/x/one").await.expect("an owner deletes");
    missing(b.get(a.own(), "v1/x/one", 100).await);
    a.delete("v1/x/one").await.expect("deleting what is not there is fine");
    missing(b.get(a.own(), "v1/never", 100).await);
    // A folder is not an object, and an object may have the name of another's folder.
    put(a, "v1/y/z", b"inside").await;
    missing(b.get(a.own(), "v1/y", 100).await);
    put(a, "v1/y", b"beside").await;
    assert_eq!(&get(b, a.own(), "v1/y").await[..], b"beside");
    assert_eq!(&get(b, a.own(), "v1/y/z").await[..], b"inside");

    let longest = "k".repeat(crate::keys::KEY_BYTES_MAX);
    let large: Bytes = (0..LARGE_BYTES).map(|i| ((i * i) >> 7) as u8).collect();
    a.put(&longest, large.clone()).await.expect("a large object under a long key is taken");
    let back = b.get(a.own(), &longest, LARGE_BYTES as u64).await.expect("and read");
    assert!(back == large, "a large object came back changed");
    a.delete(&longest).await.expect("an owner deletes");
}

async fn sizes_are_checked(a: &dyn Store, b: &dyn Store) {
    put(a, "sized", &[7; 1000]).await;
    assert_eq!(b.get(a.own(), "sized", 1000).await.expect("the limit is inclusive").len(), 1000);
    match b.get(a.own(), "sized", 999).await {
        Err(StoreError::TooLarge { bytes: 1000, max_bytes: 999, .. }) => {}
        other => panic!("an object above the limit must be refused by its size, not {other:?}"),
    }
    put(a, "empty", b"").await;
    assert!(b.get(a.own(), "empty", 0).await.expect("nothing fits into nothing").is_empty());
}

async fn folders_are_listed(a: &dyn Store) {
    for key in ["l/b/2", "l/b/10", "l/bc", "l/a", "l/b.x", "m"] {
        put(a, key, key.as_bytes()).await;
    }
    let keys = |listed: Result<Vec<crate::ObjectInfo>, StoreError>| {
        let listed = listed.expect("an owner lists its bucket");
        assert!(listed.iter().all(|info| info.bytes == info.key.len() as u64), "sizes are listed: {listed:?}");
        listed.into_iter().map(|info| info.key).collect::<Vec<_>>()
    };
    assert_eq!(keys(a.list("l", 100).await), ["l/a", "l/b.x", "l/b/10", "l/b/2", "l/bc"]);
    assert_eq!(keys(a.list("l/b/", 100).await), ["l/b/10", "l/b/2"]);
    assert_eq!(keys(a.list("l", 2).await), ["l/a", "l/b.x"]);
    assert!(keys(a.list("l", 0).await).is_empty());
    assert!(keys(a.list("nothing", 100).await).is_empty());
    let all = a.list("", 1000).await.expect("an owner lists its bucket");
    assert!(all.iter().any(|info| info.key == "m") && all.is_sorted_by_key(|info| &info.key));
}

async fn odd_keys_are_refused(a: &dyn Store, b: &dyn Store) {
    for key in ["", "/a", "a/", "a//b", "../a", "a/../../b", "a b", "A", "ä", "a\0b", "a?b", "%2e%2e/a", "a\\b", "a+b"]
    {
        let refused = [
            a.put(key, Bytes::new()).await,
            a.delete(key).await,
            b.get(a.own(), key, 1).await.map(drop),
            if key.is_empty() || key == "a/" { a.put(key, Bytes::new()).await } else { a.list(key, 1).await.map(drop) },
        ];
        for result in refused {
            assert!(matches!(result, Err(StoreError::BadKey { .. })), "key {key:?}: {result:?}");
        }
    }
}

async fn wrong_locators_open_nothing(a: &dyn Store, b: &dyn Store) {
    put(a, "secret", b"body").await;
    let own = a.own().clone();
    let wrong = [
        BucketLocator { secret_access_key: "wrong".into(), ..own.clone() },
        BucketLocator { access_key_id: "nobody".into(), ..own.clone() },
        BucketLocator { bucket: b.own().bucket.clone(), ..own.clone() },
    ];
    for locator in wrong {
        denied(&b.get(&locator, "secret", 100).await.map(drop), &format!("{locator:?}"));
    }
    let nowhere = BucketLocator { bucket: "no-such-bucket".into(), ..own };
    let result = b.get(&nowhere, "secret", 100).await;
    let hidden = matches!(result, Err(StoreError::NotFound { .. } | StoreError::Denied { .. }));
    assert!(hidden, "an unknown bucket: {result:?}");
}

async fn put(store: &dyn Store, key: &str, body: &[u8]) {
    store.put(key, Bytes::copy_from_slice(body)).await.expect("an owner writes its bucket");
}

async fn get(store: &dyn Store, from: &BucketLocator, key: &str) -> Bytes {
    store.get(from, key, 1000).await.expect("everybody reads with the published credential")
}

fn denied(result: &Result<(), StoreError>, what: &str) {
    assert!(matches!(result, Err(StoreError::Denied { .. })), "must be denied to {what}: {result:?}");
}

fn missing(result: Result<Bytes, StoreError>) {
    let error = result.expect_err("there is no such object");
    assert!(error.is_not_found() && !error.is_transient(), "{error:?}");
}
