//! The name of every object in a node's bucket, and the grammar that all names keep to.
//!
//! Names start with the protocol's version and the run, so that nothing of one run can be taken for another's.

use templar_protocol::{hash::Hash32, run::RunId};

use crate::StoreError;

/// Longest key, in bytes. S3 allows 1024; this keeps every key a file name on every file system.
pub const KEY_BYTES_MAX: usize = 200;

/// What a node tries to put into its own bucket as a stranger.
pub fn probe(run: RunId) -> String {
    format!("v1/{run}/probe")
}

/// Folder of what a miner publishes.
pub fn windows(run: RunId) -> String {
    format!("v1/{run}/w")
}

/// A miner's signed header for `window`.
pub fn window_header(run: RunId, window: u64) -> String {
    format!("v1/{run}/w/{window:08}/header")
}

/// A miner's encrypted payload for `window`.
pub fn window_payload(run: RunId, window: u64) -> String {
    format!("v1/{run}/w/{window:08}/payload")
}

/// The key that opens a miner's payload, published after the put block.
pub fn window_key(run: RunId, window: u64) -> String {
    format!("v1/{run}/w/{window:08}/key")
}

/// Folder of the contributions that a validator serves because it voted for them.
pub fn held(run: RunId) -> String {
    format!("v1/{run}/held")
}

/// The header of a contribution to `window` that a validator serves, by the header's hash.
pub fn held_header(run: RunId, window: u64, header: &Hash32) -> String {
    format!("v1/{run}/held/{window:08}/{header}/header")
}

/// The ciphertext of a contribution that a validator serves, by the hash of its header.
pub fn held_payload(run: RunId, window: u64, header: &Hash32) -> String {
    format!("v1/{run}/held/{window:08}/{header}/payload")
}

/// The key of a contribution that a validator serves, by the hash of its header.
pub fn held_key(run: RunId, window: u64, header: &Hash32) -> String {
    format!("v1/{run}/held/{window:08}/{header}/key")
}

/// Folder of the contributions to `window` that a validator serves.
pub fn held_window(run: RunId, window: u64) -> String {
    format!("v1/{run}/held/{window:08}")
}

/// The inputs of a settled window, by their digest: for auditors.
pub fn archive_inputs(run: RunId, inputs: &Hash32) -> String {
    format!("v1/{run}/archive/inputs/{inputs}")
}

/// The run state after a settled window, by its digest: for auditors.
pub fn archive_state(run: RunId, state: &Hash32) -> String {
    format!("v1/{run}/archive/state/{state}")
}

/// Folder of all checkpoints of a run.
pub fn checkpoints(run: RunId) -> String {
    format!("v1/{run}/checkpoint")
}

/// A checkpoint's run state, by its digest.
pub fn checkpoint_state(run: RunId, state: &Hash32) -> String {
    format!("v1/{run}/checkpoint/{state}/state")
}

/// The run state before that of a checkpoint, by the checkpoint's digest.
pub fn checkpoint_previous(run: RunId, state: &Hash32) -> String {
    format!("v1/{run}/checkpoint/{state}/previous")
}

/// The digests of all parts of a checkpoint's parameters, one after the other.
pub fn checkpoint_parts(run: RunId, state: &Hash32) -> String {
    format!("v1/{run}/checkpoint/{state}/parts")
}

/// One part of a checkpoint's parameters, by the digest of its run state.
pub fn checkpoint_theta(run: RunId, state: &Hash32, part: u32) -> String {
    format!("v1/{run}/checkpoint/{state}/theta/{part:05}")
}

/// A piece of a dataset, by its hash: shared by all runs.
pub fn data(hash: &Hash32) -> String {
    format!("v1/data/{hash}")
}

/// The digests of all parts of the weights with this root, which runs may start from, one after the other.
pub fn weights_parts(root: &Hash32) -> String {
    format!("v1/weights/{root}/parts")
}

/// One part of the weights with this root.
pub fn weights_part(root: &Hash32, part: u32) -> String {
    format!("v1/weights/{root}/{part:05}")
}

