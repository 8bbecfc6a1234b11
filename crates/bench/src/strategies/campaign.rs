//! All runs of some families, on as many threads as there are cores. What has been run stands in a file, from which an
//! interrupted campaign goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::{fs, io, thread};

use crate::peers::Text;
use crate::strategies::arm::Arm;
use crate::strategies::done::{Cell, Done, Outcome};
use crate::strategies::family::Family;
use crate::strategies::run::Settings;

/// Which runs, and where they are kept.
#[derive(Debug)]
pub struct Campaign<'a> {
    pub settings: &'a Settings,
    pub families: &'a [Family],
    pub text: &'a Text,
    pub jobs: usize,
    pub file: Option<PathBuf>,
}

/// Told after every run.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    pub cell: &'a Cell,
    pub outcome: &'a Outcome,
    /// Runs of these families that are done, those in the file included, and those of this call.
    pub done: usize,
    pub ran: usize,
    /// Runs in all, as far as is known before they are run.
    pub total: usize,
}

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CampaignError {
    #[error("{}: the file of finished runs cannot be read or written: {source}; name another with --file", file.display())]
    File { file: PathBuf, source: io::Error },
    #[error("{}: this is not a file of finished runs: {source}; name another with --file, or remove it", file.display())]
    Malformed { file: PathBuf, source: serde_json::Error },
    #[error("{}: its runs are of {found}, but these would be of {wanted}; name another with --file", file.display())]
    Other { file: PathBuf, found: String, wanted: String },
}

/// What the workers share.
struct Shared {
    done: Done,
    under_way: BTreeSet<Cell>,
    ran: usize,
    error: Option<CampaignError>,
}

