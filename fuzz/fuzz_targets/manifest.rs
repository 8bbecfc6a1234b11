//! Manifests of datasets, as edits of a valid one and as any bytes. An accepted manifest is canonical and consistent.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use templar_data::manifest::MANIFEST_VERSION;
use templar_data::{Manifest, ShardEntry, Split, SplitManifest, TokenizerId};
use templar_protocol::hash::Hash32;

static VALID: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let split = |names: &[&str]| {
        let hash = |name: &&str| Hash32::of(name.as_bytes());
        let shards = names.iter().map(|name| ShardEntry { hash: hash(name), samples: 3, root: hash(name) }).collect();
        let samples = 3 * names.len() as u64;
        SplitManifest { shards, samples, text_bytes: 60 * samples, tokens: 64 * samples + 5 }
    };
    let manifest = Manifest {
        version: MANIFEST_VERSION,
        tokenizer: TokenizerId::Bytes,
        vocab_size: 257,
        seq_len: 64,
        token_bytes: 2,
        end_of_text: 256,
        train: split(&["a", "b"]),
        held_out: split(&["c"]),
    };
    manifest.validate().expect("valid");
    manifest.to_bytes()
});

fuzz_target!(|bytes: &[u8]| {
    check(bytes);
    let mut edited = VALID.clone();
    for edit in bytes.chunks_exact(3) {
        let at = usize::from(u16::from_le_bytes([edit[0], edit[1]])) % edited.len();
        edited[at] = edit[2];
    }
    check(&edited);
});

fn check(bytes: &[u8]) {
    let Ok(manifest) = Manifest::from_bytes(bytes) else { return };
    assert_eq!(manifest.to_bytes(), bytes);
    assert!(manifest.validate().is_ok());
    for split in [Split::Train, Split::HeldOut] {
        assert!(manifest.bytes_per_token(split).is_finite());
    }
}
