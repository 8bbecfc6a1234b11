//! Sealed payloads: uploaded encrypted, opened only after the put deadline. Nobody can copy what nobody can read.

use chacha20poly1305::aead::AeadInPlace;
use chacha20poly1305::{ChaCha20Poly1305, KeyInit, Nonce, Tag};
use zeroize::Zeroize;

use crate::hash::{Hash32, Hasher};
use crate::keys::Keypair;
use crate::run::RunId;

/// Bytes by which a ciphertext is longer than its payload.
pub const SEAL_OVERHEAD_BYTES: u64 = 16;

/// The key of one payload. Its publication opens the payload for everybody.
#[derive(Clone, PartialEq, Eq)]
pub struct SealKey([u8; 32]);

impl std::fmt::Debug for SealKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SealKey(hidden)")
    }
}

/// Why a ciphertext does not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    #[error("a key has 32 bytes, not {0}")]
    KeyLength(usize),
    #[error("the key is not the one that the header commits to")]
    KeyMismatch,
    #[error("the ciphertext is not authentic under the committed key")]
    NotAuthentic,
}

impl SealKey {
    /// KDF(hotkey secret, run, window, payload hash), so that no crash makes a miner seal two payloads with one key.
    pub fn derive(keypair: &Keypair, run: RunId, window: u64, payload: &[u8]) -> Self {
        let mut hasher = Hasher::new("templar v1 seal key");
        hasher.update(keypair.seed()).update_value(&(run, window, Hash32::of(payload)));
        Self(hasher.finish().0)
    }

    /// Reads a published key.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, OpenError> {
        bytes.try_into().map(Self).map_err(|_| OpenError::KeyLength(bytes.len()))
    }

    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// What the header states of the key. ChaCha20-Poly1305 alone does not commit to a key: without this, one
    /// ciphertext could be made to open to two payloads.
    pub fn commitment(&self) -> Hash32 {
        Hash32::derive("templar v1 key commitment", &self.0)
    }

    /// Encrypts in place and appends the tag. The nonce is constant: a key seals one payload only.
    pub fn seal(&self, mut payload: Vec<u8>) -> Vec<u8> {
        let tag = self.cipher().encrypt_in_place_detached(&Nonce::default(), b"", &mut payload);
        payload.extend_from_slice(&tag.expect("payloads are far below the cipher's 256 GiB"));
        payload
    }

    /// The inverse of [`SealKey::seal`], after checking that this is the key that the header commits to.
    pub fn open(&self, mut ciphertext: Vec<u8>, commitment: &Hash32) -> Result<Vec<u8>, OpenError> {
        if self.commitment() != *commitment {
            return Err(OpenError::KeyMismatch);
        }
        let length = ciphertext.len().checked_sub(SEAL_OVERHEAD_BYTES as usize).ok_or(OpenError::NotAuthentic)?;
        let tag = Tag::clone_from_slice(&ciphertext[length..]);
        ciphertext.truncate(length);
        let opened = self.cipher().decrypt_in_place_detached(&Nonce::default(), b"", &mut ciphertext, &tag);
        opened.map_err(|_| OpenError::NotAuthentic)?;
        Ok(ciphertext)
    }

    fn cipher(&self) -> ChaCha20Poly1305 {
        ChaCha20Poly1305::new((&self.0).into())
    }
}

impl Drop for SealKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computed by another implementation, from the specification alone.
    #[test]
    fn golden() {
        let key = SealKey::derive(&Keypair::from_seed([9; 32]), RunId(Hash32::of(b"run")), 3, b"payload");
        let expected = "dc1f890fc12bbe657a68acba06cfa082662ea9f85c9708d8e798f6aed545a02a";
        assert_eq!(Hash32(*key.as_bytes()).to_string(), expected);
        let commitment = "fa28fa257435eb38f356cfbeb20e7f17dfbbbc2037252d7adc7fe46ac9b1b133";
        assert_eq!(key.commitment().to_string(), commitment);
    }

    #[test]
    fn a_ciphertext_opens_with_the_committed_key_only() {
        let (run, pair) = (RunId(Hash32::of(b"run")), Keypair::insecure_dev(1, "m"));
        let key = SealKey::derive(&pair, run, 3, b"payload");
        let sealed = key.seal(b"payload".to_vec());
        assert_eq!(sealed.len() as u64, 7 + SEAL_OVERHEAD_BYTES);
        assert_eq!(key.open(sealed.clone(), &key.commitment()).unwrap(), b"payload");

        let other = SealKey::derive(&pair, run, 3, b"another payload");
        assert_ne!(other, key);
        assert_eq!(other.open(sealed.clone(), &key.commitment()), Err(OpenError::KeyMismatch));
        assert_eq!(other.open(sealed.clone(), &other.commitment()), Err(OpenError::NotAuthentic));
        let mut broken = sealed;
        broken[0] ^= 1;
        assert_eq!(key.open(broken, &key.commitment()), Err(OpenError::NotAuthentic));
        assert_eq!(key.open(vec![1; 5], &key.commitment()), Err(OpenError::NotAuthentic));
    }

    #[test]
    fn a_key_has_32_bytes() {
        for bytes in [0, 31, 33] {
            assert_eq!(SealKey::from_bytes(&vec![7; bytes]), Err(OpenError::KeyLength(bytes)));
        }
        assert_eq!(SealKey::from_bytes(&[7; 32]).unwrap().as_bytes(), &[7; 32]);
    }
}
