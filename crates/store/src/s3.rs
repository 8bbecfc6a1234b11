//! [`S3Store`]: the store of a real node, over any S3-compatible service.

mod clients;
mod endpoint;
mod http;
mod options;

use std::error::Error as StdError;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use clients::Clients;
pub use endpoint::{bucket_name_fault, endpoint_fault, is_loopback};
use futures::{StreamExt, TryStreamExt, stream};
use object_store::aws::AmazonS3;
use object_store::client::{HttpError, HttpErrorKind};
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt};
pub use options::S3Options;
use templar_protocol::bucket::BucketLocator;

use crate::{Credential, ObjectInfo, OwnBucket, Store, StoreError, Stranger, keys};

/// Objects above this size are uploaded in parts, so that a lost connection costs one part.
const SINGLE_PUT_BYTES_MAX: usize = 16 << 20;
const PART_BYTES: usize = 8 << 20;
/// S3's own limit.
const PARTS_MAX: usize = 10_000;
const PARTS_IN_FLIGHT: usize = 4;
/// How long a failed or dropped upload may take to be withdrawn.
const ABORT: Duration = Duration::from_secs(5);

/// All storage over S3: writes with this node's write credential, reads with those that owners publish.
#[derive(Debug)]
pub struct S3Store {
    own: OwnBucket,
    writer: AmazonS3,
    clients: Clients,
    request_timeout: Duration,
}

impl S3Store {
    /// Fails if this node's locator is unusable or no HTTP client can be made. Contacts nobody.
    pub fn new(own: OwnBucket, mut options: S3Options) -> Result<Self, StoreError> {
        options.vouched_endpoints.push(own.locator.endpoint.clone());
        let request_timeout = options.request_timeout;
        let clients = Clients::new(options)?;
        let Credential { access_key_id, secret_access_key } = own.write.clone();
        let writer = clients.build(&BucketLocator { access_key_id, secret_access_key, ..own.locator.clone() })?;
        Ok(Self { own, writer, clients, request_timeout })
    }

    /// A store that has no bucket of its own: it only reads. Its own place is a name that never resolves.
    pub fn reader(options: S3Options) -> Result<Self, StoreError> {
        let nobody = || "nobody".to_owned();
        let locator = BucketLocator {
            endpoint: "https://nobody.invalid".to_owned(),
            bucket: nobody(),
            region: nobody(),
            access_key_id: nobody(),
            secret_access_key: nobody(),
        };
        Self::new(
            OwnBucket { locator, write: Credential { access_key_id: nobody(), secret_access_key: nobody() } },
            options,
        )
    }

    /// Waits for `operation` on `key` of the bucket `at`, at most for the time allowed, and adds both to its error.
    async fn within<T>(
        &self,
        at: &BucketLocator,
        key: &str,
        operation: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, StoreError> {
        let after = self.request_timeout;
        let key = key.to_owned();
        match tokio::time::timeout(after, operation).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(Failure::TooLarge { bytes, max_bytes })) => Err(StoreError::TooLarge { key, bytes, max_bytes }),
            Ok(Err(Failure::Remote(error))) => Err(name(error, at, key, after)),
            Err(_) => Err(StoreError::Timeout { bucket: at.bucket.clone(), key, after }),
        }
    }

    async fn put_in_parts(&self, path: &Path, bytes: Bytes) -> Result<(), Failure> {
        let late = |_| Failure::Remote(timed_out());
        let deadline = tokio::time::Instant::now() + self.request_timeout;
        let upload = tokio::time::timeout_at(deadline, self.writer.put_multipart(path)).await.map_err(late)??;
        let mut upload = Upload(Some(upload));
        tokio::time::timeout_at(deadline, upload.send(bytes)).await.map_err(late)?
    }
}

/// An upload in parts, which is withdrawn unless it is completed: parts that are left behind cost their owner money.
/// Withdrawing goes on beside whoever drops this, for some seconds. If it fails too, or the process ends before it
/// does, the bucket's own rules expire them.
struct Upload(Option<Box<dyn MultipartUpload>>);

impl Upload {
    async fn send(&mut self, bytes: Bytes) -> Result<(), Failure> {
        if let Some(upload) = &mut self.0 {
            send_parts(upload.as_mut(), bytes).await?;
        }
        self.0 = None;
        Ok(())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(mut upload) = self.0.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(async move { tokio::time::timeout(ABORT, upload.abort()).await });
        }
    }
}

async fn send_parts(upload: &mut dyn MultipartUpload, mut bytes: Bytes) -> Result<(), Failure> {
    let part_bytes = PART_BYTES.max(bytes.len().div_ceil(PARTS_MAX));
    let mut parts = Vec::new();
    while !bytes.is_empty() {
        let part = bytes.split_to(part_bytes.min(bytes.len()));
        parts.push(upload.put_part(part.into()));
    }
    stream::iter(parts).buffer_unordered(PARTS_IN_FLIGHT).try_collect::<()>().await?;
    upload.complete().await?;
    Ok(())
}

