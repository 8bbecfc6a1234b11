//! What each adversary gains, and what it costs the others: every kind at three shares of its role, with seats for all and
//! with few, over several seeds.
//!
//! Finished cells stand in a file beside the page, so that a table that was interrupted goes on. Whoever changes a rule
//! removes that file first.

mod cells;
mod page;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use templar_record::event::Role;

use crate::r#virtual::case::Case;
use crate::r#virtual::engine::Engine;
use crate::r#virtual::table::cells::{Key, Network, WINDOWS, network, role_name};
use crate::r#virtual::weather::Faults;
use crate::zoo::kind::Kind;

pub use self::cells::{Cell, Cells};

/// Which table.
#[derive(Clone, Debug)]
pub struct Table {
    pub engine: Engine,
    pub kinds: Vec<Kind>,
    pub first_seed: u64,
    pub seeds: u64,
    pub jobs: usize,
}

/// How far a table is, in cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Found in the file.
    pub known: usize,
    /// Simulated since.
    pub new: usize,
    pub all: usize,
}

/// Why a table cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TableError {
    #[error("{}: it cannot be read or written: {source}; check path and permissions", file.display())]
    File { file: PathBuf, source: io::Error },
    #[error("{}: these are not a table's cells: {source}; remove it to begin anew", file.display())]
    Malformed { file: PathBuf, source: serde_json::Error },
    #[error("{}: these cells are of another trainer; remove it to begin anew", file.display())]
    Other { file: PathBuf },
}

impl Table {
    /// Simulates what is not in `file` yet, each below `folder`, until `stop` says true, and returns all cells. `on_cell`
    /// is told how far it is.
    pub fn run(
        &self,
        file: &Path,
        folder: &Path,
        on_cell: &(dyn Fn(Progress) + Sync),
        stop: &(dyn Fn() -> bool + Sync),
    ) -> Result<Cells, TableError> {
        let loaded = self.load(file)?;
        let mut left = self.simulations();
        let all = left.len();
        left.retain(|(key, _)| loaded.get(key).is_none());
        let (cells, known) = (Mutex::new(loaded), all - left.len());
        let (next, finished, error) = (AtomicUsize::new(0), AtomicUsize::new(0), Mutex::new(None));
        let work = || {
            while let Some((key, case)) = left.get(next.fetch_add(1, Ordering::Relaxed)) {
                let words = key.words();
                if stop() {
                    return;
                }
                let cell = simulate(case, &folder.join(words.replace(' ', "-")));
                let mut cells = lock(&cells);
                cells.cells.insert(words, cell);
                on_cell(Progress { known, new: finished.fetch_add(1, Ordering::Relaxed) + 1, all });
                if let Err(source) = save(file, &cells) {
                    *lock(&error) = Some(TableError::File { file: file.to_owned(), source });
                    return;
                }
            }
        };
        std::thread::scope(|scope| (0..self.jobs.max(1)).for_each(|_| _ = scope.spawn(work)));
        match error.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(cells.into_inner().unwrap_or_else(PoisonError::into_inner)),
        }
    }

    /// The page of the book that shows `cells`.
    pub fn page(&self, cells: &Cells) -> String {
        page::page(cells, &self.kinds, &self.seeds().collect::<Vec<_>>(), self.engine)
    }

    fn simulations(&self) -> Vec<(Key, Case)> {
        let mut all = Vec::new();
        for role in [Role::Miner, Role::Validator] {
            let Network { miners, validators, counts, seats } = network(role);
            let kinds = self.kinds.iter().filter(|kind| kind.role == role);
            let hostile = kinds.flat_map(|kind| counts.map(|count| (Some(*kind), count)));
            for (kind, count) in counts.map(|count| (None, count)).into_iter().chain(hostile) {
                for (seats, seed) in seats.into_iter().flat_map(|seats| self.seeds().map(move |seed| (seats, seed))) {
                    let key = Key { kind: kind.map(|kind| kind.name), role: role_name(role), count, seats, seed };
                    // The honest network has nobody in their place, rather than somebody better.
                    let absent = |of: Role| if kind.is_none() && role == of { count } else { 0 };
                    let case = Case {
                        seed,
                        miners: miners - absent(Role::Miner),
                        validators: validators - absent(Role::Validator),
                        windows: WINDOWS,
                        adversaries: kind.map_or_else(Vec::new, |kind| vec![kind; count]),
                        faults: Faults::None,
                        engine: self.engine,
                        seats: Some(seats),
                        overlaps: false,
                    };
                    all.push((key, case));
                }
            }
        }
        all
    }

    fn seeds(&self) -> impl Iterator<Item = u64> + use<> {
        self.first_seed..self.first_seed + self.seeds
    }

    fn load(&self, file: &Path) -> Result<Cells, TableError> {
        let engine = self.engine.to_string();
        let text = match fs::read(file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Cells { engine, cells: BTreeMap::new() });
            }
            text => text.map_err(|source| TableError::File { file: file.to_owned(), source })?,
        };
        let cells: Cells =
            serde_json::from_slice(&text).map_err(|source| TableError::Malformed { file: file.to_owned(), source })?;
        if cells.engine == engine { Ok(cells) } else { Err(TableError::Other { file: file.to_owned() }) }
    }
}

/// Written beside the file first, so that an interruption leaves a whole one.
fn save(file: &Path, cells: &Cells) -> io::Result<()> {
    let beside = file.with_extension("new");
    fs::write(&beside, serde_json::to_vec_pretty(cells)?)?;
    fs::rename(&beside, file)
}

fn simulate(case: &Case, folder: &Path) -> Cell {
    match case.run(folder) {
        Ok(outcome) => Cell::of(&outcome.report, case.adversaries.first().map(|kind| kind.role)),
        Err(panic) => Cell { pay: None, loss: None, honest_exclusions: 0, certified: 0, broke: Some(panic) },
    }
}

/// Under these locks nothing is half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
