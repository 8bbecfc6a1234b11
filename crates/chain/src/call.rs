//! What a hotkey can ask of the dev chain: a [`Call`], signed over its canonical bytes.
//!
//! The signature covers the chain's genesis, the subnet, a nonce and the call, so that it is valid once, here, and for
//! nothing else.

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};
use templar_protocol::{
    hash::Hash32,
    keys::{Hotkey, Keypair, Signature},
};

use crate::error::ChainError;

/// Fields of one commitment (Bittensor: `BoundedVec<Data, 3>`).
pub const FIELDS_MAX: usize = 3;
/// Bytes of one field (Bittensor: `Data::Raw128`).
pub const FIELD_BYTES_MAX: usize = 128;
/// What the shortest commitment costs against the quota.
pub const COMMITMENT_COST_BYTES_MIN: u64 = 100;
/// The most neurons that a subnet can have, hence the most weights of one call.
pub const UIDS_MAX: u16 = 256;
/// No valid signed call is longer: 256 weights of 4 bytes and some 200 more. Checked before anything is decoded.
pub const SIGNED_CALL_BYTES_MAX: usize = 2048;

/// How often a call is signed again because another task or process of the same hotkey used its nonce first.
const NONCE_TRIES_MAX: u32 = 8;

/// The bytes are not a signed call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("the call of {bytes} bytes is not a signed call in canonical encoding ({reason}); check the versions")]
pub struct MalformedCall {
    pub bytes: u64,
    pub reason: String,
}

/// A call as a hotkey signs it.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Call {
    /// Replaces the hotkey's commitment by these fields.
    Commit { fields: Vec<Vec<u8>> },
    /// Replaces the hotkey's weights by these (uid, weight).
    SetWeights { weights: Vec<(u16, u16)>, version_key: u64 },
}

/// A call with everything that makes it valid once.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct SignedCall {
    pub hotkey: Hotkey,
    pub netuid: u16,
    pub nonce: u64,
    pub call: Call,
    pub signature: Signature,
}

impl SignedCall {
    pub fn sign(key: &Keypair, genesis: Hash32, netuid: u16, nonce: u64, call: Call) -> Self {
        let signature = key.sign(&signed_bytes(genesis, netuid, nonce, &call));
        Self { hotkey: key.hotkey(), netuid, nonce, call, signature }
    }

    /// Checks the signature for the chain with this genesis.
    pub fn verify(&self, genesis: Hash32) -> Result<(), ChainError> {
        let message = signed_bytes(genesis, self.netuid, self.nonce, &self.call);
        if self.hotkey.verify(&message, &self.signature) {
            Ok(())
        } else {
            Err(ChainError::BadSignature { hotkey: self.hotkey })
        }
    }

    /// Canonical (Borsh) bytes, as they go over the wire.
    pub fn encode(&self) -> Vec<u8> {
        borsh::to_vec(self).expect("memory accepts every byte")
    }

    /// Decodes a stranger's bytes; never reserves more memory than their length justifies.
    pub fn decode(bytes: &[u8]) -> Result<Self, MalformedCall> {
        let malformed = |reason: String| MalformedCall { bytes: bytes.len() as u64, reason };
        if bytes.len() > SIGNED_CALL_BYTES_MAX {
            return Err(malformed(format!("more than {SIGNED_CALL_BYTES_MAX} bytes")));
        }
        borsh::from_slice(bytes).map_err(|error| malformed(error.to_string()))
    }
}

fn signed_bytes(genesis: Hash32, netuid: u16, nonce: u64, call: &Call) -> Vec<u8> {
    let domain = *b"templar dev chain call v1";
    borsh::to_vec(&(domain, genesis, netuid, nonce, call)).expect("memory accepts every byte")
}

/// Submits with the next nonce of a hotkey, and again if another task or process of the same hotkey was faster.
pub(crate) async fn with_next_nonce<N, S>(next: impl Fn() -> N, submit: impl Fn(u64) -> S) -> Result<(), ChainError>
where
    N: Future<Output = Result<u64, ChainError>>,
    S: Future<Output = Result<(), ChainError>>,
{
    let mut tries = 1;
    loop {
        match submit(next().await?).await {
            Err(ChainError::StaleNonce { .. }) if tries < NONCE_TRIES_MAX => tries += 1,
            done => return done,
        }
    }
}

/// What a commitment costs against the quota; refuses any shape that the chain does not accept.
pub fn commitment_cost_bytes(fields: &[Vec<u8>]) -> Result<u64, ChainError> {
    let longest_bytes = fields.iter().map(Vec::len).max().unwrap_or(0);
    if fields.is_empty() || fields.len() > FIELDS_MAX || longest_bytes > FIELD_BYTES_MAX {
        let (fields, longest_bytes) = (fields.len() as u64, longest_bytes as u64);
        return Err(ChainError::CommitmentShape { fields, longest_bytes });
    }
    let bytes: usize = fields.iter().map(Vec::len).sum();
    Ok((bytes as u64).max(COMMITMENT_COST_BYTES_MIN))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn longest_valid_call() -> SignedCall {
        let weights = (0..UIDS_MAX).map(|uid| (uid, u16::MAX)).collect();
        let call = Call::SetWeights { weights, version_key: u64::MAX };
        SignedCall::sign(&Keypair::from_seed([1; 32]), Hash32::of(b"genesis"), 3, u64::MAX, call)
    }

    #[test]
    fn the_longest_valid_call_fits_and_a_signature_binds_everything() {
        let signed = longest_valid_call();
        assert_eq!(SignedCall::decode(&signed.encode()), Ok(signed.clone()));
        let genesis = Hash32::of(b"genesis");
        assert!(signed.verify(genesis).is_ok());
        let hotkey = signed.hotkey;
        let refused = |call: &SignedCall, genesis| matches!(call.verify(genesis), Err(ChainError::BadSignature { hotkey: named }) if named == hotkey);
        assert!(refused(&signed, Hash32::of(b"other")));
        assert!(refused(&SignedCall { nonce: 7, ..signed.clone() }, genesis));
        assert!(refused(&SignedCall { netuid: 4, ..signed.clone() }, genesis));
        let call = Call::Commit { fields: vec![vec![0]] };
        assert!(refused(&SignedCall { call, ..signed }, genesis));
    }

    proptest! {
        #[test]
        fn decoding_is_total_and_canonical(mut bytes in prop::collection::vec(any::<u8>(), 0..300), cut in 0..1300usize) {
            let whole = longest_valid_call().encode();
            prop_assert!(SignedCall::decode(&whole[..cut % whole.len()]).is_err());
            if let Ok(call) = SignedCall::decode(&bytes) {
                prop_assert_eq!(call.encode(), bytes.clone());
            }
            bytes.resize(SIGNED_CALL_BYTES_MAX + 1, 0);
            prop_assert!(SignedCall::decode(&bytes).is_err());
        }
    }
}
