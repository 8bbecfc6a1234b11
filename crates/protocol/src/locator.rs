//! What a node says of itself on chain: its role, its class of work, and its bucket. The first field of its commitment.

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

use crate::bucket::{BucketError, BucketLocator};
use crate::commitment::FIELD_BYTES_MAX;

/// What a node wants to be. A miner whose emission became stake stays a miner, however much stake it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[borsh(use_discriminant = true)]
#[repr(u8)]
pub enum Role {
    Miner = 1,
    Validator = 2,
}

/// The first field of a commitment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Locator {
    pub role: Role,
    /// What the roster may deal work by. 0 is the only class yet.
    pub work_class: u8,
    pub bucket: BucketLocator,
}

const VERSION: u8 = 3;

impl Locator {
    /// A locator of the usual class of work.
    pub fn new(role: Role, bucket: BucketLocator) -> Self {
        Self { role, work_class: 0, bucket }
    }

    /// Writes version, role and class of work, a byte each, then the bucket.
    pub fn encode(&self) -> Result<Vec<u8>, BucketError> {
        let mut field = vec![VERSION, self.role as u8, self.work_class];
        field.extend(self.bucket.encode()?);
        if field.len() > FIELD_BYTES_MAX {
            return Err(BucketError::TooLong { bytes: field.len() });
        }
        Ok(field)
    }

    /// The inverse of [`Locator::encode`], for a stranger's bytes.
    pub fn decode(field: &[u8]) -> Result<Self, BucketError> {
        let malformed = |reason| BucketError::Malformed { reason };
        if field.len() > FIELD_BYTES_MAX {
            return Err(BucketError::TooLong { bytes: field.len() });
        }
        let [version, role, work_class, bucket @ ..] = field else { return Err(malformed("it ends early")) };
        if *version != VERSION {
            return Err(malformed("its version is unknown"));
        }
        let role = match role {
            1 => Role::Miner,
            2 => Role::Validator,
            _ => return Err(malformed("its role is unknown")),
        };
        Ok(Self { role, work_class: *work_class, bucket: BucketLocator::decode(bucket)? })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::r2_bucket as r2;

    fn aws() -> BucketLocator {
        BucketLocator {
            endpoint: "https://s3.eu-central-1.amazonaws.com".into(),
            bucket: "miner-7".into(),
            region: "eu-central-1".into(),
            access_key_id: "A".repeat(20),
            secret_access_key: "s".repeat(40),
        }
    }

    #[test]
    fn cloud_buckets_fit_a_field() {
        for (bucket, bytes) in [(aws(), 117), (r2("miner-7"), 84), (r2(&"z".repeat(51)), 128)] {
            let locator = Locator::new(Role::Validator, bucket);
            let field = locator.encode().unwrap();
            assert_eq!((field.len(), &field[..3]), (bytes, &[3, 2, 0][..]));
            assert_eq!(Locator::decode(&field).unwrap(), locator);
            assert!(Locator::decode(&field[..field.len() - 1]).is_err());
        }
    }

    #[test]
    fn an_oversized_locator_states_its_length_and_the_limit() {
        let encode = |bucket| Locator::new(Role::Miner, bucket).encode().unwrap_err();
        assert_eq!(encode(r2(&"z".repeat(52))), BucketError::TooLong { bytes: 129 });
        let error = encode(BucketLocator { secret_access_key: "s".repeat(300), ..aws() });
        assert_eq!(error, BucketError::TooLong { bytes: 377 });
        assert!(error.to_string().contains("377 bytes") && error.to_string().contains("128"), "{error}");
    }

    #[test]
    fn unknown_versions_and_roles_are_refused() {
        let field = Locator::new(Role::Miner, r2("b0")).encode().unwrap();
        for (at, value) in [(0, 2), (1, 0), (1, 3)] {
            let mut other = field.clone();
            other[at] = value;
            assert!(Locator::decode(&other).is_err());
        }
        let mut other = field;
        other[2] = 9;
        assert_eq!(Locator::decode(&other).unwrap().work_class, 9);
    }

    proptest! {
        #[test]
        fn decoding_is_total_and_canonical(bytes in proptest::collection::vec(any::<u8>(), 0..140)) {
            if let Ok(locator) = Locator::decode(&bytes) {
                prop_assert_eq!(locator.encode().unwrap(), bytes);
            }
        }

        #[test]
        fn a_changed_field_is_refused_or_names_another_locator(at in 0usize..84, to in any::<u8>()) {
            let mut field = Locator::new(Role::Miner, r2("miner-7")).encode().unwrap();
            field[at] = to;
            if let Ok(locator) = Locator::decode(&field) {
                prop_assert_eq!(locator.encode().unwrap(), field);
            }
        }
    }
}
