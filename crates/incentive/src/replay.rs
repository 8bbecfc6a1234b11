//! From an event log to the same weights again, bit for bit.
//!
//! A validator's log begins with its book as it was then, and has every judgement, every evaluation and every set of
//! weights after that. So whoever has the log can compute all weights in it, and see which do not follow. The first book
//! is taken as it is; every later one must be what the log leads to.

use std::collections::BTreeMap;

use templar_protocol::fault::{Fault, FaultKind};
use templar_protocol::roster::Uid;
use templar_protocol::run::ScoringSpec;
use templar_record::event::{Event, NodeEvent};
use templar_record::judgement::Judgement;

use crate::charge::is_void;
use crate::pay::PayBook;

/// Validators of which a log may tell: far more than a run has.
const VALIDATORS_KEPT_MAX: usize = 1024;
/// Differences that are kept of each validator.
const DIFFERENCES_MAX: usize = 100;
/// Windows whose votes are kept until they are settled.
const VOTED_MAX: usize = 8;

/// All validators of a log.
#[derive(Debug, Default)]
pub struct Replay {
    validators: BTreeMap<String, Account>,
    /// Records of validators whose book had not been opened.
    unbooked: BTreeMap<String, u64>,
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
    /// Miners in the first book, which nothing in the log bears out.
    pub began_with: usize,
    /// Starts after the first, each with the book as the validator's disk had it.
    pub restarts: u64,
    /// What does not follow from the record, oldest first; the first hundred.
    pub differences: Vec<Difference>,
    /// Faults in votes, by window.
    voted: BTreeMap<u64, Vec<Fault>>,
    /// The newest window of which nothing may be measured.
    void: Option<u64>,
    /// The book on the validator's disk: it is put there when a window is settled or measured.
    stored: PayBook,
    /// The first and the newest window judged since the last start.
    judged_since: Option<(u64, u64)>,
    /// The window to be judged next, unless a state is taken over.
    next: Option<u64>,
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
    #[error(
        "the book at a start is not what the log before it leads to: records are missing, or the book was changed (a kill \
         between the disk and the log can do that for one window)"
    )]
    Restart,
    #[error("the rules of pay at a start are not those before it: these are the logs of two runs")]
    Rules,
    #[error("the log has no judgement of windows {from} to {to}")]
    Gap { from: u64, to: u64 },
    #[error("window {window}: something was measured or paid, but the log has no judgement of it before that")]
    Unjudged { window: u64 },
}

impl Replay {
    /// Takes in the next event of the log.
    pub fn take(&mut self, event: &NodeEvent) {
        let has_room = self.validators.len() < VALIDATORS_KEPT_MAX;
        match &event.event {
            Event::BookOpened { scoring, book } if has_room || self.validators.contains_key(&event.node) => {
                self.open(&event.node, scoring, book);
            }
            other => match self.validators.get_mut(&event.node) {
                Some(account) => account.take(other),
                None => self.leave_out(event),
            },
        }
    }

    fn leave_out(&mut self, event: &NodeEvent) {
        let is_record = |event: &Event| {
            matches!(
                event,
                Event::BookOpened { .. } | Event::Judged { .. } | Event::Evaluated { .. } | Event::Weighed { .. }
            )
        };
        if is_record(&event.event) {
            let has_room = self.unbooked.len() < VALIDATORS_KEPT_MAX || self.unbooked.contains_key(&event.node);
            let name = if has_room { event.node.clone() } else { "others".to_owned() };
            *self.unbooked.entry(name).or_default() += 1;
        }
    }

    fn open(&mut self, node: &str, scoring: &ScoringSpec, book: &[u8]) {
        let read = borsh::from_slice(book);
        if let Some(account) = self.validators.get_mut(node) {
            return account.restart(scoring, read.ok());
        }
        let mut account = Account::new(scoring.clone());
        match read {
            Ok(book) => (account.book, account.stored) = (PayBook::clone(&book), book),
            Err(_) => account.differ(Difference::Book),
        }
        account.began_with = account.book.entries().count();
        self.validators.insert(node.to_owned(), account);
    }

    /// By the name of the validator: how many of its records stand before its first book, so that nothing follows from them.
    pub fn unbooked(&self) -> &BTreeMap<String, u64> {
        &self.unbooked
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
            began_with: 0,
            restarts: 0,
            differences: Vec::new(),
            voted: BTreeMap::new(),
            void: None,
            stored: PayBook::default(),
            judged_since: None,
            next: None,
        }
    }

    fn restart(&mut self, scoring: &ScoringSpec, book: Option<PayBook>) {
        self.restarts += 1;
        (self.judged_since, self.next) = (None, None);
        if self.scoring != *scoring {
            self.scoring = scoring.clone();
            self.differ(Difference::Rules);
        }
        match book {
            Some(book) if book == self.stored => self.book = book,
            Some(book) => {
                self.differ(Difference::Restart);
                (self.book, self.stored) = (book.clone(), book);
            }
            None => self.differ(Difference::Book),
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
                self.expect_judged(*window);
                self.book.evaluate(evaluations, &self.scoring);
                self.stored = self.book.clone();
                self.evaluated += 1;
            }
            Event::Weighed { window, forgotten, weights } => {
                self.expect_judged(*window);
                self.book.forget(forgotten);
                let computed = self.book.weights(&self.scoring);
                if computed != *weights {
                    self.differ(Difference::Weights { window: *window, recorded: weights.clone(), computed });
                }
                self.weighed += 1;
            }
            Event::Adopted { .. } => self.next = None,
            _ => {}
        }
    }

    fn expect_judged(&mut self, window: u64) {
        if !self.judged_since.is_some_and(|(first, newest)| (first..=newest).contains(&window)) {
            self.differ(Difference::Unjudged { window });
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
        if let Some(from) = self.next.filter(|next| *next < window) {
            self.differ(Difference::Gap { from, to: window - 1 });
        }
        self.next = Some(window.saturating_add(1));
        let (first, newest) = self.judged_since.unwrap_or((window, window));
        self.judged_since = Some((first.min(window), newest.max(window)));
        self.book.settle(judgement, &self.scoring);
        self.stored = self.book.clone();
        self.judged += 1;
    }
}

#[cfg(test)]
mod tests;
