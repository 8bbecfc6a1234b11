//! The learning rate as a function of the global inner step.

use std::f64::consts::PI;

use templar_protocol::run::InnerSpec;

/// Linear warm-up to `lr`, cosine to `lr · final_lr_fraction`, then constant; times the share that the run's anneal leaves,
/// which falls linearly to 0.
///
/// Step 0 already learns; the last step of the warm-up has the full rate.
pub fn learning_rate(inner: &InnerSpec, step: u64) -> f64 {
    scheduled(inner, inner.lr, step)
}

/// The rates of one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    /// AdamW's.
    pub lr: f64,
    /// Muon's.
    pub muon: f64,
}

impl Rates {
    /// The rates of a global step with moments that have seen `seen` steps since they were fresh: both follow the same
    /// schedule, and both rise over the first `reset_warmup_steps` after a reset.
    pub fn new(inner: &InnerSpec, step: u64, seen: u64) -> Self {
        let warm =
            if seen < inner.reset_warmup_steps { (seen + 1) as f64 / inner.reset_warmup_steps as f64 } else { 1.0 };
        Self { lr: warm * scheduled(inner, inner.lr, step), muon: warm * scheduled(inner, inner.muon_lr, step) }
    }
}

/// The rate of a step where it is `peak` after the warm-up.
fn scheduled(inner: &InnerSpec, peak: f64, step: u64) -> f64 {
    let peak = peak * inner.anneal_share(step);
    if step < inner.warmup_steps {
        return peak * (step + 1) as f64 / inner.warmup_steps as f64;
    }
    let progress = ((step - inner.warmup_steps) as f64 / inner.decay_steps as f64).min(1.0);
    let fraction = inner.final_lr_fraction + (1.0 - inner.final_lr_fraction) * 0.5 * (1.0 + (PI * progress).cos());
    peak * fraction
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_rises_falls_and_stays() {
        let preset = templar_model::presets::preset("nano").unwrap();
        let inner = InnerSpec { lr: 2.0, warmup_steps: 4, decay_steps: 10, final_lr_fraction: 0.1, ..preset.inner };
        let rates: Vec<f64> = [0, 3, 4, 9, 14, 1 << 40].map(|step| learning_rate(&inner, step)).to_vec();
        for (rate, expected) in rates.iter().zip([0.5, 2.0, 2.0, 1.1, 0.2, 0.2]) {
            assert!((rate - expected).abs() < 1e-12, "{rates:?}");
        }
        assert!((0..13).skip(4).all(|step| learning_rate(&inner, step + 1) < learning_rate(&inner, step)));
        let cold = InnerSpec { warmup_steps: 0, ..inner };
        assert!((learning_rate(&cold, 0) - 2.0).abs() < 1e-12);
    }

    #[test]
    fn the_anneal_takes_the_rate_to_0_without_a_jump() {
        let preset = templar_model::presets::preset("nano").unwrap();
        let inner = InnerSpec {
            steps: 8,
            warmup_steps: 4,
            decay_steps: 60,
            anneal_from_window: 10,
            anneal_windows: 5,
            anneal_steps: 4,
            ..preset.inner
        };
        let rates: Vec<Rates> = (0..120).map(|step| Rates::new(&inner, step, step)).collect();
        let largest = rates.windows(2).skip(4).map(|pair| (pair[1].lr - pair[0].lr).abs()).fold(0.0, f64::max);
        assert!(largest <= inner.lr * (1.0 / 20.0 + PI / 120.0), "{largest}");
        // From the held rate on, a straight line over twenty steps.
        let held = learning_rate(&inner, 79);
        assert!((held - inner.final_lr_fraction * inner.lr).abs() < 1e-12);
        for (step, share) in [(80, 1.0), (85, 0.75), (90, 0.5), (99, 0.05), (100, 0.0), (119, 0.0)] {
            let Rates { lr, muon } = rates[step];
            assert!((lr - share * held).abs() < 1e-12 && (muon - lr * inner.muon_lr / inner.lr).abs() < 1e-12, "{lr}");
        }
    }

    #[test]
    fn rates_rise_after_a_reset_and_muon_follows() {
        let preset = templar_model::presets::preset("nano").unwrap();
        let inner = InnerSpec { lr: 2.0, muon_lr: 0.5, warmup_steps: 0, reset_warmup_steps: 4, ..preset.inner };
        let lr = learning_rate(&inner, 100);
        for (seen, share) in [(0, 0.25), (2, 0.75), (3, 1.0), (4, 1.0), (u64::MAX, 1.0)] {
            let rates = Rates::new(&inner, 100, seen);
            assert!((rates.lr - share * lr).abs() < 1e-12 && (rates.muon - rates.lr / 4.0).abs() < 1e-12, "{rates:?}");
        }
        let without = InnerSpec { reset_warmup_steps: 0, ..inner };
        assert_eq!(Rates::new(&without, 100, 0).lr.to_bits(), lr.to_bits(), "as before this key");
    }
}
