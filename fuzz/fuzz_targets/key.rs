//! Published keys and the ciphertexts that they open.
#![no_main]

use libfuzzer_sys::fuzz_target;
use templar_protocol::hash::Hash32;
use templar_protocol::seal::SealKey;

fuzz_target!(|bytes: &[u8]| {
    let (key, ciphertext) = bytes.split_at(bytes.len().min(32));
    let Ok(key) = SealKey::from_bytes(key) else {
        assert_ne!(bytes.len().min(32), 32);
        return;
    };
    assert!(key.open(ciphertext.to_vec(), &Hash32::of(b"another key")).is_err());
    if let Ok(payload) = key.open(ciphertext.to_vec(), &key.commitment()) {
        assert_eq!(key.seal(payload), ciphertext);
    }
    let sealed = key.seal(ciphertext.to_vec());
    assert_eq!(key.open(sealed, &key.commitment()).as_deref(), Ok(ciphertext));
});
