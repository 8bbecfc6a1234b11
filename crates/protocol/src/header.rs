//! The signed header of a contribution: what a miner binds itself to before anybody can read its payload.

use borsh::{BorshDeserialize, BorshSerialize};

use crate::fault::FaultKind;
use crate::hash::{Hash32, Hasher};
use crate::keys::{Keypair, Signature};
use crate::roster::EntryId;
use crate::run::RunId;

/// Upper bound of an encoded [`SignedHeader`].
pub const HEADER_BYTES_MAX: u64 = 1024;
/// Context of [`Header::hash`], which is over the header's bytes.
pub const HEADER_CONTEXT: &str = "templar v2 header";

/// What a contribution is, and what it is based on.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Header {
    pub run: RunId,
    pub window: u64,
    pub entry: EntryId,
    /// Digest of the [`crate::state::RunState`] that was trained from.
    pub base: Hash32,
    /// Hash of the last header that this entry had on chain at a put deadline; zeros if there is none. What it sent
    /// then and what counted since say what its error feedback was before this window.
    pub previous: Hash32,
    /// Which of the run's declared profiles of engine and precision trained; 0 is none of them.
    pub profile: u8,
    /// Inner steps taken.
    pub steps: u32,
    /// Tokens trained on.
    pub tokens: u64,
    /// [`sample_digest`] of the assigned samples.
    pub sample_digest: Hash32,
    /// [`crate::possession::of_theta`] of the base.
    pub possession: Hash32,
    /// Root over the segments of the error feedback after this payload left it ([`crate::tree`]).
    pub feedback_root: Hash32,
    pub ciphertext_hash: Hash32,
    pub ciphertext_bytes: u64,
    pub key_commitment: Hash32,
}

/// A header with its miner's signature.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct SignedHeader {
    pub header: Header,
    pub signature: Signature,
}

/// What a header must state to be valid, as the validator itself knows it.
#[derive(Clone, Debug)]
pub struct HeaderContext {
    pub run: RunId,
    pub window: u64,
    pub entry: EntryId,
    pub base: Hash32,
    pub sample_digest: Hash32,
    pub possession: Hash32,
    pub ciphertext_bytes_max: u64,
    pub steps_max: u32,
    pub tokens_max: u64,
}

impl Header {
    /// What the miner commits on chain. The signature is not part of it, so signing again after a crash changes
    /// nothing.
    pub fn hash(&self) -> Hash32 {
        Hash32::of_value(HEADER_CONTEXT, self)
    }

    pub fn sign(self, keypair: &Keypair) -> SignedHeader {
        let signature = keypair.sign(self.hash().as_bytes());
        SignedHeader { header: self, signature }
    }
}

impl SignedHeader {
    pub fn to_bytes(&self) -> Vec<u8> {
        borsh::to_vec(self).expect("a header has no value that Borsh lacks")
    }

    /// Reads a header from a stranger's bytes. It must be canonical, the one that was committed, and signed by its
    /// miner.
    pub fn from_bytes(bytes: &[u8], committed: &Hash32) -> Result<Self, FaultKind> {
        let signed: Self = borsh::from_slice(bytes).map_err(|_| FaultKind::HeaderMalformed)?;
        if signed.header.hash() != *committed {
            return Err(FaultKind::HeaderMismatch);
        }
        if !signed.header.entry.hotkey.verify(committed.as_bytes(), &signed.signature) {
            return Err(FaultKind::BadSignature);
        }
        Ok(signed)
    }
}

impl HeaderContext {
    /// Checks that `header` states what it must.
    pub fn check(&self, header: &Header) -> Result<(), FaultKind> {
        let rules = [
            // First: what follows is evidence against the entry only if its own hotkey signed it.
            (header.entry == self.entry, FaultKind::WrongEntry),
            (header.run == self.run, FaultKind::WrongRun),
            (header.window == self.window, FaultKind::WrongWindow),
            (header.base == self.base, FaultKind::WrongBase),
            (header.ciphertext_bytes <= self.ciphertext_bytes_max, FaultKind::PayloadTooLarge),
            ((1..=self.steps_max).contains(&header.steps), FaultKind::StepCount),
            (header.tokens > 0 && header.tokens <= self.tokens_max, FaultKind::TokenCount),
            (header.sample_digest == self.sample_digest, FaultKind::SampleDigest),
            (header.possession == self.possession, FaultKind::Possession),
        ];
        rules.into_iter().find(|(holds, _)| !holds).map_or(Ok(()), |(_, fault)| Err(fault))
    }
}

