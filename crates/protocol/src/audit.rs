//! The history of a run once more: from what the chain said of each window to the state after it, by the rules alone.
//!
//! The states of a run form a chain of digests: each names the one before it and the inputs of its last window. So
//! whoever knows one certified digest can check every byte of the history, whoever served it; and an [`Audit`] checks
//! that the history followed the rules.

use std::collections::VecDeque;

use crate::assignment::{Assignment, Cursor, window_seed};
use crate::bucket::BucketLocator;
use crate::candidates::{self, Candidate};
use crate::certificate::{Certificate, certified_root, certify, read_ballots};
use crate::clock::Schedule;
use crate::hash::Hash32;
use crate::inputs::{ValidatorInput, WindowInputs};
use crate::roster::{EntryId, Miner, Roster, Uid, Validator};
use crate::run::RunSpec;
use crate::state::{OuterStep, RunState, Settlement};

/// What later windows certify of a state: as much of it as an audit has to remember.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    pub digest: Hash32,
    /// Digest of the inputs of its last window.
    pub inputs: Hash32,
    pub theta_root: Hash32,
    pub cursor: Cursor,
}

impl Link {
    pub fn of(state: &RunState) -> Self {
        Self { digest: state.digest(), inputs: state.inputs, theta_root: state.theta_root, cursor: state.cursor }
    }
}

/// A window, decided once more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replayed {
    pub window: u64,
    pub certificate: Certificate,
    /// Digest of the state that it started from.
    pub base: Hash32,
    pub step: Step,
}

/// What a window did to θ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nobody's contribution counts.
    None,
    /// Contributions were accepted, and the votes that followed decided that none of them counts.
    Withheld,
    /// These count, in the order of candidates: whose, and the hash of its header.
    Taken(Vec<(EntryId, Hash32)>),
}

/// Where a history breaks the rules.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Contradiction {
    #[error("the inputs are those of window {found}")]
    OtherWindow { found: u64 },
    #[error("the inputs have digest {found}, but the state after the window names {named}")]
    Inputs { found: Hash32, named: Hash32 },
    #[error("its votes certify the state {certified}, but it starts from {base}")]
    Base { certified: Hash32, base: Hash32 },
    #[error("the contribution of uid {} counts, but it had committed none", uid.0)]
    Uncommitted { uid: Uid },
    #[error("the rules lead to the state {found}, but the history goes on from {named}")]
    State { found: Hash32, named: Hash32 },
}

/// A walk along the windows of a run, from its beginning.
#[derive(Debug)]
pub struct Audit<'a> {
    spec: &'a RunSpec,
    /// Training samples of the dataset. Without them the cursor is taken from the certified states.
    samples: Option<u64>,
    /// The newest states, as many as windows start from; newest last.
    recent: VecDeque<RunState>,
}

impl<'a> Audit<'a> {
    pub fn new(spec: &'a RunSpec, samples: Option<u64>) -> Self {
        Self { spec, samples, recent: VecDeque::from([RunState::genesis(spec)]) }
    }

    /// The state after all windows so far.
    pub fn state(&self) -> &RunState {
        self.recent.back().expect("an audit always has a state")
    }

