//! The learning rate as a function of the global inner step.

use std::f64::consts::PI;

use templar_protocol::run::InnerSpec;

/// Linear warm-up to `lr`, cosine to `lr · final_lr_fraction`, then constant.
///
/// Step 0 already learns; the last step of the warm-up has the full rate.
pub fn learning_rate(inner: &InnerSpec, step: u64) -> f64 {
    if step < inner.warmup_steps {
        return inner.lr * (step + 1) as f64 / inner.warmup_steps as f64;
    }
    let progress = ((step - inner.warmup_steps) as f64 / inner.decay_steps as f64).min(1.0);
    let fraction = inner.final_lr_fraction + (1.0 - inner.final_lr_fraction) * 0.5 * (1.0 + (PI * progress).cos());
    inner.lr * fraction
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
}
