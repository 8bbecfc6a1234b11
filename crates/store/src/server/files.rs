//! Objects as files. Nobody but the server reads them.
//!
//! `ROOT/BUCKET/objects/KEY` holds an object, with `+` (which no key has) for `/`, so that a bucket is one flat folder
//! and no key can leave it or hide another. What arrives is written to `ROOT/BUCKET/incoming/N` and renamed when it is
//! complete and its signature right: a reader sees an old object or a new one, never a part.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;

/// Largest object that the server takes.
pub const OBJECT_BYTES_MAX: u64 = 8 << 30;

/// A sender that sends nothing for this long is cut off.
const STALL: Duration = Duration::from_mins(1);

#[derive(Debug)]
pub(super) struct Files {
    root: PathBuf,
    /// Numbers incoming files and uploads.
    next: AtomicU64,
    /// Held by everything that may still touch the folder, including threads whose client has gone.
    busy: mpsc::Sender<Infallible>,
}

/// What is known of an object without reading it.
#[derive(Clone, Debug)]
pub(super) struct Stat {
    pub(super) bytes: u64,
    pub(super) modified: SystemTime,
    /// Changes whenever the object is replaced.
    pub(super) tag: String,
}

impl Stat {
    pub(super) fn of(metadata: &fs::Metadata) -> io::Result<Self> {
        let modified = metadata.modified()?;
        let nanos = modified.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
        // A replaced object is another file, so the inode differs even within one tick of the clock.
        #[cfg(unix)]
        let file = std::os::unix::fs::MetadataExt::ino(metadata);
        #[cfg(not(unix))]
        let file = 0;
        Ok(Self { bytes: metadata.len(), modified, tag: format!("{file:x}-{nanos:x}-{:x}", metadata.len()) })
    }
}

/// Why a body was not stored.
#[derive(Debug)]
pub(super) enum ReceiveError {
    TooLarge,
    /// The sender stopped, or its bytes do not match their signature.
    Sender(Box<dyn std::error::Error + Send + Sync>),
    Disk(io::Error),
}

/// A file that is being written; it is removed unless it is kept.
#[derive(Debug)]
pub(super) struct Incoming {
    path: PathBuf,
    kept: bool,
    _busy: mpsc::Sender<Infallible>,
}

impl Incoming {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the file its final place.
    pub(super) fn keep(mut self, target: &Path) -> io::Result<()> {
        fs::rename(&self.path, target)?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if !self.kept {
            // If this fails, the next start clears the folder.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Files {
    /// Makes or finds the folders of `buckets`, and clears what an earlier server left unfinished. The receiver that
    /// comes with it ends when nothing touches the folder any more.
    pub(super) fn open(root: &Path, buckets: &[String]) -> io::Result<(Self, mpsc::Receiver<Infallible>)> {
        for bucket in buckets {
            let folder = root.join(bucket);
            fs::create_dir_all(folder.join("objects"))?;
            let incoming = folder.join("incoming");
            match fs::remove_dir_all(&incoming) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => fs::create_dir(&incoming)?,
            }
        }
        let (busy, idle) = mpsc::channel(1);
        Ok((Self { root: root.to_owned(), next: AtomicU64::new(0), busy }, idle))
    }

    pub(super) fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// The file of an object. `key` has passed [`crate::keys::check`].
    pub(super) fn object(&self, bucket: &str, key: &str) -> PathBuf {
        self.root.join(bucket).join("objects").join(key.replace('/', "+"))
    }

    pub(super) fn incoming(&self, bucket: &str) -> Incoming {
        let name = self.number().to_string();
        let path = self.root.join(bucket).join("incoming").join(name);
        Incoming { path, kept: false, _busy: self.busy.clone() }
    }

    /// Writes a body of at most `max_bytes` to a new incoming file, and says what that file is.
    pub(super) async fn receive<E>(
        &self,
        bucket: &str,
        mut body: impl Stream<Item = Result<Bytes, E>> + Unpin,
        max_bytes: u64,
    ) -> Result<(Incoming, Stat), ReceiveError>
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let incoming = self.incoming(bucket);
        // The guard goes along to the thread that creates the file: were it left here, a client that goes away in
        // between would have it removed before it is there.
        let create = move || fs::File::create(incoming.path()).map(|file| (incoming, file));
        let created = tokio::task::spawn_blocking(create).await.map_err(io::Error::other).flatten();
        let (incoming, file) = created.map_err(ReceiveError::Disk)?;
        let mut file = tokio::fs::File::from_std(file);
        let mut received = 0;
        loop {
            let next = tokio::time::timeout(STALL, body.next()).await;
            let Some(chunk) = next.map_err(|stalled| ReceiveError::Sender(stalled.into()))? else { break };
            let chunk = chunk.map_err(|error| ReceiveError::Sender(error.into()))?;
            received += chunk.len() as u64;
            if received > max_bytes {
                return Err(ReceiveError::TooLarge);
            }
            file.write_all(&chunk).await.map_err(ReceiveError::Disk)?;
        }
        file.flush().await.map_err(ReceiveError::Disk)?;
        let metadata = file.metadata().await.map_err(ReceiveError::Disk)?;
        Ok((incoming, Stat::of(&metadata).map_err(ReceiveError::Disk)?))
    }

    /// The first `max` objects after `after` whose keys start with `prefix`, and whether there are more. Blocks.
    pub(super) fn list(
        &self,
        bucket: &str,
        prefix: &str,
        after: &str,
        max: usize,
    ) -> io::Result<(Vec<(String, Stat)>, bool)> {
        let mut keys = Vec::new();
        for entry in fs::read_dir(self.root.join(bucket).join("objects"))? {
            let Ok(name) = entry?.file_name().into_string() else { continue };
            let key = name.replace('+', "/");
            if key.starts_with(prefix) && key.as_str() > after {
                keys.push(key);
            }
        }
        keys.sort_unstable();
        let more = keys.len() > max;
        keys.truncate(max);
        let mut objects = Vec::with_capacity(keys.len());
        for key in keys {
            match fs::metadata(self.object(bucket, &key)) {
                Ok(metadata) => objects.push((key, Stat::of(&metadata)?)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {} // deleted meanwhile
                Err(error) => return Err(error),
            }
        }
        Ok((objects, more))
    }
}
