//! Envelopes: signed headers, as edits of a valid one and as any bytes. What is accepted is canonical and signed.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use templar_protocol::{
    fault::FaultKind,
    hash::Hash32,
    header::{Header, SignedHeader},
    keys::Keypair,
    roster::EntryId,
    run::RunId,
};

static VALID: LazyLock<SignedHeader> = LazyLock::new(|| {
    let keypair = Keypair::from_seed([7; 32]);
    let hash = |name: &str| Hash32::of(name.as_bytes());
    let header = Header {
        run: RunId(hash("run")),
        window: 5,
        entry: EntryId { uid: 3, hotkey: keypair.hotkey(), registered_at_block: 9 },
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
    let committed = VALID.header.hash();
    check(bytes, &committed);
    let mut edited = VALID.to_bytes();
    assert!(SignedHeader::from_bytes(&edited, &committed).is_ok());
    let mut changed = false;
    for edit in bytes.chunks_exact(3) {
        let at = usize::from(u16::from_le_bytes([edit[0], edit[1]])) % edited.len();
        changed |= edited[at] != edit[2];
        edited[at] = edit[2];
    }
    let result = check(&edited, &committed);
    assert!(result.is_ok() == (edited == VALID.to_bytes()) || !changed);
});

fn check(bytes: &[u8], committed: &Hash32) -> Result<(), FaultKind> {
    let signed = SignedHeader::from_bytes(bytes, committed)?;
    assert_eq!(signed.to_bytes(), bytes);
    assert_eq!(signed.header.hash(), *committed);
    Ok(())
}
