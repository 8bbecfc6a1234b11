//! How far long work has got, and how long it will take: a bar on a terminal, otherwise a line from time to time. Both
//! go to standard error, so that standard output holds only results.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Without a terminal, short work prints nothing, and longer work prints a line before anybody wonders.
const FIRST_LINE: Duration = Duration::from_secs(2);
const NEXT_LINE: Duration = Duration::from_secs(10);

/// What the work is counted in.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Unit {
    Bytes,
    Parameters,
    Windows,
}

/// Shows how far the work has got.
#[derive(Debug)]
pub(crate) enum Progress {
    Bar(ProgressBar),
    Lines { what: &'static str, unit: Unit, started: Instant, due: Duration },
}

impl Progress {
    pub(crate) fn new(what: &'static str, unit: Unit) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self::Lines { what, unit, started: Instant::now(), due: FIRST_LINE };
        }
        let style = ProgressStyle::with_template(match unit {
            Unit::Bytes => "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec}, {eta} left",
            Unit::Parameters => "{msg} {wide_bar} {percent} %, {eta} left",
            Unit::Windows => "{msg} {wide_bar} {pos} of {len}, {eta} left",
        });
        Self::Bar(ProgressBar::new(0).with_style(style.expect("a constant template")).with_message(what))
    }

    /// May be called at any rate.
    pub(crate) fn show(&mut self, done: u64, all: u64) {
        match self {
            Self::Bar(bar) => {
                bar.set_length(all);
                bar.set_position(done);
            }
            Self::Lines { what, unit, started, due } => {
                let passed = started.elapsed();
                if passed >= *due {
                    *due = passed + NEXT_LINE;
                    eprintln!("{}", line(what, *unit, done, all, passed));
                }
            }
        }
    }

    /// Clears the bar.
    pub(crate) fn finish(self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

fn line(what: &str, unit: Unit, done: u64, all: u64, passed: Duration) -> String {
    let (done, all) = (done as f64, all.max(done) as f64);
    let speed = done / passed.as_secs_f64().max(1e-3);
    let left_s = if done > 0.0 { ((all - done) / speed).ceil() } else { f64::INFINITY };
    let left = match left_s {
        s if s >= 1e7 => "time left unknown".to_owned(),
        s if s >= 5400.0 => format!("{:.1} h left", s / 3600.0),
        s if s >= 90.0 => format!("{:.0} min left", s / 60.0),
        s => format!("{s:.0} s left"),
    };
    let percent = if all > 0.0 { 100.0 * done / all } else { 0.0 };
    if matches!(unit, Unit::Windows) {
        return format!("{what}: {done:.0} of {all:.0} ({percent:.0} %), {left}");
    }
    let (done, all, speed) = (done / 1e6, all / 1e6, speed / 1e6);
    match unit {
        Unit::Bytes => format!("{what}: {done:.0} of {all:.0} MB ({percent:.0} %), {speed:.1} MB/s, {left}"),
        _ => format!("{what}: {done:.0} of {all:.0} million ({percent:.0} %), {left}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_long_it_will_take() {
        let after = |seconds| Duration::from_secs(seconds);
        assert_eq!(
            line("preparing", Unit::Bytes, 100_000_000, 400_000_000, after(10)),
            "preparing: 100 of 400 MB (25 %), 10.0 MB/s, 30 s left"
        );
        assert!(line("preparing", Unit::Bytes, 10_000_000, 430_000_000, after(10)).ends_with(", 7 min left"));
        assert!(line("preparing", Unit::Bytes, 1_000_000, 4_000_000_000, after(10)).ends_with("11.1 h left"));
        assert_eq!(
            line("making θ₀", Unit::Parameters, 18_000_000, 72_000_000, after(10)),
            "making θ₀: 18 of 72 million (25 %), 30 s left"
        );
        assert!(line("preparing", Unit::Bytes, 0, 4_000_000_000, after(10)).ends_with("time left unknown"));
    }
}
