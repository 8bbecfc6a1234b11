//! Stores a dataset's files that come from elsewhere: each is checked by hash first and never half-written.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;
use templar_protocol::hash::Hash32;

use crate::manifest::{MANIFEST_FILE, Manifest, ManifestError, shard_name};
use crate::tokenizer::TOKENIZER_FILE;

/// Why a file was not stored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    #[error("{name:?} with BLAKE3 {expected} is not a file of a dataset; expected a manifest, tokenizer or shard")]
    Name { name: String, expected: Hash32 },
    #[error("{name} has the BLAKE3 {found} instead of {expected}; fetch it from another bucket")]
    WrongHash { name: String, expected: Hash32, found: Hash32 },
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error("cannot write {path}: {source}; check free space and permissions", path = path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// Stores a fetched file of a dataset in `dir`, if `bytes` have the hash `expected` and `name` is `manifest`,
/// `tokenizer.json` or the name of the shard with that hash. The folder is created if needed; an existing file of that
/// name is replaced atomically.
///
/// Fetch the `manifest` (its hash is in `run.toml`), then what [`shard_files`](crate::shard_files) lists, and
/// `tokenizer.json` if the manifest names one.
pub fn store_object(dir: &Path, expected: &Hash32, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
    // The name may come from a stranger's listing: only these three can become a path.
    if name != MANIFEST_FILE && name != TOKENIZER_FILE && name != shard_name(expected) {
        return Err(StoreError::Name { name: name.chars().take(80).collect(), expected: *expected });
    }
    let found = Hash32::of(bytes);
    if found != *expected {
        return Err(StoreError::WrongHash { name: name.to_owned(), expected: *expected, found });
    }
    if name == MANIFEST_FILE {
        Manifest::from_bytes(bytes)?;
    }
    let stored = fs::create_dir_all(dir).and_then(|()| write_whole(dir, name, bytes));
    stored.map_err(|source| StoreError::Io { path: dir.join(name), source })
}

/// Whether the file at `path` has this BLAKE3. It is read piece by piece.
pub fn file_has_hash(path: &Path, expected: &Hash32) -> io::Result<bool> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path)?)?;
    Ok(hasher.finalize().as_bytes() == expected.as_bytes())
}

/// Writes a file with all its bytes or not at all, by way of a temporary file that nobody else writes.
pub fn write_whole(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let mut file = temporary(dir)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(dir.join(name))?;
    Ok(())
}

/// A temporary file that is deleted unless it gets its name. It has the permissions of any other new file.
pub(crate) fn temporary(dir: &Path) -> io::Result<NamedTempFile<File>> {
    tempfile::Builder::new().prefix(".").suffix(".tmp").make_in(dir, |path| File::create_new(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_named_and_hashed_files_are_stored() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("data");
        let hash = Hash32::of(b"tokens");
        let name = shard_name(&hash);
        assert!(matches!(store_object(&dir, &hash, &name, b"token5"), Err(StoreError::WrongHash { .. })));
        for name in ["../evil", "/etc/passwd", "", "manifest.old", &shard_name(&Hash32::default())] {
            assert!(matches!(store_object(&dir, &hash, name, b"tokens"), Err(StoreError::Name { .. })), "{name}");
        }
        assert!(matches!(store_object(&dir, &hash, "manifest", b"tokens"), Err(StoreError::Manifest(_))));
        assert!(!dir.exists());
        store_object(&dir, &hash, &name, b"tokens").unwrap();
        store_object(&dir, &hash, &name, b"tokens").unwrap();
        assert_eq!(fs::read(dir.join(&name)).unwrap(), b"tokens");
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
    }
}
