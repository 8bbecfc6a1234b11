//! Where a node's objects lie, and the credential with which anybody may read them.
//!
//! Only read credentials are ever published. The encoding fits the 128 bytes of a commitment field: account numbers and
//! keys are hexadecimal with many providers, and then take half their length. Every locator has one encoding.

use crate::commitment::FIELD_BYTES_MAX;
use crate::hash::Hash32;

/// An S3 bucket with a read-only credential: the public half of a node's storage.
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

/// Why a bucket locator cannot be written to a commitment field, or read from one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BucketError {
    #[error(
        "a bucket locator takes {bytes} bytes, but a commitment field holds {FIELD_BYTES_MAX}: shorten the bucket's name, or use a provider with a shorter endpoint or shorter keys"
    )]
    TooLong { bytes: usize },
    #[error("the bucket locator is malformed: {reason}")]
    Malformed { reason: &'static str },
}

/// By form of endpoint: what precedes and what follows the part that is spelled out.
const ENDPOINT_FORMS: [(&str, &str); 3] =
    [("http://", ""), ("https://", ""), ("https://", ".r2.cloudflarestorage.com")];
/// Set in the length byte of a packed text, which has two hexadecimal digits per byte.
const PACKED: u8 = 0x80;

impl BucketLocator {
    /// Writes the endpoint's form, then five texts, each after its length in bytes. Where several forms fit, the last
    /// one is used; texts of pairs of lower-case hexadecimal digits are packed.
    pub(crate) fn encode(&self) -> Result<Vec<u8>, BucketError> {
        self.check()?;
        Ok(self.write())
    }

    /// What tells one bucket from another, whoever reads it with which credential.
    pub fn identity(&self) -> Hash32 {
        Hash32::of_value("templar v2 bucket", &(&self.endpoint, &self.bucket))
    }

    fn write(&self) -> Vec<u8> {
        let (form, host) = self.split_endpoint().unwrap_or_default();
        let mut field = vec![form];
        for text in [host, &self.bucket, &self.region, &self.access_key_id, &self.secret_access_key] {
            let is_hex = |digit: u8| digit.is_ascii_digit() || (b'a'..=b'f').contains(&digit);
            let packed = if text.bytes().all(is_hex) { hex::decode(text).ok() } else { None };
            let (mark, bytes) = packed.as_ref().map_or((0, text.as_bytes()), |packed| (PACKED, packed.as_slice()));
            // A text too long for its length byte makes the field too long, so the cut length is never used.
            field.push(mark | (bytes.len() as u8 & !PACKED));
            field.extend_from_slice(bytes);
        }
        field
    }

    /// The last form that fits the endpoint, and the part that it leaves to be spelled out.
    fn split_endpoint(&self) -> Option<(u8, &str)> {
        ENDPOINT_FORMS.iter().enumerate().rev().find_map(|(form, (before, after))| {
            let host = self.endpoint.strip_prefix(before)?.strip_suffix(after)?;
            (!host.is_empty()).then_some((form as u8, host))
        })
    }

    /// The inverse of [`BucketLocator::encode`], for a stranger's bytes.
    pub(crate) fn decode(field: &[u8]) -> Result<Self, BucketError> {
        let malformed = |reason| BucketError::Malformed { reason };
        let [form, rest @ ..] = field else { return Err(malformed("it ends early")) };
        let (before, after) =
            ENDPOINT_FORMS.get(usize::from(*form)).ok_or(malformed("its form of endpoint is unknown"))?;
        let mut rest = rest;
        let mut texts: [String; 5] = Default::default();
        for text in &mut texts {
            let (&length, tail) = rest.split_first().ok_or(malformed("it ends early"))?;
            let (bytes, tail) =
                tail.split_at_checked(usize::from(length & !PACKED)).ok_or(malformed("it ends early"))?;
            *text = if length & PACKED == 0 { String::from_utf8_lossy(bytes).into_owned() } else { hex::encode(bytes) };
            rest = tail;
        }
        if !rest.is_empty() {
            return Err(malformed("bytes follow its end"));
        }
        let [host, bucket, region, access_key_id, secret_access_key] = texts;
        let endpoint = format!("{before}{host}{after}");
        let locator = Self { endpoint, bucket, region, access_key_id, secret_access_key };
        locator.check()?;
        if locator.write() != field {
            return Err(malformed("it is not in canonical form"));
        }
        Ok(locator)
    }