    /// Decides the next window from its inputs and compares the result with `after`, the state after it as history has
    /// it. Everything is recomputed but θ, whose root is taken from there; see [`Step::Taken`].
    pub fn advance(&mut self, inputs: &WindowInputs, after: &Link) -> Result<Replayed, Contradiction> {
        let newest = self.state();
        let window = newest.settled;
        if inputs.window != window {
            return Err(Contradiction::OtherWindow { found: inputs.window });
        }
        let digest = inputs.digest();
        if digest != after.inputs {
            return Err(Contradiction::Inputs { found: digest, named: after.inputs });
        }
        let settled = Schedule::new(self.spec).settled_before(window);
        let base = self.recent.iter().find(|state| state.settled == settled).expect("recent states are kept");
        let (roster, seed) = (roster(inputs), window_seed(newest.run, window, &inputs.snapshot_hash));
        let candidates = candidates::choose(window, inputs.contenders(), &base.standing, &self.spec.roster, &seed);
        let certificate = self.certificate(window, inputs, &roster, &candidates, base)?;
        let dealt =
            |samples| Assignment::new(self.spec, window, newest.cursor, &candidates, &seed, samples).next_cursor();
        let cursor = self.samples.map_or(after.cursor, dealt);
        let settlement =
            Settlement { roster: &roster, candidates: &candidates, certificate: &certificate, cursor, inputs: digest };
        let (state, step) = self.step(&settlement, inputs, after)?;
        let base = base.digest();
        self.recent.push_back(state);
        while self.recent.len() > 1 + self.spec.windows.delay_windows as usize {
            self.recent.pop_front();
        }
        Ok(Replayed { window, certificate, base, step })
    }

    /// What the votes say, which must stand on `base`.
    fn certificate(
        &self,
        window: u64,
        inputs: &WindowInputs,
        roster: &Roster,
        candidates: &[Candidate],
        base: &RunState,
    ) -> Result<Certificate, Contradiction> {
        let at_vote = inputs.at_vote();
        let ballots = read_ballots(window, roster, candidates.len(), &at_vote);
        let certificate = certify(window, roster, candidates, &base.standing, self.spec.roster.gather, &ballots);
        // As nodes do: votes that do not fit these candidates still name their root.
        let roots = [certified_root(window, roster, &base.standing, &at_vote), certificate.root()];
        let digest = base.digest();
        match roots.into_iter().flatten().find(|root| *root != digest) {
            Some(certified) => Err(Contradiction::Base { certified, base: digest }),
            None => Ok(certificate),
        }
    }

    /// The state after the window: of the two that the rules allow, the one that history goes on from.
    fn step(
        &self,
        settlement: &Settlement<'_>,
        inputs: &WindowInputs,
        after: &Link,
    ) -> Result<(RunState, Step), Contradiction> {
        let accepted = settlement.certificate.accepted();
        let withheld = self.state().settle(self.spec, settlement, OuterStep::Withheld);
        if withheld.digest() == after.digest {
            return Ok((withheld, if accepted.is_empty() { Step::None } else { Step::Withheld }));
        }
        let theta_root = if accepted.is_empty() { self.state().theta_root } else { after.theta_root };
        let taken = self.state().settle(self.spec, settlement, OuterStep::Taken { theta_root });
        let found = taken.digest();
        if found != after.digest {
            return Err(Contradiction::State { found, named: after.digest });
        }
        let committed = accepted
            .iter()
            .map(|entry| Ok((*entry, inputs.header_of(entry).ok_or(Contradiction::Uncommitted { uid: entry.uid })?)));
        Ok((taken, Step::Taken(committed.collect::<Result<_, _>>()?)))
    }
}

/// The roster as certificate and standing read it: entries and stakes. Inputs keep only the identities of buckets, which
/// are in the candidates, so the buckets of this roster are empty.
fn roster(inputs: &WindowInputs) -> Roster {
    let text = String::new;
    let bucket = || BucketLocator {
        endpoint: text(),
        bucket: text(),
        region: text(),
        access_key_id: text(),
        secret_access_key: text(),
    };
    let miners = inputs.miners.iter().map(|miner| Miner {
        entry: miner.entry,
        incentive: miner.incentive,
        work_class: miner.work_class,
        bucket: bucket(),
    });
    let validators = inputs.validators.iter().map(|validator| {
        let ValidatorInput { entry, stake_rao, .. } = *validator;
        Validator { entry, stake_rao, bucket: bucket() }
    });
    Roster { miners: miners.collect(), validators: validators.collect(), malformed: Vec::new() }
}

#[cfg(test)]
mod tests;
