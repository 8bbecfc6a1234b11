//! Many seeds, each a network of its own under its own weather and with its own adversaries, until one shows a failure.
//!
//! Seeds run on threads of their own, and each of them on one thread alone, so their number changes nothing. What has been
//! run stands in a file, from which a campaign that was interrupted goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::r#virtual::case::Case;
use crate::r#virtual::engine::Engine;
use crate::r#virtual::invariants::Invariant;
use crate::r#virtual::weather::Faults;

/// Which seeds, and what applies to all of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Campaign {
    /// None, if each seed draws its own.
    pub faults: Option<Faults>,
    pub is_real: bool,
    pub first_seed: u64,
    #[serde(skip)]
    pub seeds: u64,
    #[serde(skip)]
    pub jobs: usize,
    /// What is done stands here.
    #[serde(skip)]
    pub file: Option<PathBuf>,
}

/// A seed that shows a failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    pub seed: u64,
    /// The violation, or the panic.
    pub seen: String,
    /// Repeats it.
    pub command: String,
    /// Shows the same invariant violated by as little as could be found: fewer windows, adversaries and failures.
    pub shortest: String,
}

/// What has been run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    campaign: Campaign,
    pub passed: BTreeSet<u64>,
    pub failed: BTreeMap<u64, Failed>,
}

/// Why a campaign cannot be run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CampaignError {
    #[error("{}: the campaign's file cannot be read or written: {source}; name another with --campaign-file", file.display())]
    File { file: PathBuf, source: io::Error },
    #[error("{}: this is not a campaign's file: {source}; name another with --campaign-file, or remove it", file.display())]
    Malformed { file: PathBuf, source: serde_json::Error },
    #[error("{}: it belongs to a campaign with another seed, trainer or level of faults; remove it, or name another with --campaign-file", file.display())]
    Other { file: PathBuf },
}

/// What failed in one run of a case: the invariant, if it is one, and the words for it.
type Failure = (Option<Invariant>, String);

impl Campaign {
    /// Runs all seeds that have not been run, each below `folder`. `on_seed` gets every result as it comes, until `stop`
    /// says true.
    pub fn run(
        &self,
        folder: &Path,
        on_seed: &(dyn Fn(&Done, u64) + Sync),
        stop: &(dyn Fn() -> bool + Sync),
    ) -> Result<Done, CampaignError> {
        let done = Mutex::new(self.load()?);
        let (next, error) = (AtomicU64::new(0), Mutex::new(None));
        let work = || {
            loop {
                let nth = next.fetch_add(1, Ordering::Relaxed);
                if nth >= self.seeds || stop() {
                    return;
                }
                let seed = self.first_seed + nth;
                if lock(&done).is_done(seed) {
                    continue;
                }
                let failed = self.try_seed(seed, &folder.join(format!("seed-{seed}")));
                let mut done = lock(&done);
                match failed {
                    None => _ = done.passed.insert(seed),
                    Some(failed) => _ = done.failed.insert(seed, failed),
                }
                on_seed(&done, seed);
                if let Err(failure) = self.save(&done) {
                    *lock(&error) = Some(failure);
                    return;
                }
            }
        };
        std::thread::scope(|scope| (0..self.jobs.max(1)).for_each(|_| _ = scope.spawn(work)));
        match error.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(done.into_inner().unwrap_or_else(PoisonError::into_inner)),
        }
    }

    fn case(&self, seed: u64) -> Case {
        Case::draw(seed, self.faults, if self.is_real { Engine::Real } else { Engine::Surrogate })
    }

    fn try_seed(&self, seed: u64, folder: &Path) -> Option<Failed> {
        let case = self.case(seed);
        let failure = failure(&case, folder)?;
        let shortest = shortest(&case, &failure, folder);
        Some(Failed { seed, seen: failure.1, command: case.command(), shortest: shortest.command() })
    }

    fn load(&self) -> Result<Done, CampaignError> {
        let fresh = Done { campaign: self.kept(), passed: BTreeSet::new(), failed: BTreeMap::new() };
        let Some(file) = self.file.clone() else { return Ok(fresh) };
        let text = match fs::read(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(fresh),
            text => text.map_err(|source| CampaignError::File { file: file.clone(), source })?,
        };
        let done: Done =
            serde_json::from_slice(&text).map_err(|source| CampaignError::Malformed { file: file.clone(), source })?;
        if done.campaign == self.kept() { Ok(done) } else { Err(CampaignError::Other { file }) }
    }

    /// Written beside the file first, so that an interruption leaves a whole one.
    fn save(&self, done: &Done) -> Result<(), CampaignError> {
        let Some(file) = &self.file else { return Ok(()) };
        let beside = file.with_extension("new");
        let text = serde_json::to_vec(done).map_err(io::Error::from);
        let written = text.and_then(|text| fs::write(&beside, text)).and_then(|()| fs::rename(&beside, file));
        written.map_err(|source| CampaignError::File { file: file.clone(), source })
    }

    /// What its file says of it: more seeds continue the same campaign.
    fn kept(&self) -> Self {
        Self { seeds: 0, jobs: 0, file: None, ..self.clone() }
    }
}

impl Done {
    fn is_done(&self, seed: u64) -> bool {
        self.passed.contains(&seed) || self.failed.contains_key(&seed)
    }
}

/// How a case fails, if it does.
fn failure(case: &Case, folder: &Path) -> Option<Failure> {
    match case.run(folder) {
        Err(panic) => Some((None, format!("seed {}: {panic}", case.seed))),
        Ok(outcome) => outcome.violations.first().map(|violation| (Some(violation.invariant), violation.to_string())),
    }
}

/// The smallest case that could be found to fail in the same way: a prefix in windows first, then without failures of
/// machines, then with fewer adversaries.
fn shortest(case: &Case, failure_of_case: &Failure, folder: &Path) -> Case {
    let fails = |case: &Case| failure(case, folder).is_some_and(|(invariant, _)| invariant == failure_of_case.0);
    let windows = (1..case.windows).find(|&windows| fails(&Case { windows, ..case.clone() }));
    let mut best = Case { windows: windows.unwrap_or(case.windows), ..case.clone() };
    let calm = Case { faults: Faults::None, ..best.clone() };
    if best.faults != Faults::None && fails(&calm) {
        best = calm;
    }
    for nth in (0..best.adversaries.len()).rev() {
        let mut fewer = best.clone();
        fewer.adversaries.remove(nth);
        if fails(&fewer) {
            best = fewer;
        }
    }
    best
}

/// Under these locks nothing is half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
