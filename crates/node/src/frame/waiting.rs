//! Patience with what heals by itself: a bucket that does not answer, or this machine's clock.

use std::mem::Discriminant;
use std::time::Duration;

use templar_store::StoreError;

/// Pauses between attempts: from the first to the second.
const WAIT_FIRST: Duration = Duration::from_secs(1);
const WAIT_MAX: Duration = Duration::from_secs(30);

/// Pauses between attempts to fetch something, doubled each time.
#[derive(Debug)]
pub struct Pauses {
    what: &'static str,
    next: Duration,
    told: Option<Discriminant<StoreError>>,
}

impl Pauses {
    pub fn new(what: &'static str) -> Self {
        Self { what, next: WAIT_FIRST, told: None }
    }

    /// Says why once for each kind of reason: a clock's figures differ each time.
    pub async fn wait(&mut self, error: &StoreError) {
        let kind = std::mem::discriminant(error);
        if self.told.replace(kind) != Some(kind) {
            tracing::warn!("the {} cannot be fetched so far ({error}); trying again until it can", self.what);
        }
        tokio::time::sleep(self.next).await;
        self.next = (2 * self.next).min(WAIT_MAX);
    }
}

/// Whether waiting helps.
pub fn heals(error: &StoreError) -> bool {
    error.is_transient() || matches!(error, StoreError::ClockSkew { .. })
}
