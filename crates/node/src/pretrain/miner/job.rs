//! A training job that runs beside the loop, and its result.

use futures::future::BoxFuture;
use templar_train::{TrainOutcome, Trainer};

use crate::frame::error::NodeError;

/// A trainer and its result.
#[expect(missing_debug_implementations, reason = "a trainer has nothing to show")]
pub struct Finished {
    pub(super) trainer: Box<dyn Trainer>,
    pub(super) outcome: Result<TrainOutcome, NodeError>,
    pub(super) compute_s: f64,
}

/// A training that is under way.
pub(super) type Job = BoxFuture<'static, Finished>;
