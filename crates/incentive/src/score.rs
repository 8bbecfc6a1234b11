//! Scoring: what each miner's contributions did to the loss, smoothed and turned into weights.
//!
//! A validator measures the loss before and after a drawn miner's contribution, on samples that the miner was assigned
//! and on training samples that nobody was assigned. The relative improvement on the unseen samples says what the
//! contribution is worth to the model; if the miner's own samples improved more, it trained on what it was given
//! (Gauntlet, arXiv 2505.21684).
//!
//! A score is one validator's opinion; the chain's stake-weighted median turns several opinions into pay. Floats and
//! moving averages are therefore fine here: nothing in this module enters the certified state.

use std::collections::BTreeMap;

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};
use templar_protocol::fault::{FaultKind, Party};
use templar_protocol::hash::{Hash32, Hasher, Stream};
use templar_protocol::roster::{EntryId, Roster, Uid};
use templar_protocol::run::ScoringSpec;
use templar_record::observation::{Evaluation, Observation};

/// Relative improvements are clamped to ± this, so that no single contribution makes or breaks a miner.
const IMPROVEMENT_MAX: f64 = 0.2;
/// Value of a fault of the miner: that of the worst contribution.
const FAULT_VALUE: f64 = -IMPROVEMENT_MAX;
/// A payload that cannot be fetched may be the provider's fault, but hiding must not be free: this costs half a fault,
/// without exclusion.
const STORAGE_VALUE: f64 = FAULT_VALUE / 2.0;
/// A contribution that was committed but not opened ranks below a bad one: the miner chose to hide it after it saw
/// others commit.
const NOT_OPENED_VALUE: f64 = 2.0 * FAULT_VALUE;

/// Relative improvement on unseen samples.
fn unseen_improvement(evaluation: &Evaluation) -> f64 {
    relative(evaluation.unseen_before, evaluation.unseen_after)
}

/// Relative improvement on the miner's own samples.
fn own_improvement(evaluation: &Evaluation) -> f64 {
    relative(evaluation.own_before, evaluation.own_after)
}

fn relative(before: f64, after: f64) -> f64 {
    let improvement = (before - after) / before.max(1e-9);
    if improvement.is_finite() { improvement.clamp(-IMPROVEMENT_MAX, IMPROVEMENT_MAX) } else { -IMPROVEMENT_MAX }
}

/// Moving averages of one roster entry. Both start at 0, so that a newcomer earns its place over several windows.
#[derive(Clone, Copy, Debug, Default, PartialEq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
pub struct Rating {
    /// Moving average of the relative improvement on unseen samples.
    pub improvement: f64,
    /// Moving average of +1 where own samples improved more than unseen ones, −1 where less.
    pub own_advantage: f64,
    pub observations: u64,
}

impl Rating {
    fn observe(&mut self, observation: &Observation, memory: f64) {
        let (value, advantage) = match observation {
            Observation::Evaluated(evaluation) => {
                let (own, unseen) = (own_improvement(evaluation), unseen_improvement(evaluation));
                (unseen, if own > unseen { 1.0 } else { -1.0 })
            }
            Observation::Faulted(FaultKind::NotOpened) => (NOT_OPENED_VALUE, -1.0),
            Observation::Faulted(FaultKind::NotCommitted) => (0.0, self.own_advantage),
            Observation::Faulted(fault) if fault.attributed_to() != Party::Miner => (STORAGE_VALUE, self.own_advantage),
            Observation::Faulted(_) => (FAULT_VALUE, -1.0),
        };
        self.improvement = memory * self.improvement + (1.0 - memory) * value;
        self.own_advantage = memory * self.own_advantage + (1.0 - memory) * advantage;
        self.observations += 1;
    }

    /// The improvement, halved for a miner whose own samples show no advantage, and 0 for one that hurts.
    pub fn score(&self) -> f64 {
        self.improvement.max(0.0) * (1.0 + self.own_advantage) / 2.0
    }
}

/// All ratings of one validator.
#[derive(Clone, Debug, Default, PartialEq, BorshSerialize, BorshDeserialize)]
pub struct ScoreBook {
    ratings: BTreeMap<EntryId, Rating>,
}

impl ScoreBook {
    /// Adds an observation to the average of `entry`, unless the fault is this validator's or the chain's.
    pub fn observe(&mut self, entry: EntryId, observation: &Observation, spec: &ScoringSpec) {
        if let Observation::Faulted(fault) = observation
            && matches!(fault.attributed_to(), Party::Validator | Party::Chain)
        {
            return;
        }
        self.ratings.entry(entry).or_default().observe(observation, spec.memory);
    }

    pub fn rating(&self, entry: &EntryId) -> Rating {
        self.ratings.get(entry).copied().unwrap_or_default()
    }