    fn check(&self) -> Result<(), BucketError> {
        let malformed = |reason| Err(BucketError::Malformed { reason });
        let texts = [&self.endpoint, &self.bucket, &self.region, &self.access_key_id, &self.secret_access_key];
        if texts.iter().any(|text| text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic())) {
            return malformed("a part is empty or not printable ASCII");
        }
        if self.split_endpoint().is_none() {
            return malformed("the endpoint is not an http(s) URL");
        }
        if !self.bucket.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.') {
            return malformed("the bucket's name has characters that S3 does not allow");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::r2_bucket as r2;

    #[test]
    fn a_bucket_has_one_encoding() {
        let locator = r2("b0");
        let field = locator.encode().unwrap();
        // By the specification: form, then length and bytes of each text.
        let mut expected = vec![2, 0x80 | 16];
        expected.extend(hex::decode("0123456789abcdef".repeat(2)).unwrap());
        expected.extend([0x80 | 1, 0xb0, 4, b'a', b'u', b't', b'o', 0x80 | 16]);
        expected.extend(hex::decode("fedcba9876543210".repeat(2)).unwrap());
        expected.push(0x80 | 32);
        expected.extend(hex::decode("00ff".repeat(16)).unwrap());
        assert_eq!(field, expected);

        let spelled_out = BucketError::Malformed { reason: "it is not in canonical form" };
        let mut loose = field[..18].to_vec();
        loose.extend([2, b'b', b'0']);
        loose.extend(&field[20..]);
        assert_eq!(BucketLocator::decode(&loose).unwrap_err(), spelled_out);
        let host = &locator.endpoint["https://".len()..];
        let mut loose = vec![1, host.len() as u8];
        loose.extend(host.bytes());
        loose.extend(&field[18..]);
        assert_eq!(BucketLocator::decode(&loose).unwrap_err(), spelled_out);
    }

    #[test]
    fn a_bucket_is_the_same_whoever_reads_it() {
        let other = BucketLocator { access_key_id: "another".into(), ..r2("b0") };
        assert_eq!(other.identity(), r2("b0").identity());
        assert_ne!(r2("b1").identity(), r2("b0").identity());
    }

    proptest! {
        #[test]
        fn decoding_is_total_and_canonical(bytes in proptest::collection::vec(any::<u8>(), 0..140)) {
            if let Ok(locator) = BucketLocator::decode(&bytes) {
                prop_assert_eq!(locator.encode().unwrap(), bytes);
            }
        }

        #[test]
        fn a_changed_field_is_refused_or_names_another_locator(at in 0usize..81, to in any::<u8>()) {
            let mut field = r2("miner-7").encode().unwrap();
            field[at] = to;
            if let Ok(locator) = BucketLocator::decode(&field) {
                prop_assert_eq!(locator.encode().unwrap(), field);
            }
        }

        #[test]
        fn locators_round_trip(
            host in "[a-f0-9]{1,12}(\\.r2\\.cloudflarestorage\\.com)?", scheme in "https?", bucket in "[a-f0-9.z-]{1,9}",
            region in "[!-~]{1,9}", id in "[a-fA-F0-9]{1,12}", secret in "[0-9a-f]{1,12}",
        ) {
            let endpoint = format!("{scheme}://{host}");
            let locator = BucketLocator { endpoint, bucket, region, access_key_id: id, secret_access_key: secret };
            prop_assert_eq!(BucketLocator::decode(&locator.encode().unwrap()).unwrap(), locator);
        }
    }
}
