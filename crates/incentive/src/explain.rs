//! One miner's pay, factor by factor: what one validator's record says, and what would raise it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::Serialize;
use templar_protocol::fault::FaultKind;
use templar_protocol::roster::{EntryId, Uid};
use templar_record::event::{Event, NodeEvent};
use templar_record::judgement::{Decision, Evaluation, Judgement, StakeVote};

use crate::charge::{Charge, charge, is_void};
use crate::rating::{Rating, own_improvement, unseen_improvement};
use crate::replay::{Account, Replay};

/// Windows that an explanation shows.
pub const WINDOWS_MAX: usize = 24;

/// Follows one miner through an event log.
#[derive(Debug)]
pub struct Explainer {
    uid: Uid,
    /// The last window that is looked at, if not all are.
    until: Option<u64>,
    /// Validators that are past it: a book that they open later is not of then.
    past: BTreeSet<String>,
    replay: Replay,
    /// By validator, oldest first.
    windows: BTreeMap<String, VecDeque<WindowOfMiner>>,
}

/// One window of one miner, as a validator's record has it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WindowOfMiner {
    pub window: u64,
    pub part: Part,
    /// Improvement on own and on unseen samples, if this validator evaluated the contribution.
    pub improvement: Option<(f64, f64)>,
}

/// What the miner did in a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// It was no candidate, so it had no data and could earn nothing.
    NoSeat,
    /// The window was null or withheld: it counts for nobody.
    Undecided(Decision),
    Passed {
        tokens: u64,
        /// The validator could not read it, though most of the stake could.
        own_failure: bool,
    },
    /// This validator found nothing wrong with it, and less than half of the stake accepted it.
    NotPassed,
    Faulted(FaultKind, Charge),
}

/// What one validator's record says of a miner.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Explanation {
    pub validator: String,
    pub entry: Option<EntryId>,
    pub rating: Rating,
    /// Tokens per window that passed, in the moving average.
    pub tokens: f64,
    pub budget_tokens: f64,
    /// Tokens per window of all miners that are paid.
    pub all_paid_tokens: f64,
    /// Its share of the emission to miners.
    pub share: f64,
    pub burned: f64,
    pub weight: u16,
    pub windows: Vec<WindowOfMiner>,
    pub advice: Vec<Advice>,
}

/// What would raise a miner's pay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Advice {
    #[error(
        "it has no seat so far. If this uid is registered and its bucket published, it stays active and waits for its turn, which comes within ⌈256 / newcomer seats⌉ windows; `ended` in the miner's own log says how its windows end"
    )]
    WaitForASeat,
    #[error("it did not commit in most of its windows: look at how they `ended` in the miner's own log")]
    Commit,
    #[error("its keys were not in its bucket by the vote deadline: it uploads too late, or its bucket cannot be read")]
    Open,
    #[error("its bucket does not serve what it committed: check it from another machine with the published credential")]
    Serve,
    #[error("what it published was refused as malformed or as another's: update its software, and look at the faults")]
    Mend,
    #[error("it trains from an old state: it has not caught up when its window begins")]
    CatchUp,
    #[error("this validator has not evaluated it yet: nobody is paid before that, and newcomers are drawn first")]
    WaitForEvaluation,
    #[error(
        "its contributions help less than three quarters of what the median one does: more inner steps in the window, or a look at its learning rate and precision"
    )]
    HelpMore,
    #[error("its own samples do not improve more than others': it does not train on the data that it is assigned")]
    TrainOnOwnData,
    #[error("nothing: its tokens are paid in full; more come with more windows in which it counts")]
    Nothing,
}

impl Explainer {
    pub fn new(uid: Uid, until: Option<u64>) -> Self {
        Self { uid, until, past: BTreeSet::new(), replay: Replay::default(), windows: BTreeMap::new() }
    }

    /// Takes in the next event of the log.
    pub fn take(&mut self, event: &NodeEvent) {
        let window = match &event.event {
            Event::Judged { judgement } => Some(judgement.window),
            Event::Evaluated { window, .. } | Event::Weighed { window, .. } => Some(*window),
            _ => None,
        };
        if window.zip(self.until).is_some_and(|(window, until)| window > until) {
            if !self.past.contains(&event.node) {
                self.past.insert(event.node.clone());
            }
            return;
        }
        if matches!(event.event, Event::BookOpened { .. }) && self.past.contains(&event.node) {
            return;
        }
        self.replay.take(event);
        match &event.event {
            Event::Judged { judgement } => self.judge(&event.node, judgement),
            Event::Evaluated { window, evaluations, .. } => self.evaluate(&event.node, *window, evaluations),
            _ => {}
        }
    }

    fn judge(&mut self, node: &str, judgement: &Judgement) {
        let windows = self.windows.entry(node.to_owned()).or_default();
        // A node that went back settles windows again, and its book keeps what it had.
        if windows.back().is_some_and(|newest| newest.window >= judgement.window) {
            return;
        }
        let part = part(judgement, self.uid);
        windows.push_back(WindowOfMiner { window: judgement.window, part, improvement: None });
        if windows.len() > WINDOWS_MAX {
            windows.pop_front();
        }
    }

    fn evaluate(&mut self, node: &str, window: u64, evaluations: &[Evaluation]) {
        let Some(evaluation) = evaluations.iter().find(|evaluation| evaluation.entry.uid == self.uid) else { return };
        let improvement = Some((own_improvement(evaluation), unseen_improvement(evaluation)));
        let windows = self.windows.entry(node.to_owned()).or_default();
        if let Some(of) = windows.iter_mut().rfind(|of| of.window == window) {
            of.improvement = improvement;
        }
    }

