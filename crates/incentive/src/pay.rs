//! From one validator's record to weights: the one interface of the pay rule.
//!
//! A run has a budget of tokens per window. A miner's share of the emission is its paid tokens' share of that budget, or
//! of all paid tokens if there are more. What nobody earned goes to the burn uid, so a run that trains nothing pays
//! nobody, and no old weights stand.
//!
//! Weights are one validator's opinion; the chain's stake-weighted median turns several opinions into pay. Floats and
//! moving averages are therefore fine here: nothing in this module enters the certified state. They are sums, products
//! and quotients in a fixed order, so the same record gives the same bits.

use std::collections::{BTreeMap, BTreeSet};

use borsh::{BorshDeserialize, BorshSerialize};
use templar_protocol::roster::{EntryId, Uid};
use templar_protocol::run::ScoringSpec;
use templar_record::judgement::{Decision, Evaluation, Judgement, StakeVote};

use crate::charge::{charge, is_void};
use crate::rating::{Rating, own_improvement, unseen_improvement};

/// A record with fewer tokens per window than this, and without bad value, is forgotten.
const TOKENS_MIN: f64 = 1.0;

/// What one validator's record says of every miner.
#[derive(Clone, Debug, Default, PartialEq, BorshSerialize, BorshDeserialize)]
pub struct PayBook {
    ratings: BTreeMap<EntryId, Rating>,
    /// Windows before this one are in the book.
    settled: u64,
    /// Sum of the weights that the windows in the book have in [`Rating::tokens`]: 1 in the long run.
    windows_weight: f64,
}

/// Whose share of the emission is how large.
#[derive(Clone, Debug, PartialEq)]
pub struct Shares {
    pub miners: Vec<(EntryId, f64)>,
    /// What nobody earned.
    pub burned: f64,
}

impl PayBook {
    /// Takes in a settled window. One that is in the book already changes nothing: a node that went back settles windows
    /// again.
    pub fn settle(&mut self, judgement: &Judgement, spec: &ScoringSpec) {
        if judgement.window < self.settled {
            return;
        }
        self.settled = judgement.window.saturating_add(1);
        self.windows_weight = spec.memory * self.windows_weight + (1.0 - spec.memory);
        let mut passed: BTreeMap<EntryId, u64> = BTreeMap::new();
        if judgement.decision == Decision::Certified {
            passed.extend(
                judgement.miners.iter().filter(|of| of.vote == StakeVote::Passed).map(|of| (of.entry, of.tokens)),
            );
        }
        for entry in passed.keys() {
            self.ratings.entry(*entry).or_default();
        }
        for (entry, rating) in &mut self.ratings {
            rating.pass(passed.get(entry).copied().unwrap_or(0) as f64, spec.memory);
        }
        if !is_void(judgement) {
            for judged in &judgement.miners {
                if let Some(value) = charge(judged, judgement.decision).value() {
                    let rating = self.ratings.entry(judged.entry).or_default();
                    rating.observe(value, spec.memory);
                    rating.charges = rating.charges.saturating_add(u64::from(value < 0.0));
                }
            }
        }
        self.ratings.retain(|_, rating| rating.tokens >= TOKENS_MIN || rating.value < 0.0);
    }

    /// Takes in what was measured in a window. Values are relative to the lower median of those that helped, so that a
    /// window late in a run weighs as much as an early one.
    pub fn evaluate(&mut self, evaluations: &[Evaluation], spec: &ScoringSpec) {
        let Some(scale) = scale(evaluations) else { return };
        for evaluation in evaluations {
            let (own, unseen) = (own_improvement(evaluation), unseen_improvement(evaluation));
            let rating = self.ratings.entry(evaluation.entry).or_default();
            rating.observe(unseen / scale, spec.memory);
            rating.observe_own(own > unseen, spec.memory);
            rating.evaluations = rating.evaluations.saturating_add(1);
        }
    }

    /// Forgets `entries`, whose registrations are gone. Whoever has one of their uids by now keeps its own record.
    pub fn forget(&mut self, entries: &[EntryId]) {
        self.ratings.retain(|entry, _| !entries.contains(entry));
    }

    pub fn rating(&self, entry: &EntryId) -> Rating {
        self.ratings.get(entry).copied().unwrap_or_default()
    }

