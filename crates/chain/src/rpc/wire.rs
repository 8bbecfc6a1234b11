//! What client and server agree on: names of methods, sizes, and errors as values.
//!
//! A refusal is an error object whose code names the kind and whose data is the [`ChainError`] or [`DevError`].

use jsonrpsee::types::{ErrorCode, ErrorObjectOwned};

use crate::{dev::DevError, error::ChainError};

/// Longest request: a signed call in hexadecimal, and the JSON around it.
pub(super) const REQUEST_BYTES_MAX: u32 = 8 * 1024;
/// The longest answer: a snapshot of 256 neurons (some 550 bytes each, in hexadecimal) with room to spare.
pub(super) const RESPONSE_BYTES_MAX: u32 = 1024 * 1024;

pub(super) mod method {
    pub(in crate::rpc) const GENESIS: &str = "chain_genesis";
    pub(in crate::rpc) const HEAD: &str = "chain_head";
    pub(in crate::rpc) const BLOCK_HASH: &str = "chain_blockHash";
    pub(in crate::rpc) const SUBSCRIBE_HEADS: &str = "chain_subscribeHeads";
    pub(in crate::rpc) const NEW_HEAD: &str = "chain_newHead";
    pub(in crate::rpc) const UNSUBSCRIBE_HEADS: &str = "chain_unsubscribeHeads";
    pub(in crate::rpc) const SNAPSHOT: &str = "subnet_snapshot";
    pub(in crate::rpc) const HYPERPARAMS: &str = "subnet_hyperparams";
    pub(in crate::rpc) const SUBMIT: &str = "subnet_submit";
    pub(in crate::rpc) const NONCE: &str = "dev_nonce";
    pub(in crate::rpc) const PACE: &str = "dev_pace";
    pub(in crate::rpc) const NEURONS: &str = "dev_neurons";
}

/// The code of a rule, in the range that JSON-RPC leaves to servers' own use. Codes are never reused. `None` for what
/// is not a rule.
fn rule_code(error: &ChainError) -> Option<i32> {
    Some(match error {
        ChainError::NotFinalised { .. } => 1001,
        ChainError::UnknownSubnet { .. } => 1002,
        ChainError::NotRegistered { .. } => 1101,
        ChainError::BadSignature { .. } => 1102,
        ChainError::StaleNonce { .. } => 1103,
        ChainError::CommitmentShape { .. } => 1201,
        ChainError::QuotaExceeded { .. } => 1202,
        ChainError::TooManyWeights { .. } => 1301,
        ChainError::StakeTooLow { .. } => 1302,
        ChainError::VersionKeyTooOld { .. } => 1303,
        ChainError::RateLimited { .. } => 1304,
        ChainError::NoPermit { .. } => 1305,
        ChainError::DuplicateUid { .. } => 1306,
        ChainError::UnknownUid { .. } => 1307,
        ChainError::TooFewWeights { .. } => 1308,
        ChainError::Adapter { .. } => return None,
    })
}

fn dev_code(error: &DevError) -> i32 {
    match error {
        DevError::MalformedCall(_) => 1104,
        DevError::SubnetFull { .. } => 1401,
        DevError::StakeTooHigh { .. } => 1402,
        DevError::InvalidConfig { .. } => 1501,
        DevError::OtherConfig { .. } => 1502,
        DevError::NotADevChain { .. } => 1503,
        DevError::Storage { .. } => 1504,
        DevError::TooManyParticipants { .. } => 1505,
    }
}

/// The value that a server put into a JSON-RPC error, if there is one and it agrees with the code.
pub(super) fn refusal(error: &ErrorObjectOwned) -> Option<ChainError> {
    let data = error.data()?.get();
    if let Ok(rule) = serde_json::from_str::<ChainError>(data) {
        return (rule_code(&rule) == Some(error.code())).then_some(rule);
    }
    let dev: DevError = serde_json::from_str(data).ok()?;
    (dev_code(&dev) == error.code()).then(|| dev.into())
}

impl From<ChainError> for ErrorObjectOwned {
    fn from(error: ChainError) -> Self {
        if let Some(code) = rule_code(&error) {
            return Self::owned(code, error.to_string(), Some(&error));
        }
        match error.adapter_error::<DevError>() {
            Some(dev) => Self::owned(dev_code(dev), dev.to_string(), Some(dev)),
            None => Self::owned(ErrorCode::InternalError.code(), error.to_string(), None::<()>),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_survives_the_wire_and_a_forged_one_does_not() {
        let rule =
            ChainError::QuotaExceeded { cost_bytes: 100, used_bytes: 400, quota_bytes: 450, resets_at_block: 20 };
        let shown = format!("{rule:?}");
        let full = DevError::TooManyParticipants { participants: 9 };
        let received = |sent: ChainError| {
            let text = serde_json::to_string(&ErrorObjectOwned::from(sent)).unwrap();
            refusal(&serde_json::from_str(&text).unwrap())
        };
        assert_eq!(received(full.clone().into()).unwrap().adapter_error(), Some(&full));

        for code in [1201, 1505] {
            assert!(refusal(&ErrorObjectOwned::owned(code, "quota", Some(&rule))).is_none());
            assert!(refusal(&ErrorObjectOwned::owned(1202, "full", Some(&full))).is_none());
        }
        assert!(refusal(&ErrorObjectOwned::owned(1202, "quota", None::<()>)).is_none());
        assert_eq!(format!("{:?}", received(rule).unwrap()), shown);
    }
}