async fn read(client: &AmazonS3, path: &Path, max_bytes: u64) -> Result<Bytes, Failure> {
    let object = client.get(path).await?;
    let bytes = object.meta.size;
    if bytes > max_bytes {
        // Dropping the answer closes the connection: the body is never read.
        return Err(Failure::TooLarge { bytes, max_bytes });
    }
    let mut body = BytesMut::with_capacity(bytes as usize);
    let mut chunks = object.into_stream();
    while let Some(chunk) = chunks.try_next().await? {
        let total = (body.len() + chunk.len()) as u64;
        if total > bytes {
            return Err(Failure::TooLarge { bytes: total, max_bytes: bytes });
        }
        body.extend_from_slice(&chunk);
    }
    if (body.len() as u64) < bytes {
        let reason = format!("the body ended after {} of {bytes} bytes", body.len());
        return Err(Failure::Remote(object_store::Error::Generic { store: "S3", source: reason.into() }));
    }
    Ok(body.freeze())
}

#[async_trait]
impl Store for S3Store {
    fn own(&self) -> &BucketLocator {
        &self.own.locator
    }

    async fn put(&self, key: &str, bytes: Bytes) -> Result<(), StoreError> {
        let path = path(key)?;
        if bytes.len() > SINGLE_PUT_BYTES_MAX {
            // It has its own time limit, so that it can clean up after exceeding it.
            let after = self.request_timeout;
            return match self.put_in_parts(&path, bytes).await {
                Ok(()) => Ok(()),
                Err(Failure::Remote(error)) => Err(name(error, &self.own.locator, key.to_owned(), after)),
                Err(Failure::TooLarge { bytes, max_bytes }) => {
                    Err(StoreError::TooLarge { key: key.to_owned(), bytes, max_bytes })
                }
            };
        }
        self.within(&self.own.locator, key, async {
            self.writer.put(&path, bytes.into()).await?;
            Ok(())
        })
        .await
    }

    async fn put_as(&self, who: Stranger, key: &str, bytes: Bytes) -> Result<(), StoreError> {
        let path = path(key)?;
        let stranger = match who {
            Stranger::Published => self.clients.build(&self.own.locator)?,
            Stranger::Nobody => self.clients.build_unsigned(&self.own.locator)?,
        };
        self.within(&self.own.locator, key, async {
            stranger.put(&path, bytes.into()).await?;
            Ok(())
        })
        .await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        let path = path(key)?;
        let deleted = self.within(&self.own.locator, key, async { Ok(self.writer.delete(&path).await?) }).await;
        match deleted {
            Err(StoreError::NotFound { .. }) => Ok(()),
            other => other,
        }
    }

    async fn list(&self, prefix: &str, max: usize) -> Result<Vec<ObjectInfo>, StoreError> {
        let folder = keys::check_folder(prefix)?;
        let path = if folder.is_empty() { None } else { Some(path(folder)?) };
        self.within(&self.own.locator, folder, async {
            let listed = self.writer.list(path.as_ref()).take(max);
            let info = |meta: object_store::ObjectMeta| ObjectInfo { key: meta.location.into(), bytes: meta.size };
            Ok(listed.map_ok(info).try_collect().await?)
        })
        .await
    }

    async fn get(&self, from: &BucketLocator, key: &str, max_bytes: u64) -> Result<Bytes, StoreError> {
        let path = path(key)?;
        let client = self.clients.get(from)?;
        self.within(from, key, read(&client, &path, max_bytes)).await
    }
}

fn path(key: &str) -> Result<Path, StoreError> {
    keys::check(key)?;
    let reason = "it is not the path of an object";
    Path::parse(key).map_err(|_| StoreError::BadKey { key: key.to_owned(), reason })
}

/// What goes wrong inside an operation, before its bucket and key are named.
enum Failure {
    TooLarge { bytes: u64, max_bytes: u64 },
    Remote(object_store::Error),
}

impl From<object_store::Error> for Failure {
    fn from(error: object_store::Error) -> Self {
        Self::Remote(error)
    }
}

fn timed_out() -> object_store::Error {
    let source = HttpError::new(HttpErrorKind::Timeout, std::io::Error::from(std::io::ErrorKind::TimedOut));
    object_store::Error::Generic { store: "S3", source: Box::new(source) }
}

fn name(error: object_store::Error, at: &BucketLocator, key: String, after: Duration) -> StoreError {
    use object_store::Error;
    let (endpoint, bucket) = (at.endpoint.clone(), at.bucket.clone());
    if let Some(skew) = causes(&error).find_map(<dyn StdError>::downcast_ref::<http::ClockSkew>) {
        return StoreError::ClockSkew { bucket, ahead_s: skew.ahead_s };
    }
    match error {
        Error::NotFound { .. } => StoreError::NotFound { key },
        error if causes(&error).any(<dyn StdError>::is::<http::Denied>) => StoreError::Denied { bucket, key },
        error if causes(&error).any(is_timeout) => StoreError::Timeout { bucket, key, after },
        error => StoreError::Unavailable { endpoint, bucket, key, source: Box::new(error) },
    }
}

/// An error and what caused it, outermost first.
fn causes(error: &object_store::Error) -> impl Iterator<Item = &(dyn StdError + 'static)> {
    std::iter::successors(Some(error as &(dyn StdError + 'static)), |&cause| cause.source())
}

fn is_timeout(cause: &(dyn StdError + 'static)) -> bool {
    cause.downcast_ref::<HttpError>().is_some_and(|http| http.kind() == HttpErrorKind::Timeout)
}
