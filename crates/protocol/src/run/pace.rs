//! What depends on a window's number: how many inner steps it has, which ones in the run, and from which moments.
//!
//! A run may end with an *anneal*: from one window on, its windows have fewer steps, so that the model is averaged more
//! often, and the learning rate falls linearly to 0. That is the end of the run: later windows have no steps.

use crate::run::spec::InnerSpec;

impl InnerSpec {
    /// H of a window: its inner steps; 0 once the run has ended.
    pub fn steps_of(&self, window: u64) -> u32 {
        if self.has_ended(window) {
            0
        } else if self.anneals(window) {
            self.steps_in_anneal()
        } else {
            self.steps
        }
    }

    /// Whether the anneal is over: whoever trained on would do so at a rate of 0, and be paid for nothing.
    pub fn has_ended(&self, window: u64) -> bool {
        self.anneals(window) && window - self.anneal_from_window >= self.anneal_windows
    }

    /// Samples that a miner needs in a window; each is one sequence.
    pub fn samples_of(&self, window: u64) -> u64 {
        u64::from(self.steps_of(window)) * u64::from(self.batch_sequences)
    }

    /// Global number of a window's first inner step, where `outer_steps` is that of the state it starts from.
    ///
    /// Null windows do not move the schedule, but an anneal is planned in windows: from its first one on, they all count.
    pub fn first_step(&self, window: u64, outer_steps: u64) -> u64 {
        if !self.anneals(window) {
            return outer_steps * u64::from(self.steps);
        }
        self.anneal_first_step() + (window - self.anneal_from_window) * u64::from(self.steps_in_anneal())
    }

    /// How much of the learning rate an inner step has left: 1 before the anneal, 0 after it, with its global number.
    pub fn anneal_share(&self, step: u64) -> f64 {
        let first = self.anneal_first_step();
        if self.anneal_from_window == 0 || step < first {
            return 1.0;
        }
        let steps = self.anneal_windows * u64::from(self.steps_in_anneal());
        steps.saturating_sub(step - first) as f64 / steps.max(1) as f64
    }

    /// Whether miners forget their optimiser's moments before this window. It depends on the window's number alone, so that
    /// whoever repeats the window's training need not know which windows a miner trained before.
    pub fn resets_before(&self, window: u64) -> bool {
        self.reset_every_windows > 0 && window.is_multiple_of(self.reset_every_windows)
    }

    /// Whether a window belongs to the anneal, or comes after it.
    fn anneals(&self, window: u64) -> bool {
        self.anneal_from_window > 0 && window >= self.anneal_from_window
    }

    /// H of the anneal.
    fn steps_in_anneal(&self) -> u32 {
        if self.anneal_steps > 0 { self.anneal_steps } else { self.steps }
    }

    fn anneal_first_step(&self) -> u64 {
        self.anneal_from_window * u64::from(self.steps)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::spec;

    fn inner(from: u64, windows: u64, steps: u32) -> InnerSpec {
        InnerSpec {
            steps: 6,
            batch_sequences: 2,
            anneal_from_window: from,
            anneal_windows: windows,
            anneal_steps: steps,
            ..spec().inner
        }
    }

    proptest! {
        /// If no window is null, steps are counted without gaps, and each has less of the rate than the one before.
        #[test]
        fn steps_follow_each_other_across_the_change(from in 1u64..9, windows in 1u64..5, steps in 0u32..8) {
            let inner = inner(from, windows, steps);
            let (mut next, mut before) = (0, 1.0);
            let fall = 1.0 / (windows as f64 * f64::from(inner.steps_of(from)));
            for window in 0..from + windows + 3 {
                prop_assert!(inner.has_ended(window) || inner.first_step(window, window) == next);
                prop_assert_eq!(inner.samples_of(window), 2 * u64::from(inner.steps_of(window)));
                for _ in 0..inner.steps_of(window) {
                    let share = inner.anneal_share(next);
                    prop_assert!(share <= before && before - share <= fall + 1e-12, "{} after {}", share, before);
                    prop_assert!(share > 0.0);
                    (next, before) = (next + 1, share);
                }
                prop_assert_eq!(inner.steps_of(window) == 0, window >= from + windows);
            }
        }
    }

    #[test]
    fn null_windows_delay_the_schedule_and_not_the_anneal() {
        let inner = inner(10, 3, 3);
        assert_eq!([0, 7, 9].map(|window| inner.first_step(window, 5)), [30; 3]);
        assert_eq!([10, 11, 12].map(|window| inner.first_step(window, 5)), [60, 63, 66]);
        assert_eq!(
            [59, 60, 63, 66, 68, 69, u64::MAX].map(|step| (9.0 * inner.anneal_share(step)).round() as u32),
            [9, 9, 6, 3, 1, 0, 0]
        );
    }

    #[test]
    fn without_an_anneal_every_window_is_alike() {
        let inner = inner(0, 5, 3);
        assert_eq!((inner.steps_of(1 << 40), inner.first_step(1 << 40, 7)), (6, 42));
        assert!(inner.anneal_share(u64::MAX).to_bits() == 1f64.to_bits());
        assert!(!inner.resets_before(0));
    }

    #[test]
    fn resets_depend_on_the_number_alone() {
        let inner = InnerSpec { reset_every_windows: 3, ..inner(0, 0, 0) };
        assert_eq!(
            [0, 1, 2, 3, 4, 6].map(|window| inner.resets_before(window)),
            [true, false, false, true, false, true]
        );
    }
}