    /// What each validator's record says, in the order of their names.
    pub fn explanations(&self) -> Vec<Explanation> {
        let accounts = self.replay.accounts().iter();
        accounts.map(|(validator, account)| self.explanation(validator, account)).collect()
    }

    fn explanation(&self, validator: &str, account: &Account) -> Explanation {
        let newest = account.book.entries().filter(|(entry, _)| entry.uid == self.uid);
        let newest = newest.max_by_key(|(entry, _)| entry.registered_at_block);
        let (entry, rating) = newest.map_or((None, Rating::default()), |(entry, rating)| (Some(*entry), *rating));
        let (shares, weights) = (account.book.shares(&account.scoring), account.book.weights(&account.scoring));
        let windows: Vec<WindowOfMiner> = self.windows.get(validator).into_iter().flatten().cloned().collect();
        Explanation {
            validator: validator.to_owned(),
            entry,
            rating,
            budget_tokens: account.scoring.budget_tokens as f64,
            tokens: entry.map_or(0.0, |entry| account.book.tokens(&entry)),
            all_paid_tokens: account.book.paid_tokens(),
            share: shares.miners.iter().find(|(of, _)| Some(*of) == entry).map_or(0.0, |(_, share)| *share),
            burned: shares.burned,
            weight: weights.iter().find(|(uid, _)| *uid == self.uid).map_or(0, |(_, weight)| *weight),
            advice: advice(&rating, &windows),
            windows,
        }
    }
}

fn part(judgement: &Judgement, uid: Uid) -> Part {
    let Some(judged) = judgement.miners.iter().find(|judged| judged.entry.uid == uid) else { return Part::NoSeat };
    if judgement.decision != Decision::Certified {
        return Part::Undecided(judgement.decision);
    }
    match (judged.vote == StakeVote::Passed, judged.fault) {
        (true, fault) => Part::Passed { tokens: judged.tokens, own_failure: fault.is_some() },
        (false, None) => Part::NotPassed,
        (false, Some(fault)) if is_void(judgement) => Part::Faulted(fault, Charge::OwnFailure),
        (false, Some(fault)) => Part::Faulted(fault, charge(judged, judgement.decision)),
    }
}

fn advice(rating: &Rating, windows: &[WindowOfMiner]) -> Vec<Advice> {
    let seats = windows.iter().filter(|of| !matches!(of.part, Part::NoSeat | Part::Undecided(_)));
    let seats: Vec<Part> = seats.map(|of| of.part).collect();
    if seats.is_empty() {
        return vec![Advice::WaitForASeat];
    }
    let mut advice = Vec::new();
    let often = |is: &dyn Fn(FaultKind) -> bool| {
        4 * seats.iter().filter(|part| matches!(part, Part::Faulted(fault, _) if is(*fault))).count() >= seats.len()
    };
    for (is, what) in [
        (&(|fault| fault == FaultKind::NotCommitted) as &dyn Fn(FaultKind) -> bool, Advice::Commit),
        (&|fault| fault == FaultKind::NotOpened, Advice::Open),
        (&|fault| matches!(fault, FaultKind::HeaderUnavailable | FaultKind::PayloadUnavailable), Advice::Serve),
        (&|fault| matches!(fault, FaultKind::WrongBase | FaultKind::Possession), Advice::CatchUp),
        (&|fault| Charge::of(fault) == Charge::Bad, Advice::Mend),
    ] {
        if often(is) {
            advice.push(what);
        }
    }
    if rating.evaluations == 0 && rating.tokens > 0.0 {
        advice.push(Advice::WaitForEvaluation);
    } else if rating.value_factor() < 1.0 && rating.tokens > 0.0 {
        advice.push(Advice::HelpMore);
    }
    if rating.own_factor() < 0.9 {
        advice.push(Advice::TrainOnOwnData);
    }
    if advice.is_empty() {
        advice.push(Advice::Nothing);
    }
    advice
}

#[cfg(test)]
mod tests {
    use templar_protocol::testing::{entry, spec};
    use templar_record::judgement::Judged;

    use super::*;
    use crate::pay::PayBook;

    #[test]
    fn an_explanation_as_of_a_window_knows_nothing_later_and_shows_each_window_once() {
        let scoring = spec().scoring;
        let judged = |window| {
            let miners = vec![Judged { entry: entry(0), vote: StakeVote::Passed, tokens: 100, fault: None }];
            Event::Judged { judgement: Judgement { window, decision: Decision::Certified, miners } }
        };
        let opened =
            |book: &PayBook| Event::BookOpened { scoring: scoring.clone(), book: borsh::to_vec(book).unwrap() };
        let mut book = PayBook::default();
        let mut events = vec![opened(&book)];
        for window in [0, 1, 2, 1, 2, 3] {
            events.push(judged(window));
            if let Event::Judged { judgement } = judged(window) {
                book.settle(&judgement, &scoring);
            }
        }
        events.push(opened(&book));
        let explained = |until: u64| {
            let mut explainer = Explainer::new(Uid(0), Some(until));
            for event in &events {
                explainer.take(&NodeEvent { node: "v".to_owned(), event: event.clone() });
            }
            explainer.explanations().remove(0)
        };
        let windows: Vec<u64> = explained(3).windows.iter().map(|of| of.window).collect();
        assert_eq!(windows, [0, 1, 2, 3]);
        let expected = 100.0 * (1.0 - scoring.memory);
        assert!((explained(0).rating.tokens - expected).abs() < 1e-9, "{:?}", explained(0).rating);
    }
}
