//! What an [`S3Store`] does when the server behind a stranger's locator is hostile.
#![expect(clippy::unwrap_used, reason = "helpers of tests stop the test")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use templar_protocol::bucket::BucketLocator;
use templar_store::{Credential, OwnBucket, S3Options, S3Store, Store, StoreError, Stranger};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// A server that answers every request with `head`, then with `chunk` for ever if there is one, else hangs up.
/// Counts connections and the bytes that it could send.
async fn hostile(head: String, chunk: Option<Vec<u8>>) -> (String, Arc<AtomicUsize>, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (visits, sent) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counters = (Arc::clone(&visits), Arc::clone(&sent));
    tokio::spawn(async move {
        loop {
            let Ok((mut socket, _)) = listener.accept().await else { return };
            counters.0.fetch_add(1, Ordering::SeqCst);
            let _ = socket.read(&mut [0; 4096]).await;
            let _ = socket.write_all(head.as_bytes()).await;
            while let Some(chunk) = &chunk
                && socket.write_all(chunk).await.is_ok()
            {
                counters.1.fetch_add(chunk.len(), Ordering::SeqCst);
            }
        }
    });
    (endpoint, visits, sent)
}

fn locator(endpoint: &str) -> BucketLocator {
    BucketLocator {
        endpoint: endpoint.into(),
        bucket: "stranger".into(),
        region: "local".into(),
        access_key_id: "id".into(),
        secret_access_key: "secret".into(),
    }
}

fn store(allow_http_loopback: bool) -> S3Store {
    let write = Credential { access_key_id: "id".into(), secret_access_key: "secret".into() };
    let own = OwnBucket { locator: locator("https://own.example"), write };
    let request_timeout = Duration::from_secs(5);
    let options = S3Options { allow_http_loopback, request_timeout, retries: 1, ..S3Options::default() };
    S3Store::new(own, options).unwrap()
}

const HEADERS: &str = "etag: \"x\"\r\nlast-modified: Sat, 21 Nov 2026 00:00:00 GMT\r\nconnection: close\r\n";

#[tokio::test]
async fn an_announced_giant_is_not_read() {
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: 1000000000000\r\n{HEADERS}\r\n");
    let (endpoint, visits, sent) = hostile(head, Some(vec![0; 65536])).await;
    let error = store(true).get(&locator(&endpoint), "x", 1000).await.unwrap_err();
    assert!(matches!(error, StoreError::TooLarge { bytes: 1_000_000_000_000, max_bytes: 1000, .. }), "{error:?}");
    assert_eq!(visits.load(Ordering::SeqCst), 1);
    assert!(sent.load(Ordering::SeqCst) < 32 << 20, "only what the sockets buffer may flow");
}

#[tokio::test]
async fn a_body_without_a_size_is_refused_and_a_short_one_too() {
    let chunked = format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n{HEADERS}\r\n");
    let (endpoint, ..) = hostile(chunked, Some([b"1000\r\n".as_slice(), &[0; 0x1000], b"\r\n"].concat())).await;
    assert!(store(true).get(&locator(&endpoint), "x", 1000).await.is_err());

    let short = format!("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n{HEADERS}\r\nonly this");
    let (endpoint, ..) = hostile(short, None).await;
    assert!(store(true).get(&locator(&endpoint), "x", 1000).await.unwrap_err().is_transient());
}

