//! Pauses before the own bucket is asked again to take what it refused.

use std::time::Duration;

/// Doubled each time, from the first to the second.
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(4);

/// The pauses between attempts at one object.
#[derive(Debug)]
pub(crate) struct Pauses(Duration);

impl Default for Pauses {
    fn default() -> Self {
        Self(PAUSE_MIN)
    }
}

impl Pauses {
    /// The next one, which begins now.
    pub(crate) async fn pause(&mut self) {
        let pause = self.0;
        self.0 = (2 * pause).min(PAUSE_MAX);
        tokio::time::sleep(pause).await;
    }
}
