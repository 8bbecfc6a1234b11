//! From an event log to the same weights again, bit for bit.
//!
//! A validator's log begins with its book as it was then, and has every judgement, every evaluation and every set of
//! weights after that. So whoever has the log can compute all weights in it, and see which do not follow.

use std::collections::BTreeMap;

use templar_protocol::fault::{Fault, FaultKind};
use templar_protocol::roster::Uid;
use templar_protocol::run::ScoringSpec;
use templar_record::event::{Event, NodeEvent};
use templar_record::judgement::Judgement;

use crate::charge::is_void;
use crate::pay::PayBook;

/// Differences that are kept of each validator.
const DIFFERENCES_MAX: usize = 100;
/// Windows whose votes are kept until they are settled.
const VOTED_MAX: usize = 8;

/// All validators of a log.
#[derive(Debug, Default)]
pub struct Replay {
    validators: BTreeMap<String, Account>,
}

/// What follows from one validator's events.
#[derive(Debug)]
pub struct Account {
    pub scoring: ScoringSpec,
    pub book: PayBook,
    pub judged: u64,
    pub evaluated: u64,
    /// Sets of weights that were computed again.
    pub weighed: u64,
    /// Faults that were computed again.
    pub faults: u64,
    /// Starts after the first, each with the book as the validator's disk had it.
    pub restarts: u64,
    /// What does not follow from the record, oldest first; the first hundred.
    pub differences: Vec<Difference>,
    /// Faults in votes, by window.
    voted: BTreeMap<u64, Vec<Fault>>,
    /// The newest window of which nothing may be measured.
    void: Option<u64>,
}

/// Something in a log that does not follow from what stands before it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Difference {
    #[error("window {window}: the log has weights {recorded:?}, but {computed:?} follow from the record")]
    Weights { window: u64, recorded: Vec<(Uid, u16)>, computed: Vec<(Uid, u16)> },
    #[error(
        "window {window}: the vote blames {recorded:?} for the {kind:?} of uid {uid}, but the rule says {computed:?}"
    )]
    Attribution { window: u64, uid: Uid, kind: FaultKind, recorded: String, computed: String },
    #[error("window {window}: the vote found {voted:?} in uid {uid}, and the judgement {judged:?}")]
    Fault { window: u64, uid: Uid, voted: Option<FaultKind>, judged: Option<FaultKind> },
    #[error("window {window}: losses were measured, though the validator failed in more than a quarter of it")]
    Void { window: u64 },
    #[error("the book at a start is not one of this release's")]
    Book,
}

impl Replay {
    /// Takes in the next event of the log.
    pub fn take(&mut self, event: &NodeEvent) {
        if let Event::BookOpened { scoring, book } = &event.event {
            self.open(&event.node, scoring, book);
        } else if let Some(account) = self.validators.get_mut(&event.node) {
            account.take(&event.event);
        }
    }

    fn open(&mut self, node: &str, scoring: &ScoringSpec, book: &[u8]) {
        let read = borsh::from_slice(book);
        let account = self.validators.entry(node.to_owned()).and_modify(|account| account.restarts += 1);
        let account = account.or_insert_with(|| Account::new(scoring.clone()));
        match read {
            Ok(book) => account.book = book,
            Err(_) => account.differ(Difference::Book),
        }
    }

    /// What follows from the log, by the name of the validator.
    pub fn accounts(&self) -> &BTreeMap<String, Account> {
        &self.validators
    }
}

impl Account {
    fn new(scoring: ScoringSpec) -> Self {
        Self {
            scoring,
            book: PayBook::default(),
            judged: 0,
            evaluated: 0,
            weighed: 0,
            faults: 0,
            restarts: 0,
            differences: Vec::new(),
            voted: BTreeMap::new(),
            void: None,
        }
    }

    fn differ(&mut self, difference: Difference) {
        if self.differences.len() < DIFFERENCES_MAX {
            self.differences.push(difference);
        }
    }

    fn take(&mut self, event: &Event) {
        match event {
            Event::Voted { window, faults, .. } => self.vote(*window, faults),
            Event::Judged { judgement } => self.judge(judgement),
            Event::Evaluated { window, evaluations, .. } => {
                if self.void == Some(*window) {
                    self.differ(Difference::Void { window: *window });
                }
                self.book.evaluate(evaluations, &self.scoring);
                self.evaluated += 1;
            }
            Event::Weighed { window, forgotten, weights } => {
                self.book.forget(forgotten);
                let computed = self.book.weights(&self.scoring);
                if computed != *weights {
                    self.differ(Difference::Weights { window: *window, recorded: weights.clone(), computed });
                }
                self.weighed += 1;
            }
            _ => {}
        }
    }

    fn vote(&mut self, window: u64, faults: &[Fault]) {
        for fault in faults {
            self.faults += 1;
            let computed = fault.kind.attributed_to();
            if computed != fault.attributed_to {
                let (recorded, computed) = (format!("{:?}", fault.attributed_to), format!("{computed:?}"));
                let (uid, kind) = (fault.entry.uid, fault.kind);
                self.differ(Difference::Attribution { window, uid, kind, recorded, computed });
            }
        }
        self.voted.insert(window, faults.to_vec());
        while self.voted.len() > VOTED_MAX {
            self.voted.pop_first();
        }
    }