    /// Whether this validator has not evaluated any contribution of `entry`.
    pub fn is_new(&self, entry: &EntryId) -> bool {
        self.rating(entry).evaluations == 0
    }

    /// Tokens per window of `entry` that passed, in the moving average over the windows in the book.
    pub fn tokens(&self, entry: &EntryId) -> f64 {
        self.per_window(self.rating(entry).tokens)
    }

    /// Tokens per window of all miners that are paid.
    pub fn paid_tokens(&self) -> f64 {
        self.ratings.values().fold(0.0, |sum, rating| sum + self.per_window(rating.paid_tokens()))
    }

    fn per_window(&self, tokens: f64) -> f64 {
        if self.windows_weight > 0.0 { tokens / self.windows_weight } else { 0.0 }
    }

    /// Every miner with a rating, in the order of uids.
    pub fn entries(&self) -> impl Iterator<Item = (&EntryId, &Rating)> {
        self.ratings.iter()
    }

    pub fn shares(&self, spec: &ScoringSpec) -> Shares {
        let paid = |rating: &Rating| self.per_window(rating.paid_tokens());
        let paid: Vec<(EntryId, f64)> = self.ratings.iter().map(|(entry, rating)| (*entry, paid(rating))).collect();
        let total = self.paid_tokens();
        let budget = total.max(spec.budget_tokens as f64);
        let miners = paid.into_iter().map(|(entry, tokens)| (entry, tokens / budget)).collect();
        Shares { miners, burned: (budget - total) / budget }
    }

    /// Weights for the chain, in the order of uids: shares scaled so that the largest is 65535, without zeros. There is
    /// always one at least.
    pub fn weights(&self, spec: &ScoringSpec) -> Vec<(Uid, u16)> {
        let shares = self.shares(spec);
        let mut by_uid: BTreeMap<Uid, f64> = BTreeMap::new();
        for (uid, share) in shares.miners.iter().map(|(entry, share)| (entry.uid, *share)) {
            *by_uid.entry(uid).or_default() += share;
        }
        *by_uid.entry(Uid(spec.burn_uid)).or_default() += shares.burned;
        let largest = by_uid.values().copied().fold(0.0, f64::max);
        let scaled = by_uid.into_iter().map(|(uid, share)| (uid, (share / largest * 65535.0).round() as u16));
        scaled.filter(|(_, weight)| *weight > 0).collect()
    }

    /// Whoever is in the book and not among `entries`, the chain's registrations now.
    pub fn gone<'a>(&self, entries: impl Iterator<Item = &'a EntryId>) -> Vec<EntryId> {
        let registered: BTreeSet<&EntryId> = entries.collect();
        self.ratings.keys().filter(|entry| !registered.contains(entry)).copied().collect()
    }
}

