//! The folder in which a dataset is built, and the moment at which it replaces an earlier one.
//!
//! All files are built in a folder within the target, so that a rename puts each into place. The earlier dataset stays
//! whole until then. Its manifest moves out before anything else changes, and the new manifest comes last. An
//! interruption therefore leaves the old dataset, the new one, or a folder without a manifest, which does not open. In
//! the last case the manifests that are still in the staging folder identify the files that were left.

use std::collections::HashSet;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use crate::folder::{Contents, STAGING_FOLDER, contents, names, read_manifest};
use crate::manifest::{MANIFEST_FILE, Manifest, shard_files};
use crate::prepare::error::{Holds, PrepareError};
use crate::prepare::options::Existing;
use crate::tokenizer::TOKENIZER_FILE;

const LOCK_FILE: &str = "lock";
/// Within the staging folder: the manifest and the tokenizer of the dataset that is replaced.
const OLD_FOLDER: &str = "old";

/// A place for a dataset that is being built; its content is deleted unless it is committed.
#[derive(Debug)]
pub(crate) struct Staging {
    out: PathBuf,
    dir: PathBuf,
    /// Files of an earlier dataset in the target, by name.
    old: Vec<String>,
    /// Whether the target did not exist before.
    is_new: bool,
    /// Held as long as this preparation works.
    _lock: File,
}

impl Staging {
    /// Prepares a place in the folder `out`, which is created if needed. `has_tokenizer`: the new dataset has a
    /// tokenizer file.
    pub(crate) fn open(out: &Path, existing: Existing, has_tokenizer: bool) -> Result<Self, PrepareError> {
        if out.is_file() {
            return Err(PrepareError::OutIsFile { path: out.to_owned() });
        }
        let dir = out.join(STAGING_FOLDER);
        let is_new = !out.exists();
        // This is checked before anything is written, so that a refusal changes nothing.
        if !is_new {
            replaceable(out, &dir, existing, has_tokenizer)?;
        }
        fs::create_dir_all(&dir).map_err(PrepareError::write(&dir))?;
        // What is in it will be removed, so it must be a folder of ours and not a link to somebody else's.
        if !fs::symlink_metadata(&dir).is_ok_and(|metadata| metadata.is_dir()) {
            return Err(PrepareError::InTheWay { path: dir });
        }
        let lock = lock(&dir, out)?;
        // It is checked again, now that nobody else writes here.
        let old = replaceable(out, &dir, existing, has_tokenizer)?;
        clear(&dir).map_err(PrepareError::write(&dir))?;
        Ok(Self { out: out.to_owned(), dir, old, is_new, _lock: lock })
    }

    /// Where the new dataset's files are built.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Puts the dataset into its place; all its files lie in the staging folder.
    pub(crate) fn commit(self, manifest: &Manifest) -> Result<(), PrepareError> {
        let shards = shard_files(manifest);
        self.move_shards(shards.iter().map(|(name, ..)| name)).map_err(PrepareError::write(&self.out))?;
        self.swap().map_err(PrepareError::write(&self.out))?;
        let kept = names(manifest);
        for name in self.old.iter().filter(|name| !kept.contains(*name)) {
            let path = self.out.join(name);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(PrepareError::write(&path)(error)),
                _ => {}
            }
        }
        Ok(())
    }

    /// A shard is named by its content, so these moves do not disturb a dataset that shares some of them.
    fn move_shards<'a>(&self, names: impl Iterator<Item = &'a String>) -> io::Result<()> {
        for name in names {
            fs::rename(self.dir.join(name), self.out.join(name))?;
        }
        sync(&self.out)
    }

    /// Moves the old manifest and tokenizer out and the new ones in. If that fails, the old ones are put back.
    fn swap(&self) -> io::Result<()> {
        let old = self.dir.join(OLD_FOLDER);
        fs::create_dir(&old)?;
        let done = self.swap_through(&old);
        if done.is_err() {
            for name in [TOKENIZER_FILE, MANIFEST_FILE] {
                let _ = fs::rename(old.join(name), self.out.join(name));
            }
        }
        done
    }

    fn swap_through(&self, old: &Path) -> io::Result<()> {
        let is_old = |name: &str| self.old.iter().any(|old| old == name);
        for name in [MANIFEST_FILE, TOKENIZER_FILE] {
            if is_old(name) {
                fs::rename(self.out.join(name), old.join(name))?;
            }
        }
        // Without this, a power failure could keep the new tokenizer and the old manifest.
        sync(&self.out)?;
        for name in [TOKENIZER_FILE, MANIFEST_FILE] {
            if self.dir.join(name).exists() {
                fs::rename(self.dir.join(name), self.out.join(name))?;
            }
        }
        sync(&self.out)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
        if self.is_new {
            // The folder stays if it is not empty.
            let _ = fs::remove_dir(&self.out);
        }
    }
}

/// The files that may be replaced, or why the folder must be left alone.
fn replaceable(
    out: &Path,
    staging: &Path,
    existing: Existing,
    has_tokenizer: bool,
) -> Result<Vec<String>, PrepareError> {
    let read = |error| PrepareError::write(out)(error);
    let mut manifests = Vec::new();
    for dir in [out, staging, &staging.join(OLD_FOLDER)] {
        manifests.extend(read_manifest(dir).map_err(read)?.and_then(Result::ok));
    }
    let Contents { own, strays } = contents(out, &manifests).map_err(read)?;
    let holds = match (own.iter().any(|name| name == MANIFEST_FILE), own.is_empty(), strays.first()) {
        (true, ..) => Holds::Dataset,
        (false, false, _) => Holds::Leftovers,
        (false, true, Some(example)) => Holds::Others { example: example.clone() },
        (false, true, None) => return Ok(own),
    };
    if existing == Existing::Refuse || matches!(holds, Holds::Others { .. }) {
        return Err(PrepareError::NotEmpty { path: out.to_owned(), holds });
    }
    let needed: HashSet<&str> = [MANIFEST_FILE].into_iter().chain(has_tokenizer.then_some(TOKENIZER_FILE)).collect();
    match strays.iter().find(|name| needed.contains(name.as_str())) {
        Some(name) => Err(PrepareError::InTheWay { path: out.join(name) }),
        None => Ok(own),
    }
}

fn lock(dir: &Path, out: &Path) -> Result<File, PrepareError> {
    let path = dir.join(LOCK_FILE);
    let file = File::create(&path).map_err(PrepareError::write(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(PrepareError::Busy { path: out.to_owned() }),
        Err(TryLockError::Error(source)) => Err(PrepareError::Write { path, source }),
    }
}

/// Removes what an interrupted preparation left in the staging folder.
fn clear(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else if entry.file_name() != LOCK_FILE {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Makes renames in a folder durable.
fn sync(dir: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(dir)?.sync_all() } else { Ok(()) }
}