#[tokio::test]
async fn an_endless_error_page_is_cut_and_its_text_kept_short() {
    let head = format!("HTTP/1.1 404 Not Found\r\n{HEADERS}\r\n");
    let (endpoint, _, sent) = hostile(head, Some(vec![b'\n'; 65536])).await;
    assert!(store(true).get(&locator(&endpoint), "x", 1000).await.unwrap_err().is_not_found());
    assert!(sent.load(Ordering::SeqCst) < 32 << 20, "only what the sockets buffer may flow");

    let head = format!("HTTP/1.1 400 Bad Request\r\n{HEADERS}\r\n");
    let (endpoint, ..) = hostile(head, Some(vec![0xff; 65536])).await;
    let error = store(true).get(&locator(&endpoint), "x", 1000).await.unwrap_err();
    assert!(format!("{error:?}").len() < 20_000);
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let (inside, visits, _) = hostile(format!("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n{HEADERS}\r\n"), None).await;
    let redirect = format!("HTTP/1.1 307 Moved\r\nlocation: {inside}/secret\r\ncontent-length: 0\r\n{HEADERS}\r\n");
    let (endpoint, ..) = hostile(redirect, None).await;
    assert!(store(true).get(&locator(&endpoint), "x", 1000).await.is_err());
    assert_eq!(visits.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn loopback_is_not_contacted_outside_local_networks() {
    let (endpoint, visits, _) = hostile(String::new(), None).await;
    let error = store(false).get(&locator(&endpoint), "x", 1000).await.unwrap_err();
    assert!(matches!(error, StoreError::RefusedBucket { .. }) && !error.is_transient(), "{error:?}");
    assert_eq!(visits.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_silent_server_runs_into_the_time_limit() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let write = Credential { access_key_id: "id".into(), secret_access_key: "secret".into() };
    let own = OwnBucket { locator: locator(&endpoint), write };
    let options = S3Options { request_timeout: Duration::from_millis(300), ..S3Options::default() };
    let store = S3Store::new(own, options).unwrap(); // its own endpoint is vouched for
    let start = std::time::Instant::now();
    for result in [
        store.get(store.own(), "x", 10).await.map(drop),
        store.put("x", "small".into()).await,
        store.put("x", vec![0; 17 << 20].into()).await,
    ] {
        assert!(matches!(result, Err(StoreError::Timeout { .. })), "{result:?}");
    }
    assert!(start.elapsed() < Duration::from_secs(4), "three operations took {:?}", start.elapsed());
}

/// A fake: it takes whatever comes, as a bucket does that everybody may write.
#[tokio::test]
async fn a_bucket_that_takes_objects_without_a_credential_is_found_out_without_showing_one() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let heads = tokio::spawn(async move {
        let mut heads = Vec::new();
        for _ in 0..2 {
            let (mut socket, _) = listener.accept().await.unwrap();
            // Head and body may come apart; what is left unread resets the connection.
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\nx") {
                assert!(socket.read_buf(&mut request).await.unwrap() > 0, "it hangs up early");
            }
            heads.push(String::from_utf8_lossy(&request).to_ascii_lowercase());
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n{HEADERS}\r\n");
            socket.write_all(answer.as_bytes()).await.unwrap();
        }
        heads
    });
    let write = Credential { access_key_id: "owner".into(), secret_access_key: "own".into() };
    let options = S3Options { retries: 0, ..S3Options::default() };
    let store = S3Store::new(OwnBucket { locator: locator(&endpoint), write }, options).unwrap();
    for who in [Stranger::Published, Stranger::Nobody] {
        store.put_as(who, "v1/probe", "x".into()).await.unwrap();
    }
    let heads = heads.await.unwrap();
    assert!(heads.iter().all(|head| head.starts_with("put /stranger/v1/probe ")), "{heads:?}");
    assert!(heads[0].contains("authorization: aws4-hmac-sha256 credential=id/"), "{}", heads[0]);
    assert!(!heads[1].contains("authorization"), "{}", heads[1]);
}

/// A fake: it answers as S3 does to a request whose time is wrong.
#[tokio::test]
async fn a_wrong_clock_is_told_as_one_and_not_as_a_wrong_credential() {
    let body = "<?xml version=\"1.0\"?><Error><Code>RequestTimeTooSkewed</Code><Message>too far</Message></Error>";
    let answer = |date: SystemTime, body: &str| {
        let date = httpdate::fmt_http_date(date);
        format!("HTTP/1.1 403 Forbidden\r\ndate: {date}\r\ncontent-length: {}\r\n{HEADERS}\r\n{body}", body.len())
    };
    let hour = Duration::from_hours(1);
    for (date, expected) in [(SystemTime::now() - hour, 3600), (SystemTime::now() + hour, -3600)] {
        let (endpoint, ..) = hostile(answer(date, body), None).await;
        let error = store(true).get(&locator(&endpoint), "x", 1000).await.unwrap_err();
        let StoreError::ClockSkew { ahead_s, .. } = &error else { panic!("{error:?}") };
        assert!(ahead_s.is_some_and(|ahead_s| (ahead_s - expected).abs() < 60), "{ahead_s:?}");
        let side = if expected > 0 { "ahead of" } else { "behind" };
        assert!(error.to_string().contains(side) && error.to_string().contains("NTP"), "{error}");
    }
    let dateless = format!("HTTP/1.1 403 Forbidden\r\ncontent-length: {}\r\n{HEADERS}\r\n{body}", body.len());
    let (endpoint, ..) = hostile(dateless, None).await;
    let error = store(true).get(&locator(&endpoint), "x", 1000).await.unwrap_err();
    assert!(matches!(error, StoreError::ClockSkew { ahead_s: None, .. }), "{error:?}");
    let said = error.to_string();
    assert!(!said.contains("ahead") && said.contains("does not say what time") && said.contains("NTP"), "{said}");
    let (endpoint, ..) =
        hostile(answer(SystemTime::now() - hour, "<Error><Code>AccessDenied</Code></Error>"), None).await;
    let error = store(true).get(&locator(&endpoint), "x", 1000).await.unwrap_err();
    assert!(matches!(error, StoreError::Denied { .. }), "{error:?}");
}