/// The lower median of the improvements above 0; if there are none, the largest loss, so that who does harm is seen even
/// alone.
fn scale(evaluations: &[Evaluation]) -> Option<f64> {
    let mut helped: Vec<f64> = evaluations.iter().map(unseen_improvement).filter(|value| *value > 0.0).collect();
    helped.sort_by(f64::total_cmp);
    if let Some(last) = helped.len().checked_sub(1) {
        return Some(helped[last / 2]);
    }
    let worst = evaluations.iter().map(|evaluation| -unseen_improvement(evaluation)).fold(0.0, f64::max);
    (worst > 0.0).then_some(worst)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use templar_protocol::fault::FaultKind;
    use templar_protocol::testing::{entry, spec};
    use templar_record::judgement::Judged;

    use super::*;

    const SLICE: u64 = 1000;

    fn scoring() -> ScoringSpec {
        ScoringSpec { budget_tokens: 4 * SLICE, burn_uid: 99, ..spec().scoring }
    }

    fn window(window: u64, passed: &[u16], faults: &[(u16, FaultKind)]) -> Judgement {
        let judged = |uid, vote, fault| Judged { entry: entry(uid), vote, tokens: SLICE, fault };
        let good = passed.iter().map(|&uid| judged(uid, StakeVote::Passed, None));
        let bad = faults.iter().map(|&(uid, fault)| judged(uid, StakeVote::Refused, Some(fault)));
        Judgement { window, decision: Decision::Certified, miners: good.chain(bad).collect() }
    }

    fn evaluation(uid: u16, unseen: f64) -> Evaluation {
        Evaluation {
            entry: entry(uid),
            own_before: 1.0,
            own_after: 1.0 - 1.5 * unseen,
            unseen_before: 1.0,
            unseen_after: 1.0 - unseen,
        }
    }

    /// So many windows in which the same happens.
    fn book(windows: u64, passed: &[u16], values: &[(u16, f64)]) -> PayBook {
        let mut book = PayBook::default();
        let values: Vec<Evaluation> = values.iter().map(|&(uid, value)| evaluation(uid, value)).collect();
        for number in 0..windows {
            book.settle(&window(number, passed, &[]), &scoring());
            book.evaluate(&values, &scoring());
        }
        book
    }

    fn share(book: &PayBook, uid: u16) -> f64 {
        book.shares(&scoring()).miners.iter().find(|(of, _)| of.uid.0 == uid).map_or(0.0, |(_, share)| *share)
    }

    #[test]
    fn what_nobody_earned_is_burned() {
        assert_eq!(PayBook::default().weights(&scoring()), [(Uid(99), 65535)]);
        let weights = book(60, &[0, 1], &[(0, 0.05), (1, 0.05)]).weights(&scoring());
        assert_eq!(weights, [(Uid(0), 32768), (Uid(1), 32768), (Uid(99), 65535)]);
        let all: Vec<u16> = (0..6).collect();
        let values: Vec<(u16, f64)> = all.iter().map(|&uid| (uid, 0.05)).collect();
        let weights = book(60, &all, &values).weights(&scoring());
        assert_eq!(weights, all.iter().map(|&uid| (Uid(uid), 65535)).collect::<Vec<_>>(), "nothing is left to burn");
    }

    #[test]
    fn value_decides_and_size_does_not() {
        let values = [(0, 0.04), (1, 0.05), (2, 0.15), (3, 0.002), (4, -0.05)];
        let book = book(30, &[0, 1, 2, 3, 4], &values);
        assert!((share(&book, 2) - share(&book, 1)).abs() < 1e-9, "three times as much is not paid more");
        assert!((share(&book, 0) - share(&book, 1)).abs() < 1e-9);
        assert_eq!((share(&book, 3), share(&book, 4)), (0.0, 0.0));
    }

    #[test]
    fn who_harms_alone_loses_its_pay() {
        let mut book = book(10, &[0], &[(0, 0.05)]);
        assert!(share(&book, 0) > 0.2);
        for number in 10..16 {
            book.settle(&window(number, &[0], &[]), &scoring());
            book.evaluate(&[evaluation(0, -0.02)], &scoring());
        }
        assert!(share(&book, 0) <= 0.0);
    }

    #[test]
    fn an_outage_costs_what_was_not_done_and_a_fault_costs_more() {
        let after = |fault: Option<FaultKind>| {
            let mut book = book(20, &[0, 1, 2, 3], &[(0, 0.05), (1, 0.05), (2, 0.05), (3, 0.05)]);
            match fault {
                Some(fault) => book.settle(&window(20, &[1, 2, 3], &[(0, fault)]), &scoring()),
                None => book.settle(&window(20, &[0, 1, 2, 3], &[]), &scoring()),
            }
            book
        };
        let honest = after(None);
        for outage in [FaultKind::PayloadUnavailable, FaultKind::NotOpened, FaultKind::HeaderUnavailable] {
            // Paid over all later windows, the difference is the one window in which its work did not count.
            let lost = share(&honest, 0) - share(&after(Some(outage)), 0);
            assert!((lost / (1.0 - scoring().memory) - 0.25).abs() < 0.01, "{outage:?}: {lost}");
        }
        assert!(share(&after(Some(FaultKind::PayloadMalformed)), 0) < share(&after(Some(FaultKind::NotOpened)), 0));
    }

    #[test]
    fn who_is_never_there_to_be_measured_is_not_paid() {
        let mut book = book(20, &[0, 1], &[(0, 0.05), (1, 0.05)]);
        // It knows by the draws when it would be measured, and hides then.
        for number in (20..60).step_by(2) {
            book.settle(&window(number, &[1], &[(0, FaultKind::NotOpened)]), &scoring());
            book.evaluate(&[evaluation(1, 0.05)], &scoring());
            book.settle(&window(number + 1, &[0, 1], &[]), &scoring());
        }
        assert!(share(&book, 0) < 1e-9 && share(&book, 1) > 0.24);
    }

    #[test]
    fn null_and_withheld_windows_pay_nobody_and_charge_nobody_unknown() {
        for decision in [Decision::Null, Decision::Withheld] {
            let mut book = book(20, &[0, 1], &[(0, 0.05), (1, 0.05)]);
            let before = share(&book, 0);
            book.settle(&Judgement { decision, ..window(20, &[0, 1], &[]) }, &scoring());
            assert!((share(&book, 0) / before - scoring().memory).abs() < 0.01);
        }
    }

    #[test]
    fn a_window_counts_once_and_a_lost_registration_nothing() {
        let mut book = book(5, &[0, 1], &[(0, 0.05), (1, 0.05)]);
        let before = book.clone();
        book.settle(&window(4, &[1], &[]), &scoring());
        assert_eq!(book, before);
        let gone = book.gone([entry(1)].iter());
        assert_eq!(gone, [entry(0)]);
        book.forget(&gone);
        assert_eq!((share(&book, 0), share(&book, 1)), (0.0, share(&before, 1)));
    }

    #[test]
    fn the_next_owner_of_a_uid_keeps_its_own_record() {
        let mut book = book(5, &[0], &[(0, 0.05)]);
        let next = EntryId { registered_at_block: entry(0).registered_at_block + 1, ..entry(0) };
        let miners = vec![Judged { entry: next, vote: StakeVote::Passed, tokens: SLICE, fault: None }];
        book.settle(&Judgement { window: 5, decision: Decision::Certified, miners }, &scoring());
        book.forget(&book.gone([next].iter()));
        assert_eq!(book.entries().map(|(entry, _)| *entry).collect::<Vec<_>>(), [next]);
    }

    #[test]
    fn counts_of_a_strangers_book_do_not_overflow() {
        let full = Rating { evaluations: u64::MAX, charges: u64::MAX, ..Rating::default() };
        let mut book = PayBook { ratings: [(entry(0), full)].into(), ..PayBook::default() };
        book.evaluate(&[evaluation(0, -0.05)], &scoring());
        book.settle(&window(0, &[], &[(0, FaultKind::NotOpened)]), &scoring());
        assert_eq!((book.rating(&entry(0)).evaluations, book.rating(&entry(0)).charges), (u64::MAX, u64::MAX));
    }

    #[test]
    fn a_book_forgets_who_left() {
        let mut book = book(10, &[0, 1], &[(0, 0.05), (1, -0.05)]);
        (10..80).for_each(|number| book.settle(&window(number, &[], &[]), &scoring()));
        assert_eq!(book.entries().map(|(entry, _)| entry.uid).collect::<Vec<_>>(), [Uid(1)], "harm is not forgotten");
    }

    proptest! {
        /// Whatever was measured: shares are finite, none is negative, and with what is burned they are the whole.
        #[test]
        fn shares_are_a_partition(
            losses in proptest::collection::vec((0u16..6, any::<f64>(), any::<f64>()), 0..40),
            passed in proptest::collection::vec(proptest::collection::vec(0u16..6, 0..6), 0..20),
        ) {
            let mut book = PayBook::default();
            for (number, mut passed) in passed.into_iter().enumerate() {
                passed.sort_unstable();
                passed.dedup();
                book.settle(&window(number as u64, &passed, &[]), &scoring());
                let evaluations: Vec<Evaluation> = losses.iter().skip(number).step_by(3).map(|&(uid, before, after)| {
                    Evaluation { unseen_before: before, unseen_after: after, ..evaluation(uid, 0.01) }
                }).collect();
                book.evaluate(&evaluations, &scoring());
            }
            let shares = book.shares(&scoring());
            prop_assert!(shares.burned >= 0.0 && shares.miners.iter().all(|(_, share)| *share >= 0.0));
            let total: f64 = shares.miners.iter().map(|(_, share)| share).sum::<f64>() + shares.burned;
            prop_assert!((total - 1.0).abs() < 1e-9);
            prop_assert!(!book.weights(&scoring()).is_empty());
        }
    }
}
