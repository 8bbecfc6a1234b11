//! Where a folder shared with a worker lies, and which node owns it.
//!
//! The node that made a folder holds a lock on it for as long as it lives, however it ends. A folder without a lock was
//! therefore left by a node that was killed together with its worker. The next node removes it, because it may use up
//! memory.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

const PREFIX: &str = "templar-worker-";
/// Files that live in memory, on Linux.
const MEMORY: &str = "/dev/shm";

/// A folder for this user only, removed when it is dropped.
#[derive(Debug)]
pub(super) struct PrivateFolder {
    folder: TempDir,
    /// Held, and released by the system when this process ends.
    _lock: Option<File>,
}

impl PrivateFolder {
    pub(super) fn new(parent: &Path) -> io::Result<Self> {
        loop {
            let folder = tempfile::Builder::new().prefix(PREFIX).tempdir_in(parent)?;
            // Where folders cannot be locked, no node sweeps either.
            let lock = File::open(folder.path()).ok().filter(|folder| folder.lock().is_ok());
            // Before the lock was taken, another node may have removed the folder as abandoned.
            if folder.path().exists() {
                return Ok(Self { folder, _lock: lock });
            }
        }
    }

    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// The folder in memory if it has room for `bytes`, else the one for temporary files. First removes what dead nodes
/// left in either.
pub(super) fn parent(bytes: u64) -> PathBuf {
    let (memory, temporary) = (Path::new(MEMORY), std::env::temp_dir());
    [memory, &temporary].into_iter().for_each(sweep);
    if has_room(memory, bytes) { memory.to_owned() } else { temporary }
}

#[cfg(unix)]
fn has_room(folder: &Path, bytes: u64) -> bool {
    let is_writable = rustix::fs::access(folder, rustix::fs::Access::WRITE_OK).is_ok();
    let found = rustix::fs::statvfs(folder);
    is_writable && found.is_ok_and(|found| found.f_bavail.saturating_mul(found.f_frsize) >= bytes)
}

#[cfg(not(unix))]
fn has_room(_: &Path, _: u64) -> bool {
    false
}

/// Removes the folders in `parent` that no living node holds. What cannot be removed, such as another user's, stays.
fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.filter_map(Result::ok) {
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if !is_folder || !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        // The lock is held until the folder is gone, so that a node that has just made it notices.
        if let Ok(folder) = File::open(entry.path())
            && folder.try_lock().is_ok()
        {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(unix)]
    fn only_what_dead_nodes_left_is_removed() {
        let parent = tempfile::tempdir().unwrap();
        let live = PrivateFolder::new(parent.path()).unwrap();
        let dead = parent.path().join("templar-worker-dead");
        let other = parent.path().join("somebody-else");
        for folder in [&dead, &other] {
            fs::create_dir(folder).unwrap();
        }
        for folder in [live.path(), &dead, &other] {
            fs::write(folder.join("theta.safetensors"), "x").unwrap();
        }
        sweep(parent.path());
        assert!(live.path().join("theta.safetensors").exists() && other.exists() && !dead.exists());
        let left = live.path().to_owned();
        drop(live);
        assert!(!left.exists());
    }
}
