//! The one error of every operation on a [`crate::Store`].

use std::time::Duration;

/// Most characters of a reason that are shown.
const REASON_CHARS_MAX: usize = 160;

/// Why an operation on a store failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    #[error("no object {key:?} in the bucket: its owner has not published it, or has deleted it")]
    NotFound { key: String },
    #[error("object {key:?} has {bytes} bytes or more, but at most {max_bytes} are accepted: it is not downloaded")]
    TooLarge { key: String, bytes: u64, max_bytes: u64 },
    #[error("bucket {bucket:?} denies access to {key:?}: check the credential and the bucket's rights")]
    Denied { bucket: String, key: String },
    /// `ahead_s` is this machine's clock minus the server's, by the server's own word; none if the server does not give
    /// its time.
    #[error(
        "the server of bucket {bucket:?} refuses requests whose time is wrong: this machine's clock is {}; set it (NTP does), \
         and the node will continue by itself", skew(*ahead_s)
    )]
    ClockSkew { bucket: String, ahead_s: Option<i64> },
    #[error("{key:?} in bucket {bucket:?}: no answer within {} s; try again, or allow more time", after.as_secs_f32())]
    Timeout { bucket: String, key: String, after: Duration },
    #[error("{key:?} in bucket {bucket:?} at {endpoint} cannot be reached at the moment ({}); try again later", root(&**source))]
    Unavailable { endpoint: String, bucket: String, key: String, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("{key:?} is not a valid object key: {reason}")]
    BadKey { key: String, reason: &'static str },
    #[error("bucket {bucket:?} at {endpoint:?} is not contacted: {reason}")]
    RefusedBucket { endpoint: String, bucket: String, reason: &'static str },
    #[error("the HTTP client for storage cannot be set up; check the system's TLS certificates")]
    NoClient { source: Box<dyn std::error::Error + Send + Sync> },
}

/// How far this machine's clock is off, as a part of a sentence.
fn skew(ahead_s: Option<i64>) -> String {
    match ahead_s {
        Some(ahead_s) if ahead_s < 0 => format!("{} s behind the server's", ahead_s.unsigned_abs()),
        Some(ahead_s) => format!("{ahead_s} s ahead of the server's"),
        None => "not within what the server allows, and it does not say what time it has".to_owned(),
    }
}

/// The cause of all causes, such as "Connection refused". Some of it may be a stranger's text, so it is cut.
fn root(error: &(dyn std::error::Error + 'static)) -> String {
    let root = std::iter::successors(Some(error), |cause| cause.source()).last().unwrap_or(error);
    root.to_string().chars().map(|c| if c.is_control() { ' ' } else { c }).take(REASON_CHARS_MAX).collect()
}

impl StoreError {
    /// Whether the same operation may succeed when it is tried again later, with nothing changed.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Timeout { .. } | Self::Unavailable { .. })
    }

    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }
}
