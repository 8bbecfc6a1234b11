//! The embedded S3 server of local networks: real S3 over real sockets, with its objects in a folder.
//!
//! `demo` and `localnet` run it so that nodes speak to storage exactly as they will to a cloud. s3s does protocol and
//! signatures; [`access`] says who may do what; [`objects`] answers, over the files of [`files`].
//!
//! It is a development server: plain HTTP, no quota, and objects survive the death of the process but perhaps not that
//! of the machine.

mod access;
mod files;
mod objects;
mod spec;

use std::collections::HashMap;
use std::convert::Infallible;
use std::fs::{File, TryLockError};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use files::Files;
pub use files::OBJECT_BYTES_MAX;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use s3s::config::{S3Config, StaticConfigProvider};
use s3s::service::{S3Service, S3ServiceBuilder};
pub use spec::{BucketSpec, ServerError};
use templar_protocol::bucket::BucketLocator;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};

use crate::bucket::OwnBucket;

const REGION: &str = "local";
/// Locked while a server runs. No bucket can have this name.
const LOCK: &str = ".lock";
/// Connections served at once; more wait in the listener's queue.
const CONNECTIONS_MAX: usize = 512;
/// A connection on which no request comes for this long is closed.
const IDLE: Duration = Duration::from_mins(1);
/// Whatever is still running this long after a shutdown began is cut off.
const GRACE: Duration = Duration::from_secs(3);

/// A running S3 server. Dropping it stops it too, without waiting.
#[derive(Debug)]
pub struct S3Server {
    endpoint: String,
    buckets: HashMap<String, OwnBucket>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl S3Server {
    /// Serves `buckets` from the folder `root` (made if need be) at `address`, which must be on loopback; port 0 picks
    /// a free one. Objects that earlier servers kept in `root` are there again.
    pub async fn start(root: &Path, address: SocketAddr, buckets: Vec<BucketSpec>) -> Result<Self, ServerError> {
        if !address.ip().is_loopback() {
            return Err(ServerError::NotLoopback { address });
        }
        Self::start_exposed(root, address, buckets).await
    }

    /// Like [`S3Server::start`], at any address of this machine: for several machines in a network whose users are
    /// trusted, because everybody on the way reads what is sent. The others reach it under that address, so it must be
    /// one, and not `0.0.0.0`.
    pub async fn start_exposed(
        root: &Path,
        address: SocketAddr,
        buckets: Vec<BucketSpec>,
    ) -> Result<Self, ServerError> {
        if address.ip().is_unspecified() {
            return Err(ServerError::NoAddress { address });
        }
        let rights = access::Rights::new(&buckets)?;
        let names: Vec<String> = buckets.iter().map(|bucket| bucket.name.clone()).collect();
        let Root { lock, files, mut idle } = open_root(root.to_owned(), names).await?;
        let listen = |source| ServerError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(listen)?;
        let endpoint = format!("http://{}", listener.local_addr().map_err(listen)?);

        let mut service = S3ServiceBuilder::new(objects::Objects::new(files));
        service.set_auth(rights.clone()); // without it s3s would skip all checks of access
        service.set_access(rights);
        service.set_config(Arc::new(StaticConfigProvider::new(Arc::new(limits()))));
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            accept(listener, service.build(), stopped).await;
            // What a lost client began may still run on a thread; the next server must not meet it.
            idle.recv().await;
            drop(lock);
        });
        let own = buckets.into_iter().map(|bucket| (bucket.name.clone(), own_bucket(&endpoint, bucket))).collect();
        tracing::debug!(%endpoint, root = %root.display(), "S3 server started");
        Ok(Self { endpoint, buckets: own, stop, task })
    }

    /// The URL of the server, such as `http://127.0.0.1:40123`.
    pub fn endpoint(&self) -> String {
        self.endpoint.clone()
    }

    /// Everything that the owner of bucket `name` needs.
    pub fn own_bucket(&self, name: &str) -> Option<OwnBucket> {
        self.buckets.get(name).cloned()
    }

    /// Stops accepting, lets running requests end for a moment, and returns when nothing runs any more.
    pub async fn shutdown(self) {
        let _ = self.stop.send(());
        let _ = self.task.await;
    }
}

