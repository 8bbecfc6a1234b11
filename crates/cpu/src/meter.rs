//! Where the time goes, for measurements.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

/// Kinds of work that are measured separately.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Matrix products outside attention.
    Products,
    /// Attention with its own small products, softmax and rotary embedding.
    Attention,
    /// Norms, SwiGLU, cross-entropy, residuals, copies.
    Elementwise,
}

/// Nanoseconds of each kind of work, summed over threads.
#[derive(Debug, Default)]
pub(crate) struct Meter([AtomicU64; 3]);

impl Meter {
    pub(crate) fn time<R>(&self, work: Work, job: impl FnOnce() -> R) -> R {
        let start = Instant::now();
        let result = job();
        self.0[work as usize].fetch_add(start.elapsed().as_nanos() as u64, Relaxed);
        result
    }

    pub(crate) fn seconds(&self, work: Work) -> f64 {
        self.0[work as usize].load(Relaxed) as f64 * 1e-9
    }
}
