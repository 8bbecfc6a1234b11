//! The embedded server: restarts, many clients at once, and clients that are not ours.
#![expect(clippy::unwrap_used, reason = "helpers of tests stop the test")]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use object_store::aws::{AwsAuthorizer, AwsCredential};
use object_store::client::{HttpClient, HttpRequest};
use templar_store::{
    BucketSpec, Credential, OwnBucket, S3Options, S3Server, S3Store, ServerError, Store, dev_credentials,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn specs(names: &[&str]) -> Vec<BucketSpec> {
    let spec = |name: &&str| {
        let (write, read) = dev_credentials(7, name);
        BucketSpec { name: (*name).into(), write, read }
    };
    names.iter().map(spec).collect()
}

async fn server(root: &tempfile::TempDir, names: &[&str]) -> S3Server {
    S3Server::start(root.path(), "127.0.0.1:0".parse().unwrap(), specs(names)).await.unwrap()
}

fn store(server: &S3Server, name: &str) -> S3Store {
    let options = S3Options { allow_http_loopback: true, retries: 0, ..S3Options::default() };
    S3Store::new(server.own_bucket(name).unwrap(), options).unwrap()
}

#[tokio::test]
async fn a_restart_keeps_objects_and_a_second_server_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let first = server(&root, &["alice"]).await;
    store(&first, "alice").put("v1/kept", "body".into()).await.unwrap();
    let second = S3Server::start(root.path(), "127.0.0.1:0".parse().unwrap(), specs(&["alice"])).await;
    assert!(matches!(second, Err(ServerError::InUse { .. })));
    let gone = store(&first, "alice");
    first.shutdown().await;
    assert!(gone.get(gone.own(), "v1/kept", 10).await.unwrap_err().is_transient());

    let again = server(&root, &["alice", "bob"]).await;
    let (alice, bob) = (store(&again, "alice"), store(&again, "bob"));
    assert_eq!(&bob.get(alice.own(), "v1/kept", 10).await.unwrap()[..], b"body");
    again.shutdown().await;

    let exposed = S3Server::start(root.path(), "0.0.0.0:0".parse().unwrap(), specs(&["alice"])).await;
    assert!(matches!(exposed, Err(ServerError::NotLoopback { .. })));
    let nowhere = S3Server::start_exposed(root.path(), "0.0.0.0:0".parse().unwrap(), specs(&["alice"])).await;
    assert!(matches!(nowhere, Err(ServerError::NoAddress { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_writers_and_readers_see_whole_objects() {
    let root = tempfile::tempdir().unwrap();
    let names = ["n-0", "n-1", "n-2", "n-3", "n-4", "n-5", "n-6", "n-7"];
    let server = Arc::new(server(&root, &names).await);
    let mut tasks = tokio::task::JoinSet::new();
    for (n, name) in names.into_iter().enumerate() {
        let (writer, reader) = (store(&server, name), store(&server, names[(n + 1) % 8]));
        writer.put("v1/hot", version(0)).await.unwrap();
        tasks.spawn(async move {
            for round in 1..=10 {
                writer.put("v1/hot", version(round)).await.unwrap();
                writer.put(&format!("v1/own/{round:02}"), version(round)).await.unwrap();
            }
            assert_eq!(writer.list("v1/own", 100).await.unwrap().len(), 10);
        });
        let from = server.own_bucket(name).unwrap().locator;
        tasks.spawn(async move {
            for _ in 0..20 {
                let body = reader.get(&from, "v1/hot", 1 << 20).await.unwrap();
                assert_eq!(body, version(body[0]), "a reader saw parts of two versions");
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
}

/// Versions differ in length, so that a mixture would show.
fn version(n: u8) -> Bytes {
    vec![n; 100_000 + 1000 * usize::from(n)].into()
}

/// Sends what no client of ours sends, signed with `credential` if there is one, and returns the status.
async fn raw(server: &S3Server, credential: Option<&Credential>, method: &str, path: &str, copy: Option<&str>) -> u16 {
    let mut request = HttpRequest::new(Bytes::new().into());
    *request.method_mut() = method.parse().unwrap();
    *request.uri_mut() = format!("{}{path}", server.endpoint()).parse().unwrap();
    if let Some(source) = copy {
        request.headers_mut().insert("x-amz-copy-source", source.parse().unwrap());
    }
    if let Some(credential) = credential {
        let credential = AwsCredential {
            key_id: credential.access_key_id.clone(),
            secret_key: credential.secret_access_key.clone(),
            token: None,
        };
        AwsAuthorizer::new(&credential, "s3", "local").try_authorize(&mut request, None).unwrap();
    }
    let client = HttpClient::new(reqwest::Client::builder().no_proxy().build().unwrap());
    client.execute(request).await.unwrap().status().as_u16()
}

#[tokio::test]
async fn everything_else_is_denied() {
    let root = tempfile::tempdir().unwrap();
    let server = server(&root, &["alice", "bob"]).await;
    store(&server, "alice").put("v1/x", "body".into()).await.unwrap();
    let OwnBucket { locator, write } = server.own_bucket("alice").unwrap();
    let read = Credential { access_key_id: locator.access_key_id, secret_access_key: locator.secret_access_key };
    let bob = server.own_bucket("bob").unwrap().write;

    // The tool works: what is allowed goes through.
    assert_eq!(raw(&server, Some(&read), "GET", "/alice/v1/x", None).await, 200);
    assert_eq!(raw(&server, Some(&read), "HEAD", "/alice/v1/x", None).await, 200);
    assert_eq!(raw(&server, Some(&write), "GET", "/alice?list-type=2", None).await, 200);

    let denied = [
        (None, "GET", "/alice/v1/x", None),
        (None, "PUT", "/alice/v1/x", None),
        (None, "GET", "/", None),
        (Some(&read), "GET", "/", None),
        (Some(&read), "GET", "/alice?list-type=2", None),
        (Some(&read), "GET", "/alice", None),
        (Some(&read), "PUT", "/alice/v1/y", None),
        (Some(&read), "POST", "/alice/v1/y?uploads", None),
        (Some(&read), "DELETE", "/alice/v1/x", None),
        (Some(&read), "PUT", "/alice/v1/y", Some("alice/v1/x")),
        (Some(&bob), "PUT", "/bob/v1/y", Some("alice/v1/x")),
        (Some(&bob), "GET", "/alice/v1/x", None),
        (Some(&bob), "HEAD", "/alice", None),
        (Some(&write), "GET", "/", None),
        (Some(&write), "DELETE", "/alice", None),
        (Some(&write), "PUT", "/carol", None),
        (Some(&write), "GET", "/alice?policy", None),
        (Some(&write), "PUT", "/alice/v1/x?acl", None),
    ];
    for (credential, method, path, copy) in denied {
        assert_eq!(raw(&server, credential, method, path, copy).await, 403, "{method} {path} {copy:?} {credential:?}");
    }
    // Allowed operations with odd keys, past our own client's check.
    for path in ["/alice/A", "/alice/a%20b", "/alice/a+b", "/alice/a//b"] {
        assert_eq!(raw(&server, Some(&write), "PUT", path, None).await, 400, "{path}");
    }
    server.shutdown().await;
}

/// A sender that promises more than it sends and goes away leaves neither an object nor a file.
#[tokio::test]
async fn a_broken_upload_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let server = server(&root, &["alice"]).await;
    let address = server.endpoint().trim_start_matches("http://").to_owned();
    let OwnBucket { write, .. } = server.own_bucket("alice").unwrap();
    let mut request = HttpRequest::new(Bytes::new().into());
    *request.method_mut() = "PUT".parse().unwrap();
    *request.uri_mut() = format!("{}/alice/v1/broken", server.endpoint()).parse().unwrap();
    let credential = AwsCredential { key_id: write.access_key_id, secret_key: write.secret_access_key, token: None };
    // The signature is that of an empty body: bytes that do not match it must not become an object either.
    AwsAuthorizer::new(&credential, "s3", "local").try_authorize(&mut request, None).unwrap();

    for (promised, sent) in [(1000, 500), (500, 500), (1000, 0)].repeat(20) {
        let head = format!("PUT /alice/v1/broken HTTP/1.1\r\nhost: {address}\r\ncontent-length: {promised}\r\n");
        let rest = request.headers().iter().filter(|(name, _)| name.as_str() != "host");
        let rest: Vec<_> = rest.map(|(name, value)| format!("{name}: {}\r\n", value.to_str().unwrap())).collect();
        let head = head + &rest.concat() + "\r\n";
        let mut socket = tokio::net::TcpStream::connect(&address).await.unwrap();
        socket.write_all(head.as_bytes()).await.unwrap();
        socket.write_all(&vec![1; sent]).await.unwrap();
        socket.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(5), socket.read_to_end(&mut answer)).await.unwrap();
        assert!(!answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    }
    let alice = store(&server, "alice");
    assert!(alice.get(alice.own(), "v1/broken", 1000).await.unwrap_err().is_not_found());
    server.shutdown().await;
    let left: Vec<_> = std::fs::read_dir(root.path().join("alice/incoming")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn an_upload_in_parts_that_is_dropped_leaves_no_parts_behind() {
    let root = tempfile::tempdir().unwrap();
    let server = server(&root, &["alice"]).await;
    let store = store(&server, "alice");
    let parts = || std::fs::read_dir(root.path().join("alice/incoming")).unwrap().count();
    // Four are sent at a time, so some are complete: the server does not forget those by itself.
    let has_begun = async {
        while parts() < 6 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        biased;
        () = has_begun => {}
        _ = store.put("v1/large", vec![0; 256 << 20].into()) => panic!("it is over before it was seen to begin"),
    }
    let is_withdrawn = async {
        while parts() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), is_withdrawn).await.expect("parts are left behind");
    assert!(store.get(store.own(), "v1/large", 1).await.unwrap_err().is_not_found());
    server.shutdown().await;
}
