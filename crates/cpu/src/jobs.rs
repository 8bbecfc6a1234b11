//! Work that may run in parallel.

use rayon::prelude::*;

/// A piece of work. What it does depends on shapes alone, never on who runs it.
pub(crate) type Job<'a> = Box<dyn FnOnce() + Send + 'a>;

/// Runs all jobs and returns when the last one is done.
pub(crate) fn run(jobs: Vec<Job<'_>>) {
    jobs.into_par_iter().with_max_len(1).for_each(|job| job());
}