impl Campaign<'_> {
    /// Runs what has not been run, until `stop` says true. `on_run` is told every outcome as it comes.
    pub fn run(
        &self,
        on_run: &(dyn Fn(Progress<'_>) + Sync),
        stop: &(dyn Fn() -> bool + Sync),
    ) -> Result<Done, CampaignError> {
        let done = self.load()?;
        // A file that cannot be written is told before hours of work.
        self.save(&done)?;
        let shared = Mutex::new(Shared { done, under_way: BTreeSet::new(), ran: 0, error: None });
        let changed = Condvar::new();
        thread::scope(|scope| {
            for _ in 0..self.jobs.max(1) {
                scope.spawn(|| self.work(&shared, &changed, on_run, stop));
            }
        });
        let Shared { done, error, .. } = shared.into_inner().unwrap_or_else(PoisonError::into_inner);
        error.map_or(Ok(done), Err)
    }

    /// One worker. The engine's own threads would only wait for each other, so every run has one thread.
    fn work(
        &self,
        shared: &Mutex<Shared>,
        changed: &Condvar,
        on_run: &(dyn Fn(Progress<'_>) + Sync),
        stop: &(dyn Fn() -> bool + Sync),
    ) {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("one more thread");
        loop {
            let Some((arm, cell)) = self.take(shared, changed, stop) else { return };
            let outcome = match pool.install(|| self.settings.run(&arm, self.text, cell.seed)) {
                Ok(figures) => Outcome::Finished(figures),
                Err(error) => Outcome::Failed { why: error.to_string() },
            };
            let mut shared = lock(shared);
            shared.under_way.remove(&cell);
            shared.done.arms.entry(cell.arm.clone()).or_default().insert(cell.seed, outcome.clone());
            let error = self.save(&shared.done).err();
            shared.error = shared.error.take().or(error);
            shared.ran += 1;
            let (done, total) = self.progress(&shared.done);
            on_run(Progress { cell: &cell, outcome: &outcome, done, ran: shared.ran, total });
            changed.notify_all();
        }
    }

    /// The next run that nobody has begun. Where every family waits for a run that is under way, this waits too.
    fn take(&self, shared: &Mutex<Shared>, changed: &Condvar, stop: &(dyn Fn() -> bool + Sync)) -> Option<(Arm, Cell)> {
        let mut shared = lock(shared);
        loop {
            if stop() || shared.error.is_some() {
                return None;
            }
            let searches = self.families.iter().map(|family| family.search(&self.settings.seeds, &shared.done));
            let wanted: Vec<(Arm, Cell)> = searches.flat_map(|search| search.wanted).collect();
            if wanted.is_empty() {
                return None;
            }
            if let Some((arm, cell)) = wanted.into_iter().find(|(_, cell)| !shared.under_way.contains(cell)) {
                shared.under_way.insert(cell.clone());
                return Some((arm, cell));
            }
            shared = changed.wait(shared).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Runs that are done and runs in all, of these families.
    fn progress(&self, done: &Done) -> (usize, usize) {
        let searches = self.families.iter().map(|family| family.search(&self.settings.seeds, done));
        let (mut finished, mut open, mut later) = (BTreeSet::new(), BTreeSet::new(), 0);
        for search in searches {
            finished.extend(search.finished);
            open.extend(search.wanted.into_iter().map(|(_, cell)| cell));
            later += search.later;
        }
        (finished.len(), finished.len() + open.len() + later)
    }

    /// What its runs are of.
    fn of(&self) -> String {
        let Settings { preset, peers, steps, .. } = self.settings;
        format!(
            "{} layers of width {}, {peers} peers, {steps} steps of {} × {} tokens, text {}",
            preset.model.layers,
            preset.model.hidden_size,
            preset.inner.batch_sequences,
            preset.model.seq_len,
            self.text.hash().short()
        )
    }

    /// What the file has.
    pub fn load(&self) -> Result<Done, CampaignError> {
        let fresh = Done { of: self.of(), arms: BTreeMap::new() };
        let Some(file) = self.file.clone() else { return Ok(fresh) };
        let text = match fs::read(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(fresh),
            text => text.map_err(|source| CampaignError::File { file: file.clone(), source })?,
        };
        let done: Done =
            serde_json::from_slice(&text).map_err(|source| CampaignError::Malformed { file: file.clone(), source })?;
        if done.of == fresh.of {
            return Ok(done);
        }
        Err(CampaignError::Other { file, found: done.of, wanted: fresh.of })
    }

    fn save(&self, done: &Done) -> Result<(), CampaignError> {
        self.file.as_deref().map_or(Ok(()), |file| {
            write(file, done).map_err(|source| CampaignError::File { file: file.to_owned(), source })
        })
    }
}

/// Written beside the file first, so that an interruption leaves a whole one.
fn write(file: &Path, done: &Done) -> io::Result<()> {
    let mut beside = file.as_os_str().to_owned();
    beside.push(".new");
    fs::write(&beside, serde_json::to_vec_pretty(done)?)?;
    fs::rename(beside, file)
}

/// Under this lock nothing is half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::strategies::family::families;
    use crate::strategies::report::rows;

    fn named(name: &str) -> Family {
        families().into_iter().find(|family| family.name == name).unwrap()
    }

    #[test]
    fn an_interrupted_campaign_goes_on_to_the_same_result() {
        let folder = tempfile::tempdir().unwrap();
        let (settings, text) = (Settings::short(), Text::built_in(20_000));
        let families = [named("before"), named("averaging")];
        let campaign = |file: &str, jobs| Campaign {
            settings: &settings,
            families: &families,
            text: &text,
            jobs,
            file: Some(folder.path().join(file)),
        };
        let whole = campaign("whole.json", 2).run(&|_| (), &|| false).unwrap();

        let runs = AtomicUsize::new(0);
        let begun = AtomicUsize::new(0);
        let count = |progress: Progress<'_>| {
            let all = runs.fetch_add(1, Ordering::Relaxed) + 1;
            // Every start counts its own runs, whatever else is in the file.
            assert_eq!((progress.done, progress.ran), (all, all - begun.load(Ordering::Relaxed)));
        };
        let stopped = campaign("parts.json", 1).run(&count, &|| runs.load(Ordering::Relaxed) == 3).unwrap();
        assert_eq!((runs.load(Ordering::Relaxed), stopped.count()), (3, 3));
        assert!(rows(&families, &settings.seeds, &stopped).iter().all(|row| !row.is_complete));
        begun.store(3, Ordering::Relaxed);
        let resumed = campaign("parts.json", 1).run(&count, &|| false).unwrap();
        assert_eq!(runs.load(Ordering::Relaxed), whole.count());

        let of = |done: &Done| {
            rows(&families, &settings.seeds, done).into_iter().map(|row| (row.arm, row.loss)).collect::<Vec<_>>()
        };
        assert_eq!(of(&resumed), of(&whole));
        assert!(rows(&families, &settings.seeds, &whole).iter().all(|row| row.is_complete && row.seeds == 2));
        // Nothing is left to run.
        campaign("whole.json", 1).run(&|progress| panic!("{progress:?}"), &|| false).unwrap();
    }

    #[test]
    fn a_file_of_other_runs_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("runs.json");
        let (settings, text) = (Settings::short(), Text::built_in(20_000));
        let load = |text: &Text| {
            Campaign { settings: &settings, families: &[], text, jobs: 1, file: Some(file.clone()) }.load()
        };
        fs::write(&file, serde_json::to_vec(&load(&text).unwrap()).unwrap()).unwrap();
        assert!(load(&text).is_ok());
        assert!(matches!(load(&Text::built_in(30_000)), Err(CampaignError::Other { .. })));
        fs::write(&file, "[]").unwrap();
        assert!(matches!(load(&text), Err(CampaignError::Malformed { .. })));
    }
}
