//! Where a node's objects lie, and the credential with which anybody may read them: the first field of its commitment.
//!
//! Only read credentials are ever published. The encoding fits the 128 bytes of a commitment field.

use crate::word::FIELD_BYTES_MAX;

/// An S3 bucket that its reader may read: the public half of a node's storage.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BucketLocator {
    /// Scheme, host and optional port, such as `https://s3.eu-central-1.amazonaws.com`.
    pub endpoint: String,
    pub bucket: String,
    pub region: String,
    /// Read-only access key.
    pub access_key_id: String,
    pub secret_access_key: String,
}

/// Why a text is not a bucket locator, or does not fit a commitment field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BucketError {
    #[error("a bucket locator needs {bytes} bytes, but a commitment field holds {FIELD_BYTES_MAX}: use shorter names")]
    TooLong { bytes: usize },
    #[error("not a bucket locator: {reason}")]
    Malformed { reason: &'static str },
}

const VERSION: u8 = 1;

impl BucketLocator {
    fn parts(&self) -> [&String; 5] {
        [&self.endpoint, &self.bucket, &self.region, &self.access_key_id, &self.secret_access_key]
    }

    /// A version byte, then five strings, each behind its length in one byte.
    pub fn encode(&self) -> Result<Vec<u8>, BucketError> {
        let bytes = 1 + self.parts().iter().map(|part| 1 + part.len()).sum::<usize>();
        if bytes > FIELD_BYTES_MAX {
            return Err(BucketError::TooLong { bytes });
        }
        let mut field = vec![VERSION];
        for part in self.parts() {
            field.push(part.len() as u8);
            field.extend_from_slice(part.as_bytes());
        }
        Self::decode(&field)?;
        Ok(field)
    }

    /// The inverse of [`BucketLocator::encode`], for bytes of a stranger.
    pub fn decode(field: &[u8]) -> Result<Self, BucketError> {
        let malformed = |reason| BucketError::Malformed { reason };
        let (&version, mut rest) = field.split_first().ok_or(malformed("it is empty"))?;
        if version != VERSION {
            return Err(malformed("unknown version"));
        }
        let mut parts: [String; 5] = Default::default();
        for part in &mut parts {
            let (&length, tail) = rest.split_first().ok_or(malformed("it ends early"))?;
            let text = tail.get(..usize::from(length)).ok_or(malformed("it ends early"))?;
            if text.is_empty() || !text.iter().all(u8::is_ascii_graphic) {
                return Err(malformed("a part is empty or not printable ASCII"));
            }
            *part = String::from_utf8_lossy(text).into_owned();
            rest = &tail[usize::from(length)..];
        }
        if !rest.is_empty() {
            return Err(malformed("bytes follow its end"));
        }
        let [endpoint, bucket, region, access_key_id, secret_access_key] = parts;
        if !(endpoint.starts_with("https://") || endpoint.starts_with("http://")) {
            return Err(malformed("the endpoint is not an http(s) URL"));
        }
        if !bucket.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.') {
            return Err(malformed("the bucket's name has characters that S3 does not allow"));
        }
        Ok(Self { endpoint, bucket, region, access_key_id, secret_access_key })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_cloud_bucket_fits_a_field() {
        let locator = BucketLocator {
            endpoint: "https://s3.eu-central-1.amazonaws.com".into(),
            bucket: "miner-7".into(),
            region: "eu-central-1".into(),
            access_key_id: "A".repeat(20),
            secret_access_key: "s".repeat(40),
        };
        let field = locator.encode().unwrap();
        assert_eq!(BucketLocator::decode(&field).unwrap(), locator);
        assert!(BucketLocator::decode(&field[..field.len() - 1]).is_err());
        assert_eq!(
            BucketLocator { bucket: "b".repeat(80), ..locator }.encode().unwrap_err(),
            BucketError::TooLong { bytes: 195 }
        );
    }

    proptest! {
        #[test]
        fn decoding_is_total_and_canonical(bytes in proptest::collection::vec(any::<u8>(), 0..140)) {
            if let Ok(locator) = BucketLocator::decode(&bytes) {
                prop_assert_eq!(locator.encode().unwrap(), bytes);
            }
        }
    }
}
