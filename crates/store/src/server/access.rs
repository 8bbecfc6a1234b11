//! Who may do what on the embedded server. Everything that is not allowed here is denied, including unknown operations.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use async_trait::async_trait;
use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::{S3Auth, SecretKey};
use s3s::{S3Result, s3_error};

use crate::server::spec::{BucketSpec, ServerError};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Right {
    Read,
    Write,
}

/// S3's names of operations.
const READS: [&str; 2] = ["GetObject", "HeadObject"];
const WRITES: [&str; 7] = [
    "PutObject",
    "DeleteObject",
    "ListObjectsV2",
    "CreateMultipartUpload",
    "UploadPart",
    "CompleteMultipartUpload",
    "AbortMultipartUpload",
];

struct Grant {
    bucket: String,
    right: Right,
    secret: SecretKey,
}

/// Every access key, and the one bucket and right that it opens.
#[derive(Clone)]
pub(super) struct Rights(Arc<HashMap<String, Grant>>);

impl Rights {
    pub(super) fn new(buckets: &[BucketSpec]) -> Result<Self, ServerError> {
        let mut names = HashSet::new();
        let mut grants = HashMap::new();
        for bucket in buckets {
            let name = bucket.name.clone();
            if !s3s::path::check_bucket_name(&name) {
                return Err(ServerError::BadBucketName { name });
            }
            if !names.insert(name.clone()) {
                return Err(ServerError::DuplicateBucket { name });
            }
            for (right, credential) in [(Right::Write, &bucket.write), (Right::Read, &bucket.read)] {
                let secret = SecretKey::from(credential.secret_access_key.clone());
                let access_key_id = credential.access_key_id.clone();
                if grants.insert(access_key_id.clone(), Grant { bucket: name.clone(), right, secret }).is_some() {
                    return Err(ServerError::DuplicateAccessKey { access_key_id });
                }
            }
        }
        Ok(Self(Arc::new(grants)))
    }

    fn allows(&self, access_key_id: &str, operation: &str, bucket: &str) -> bool {
        let Some(grant) = self.0.get(access_key_id) else { return false };
        let allowed = match grant.right {
            Right::Read => READS.contains(&operation),
            Right::Write => READS.contains(&operation) || WRITES.contains(&operation),
        };
        allowed && grant.bucket == bucket
    }
}

#[async_trait]
impl S3Auth for Rights {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        let grant = self.0.get(access_key).ok_or_else(|| s3_error!(InvalidAccessKeyId))?;
        Ok(grant.secret.clone())
    }
}

#[async_trait]
impl S3Access for Rights {
    async fn check(&self, context: &mut S3AccessContext<'_>) -> S3Result<()> {
        if let Some(credentials) = context.credentials()
            && let Some(bucket) = context.s3_path().get_bucket_name()
            && self.allows(&credentials.access_key, context.s3_op().name(), bucket)
        {
            return Ok(());
        }
        Err(s3_error!(AccessDenied))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dev_credentials;

    #[test]
    fn every_key_opens_one_bucket_and_unknown_operations_are_denied() {
        let spec = |name: &str| {
            let (write, read) = dev_credentials(1, name);
            BucketSpec { name: name.into(), write, read }
        };
        let (a, b) = (spec("aaa"), spec("bbb"));
        let rights = Rights::new(&[a.clone(), b.clone()]).unwrap();
        let allows = |key: &crate::Credential, operation: &str, bucket: &str| {
            rights.allows(&key.access_key_id, operation, bucket)
        };
        for operation in READS.into_iter().chain(WRITES) {
            assert!(allows(&a.write, operation, "aaa"));
            assert!(!allows(&a.write, operation, "bbb"));
            assert_eq!(allows(&a.read, operation, "aaa"), READS.contains(&operation));
            assert!(!allows(&a.read, operation, "bbb"));
            assert!(!rights.allows("nobody", operation, "aaa"));
        }
        for operation in
            ["CopyObject", "UploadPartCopy", "ListBuckets", "DeleteBucket", "PutBucketPolicy", "PostObject", ""]
        {
            assert!(!allows(&a.write, operation, "aaa"), "{operation}");
        }
        let shared = BucketSpec { read: a.write.clone(), ..b };
        assert!(matches!(Rights::new(&[a.clone(), shared]), Err(ServerError::DuplicateAccessKey { .. })));
        assert!(matches!(Rights::new(&[a.clone(), a]), Err(ServerError::DuplicateBucket { .. })));
        assert!(matches!(Rights::new(&[spec("../x")]), Err(ServerError::BadBucketName { .. })));
    }
}
