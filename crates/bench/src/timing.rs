//! Medians of times.

use std::time::Instant;

/// Median wall-clock time of `work`, in seconds, after one run that does not count.
pub(crate) fn median_s(repeats: usize, mut work: impl FnMut()) -> f64 {
    work();
    let mut times: Vec<f64> = (0..repeats.max(1))
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed().as_secs_f64()
        })
        .collect();
    median(&mut times)
}

/// The upper median. Sorts the times.
///
/// # Panics
/// If there are none.
pub(crate) fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