/// Checks the grammar of keys: segments of `a-z`, `0-9`, `.`, `_` and `-`, joined by single slashes; no segment is
/// `.` or `..`. So no key can leave its bucket, differ by case alone, or need escaping in a URL.
pub fn check(key: &str) -> Result<(), StoreError> {
    let bad = |reason| Err(StoreError::BadKey { key: key.chars().take(KEY_BYTES_MAX).collect(), reason });
    if key.len() > KEY_BYTES_MAX {
        return bad("it is longer than 200 bytes");
    }
    for segment in key.split('/') {
        if matches!(segment, "" | "." | "..") {
            return bad("a segment is empty, '.' or '..'");
        }
        if !segment.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b)) {
            return bad("only a-z, 0-9, '.', '_', '-' and '/' are allowed");
        }
    }
    Ok(())
}

/// Checks a folder to list: a key, with or without a slash at its end, or nothing. Returns it without the slash.
pub(crate) fn check_folder(prefix: &str) -> Result<&str, StoreError> {
    let folder = prefix.strip_suffix('/').unwrap_or(prefix);
    if !folder.is_empty() || prefix == "/" {
        check(folder)?;
    }
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_golden_and_keep_to_the_grammar() {
        let run = RunId(Hash32([0xab; 32]));
        let hash = Hash32([0x01; 32]);
        let (r, h) = ("ab".repeat(32), "01".repeat(32));
        let names = [
            (probe(run), format!("v1/{r}/probe")),
            (windows(run), format!("v1/{r}/w")),
            (window_header(run, 7), format!("v1/{r}/w/00000007/header")),
            (window_payload(run, 12_345_678), format!("v1/{r}/w/12345678/payload")),
            (window_key(run, 0), format!("v1/{r}/w/00000000/key")),
            (held(run), format!("v1/{r}/held")),
            (held_header(run, 7, &hash), format!("v1/{r}/held/00000007/{h}/header")),
            (held_payload(run, 7, &hash), format!("v1/{r}/held/00000007/{h}/payload")),
            (held_key(run, 7, &hash), format!("v1/{r}/held/00000007/{h}/key")),
            (held_window(run, 7), format!("v1/{r}/held/00000007")),
            (archive_inputs(run, &hash), format!("v1/{r}/archive/inputs/{h}")),
            (archive_state(run, &hash), format!("v1/{r}/archive/state/{h}")),
            (checkpoints(run), format!("v1/{r}/checkpoint")),
            (checkpoint_state(run, &hash), format!("v1/{r}/checkpoint/{h}/state")),
            (checkpoint_previous(run, &hash), format!("v1/{r}/checkpoint/{h}/previous")),
            (checkpoint_parts(run, &hash), format!("v1/{r}/checkpoint/{h}/parts")),
            (checkpoint_theta(run, &hash, 42), format!("v1/{r}/checkpoint/{h}/theta/00042")),
            (data(&hash), format!("v1/data/{h}")),
            (weights_parts(&hash), format!("v1/weights/{h}/parts")),
            (weights_part(&hash, 7), format!("v1/weights/{h}/00007")),
        ];
        for (name, expected) in names {
            assert_eq!(name, expected);
            check(&name).unwrap();
        }
        check(&checkpoint_theta(run, &hash, u32::MAX)).unwrap();
        check(&window_payload(run, u64::MAX)).unwrap();
    }

    #[test]
    fn odd_keys_are_refused() {
        let long = "a".repeat(KEY_BYTES_MAX + 1);
        for key in ["", "/", "/a", "a/", "a//b", "..", "a/../b", "./a", "a b", "A", "ä", "a\0", "a%2e", "a+b", &long] {
            assert!(matches!(check(key), Err(StoreError::BadKey { .. })), "{key:?}");
        }
        for folder in ["/", "a//", "../", "a/..", "//"] {
            assert!(check_folder(folder).is_err(), "{folder:?}");
        }
        assert_eq!(check_folder("v1/a/").unwrap(), "v1/a");
        assert_eq!(check_folder("").unwrap(), "");
    }

    proptest! {
        #[test]
        fn a_valid_key_is_a_plain_url_path_and_stays_inside(key in "[a-c./_-]{0,12}") {
            if check(&key).is_ok() {
                let url = url::Url::parse("http://host/bucket/").unwrap().join(&format!("./{key}")).unwrap();
                prop_assert_eq!(url.path(), format!("/bucket/{key}"));
                let path = object_store::path::Path::parse(&key).unwrap();
                prop_assert_eq!(path.as_ref(), key.as_str());
            }
        }
    }
}