/// BLAKE3 over the content hashes of the assigned samples, in the order of the assignment.
pub fn sample_digest<'a>(sample_hashes: impl IntoIterator<Item = &'a Hash32>) -> Hash32 {
    let mut hasher = Hasher::new("templar v1 sample digest");
    for hash in sample_hashes {
        hasher.update(hash.as_bytes());
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Hotkey;
    use crate::testing::entry;

    type Edit = fn(&mut Header, Hash32);

    fn signed() -> (SignedHeader, HeaderContext) {
        let keypair = Keypair::insecure_dev(0, "1");
        let hash = Hash32::of(b"x");
        let header = Header {
            run: RunId(hash),
            window: 3,
            entry: entry(1),
            base: hash,
            previous: hash,
            profile: 1,
            steps: 30,
            tokens: 100,
            sample_digest: hash,
            possession: hash,
            feedback_root: hash,
            ciphertext_hash: hash,
            ciphertext_bytes: 10,
            key_commitment: hash,
        };
        let context = HeaderContext {
            run: RunId(hash),
            window: 3,
            entry: entry(1),
            base: hash,
            sample_digest: hash,
            possession: hash,
            ciphertext_bytes_max: 10,
            steps_max: 30,
            tokens_max: 100,
        };
        (header.sign(&keypair), context)
    }

    #[test]
    fn every_wrong_field_has_its_fault() {
        let (signed, context) = signed();
        assert_eq!(context.check(&signed.header), Ok(()));
        let other = Hash32::of(b"other");
        let edits: [(Edit, FaultKind); 10] = [
            (|h, other| h.run = RunId(other), FaultKind::WrongRun),
            (|h, _| h.window = 2, FaultKind::WrongWindow),
            (|h, _| h.entry.registered_at_block = 9, FaultKind::WrongEntry),
            (|h, other| h.base = other, FaultKind::WrongBase),
            (|h, _| h.ciphertext_bytes = 11, FaultKind::PayloadTooLarge),
            (|h, _| h.steps = 31, FaultKind::StepCount),
            (|h, _| h.steps = 0, FaultKind::StepCount),
            (|h, _| h.tokens = 101, FaultKind::TokenCount),
            (|h, other| h.sample_digest = other, FaultKind::SampleDigest),
            (|h, other| h.possession = other, FaultKind::Possession),
        ];
        for (edit, fault) in edits {
            let mut header = signed.header.clone();
            edit(&mut header, other);
            assert_eq!(context.check(&header), Err(fault));
        }
    }

    #[test]
    fn only_the_committed_and_signed_header_is_read() {
        let (signed, _) = signed();
        let (bytes, hash) = (signed.to_bytes(), signed.header.hash());
        assert!((bytes.len() as u64) < HEADER_BYTES_MAX);
        assert_eq!(SignedHeader::from_bytes(&bytes, &hash).unwrap(), signed);
        assert_eq!(SignedHeader::from_bytes(&bytes, &Hash32::of(b"y")), Err(FaultKind::HeaderMismatch));
        assert_eq!(SignedHeader::from_bytes(&bytes[..50], &hash), Err(FaultKind::HeaderMalformed));
        let mut forged = signed;
        forged.signature.0[3] ^= 1;
        assert_eq!(SignedHeader::from_bytes(&forged.to_bytes(), &hash), Err(FaultKind::BadSignature));
    }

    /// Computed by another implementation, from the specification alone.
    #[test]
    fn golden() {
        let (mut signed, _) = signed();
        signed.header.entry.hotkey = Hotkey(Hash32([7; 32]));
        assert_eq!(
            signed.header.hash().to_string(),
            "21d42ce7ef881ffde6d603518c2631a144b0552d34981a15dca896e3309380e5"
        );
    }
}
