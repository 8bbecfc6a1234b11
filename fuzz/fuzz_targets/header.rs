//! Envelopes: signed headers, as edits of a valid one and as any bytes. An accepted header is canonical and signed.
//!
//! Every header is also read as if its own hash had been committed, which a miner can do; otherwise no hostile hotkey
//! or signature would ever be checked.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use templar_protocol::hash::Hash32;
use templar_protocol::header::{Header, SignedHeader};
use templar_protocol::keys::Keypair;
use templar_protocol::roster::{EntryId, Uid};
use templar_protocol::run::RunId;

static VALID: LazyLock<SignedHeader> = LazyLock::new(|| {
    let keypair = Keypair::from_seed([7; 32]);
    let hash = |name: &str| Hash32::of(name.as_bytes());
    let header = Header {
        run: RunId(hash("run")),
        window: 5,
        entry: EntryId { uid: Uid(3), hotkey: keypair.hotkey(), registered_at_block: 9 },
        base: hash("base"),
        ciphertext_hash: hash("ciphertext"),
        ciphertext_bytes: 1000,
        key_commitment: hash("key"),
        sample_digest: hash("samples"),
        tokens: 64,
        possession: hash("possession"),
    };
    header.sign(&keypair)
});

fuzz_target!(|bytes: &[u8]| {
    check(bytes);
    let mut edited = VALID.to_bytes();
    for edit in bytes.chunks_exact(3) {
        let at = usize::from(u16::from_le_bytes([edit[0], edit[1]])) % edited.len();
        edited[at] = edit[2];
    }
    check(&edited);
});

fn check(bytes: &[u8]) {
    // The committed hash is that of the header, which precedes the 64 bytes of the signature.
    let is_valid = SignedHeader::from_bytes(bytes, &VALID.header.hash()).is_ok();
    assert_eq!(is_valid, bytes == VALID.to_bytes());
    let Ok(parsed) = borsh::from_slice::<SignedHeader>(bytes) else { return };
    assert_eq!(parsed.to_bytes(), bytes);
    if let Ok(signed) = SignedHeader::from_bytes(bytes, &parsed.header.hash()) {
        assert_eq!(signed, parsed);
        let hotkey = signed.header.entry.hotkey;
        assert!(hotkey != VALID.header.entry.hotkey || signed == *VALID, "a forged signature");
    }
}
