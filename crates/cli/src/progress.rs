//! Progress of work that may take long, on standard error: one line that is written over on a terminal, a line now and
//! then elsewhere, and none if the work takes less than a second.

use std::io::{IsTerminal as _, Write as _};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

/// Work that takes less says nothing.
const SILENT: Duration = Duration::from_secs(1);
/// Between two lines on a terminal, and elsewhere.
const TERMINAL_PERIOD: Duration = Duration::from_millis(250);
const PIPE_PERIOD: Duration = Duration::from_secs(15);

/// Tells how far some work is.
#[derive(Debug)]
pub(crate) struct Progress {
    what: &'static str,
    total: u64,
    begun: Instant,
    next: Instant,
    is_terminal: bool,
    is_shown: bool,
}

impl Progress {
    pub(crate) fn new(what: &'static str, total: u64) -> Self {
        let begun = Instant::now();
        let is_terminal = std::io::stderr().is_terminal();
        Self { what, total, begun, next: begun + SILENT, is_terminal, is_shown: false }
    }

    /// Takes note that `done` of the total is done; never breaks the work off.
    pub(crate) fn watch<B>(&mut self, done: u64) -> ControlFlow<B> {
        let now = Instant::now();
        if now >= self.next {
            self.next = now + if self.is_terminal { TERMINAL_PERIOD } else { PIPE_PERIOD };
            self.is_shown = true;
            let line = line(self.what, done, self.total, now - self.begun);
            // A closed standard error is no reason to end the work.
            let _ = if self.is_terminal {
                write!(std::io::stderr(), "\r\x1b[K{line}")
            } else {
                writeln!(std::io::stderr(), "{line}")
            };
        }
        ControlFlow::Continue(())
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.is_shown && self.is_terminal {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

fn line(what: &str, done: u64, total: u64, since: Duration) -> String {
    let share = done as f64 / total.max(1) as f64;
    let left_s = (since.as_secs_f64() * (1.0 - share) / share.max(1e-9)).min(1e9) as u64;
    let left = if left_s < 120 { format!("{left_s} s") } else { format!("{} min", left_s.div_ceil(60)) };
    format!("{what}: {:.0} %, about {left} left", (100.0 * share).floor())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_far_and_how_long() {
        let seconds = Duration::from_secs;
        assert_eq!(line("making it", 25, 100, seconds(20)), "making it: 25 %, about 60 s left");
        assert_eq!(line("making it", 1, 100, seconds(10)), "making it: 1 %, about 17 min left");
        assert_eq!(line("making it", 100, 100, seconds(10)), "making it: 100 %, about 0 s left");
        assert!(line("making it", 0, 100, seconds(10)).starts_with("making it: 0 %"));
    }
}
