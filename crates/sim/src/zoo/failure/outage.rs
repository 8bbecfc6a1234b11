//! Buckets, or ways to them, that fail for a while.

use std::ops::Range;
use std::time::Duration;

use templar_store::{Fault, Op};
use tokio::time::Instant;

/// A hook that decides which operations on the in-memory cloud fail.
pub type CloudFault = Box<dyn FnMut(&Op) -> Option<Fault> + Send>;

/// Time since the first operation on the cloud.
pub fn clock() -> impl FnMut() -> Duration {
    let mut started = None;
    move || started.get_or_insert_with(Instant::now).elapsed()
}

/// What is hit suffers this for a while. A node tells its own outage from somebody else's: it waits and blames nobody, or
/// asks elsewhere.
pub fn during(span: Range<Duration>, fault: Fault, mut hit: impl FnMut(&Op) -> bool + Send + 'static) -> CloudFault {
    let mut now = clock();
    Box::new(move |op| (span.contains(&now()) && hit(op)).then_some(fault))
}
