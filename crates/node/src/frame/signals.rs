//! What a node's long computations must know while they run: the newest head, and whether to stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::frame::error::NodeError;

/// Shared by a node, its watch on the chain, and its trainings and evaluations.
#[derive(Clone, Debug, Default)]
pub struct Signals(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    head: AtomicU64,
    stop: AtomicBool,
}

impl Signals {
    pub fn head(&self) -> u64 {
        self.0.head.load(Ordering::Relaxed)
    }

    pub fn set_head(&self, block: u64) {
        self.0.head.fetch_max(block, Ordering::Relaxed);
    }

    pub fn stopped(&self) -> bool {
        self.0.stop.load(Ordering::Relaxed)
    }

    /// [`NodeError::Stopped`] once the node is to stop.
    pub fn check(&self) -> Result<(), NodeError> {
        if self.stopped() { Err(NodeError::Stopped) } else { Ok(()) }
    }

    pub fn stop(&self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}
