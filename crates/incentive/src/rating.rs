//! What one miner did, as moving averages over windows.

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};
use templar_record::judgement::Evaluation;

/// Values are clamped to ± this many median ones, so that no single contribution makes or breaks a miner.
const VALUE_MAX: f64 = 2.0;
/// Mean values from which a miner's tokens begin to count, and from which they count in full. Below the first is what
/// noise earns by chance; above the second, chance alone tells equally honest miners apart.
const VALUE_FROM: f64 = 0.25;
const VALUE_FULL: f64 = 0.75;
/// Advantage on own samples from which tokens count in full. An honest miner's is 0.4 ± 0.3, and chance is 0.
const ADVANTAGE_FULL: f64 = -0.25;

/// Moving averages of one roster entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
pub struct Rating {
    /// Tokens per window that passed, as a moving average. It starts at 0 and falls in windows in which nothing of the miner passes, so a
    /// record ages whether or not the miner is drawn.
    pub tokens: f64,
    /// Sum of the values of evaluated and charged contributions, relative to the median of their windows, with the
    /// weights of a moving average; `value_weight` is the sum of these weights.
    pub value: f64,
    pub value_weight: f64,
    /// Moving average of +1 where own samples improved more than unseen ones, −1 where less. It starts at 0.
    pub own_advantage: f64,
    pub evaluations: u64,
    pub charges: u64,
}

impl Rating {
    /// A window passed in which `tokens` of this miner passed.
    pub(crate) fn pass(&mut self, tokens: f64, memory: f64) {
        self.tokens = memory * self.tokens + (1.0 - memory) * tokens;
    }

    pub(crate) fn observe(&mut self, value: f64, memory: f64) {
        self.value = memory * self.value + (1.0 - memory) * value.clamp(-VALUE_MAX, VALUE_MAX);
        self.value_weight = memory * self.value_weight + (1.0 - memory);
    }

    pub(crate) fn observe_own(&mut self, is_better: bool, memory: f64) {
        let advantage = if is_better { 1.0 } else { -1.0 };
        self.own_advantage = memory * self.own_advantage + (1.0 - memory) * advantage;
    }

    /// Mean value in contributions of the median's size; none before the first.
    pub fn mean_value(&self) -> Option<f64> {
        (self.value_weight > 0.0).then(|| self.value / self.value_weight)
    }

    /// What share of its tokens the model's loss bears out: 0 before the first evaluation.
    pub fn value_factor(&self) -> f64 {
        let above = |mean: f64| ((mean - VALUE_FROM) / (VALUE_FULL - VALUE_FROM)).clamp(0.0, 1.0);
        self.mean_value().map_or(0.0, above)
    }

    /// Below 1 for a miner whose own samples improve much less often than unseen ones: it trains on something else.
    pub fn own_factor(&self) -> f64 {
        ((1.0 + self.own_advantage) / (1.0 + ADVANTAGE_FULL)).clamp(0.0, 1.0)
    }

    /// Tokens per window that are paid.
    pub fn paid_tokens(&self) -> f64 {
        self.tokens * self.value_factor() * self.own_factor()
    }
}

/// How much better the model is on unseen samples, relative to its loss before; finite for any losses.
pub fn unseen_improvement(evaluation: &Evaluation) -> f64 {
    relative(evaluation.unseen_before, evaluation.unseen_after)
}

/// How much better the model is on the miner's own samples.
pub fn own_improvement(evaluation: &Evaluation) -> f64 {
    relative(evaluation.own_before, evaluation.own_after)
}

fn relative(before: f64, after: f64) -> f64 {
    let improvement = (before - after) / before.max(1e-9);
    if improvement.is_finite() { improvement } else { -1.0 }
}

#[cfg(test)]
mod tests {
    use templar_protocol::testing::entry;

    use super::*;

    #[test]
    fn nobody_is_paid_before_an_evaluation_and_records_age() {
        let mut rating = Rating::default();
        (0..30).for_each(|_| rating.pass(1000.0, 0.8));
        assert!((rating.tokens - 1000.0).abs() < 2.0);
        assert!(rating.paid_tokens() <= 0.0);
        rating.observe(1.0, 0.8);
        assert!(rating.paid_tokens() > 990.0);
        (0..10).for_each(|_| rating.pass(0.0, 0.8));
        assert!(rating.paid_tokens() < 110.0);
    }

    #[test]
    fn chance_is_not_paid_and_more_than_most_is_not_paid_more() {
        let factor = |value: f64| {
            let mut rating = Rating::default();
            rating.observe(value, 0.8);
            rating.value_factor()
        };
        for (value, expected) in [(-2.0, 0.0), (0.0, 0.0), (0.2, 0.0), (0.5, 0.5), (0.8, 1.0), (1.0, 1.0), (9.0, 1.0)] {
            assert!((factor(value) - expected).abs() < 1e-9, "{value}: {}", factor(value));
        }
    }

    #[test]
    fn any_losses_give_a_finite_improvement() {
        let losses = [0.0, 1.0, f64::MAX, f64::INFINITY, f64::NAN, -1.0];
        for before in losses {
            for after in losses {
                let evaluation = Evaluation {
                    entry: entry(0),
                    own_before: before,
                    own_after: after,
                    unseen_before: before,
                    unseen_after: after,
                };
                assert!(unseen_improvement(&evaluation).is_finite() && own_improvement(&evaluation).is_finite());
            }
        }
    }
}
