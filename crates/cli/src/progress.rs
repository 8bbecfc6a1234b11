//! How far long work over bytes is, and how long it will take: a bar on a terminal, else a line now and then. Both go to
//! standard error, so that standard output holds results alone.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Without a terminal: short work says nothing, and longer work says something before anybody wonders.
const FIRST_LINE: Duration = Duration::from_secs(2);
const NEXT_LINE: Duration = Duration::from_secs(10);

/// Tells how far work is.
#[derive(Debug)]
pub(crate) enum Progress {
    Bar(ProgressBar),
    Lines { what: &'static str, started: Instant, due: Duration },
}

impl Progress {
    pub(crate) fn new(what: &'static str) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self::Lines { what, started: Instant::now(), due: FIRST_LINE };
        }
        let style = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec}, {eta} left");
        Self::Bar(ProgressBar::new(0).with_style(style.expect("a constant template")).with_message(what))
    }

    /// Call it as often as you like.
    pub(crate) fn show(&mut self, done_bytes: u64, all_bytes: u64) {
        match self {
            Self::Bar(bar) => {
                bar.set_length(all_bytes);
                bar.set_position(done_bytes);
            }
            Self::Lines { what, started, due } => {
                let passed = started.elapsed();
                if passed >= *due {
                    *due = passed + NEXT_LINE;
                    eprintln!("{}", line(what, done_bytes, all_bytes, passed));
                }
            }
        }
    }

    /// Leaves nothing of a bar behind.
    pub(crate) fn finish(self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

fn line(what: &str, done_bytes: u64, all_bytes: u64, passed: Duration) -> String {
    let (done, all) = (done_bytes as f64, all_bytes.max(done_bytes) as f64);
    let speed = done / passed.as_secs_f64().max(1e-3);
    let left_s = if done > 0.0 { ((all - done) / speed).ceil() } else { f64::INFINITY };
    let left = match left_s {
        s if s >= 1e7 => "time left unknown".to_owned(),
        s if s >= 5400.0 => format!("{:.1} h left", s / 3600.0),
        s if s >= 90.0 => format!("{:.0} min left", s / 60.0),
        s => format!("{s:.0} s left"),
    };
    let percent = if all > 0.0 { 100.0 * done / all } else { 0.0 };
    format!("{what}: {:.0} of {:.0} MB ({percent:.0} %), {:.1} MB/s, {left}", done / 1e6, all / 1e6, speed / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_long_it_will_take() {
        let after = |seconds| Duration::from_secs(seconds);
        assert_eq!(
            line("preparing", 100_000_000, 400_000_000, after(10)),
            "preparing: 100 of 400 MB (25 %), 10.0 MB/s, 30 s left"
        );
        assert!(line("preparing", 10_000_000, 430_000_000, after(10)).ends_with(", 7 min left"));
        assert!(line("preparing", 1_000_000, 4_000_000_000, after(10)).ends_with("11.1 h left"));
        assert!(line("preparing", 0, 4_000_000_000, after(10)).ends_with("time left unknown"));
    }
}