fn own_bucket(endpoint: &str, bucket: BucketSpec) -> OwnBucket {
    let locator = BucketLocator {
        endpoint: endpoint.to_owned(),
        bucket: bucket.name,
        region: REGION.into(),
        access_key_id: bucket.read.access_key_id,
        secret_access_key: bucket.read.secret_access_key,
    };
    OwnBucket { locator, write: bucket.write }
}

/// Everything that s3s reads into memory before rights are checked is bounded. Posting forms, which nobody here does,
/// is what could fill it.
fn limits() -> S3Config {
    let mut config = S3Config::default();
    config.xml_max_body_size = 2 << 20;
    config.post_object_max_file_size = 0;
    config.form_max_field_size = 1024;
    config.form_max_fields_size = 1024;
    config.form_max_parts = 1;
    config
}

/// An open folder of objects.
struct Root {
    lock: File,
    files: Files,
    /// Ends when nothing touches the folder any more.
    idle: mpsc::Receiver<Infallible>,
}

/// Locks `root` against a second server, and makes or finds the folders of `buckets`.
async fn open_root(root: PathBuf, buckets: Vec<String>) -> Result<Root, ServerError> {
    let folder = root.clone();
    let failed = |source| ServerError::Root { root: root.clone(), source };
    let open = move || -> Result<Root, TryLockError> {
        std::fs::create_dir_all(&folder).map_err(TryLockError::Error)?;
        let lock = File::create(folder.join(LOCK)).map_err(TryLockError::Error)?;
        lock.try_lock()?;
        let (files, idle) = Files::open(&folder, &buckets).map_err(TryLockError::Error)?;
        Ok(Root { lock, files, idle })
    };
    match tokio::task::spawn_blocking(open).await {
        Ok(Ok(opened)) => Ok(opened),
        Ok(Err(TryLockError::WouldBlock)) => Err(ServerError::InUse { root: root.clone() }),
        Ok(Err(TryLockError::Error(source))) => Err(failed(source)),
        Err(panic) => Err(failed(std::io::Error::other(panic))),
    }
}

/// Serves connections until told to stop, then until they have ended or the grace is over.
async fn accept(listener: TcpListener, service: S3Service, mut stopped: oneshot::Receiver<()>) {
    let mut http = auto::Builder::new(TokioExecutor::new()).http1_only();
    http.http1().timer(TokioTimer::new()).header_read_timeout(IDLE);
    let seats = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    loop {
        let next = async {
            let seat = Arc::clone(&seats).acquire_owned().await.expect("the semaphore is never closed");
            (listener.accept().await, seat)
        };
        let (accepted, seat) = tokio::select! {
            _ = &mut stopped => break,
            next = next => next,
        };
        while connections.try_join_next().is_some() {}
        let Some(socket) = usable(accepted).await else { continue };
        let connection = http.serve_connection(TokioIo::new(socket), service.clone()).into_owned();
        let connection = graceful.watch(connection);
        connections.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to the S3 server broke");
            }
            drop(seat);
        });
    }
    drop(listener);
    let _ = tokio::time::timeout(GRACE, graceful.shutdown()).await;
    connections.shutdown().await;
}

async fn usable(accepted: std::io::Result<(TcpStream, SocketAddr)>) -> Option<TcpStream> {
    match accepted {
        Ok((socket, _)) => {
            let _ = socket.set_nodelay(true); // a delayed answer is still an answer
            Some(socket)
        }
        Err(error) => {
            // Out of file descriptors, most likely: trying again at once would only burn a core.
            tracing::warn!(%error, "the S3 server cannot accept a connection");
            tokio::time::sleep(Duration::from_millis(50)).await;
            None
        }
    }
}
