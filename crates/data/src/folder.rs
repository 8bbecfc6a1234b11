//! A dataset's folder: which of its files belong to the dataset, and which are strays.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use templar_protocol::hash::Hash32;

use crate::manifest::{MANIFEST_BYTES_MAX, MANIFEST_FILE, Manifest, ManifestError, TokenizerId, shard_files};
use crate::object::file_has_hash;
use crate::tokenizer::TOKENIZER_FILE;

/// Where a node records the hash, in hexadecimal, of the manifest whose files it has checked.
pub const VERIFIED_FILE: &str = "verified";
/// The folder in which a preparation builds its files before it moves them into place.
pub(crate) const STAGING_FOLDER: &str = ".templar-prepare";

/// The entries of a folder by owner, sorted.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Contents {
    /// Names of files that preparations and nodes write.
    pub(crate) own: Vec<String>,
    /// Names of everything else, with invalid UTF-8 replaced.
    pub(crate) strays: Vec<String>,
}

/// Sorts a folder's entries by owner. `manifests` are those whose files may be here. The staging folder is left out.
pub(crate) fn contents(dir: &Path, manifests: &[Manifest]) -> io::Result<Contents> {
    let mut contents = Contents::default();
    let (mut plain, mut has_shards) = (Vec::new(), false);
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name == STAGING_FOLDER {
            continue;
        }
        let is_file = entry.file_type()?.is_file();
        if is_file && is_shard_name(&name) {
            has_shards = true;
            contents.own.push(name);
        } else if is_file {
            plain.push(name);
        } else {
            contents.strays.push(name);
        }
    }
    for name in plain {
        let is_own = match name.as_str() {
            // The shards beside it distinguish a damaged or later manifest from an unrelated file.
            MANIFEST_FILE => has_shards || read_manifest(dir)?.is_some_and(|manifest| manifest.is_ok()),
            TOKENIZER_FILE => is_tokenizer_of(&dir.join(&name), manifests)?,
            VERIFIED_FILE => has_shards || is_marker(&dir.join(&name))?,
            _ => false,
        };
        if is_own { contents.own.push(name) } else { contents.strays.push(name) }
    }
    contents.own.sort_unstable();
    contents.strays.sort_unstable();
    Ok(contents)
}

/// Names of the entries in a dataset's folder that do not belong to it, sorted. They include shards that its manifest
/// does not name, and what an interrupted preparation left.
pub(crate) fn strays(dir: &Path, manifest: &Manifest) -> io::Result<Vec<String>> {
    let named = names(manifest);
    let mut strays = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !named.contains(&name) && name != VERIFIED_FILE {
            strays.push(name);
        }
    }
    strays.sort_unstable();
    Ok(strays)
}

/// Names of all files of a dataset.
pub(crate) fn names(manifest: &Manifest) -> HashSet<String> {
    let shards = shard_files(manifest).into_iter().map(|(name, ..)| name);
    let tokenizer = match manifest.tokenizer {
        TokenizerId::Bytes => None,
        TokenizerId::Json { .. } => Some(TOKENIZER_FILE.to_owned()),
    };
    shards.chain(tokenizer).chain([MANIFEST_FILE.to_owned()]).collect()
}

/// Reads the manifest in a folder, if there is a file of that name.
pub(crate) fn read_manifest(dir: &Path) -> io::Result<Option<Result<Manifest, ManifestError>>> {
    let file = match File::open(dir.join(MANIFEST_FILE)) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        file => file?,
    };
    if !file.metadata()?.is_file() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    // One byte over the limit is enough for a refusal.
    file.take(MANIFEST_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
    Ok(Some(Manifest::from_bytes(&bytes)))
}

/// Whether a folder holds shards, with or without their manifest.
pub(crate) fn has_shards(dir: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(dir)? {
        if is_shard_name(&entry?.file_name().to_string_lossy()) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn is_shard_name(name: &str) -> bool {
    name.strip_suffix(".tokens").is_some_and(|hash| hash.parse::<Hash32>().is_ok())
}

fn is_tokenizer_of(path: &Path, manifests: &[Manifest]) -> io::Result<bool> {
    for manifest in manifests {
        if let TokenizerId::Json { hash } = &manifest.tokenizer
            && file_has_hash(path, hash)?
        {
            return Ok(true);
        }
    }
    Ok(false)
}

fn is_marker(path: &Path) -> io::Result<bool> {
    let mut text = String::new();
    // A marker is a hash and a line end; a file that is not text is not a marker.
    match File::open(path)?.take(66).read_to_string(&mut text) {
        Ok(_) => Ok(text.trim_end().parse::<Hash32>().is_ok()),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(false),
        Err(error) => Err(error),
    }
}