    /// Forgets entries that no longer exist, so that the book stays as small as the subnet.
    pub fn retain(&mut self, known: impl Fn(&EntryId) -> bool) {
        self.ratings.retain(|entry, _| known(entry));
    }

    /// Weights for the chain: scores of the roster's miners, scaled so that the best has 65535, zeros left out.
    pub fn weights(&self, roster: &Roster) -> Vec<(Uid, u16)> {
        let scores: Vec<(Uid, f64)> =
            roster.miners.iter().map(|miner| (miner.entry.uid, self.rating(&miner.entry).score())).collect();
        let best = scores.iter().map(|(_, score)| *score).fold(0.0, f64::max);
        let scale = |score: f64| (score / best * f64::from(u16::MAX)).round() as u16;
        let weigh = scores.iter().filter(|_| best > 0.0).map(|&(uid, score)| (uid, scale(score)));
        weigh.filter(|(_, weight)| *weight > 0).collect()
    }
}

/// Decides which miners a validator evaluates in a window, and on which samples. Nobody knows it before the block at
/// the put deadline.
pub fn draws(put_hash: &Hash32, validator: &EntryId) -> Stream {
    let mut hasher = Hasher::new("templar v1 evaluation draws");
    hasher.update(put_hash.as_bytes()).update_value(validator);
    hasher.into_stream()
}

/// At most `count` distinct elements of `items`, in the order drawn.
pub fn draw<T: Clone>(stream: &mut Stream, items: &[T], count: usize) -> Vec<T> {
    let mut items = items.to_vec();
    stream.shuffle(&mut items);
    items.truncate(count);
    items
}

#[cfg(test)]
mod tests {
    use templar_protocol::testing::{entry, roster, spec};

    use super::*;

    fn evaluation(own: f64, unseen: f64) -> Observation {
        Observation::Evaluated(Evaluation {
            own_before: 1.0,
            own_after: 1.0 - own,
            unseen_before: 1.0,
            unseen_after: 1.0 - unseen,
        })
    }

    /// The score after ten windows of the same observation.
    fn settled(observation: &Observation) -> f64 {
        let mut book = ScoreBook::default();
        (0..10).for_each(|_| book.observe(entry(0), observation, &spec().scoring));
        book.rating(&entry(0)).score()
    }

    #[test]
    fn honest_work_pays_and_noise_does_not() {
        let honest = settled(&evaluation(0.05, 0.04));
        assert!(honest > 0.03);
        assert!(settled(&evaluation(0.02, 0.04)) < honest / 2.0, "trained on something else");
        assert!(settled(&evaluation(-0.01, -0.01)) <= 0.0);
        let nan = Evaluation { own_before: 1.0, own_after: f64::NAN, unseen_before: 1.0, unseen_after: f64::NAN };
        assert!(settled(&Observation::Evaluated(nan)) <= 0.0);
    }

    #[test]
    fn hiding_costs_more_than_failing_and_failing_more_than_absence() {
        let mut improvements =
            [FaultKind::NotOpened, FaultKind::PayloadMalformed, FaultKind::PayloadUnavailable, FaultKind::NotCommitted]
                .map(|fault| {
                    let mut book = ScoreBook::default();
                    book.observe(entry(0), &evaluation(0.2, 0.1), &spec().scoring);
                    book.observe(entry(0), &Observation::Faulted(fault), &spec().scoring);
                    book.rating(&entry(0)).improvement
                });
        assert!(improvements.is_sorted());
        improvements.sort_by(f64::total_cmp);
        assert!(improvements.windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn an_observation_that_was_not_judged_leaves_ratings_alone() {
        let mut book = ScoreBook::default();
        book.observe(entry(0), &evaluation(0.2, 0.1), &spec().scoring);
        let before = book.clone();
        book.observe(entry(0), &Observation::Faulted(FaultKind::NotJudged), &spec().scoring);
        assert_eq!(book, before);
        assert!(!FaultKind::NotJudged.excludes());
    }

    #[test]
    fn weights_are_scaled_to_the_best_and_leave_zeros_out() {
        let mut book = ScoreBook::default();
        book.observe(entry(0), &evaluation(0.1, 0.05), &spec().scoring);
        book.observe(entry(1), &evaluation(0.2, 0.1), &spec().scoring);
        book.observe(entry(2), &evaluation(-0.1, -0.1), &spec().scoring);
        let weights = book.weights(&roster(4, 1));
        assert_eq!(weights, [(Uid(0), 32_768), (Uid(1), 65_535)]);
        book.retain(|known| *known != entry(1));
        assert_eq!(book.weights(&roster(4, 1)), [(Uid(0), 65_535)]);
        assert!(ScoreBook::default().weights(&roster(4, 1)).is_empty());
    }
}