    fn judge(&mut self, judgement: &Judgement) {
        let window = judgement.window;
        if let Some(voted) = self.voted.remove(&window) {
            for judged in &judgement.miners {
                let fault = voted.iter().find(|fault| fault.entry == judged.entry).map(|fault| fault.kind);
                if fault != judged.fault && judged.fault != Some(FaultKind::NotJudged) {
                    let uid = judged.entry.uid;
                    self.differ(Difference::Fault { window, uid, voted: fault, judged: judged.fault });
                }
            }
        }
        if is_void(judgement) {
            self.void = Some(window);
        }
        self.book.settle(judgement, &self.scoring);
        self.judged += 1;
    }
}

#[cfg(test)]
mod tests {
    use templar_protocol::fault::Party;
    use templar_protocol::testing::{entry, spec};
    use templar_record::judgement::{Decision, Evaluation, Judged, StakeVote};

    use super::*;

    fn scoring() -> ScoringSpec {
        ScoringSpec { budget_tokens: 300, burn_uid: 99, ..spec().scoring }
    }

    /// An honest validator's log of some windows.
    fn log(windows: u64) -> Vec<Event> {
        let mut book = PayBook::default();
        let mut events = vec![opened(&book)];
        for window in 0..windows {
            let fault = (window % 3 == 1).then_some(FaultKind::NotOpened);
            let judged = |uid, fault: Option<FaultKind>| Judged {
                entry: entry(uid),
                vote: if fault.is_none() { StakeVote::Passed } else { StakeVote::Refused },
                tokens: 100,
                fault,
            };
            let judgement =
                Judgement { window, decision: Decision::Certified, miners: vec![judged(0, None), judged(1, fault)] };
            let faults = fault.map(|kind| Fault { entry: entry(1), kind, attributed_to: Party::Miner });
            let faults: Vec<Fault> = faults.into_iter().collect();
            events.push(Event::Voted { window, accept: vec![], faults, comm_s: 0.0 });
            book.settle(&judgement, &scoring());
            events.push(Event::Judged { judgement });
            let losses = |uid: u16| Evaluation {
                entry: entry(uid),
                own_before: 3.0,
                own_after: 2.5,
                unseen_before: 3.0,
                unseen_after: 2.7 + 0.01 * f64::from(uid) / (1.0 + window as f64),
            };
            let evaluations = vec![losses(0), losses(1)];
            book.evaluate(&evaluations, &scoring());
            events.push(Event::Evaluated { window, evaluations, scores: vec![] });
            events.push(Event::Weighed { window, forgotten: vec![], weights: book.weights(&scoring()) });
        }
        events
    }

    fn opened(book: &PayBook) -> Event {
        Event::BookOpened { scoring: scoring(), book: borsh::to_vec(book).unwrap() }
    }

    /// Replays the log after a passage through JSON.
    fn replay(events: &[Event]) -> Replay {
        let mut replay = Replay::default();
        for event in events {
            let event = NodeEvent { node: "v".to_owned(), event: event.clone() };
            replay.take(&serde_json::from_str(&serde_json::to_string(&event).unwrap()).unwrap());
        }
        replay
    }

    #[test]
    fn a_log_gives_the_same_weights_again() {
        let replay = replay(&log(30));
        let account = &replay.accounts()["v"];
        assert_eq!(account.differences, []);
        assert_eq!((account.judged, account.evaluated, account.weighed, account.faults), (30, 30, 30, 10));
    }

    #[test]
    fn a_log_that_begins_at_a_restart_is_replayed_from_there() {
        let events = log(30);
        let mut book = PayBook::default();
        for event in &events[..=4 * 20] {
            match event {
                Event::Judged { judgement } => book.settle(judgement, &scoring()),
                Event::Evaluated { evaluations, .. } => book.evaluate(evaluations, &scoring()),
                _ => {}
            }
        }
        let rest: Vec<Event> = [&[opened(&book)], &events[1 + 4 * 20..]].concat();
        let replay = replay(&rest);
        assert_eq!((replay.accounts()["v"].weighed, &replay.accounts()["v"].differences[..]), (10, &[][..]));
    }

    #[test]
    fn every_change_of_a_log_is_found() {
        let events = log(6);
        let found = |change: &dyn Fn(&mut Event) -> bool| {
            let mut events = events.clone();
            let changed = events.iter_mut().rev().find_map(|event| change(event).then_some(()));
            assert!(changed.is_some(), "there is nothing to change");
            !replay(&events).accounts()["v"].differences.is_empty()
        };
        assert!(found(&|event| match event {
            Event::Weighed { weights, .. } => weights.first_mut().map(|(_, weight)| *weight -= 1).is_some(),
            _ => false,
        }));
        assert!(found(&|event| match event {
            Event::Evaluated { window: 4, evaluations, .. } => {
                evaluations[0].unseen_after = 3.1;
                true
            }
            _ => false,
        }));
        assert!(found(&|event| match event {
            Event::Judged { judgement } if judgement.window == 3 => {
                judgement.miners[0].tokens = 50;
                true
            }
            _ => false,
        }));
        assert!(found(&|event| match event {
            Event::Voted { faults, .. } if !faults.is_empty() => {
                faults[0].attributed_to = Party::Storage;
                true
            }
            _ => false,
        }));
        assert!(found(&|event| match event {
            Event::Judged { judgement } if judgement.miners[1].fault.is_some() => {
                judgement.miners[1].fault = Some(FaultKind::PayloadUnavailable);
                true
            }
            _ => false,
        }));
    }
}
