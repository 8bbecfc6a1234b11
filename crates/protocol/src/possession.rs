//! Proofs that a node holds what it speaks of: θ for a miner, the payloads that count for a validator.
//!
//! A proof is keyed by its maker's hotkey, so copying another's is useless. It is checked by whoever holds the same.

use crate::hash::{Hash32, Hasher};
use crate::keys::Hotkey;
use crate::roster::EntryId;
use crate::word::VoteProof;

/// Chunks of θ in a proof, and values per chunk.
const CHUNKS: u64 = 32;
const CHUNK_VALUES: usize = 4096;

/// Proves that a miner holds θ: a BLAKE3 digest, bound to its hotkey, over chunks of θ that the window's seed picks.
///
/// Nobody can copy another's proof. With θ, making or checking one takes the time of reading half a megabyte.
pub fn of_theta(theta: &[f32], hotkey: &Hotkey, seed: &Hash32) -> Hash32 {
    let mut hasher = Hasher::new("templar v1 possession");
    hasher.update(hotkey.as_bytes()).update(seed.as_bytes());
    let mut draws = hasher.clone().into_stream();
    let chunks = theta.len().div_ceil(CHUNK_VALUES) as u64;
    for _ in 0..CHUNKS.min(chunks) {
        let nth = draws.below(chunks) as usize;
        let end = theta.len().min((nth + 1) * CHUNK_VALUES);
        let chunk = &theta[nth * CHUNK_VALUES..end];
        let bytes: Vec<u8> = chunk.iter().flat_map(|value| value.to_le_bytes()).collect();
        hasher.update(&bytes);
    }
    hasher.finish()
}

/// Digest of the payloads that were accepted last, in the order of candidates, and of the window's seed, so that
/// nobody can have worked it out before the payloads could be thrown away.
///
/// It costs one pass over all payloads; each validator's proof follows from it at no cost. It must stay secret until
/// the vote's deadline: whoever has it can make a proof without a payload.
#[derive(Clone, Debug)]
pub struct PayloadDigest(Hasher);

impl PayloadDigest {
    pub fn new(seed: &Hash32) -> Self {
        let mut hasher = Hasher::new("templar v2 payloads held");
        hasher.update(seed.as_bytes());
        Self(hasher)
    }

    /// Absorbs the next accepted payload.
    pub fn update(&mut self, payload: &[u8]) {
        self.0.update_value(&(payload.len() as u64)).update_parallel(payload);
    }

    /// The proof of `voter`.
    pub fn proof(&self, voter: &EntryId) -> VoteProof {
        let digest = Hash32::of_value("templar v2 vote proof", &(self.0.finish(), voter));
        *digest.as_bytes().first_chunk().expect("32 bytes")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Keypair;
    use crate::testing::entry;

    #[test]
    fn a_proof_is_its_makers_and_of_all_payloads_in_order() {
        let digest = |seed: &[u8], payloads: &[&[u8]]| {
            let mut digest = PayloadDigest::new(&Hash32::of(seed));
            for payload in payloads {
                digest.update(payload);
            }
            digest
        };
        let proof = digest(b"s", &[b"ab", b"c"]).proof(&entry(1));
        assert_eq!(digest(b"s", &[b"ab", b"c"]).proof(&entry(1)), proof);
        for other in [
            digest(b"s", &[b"ab", b"c"]).proof(&entry(2)),
            digest(b"t", &[b"ab", b"c"]).proof(&entry(1)),
            digest(b"s", &[b"a", b"bc"]).proof(&entry(1)),
            digest(b"s", &[b"c", b"ab"]).proof(&entry(1)),
            digest(b"s", &[b"ab"]).proof(&entry(1)),
        ] {
            assert_ne!(other, proof);
        }
    }

    /// Computed by another implementation, from the specification alone.
    #[test]
    fn golden() {
        let theta: Vec<f32> = (0..10_000u16).map(f32::from).collect();
        let proof = of_theta(&theta, &Hotkey(Hash32([7; 32])), &Hash32::of(b"seed"));
        assert_eq!(proof.to_string(), "bddfea4d584b103fc3ca00f668469480c0c8e716508af6a464e556166456153f");
    }

    /// Computed by another implementation, from the specification alone.
    #[test]
    fn golden_vote_proof() {
        let mut digest = PayloadDigest::new(&Hash32::of(b"s"));
        digest.update(b"ab");
        digest.update(b"c");
        let voter = EntryId { hotkey: Hotkey(Hash32([7; 32])), ..entry(1) };
        assert_eq!(hex::encode(digest.proof(&voter)), "b03a72870f322c1cbec5fa6be94801f8");
    }

    #[test]
    fn possession_needs_theta_and_binds_hotkey_and_seed() {
        let theta: Vec<f32> = (0..10_000u16).map(f32::from).collect();
        let (a, b) = (Keypair::insecure_dev(0, "a").hotkey(), Keypair::insecure_dev(0, "b").hotkey());
        let proof = of_theta(&theta, &a, &Hash32::of(b"seed"));
        assert_ne!(proof, of_theta(&theta, &b, &Hash32::of(b"seed")));
        assert_ne!(proof, of_theta(&theta, &a, &Hash32::of(b"later seed")));
        let zeros = vec![0.0; theta.len()];
        assert_ne!(proof, of_theta(&zeros, &a, &Hash32::of(b"seed")));
    }
}
