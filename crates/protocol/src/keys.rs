//! Hotkeys: sr25519 keys as Bittensor uses them, signing under a context of our own.

use std::fmt;
use std::str::FromStr;

use borsh::{BorshDeserialize, BorshSerialize};
use schnorrkel::{ExpansionMode, MiniSecretKey, PublicKey};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::hash::{Hash32, ParseHashError};

const SIGNING_CONTEXT: &[u8] = b"templar";

/// A node's public identity on the chain: an sr25519 public key.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Hotkey(pub Hash32);

impl Hotkey {
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    pub fn short(&self) -> String {
        self.0.short()
    }

    /// Whether `signature` over `message` was made by this hotkey.
    pub fn verify(&self, message: &[u8], signature: &Signature) -> bool {
        let Ok(public) = PublicKey::from_bytes(self.as_bytes()) else { return false };
        let Ok(signature) = schnorrkel::Signature::from_bytes(&signature.0) else { return false };
        public.verify_simple(SIGNING_CONTEXT, message, &signature).is_ok()
    }
}

impl fmt::Display for Hotkey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Hotkey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hotkey({})", self.short())
    }
}

impl FromStr for Hotkey {
    type Err = ParseHashError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// An sr25519 signature of 64 bytes.
#[derive(Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Signature(pub [u8; 64]);

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signature({}…)", hex::encode(&self.0[..4]))
    }
}

/// A hotkey with its secret. The 32-byte seed is what a key file holds; it is wiped from memory on drop.
#[derive(Clone)]
pub struct Keypair {
    seed: Zeroizing<[u8; 32]>,
    pair: schnorrkel::Keypair,
}

impl Keypair {
    /// The key of a 32-byte seed, expanded as Substrate does it, so that a Bittensor `secretSeed` gives the same
    /// hotkey.
    pub fn from_seed(seed: [u8; 32]) -> Self {
        let mini = MiniSecretKey::from_bytes(&seed).expect("every 32 bytes are a mini secret key");
        Self { seed: Zeroizing::new(seed), pair: mini.expand_to_keypair(ExpansionMode::Ed25519) }
    }

    /// A key for local networks, tests and simulations: derived from public values, so it protects nothing.
    pub fn insecure_dev(network_seed: u64, name: &str) -> Self {
        let mut material = network_seed.to_le_bytes().to_vec();
        material.extend_from_slice(name.as_bytes());
        Self::from_seed(Hash32::derive("templar v1 insecure development key", &material).0)
    }

    pub fn hotkey(&self) -> Hotkey {
        Hotkey(Hash32(self.pair.public.to_bytes()))
    }

    pub fn seed(&self) -> &[u8; 32] {
        &self.seed
    }

    pub fn sign(&self, message: &[u8]) -> Signature {
        Signature(self.pair.sign_simple(SIGNING_CONTEXT, message).to_bytes())
    }
}

impl fmt::Debug for Keypair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keypair({}, secret hidden)", self.hotkey().short())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn substrate_seed_gives_the_substrate_key() {
        // The well-known development account //Alice: public values of the Substrate project.
        let seed = "e5be9a5092b81bca64be81d212e7f2f9eba183bb7a90954f7b76361f6edb5c0a".parse::<Hash32>().unwrap();
        let alice = "d43593c715fdd31c61141abd04a99fd6822c8558854ccde39a5684e7a56da27d";
        assert_eq!(Keypair::from_seed(seed.0).hotkey().to_string(), alice);
    }

    #[test]
    fn a_signature_binds_key_and_message() {
        let (a, b) = (Keypair::insecure_dev(1, "a"), Keypair::insecure_dev(1, "b"));
        let signature = a.sign(b"window 3");
        assert!(a.hotkey().verify(b"window 3", &signature));
        assert!(!a.hotkey().verify(b"window 4", &signature));
        assert!(!b.hotkey().verify(b"window 3", &signature));
        assert!(!a.hotkey().verify(b"window 3", &Signature([7; 64])));
    }
}
