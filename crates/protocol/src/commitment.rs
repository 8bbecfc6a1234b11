//! What a hotkey has published on chain, as the chain stores it.

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

/// Largest field of a commitment on chain, in bytes.
pub const FIELD_BYTES_MAX: usize = 128;

/// What a hotkey has published on chain: up to three fields of up to [`FIELD_BYTES_MAX`] bytes, and the block of the
/// last change.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
pub struct Commitment {
    pub block: u64,
    pub fields: Vec<Vec<u8>>,
}
