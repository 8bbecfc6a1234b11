//! Who may do what with a bucket: its credentials, and the pair of locator and write credential that an owner holds.

use std::fmt;

use templar_protocol::{bucket::BucketLocator, hash::Hash32};

/// An S3 access key. Its debug output hides the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential {
    pub access_key_id: String,
    pub secret_access_key: String,
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential").field("access_key_id", &self.access_key_id).finish_non_exhaustive()
    }
}

/// A bucket as its owner knows it.
#[derive(Clone, Debug)]
pub struct OwnBucket {
    /// What the owner publishes: the place, and a credential that may only read.
    pub locator: BucketLocator,
    /// What the owner keeps to itself.
    pub write: Credential,
}

/// The (write, read) credentials of a bucket in a local network, derived from `seed`.
///
/// **Insecure by design**: whoever knows the seed knows the credentials. They let separate processes of one local
/// network agree without a file, and are short enough (16 and 24 characters) that a locator fits a commitment field.
pub fn dev_credentials(seed: u64, bucket: &str) -> (Credential, Credential) {
    let derive = |context, letter| {
        let digest = Hash32::derive(context, &[&seed.to_le_bytes(), bucket.as_bytes()].concat()).to_string();
        Credential { access_key_id: format!("{letter}{}", &digest[..15]), secret_access_key: digest[15..39].to_owned() }
    };
    (
        derive("templar v1 insecure development credential, write", 'w'),
        derive("templar v1 insecure development credential, read", 'r'),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn development_credentials_differ_and_are_short() {
        let (write, read) = dev_credentials(1, "miner-0");
        assert_eq!((write.clone(), read.clone()), dev_credentials(1, "miner-0"));
        let mut ids = vec![write.access_key_id, read.access_key_id.clone()];
        for (seed, bucket) in [(2, "miner-0"), (1, "miner-1")] {
            let (write, read) = dev_credentials(seed, bucket);
            ids.extend([write.access_key_id, read.access_key_id]);
        }
        assert!(ids.iter().all(|id| id.len() == 16));
        assert_eq!(read.secret_access_key.len(), 24);
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), 6);
    }

    #[test]
    fn debug_output_hides_the_secret() {
        let (write, _) = dev_credentials(1, "miner-0");
        let shown = format!("{write:?}");
        assert!(shown.contains(&write.access_key_id) && !shown.contains(&write.secret_access_key));
    }
}
