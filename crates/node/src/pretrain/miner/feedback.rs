//! e, the error feedback: what was learned and not yet sent.
//!
//! Anybody can check it, because it follows from what a miner committed: before a window it is e after the last header
//! that the chain had in time (`previous`), plus every own payload that did not count as of the window's base, in the
//! order of windows. A contribution that the chain did not have in time never was: e goes back to what it was before.
//! Where that is not known any more, e begins anew with zeros, and the next header names no header before it.
//!
//! On the disk of a sparing miner it is in bf16: a restart then rounds each value by at most one part in 256, which is far
//! less than the codec's one or two bits per value leave of it anyway.

use templar_protocol::hash::Hash32;
use templar_protocol::header::Header;
use templar_protocol::roster::EntryId;

use crate::frame::error::NodeError;
use crate::frame::files::{floats, to_bf16};
use crate::frame::floats::to_bytes;
use crate::frame::local::{Local, Saving};
use crate::frame::records::{ErrorFeedbackRecord, FloatFormat, KeptFeedback};

#[derive(Debug)]
pub(super) struct ErrorFeedback {
    length: usize,
    values: Vec<f32>,
    record: ErrorFeedbackRecord,
}

impl ErrorFeedback {
    /// The `length` values on disk, or zeros; and what is wrong with those on disk, if something is.
    pub(super) fn load(local: &Local, length: usize) -> Result<(Self, Option<String>), NodeError> {
        let record = local.get::<ErrorFeedbackRecord>()?.unwrap_or_default();
        let newest = record.sealed.as_ref().or(record.confirmed.as_ref());
        Ok(match newest.map(|kept| read(local, kept, length)).transpose() {
            Ok(values) => (Self { length, values: values.unwrap_or_else(|| vec![0.0; length]), record }, None),
            Err(cause) => (Self::zero(length), Some(cause)),
        })
    }

    fn zero(length: usize) -> Self {
        Self { length, values: vec![0.0; length], record: ErrorFeedbackRecord::default() }
    }

    /// Begins anew.
    pub(super) fn reset(&mut self) {
        *self = Self::zero(self.length);
    }

    /// Begins anew unless e follows from headers of `entry`: the next owner of a registration inherits nothing.
    pub(super) fn keep_for(&mut self, entry: &EntryId) {
        if self.record.since.is_some_and(|(of, _)| of != *entry) {
            self.reset();
        }
    }

    /// Whether the payload of `window` goes back into e if it does not count: it is one of those that e follows from.
    pub(super) fn is_owed(&self, window: u64) -> bool {
        self.record.since.is_some_and(|(_, first)| window >= first)
    }

    /// Hash of the last header that the chain had in time since e began; zeros if there is none.
    pub(super) fn previous(&self) -> Hash32 {
        self.record.confirmed.as_ref().map(|kept| kept.header).unwrap_or_default()
    }

    /// The window of a contribution that the chain may have in time, or not.
    pub(super) fn undecided(&self) -> Option<u64> {
        self.record.sealed.as_ref().map(|kept| kept.window)
    }

    /// The values, to be worked on; they come back through [`ErrorFeedback::seal`], or e begins anew.
    pub(super) fn take_values(&mut self) -> Vec<f32> {
        std::mem::take(&mut self.values)
    }

    /// e after the payload of `header` has left it. It counts from the block in which the chain has that header.
    pub(super) fn seal(
        &mut self,
        local: &Local,
        saving: Saving,
        values: Vec<f32>,
        header: &Header,
    ) -> Result<(), NodeError> {
        let (format, bytes) = match saving {
            Saving::Exact => (FloatFormat::F32, to_bytes(&values)),
            Saving::Sparing => (FloatFormat::Bf16, to_bf16(&values)),
        };
        let file = match local.put_file("error", &bytes) {
            Ok(file) => file,
            Err(error) => {
                self.reset();
                return Err(error);
            }
        };
        self.values = values;
        self.record.since.get_or_insert((header.entry, header.window));
        self.record.sealed = Some(KeptFeedback { file, format, window: header.window, header: header.hash() });
        Ok(())
    }

    /// The chain had the header of `window` in time.
    pub(super) fn confirm(&mut self, window: u64) {
        if self.undecided() == Some(window) {
            self.record.confirmed = self.record.sealed.take();
        }
    }

    /// The chain did not have the header of `window` in time: e is what it was before. Gives what is wrong with that, if
    /// something is; e then begins anew.
    pub(super) fn lose(&mut self, local: &Local, window: u64) -> Option<String> {
        if self.undecided() != Some(window) {
            return None;
        }
        let length = self.length;
        self.record.sealed = None;
        if self.record.confirmed.is_none() {
            self.record.since = None;
        }
        match self.record.confirmed.as_ref().map(|kept| read(local, kept, length)).transpose() {
            Ok(values) => {
                self.values = values.unwrap_or_else(|| vec![0.0; length]);
                None
            }
            Err(cause) => {
                *self = Self::zero(length);
                Some(cause)
            }
        }
    }

    pub(super) fn record(&self) -> &ErrorFeedbackRecord {
        &self.record
    }
}

fn read(local: &Local, kept: &KeptFeedback, length: usize) -> Result<Vec<f32>, String> {
    let bytes = local.file(&kept.file).map_err(|damage| damage.to_string())?;
    let values = floats(&bytes, kept.format);
    if values.len() == length && values.iter().all(|value| value.is_finite()) {
        return Ok(values);
    }
    Err(format!("{} has {} values, and not {length} finite ones", kept.file, values.len()))
}

#[cfg(test)]
mod tests {
    use templar_protocol::keys::Keypair;
    use templar_protocol::run::RunId;
    use templar_protocol::testing::entry;

    use super::*;
    use crate::frame::files::Disk;

    fn header(window: u64) -> Header {
        let zeros = Hash32::default();
        Header {
            run: RunId(zeros),
            window,
            entry: entry(0),
            base: zeros,
            previous: zeros,
            profile: 0,
            steps: 1,
            tokens: 1,
            sample_digest: zeros,
            possession: zeros,
            feedback_root: zeros,
            ciphertext_hash: zeros,
            ciphertext_bytes: 1,
            key_commitment: zeros,
        }
    }

    fn local(folder: &std::path::Path) -> Local {
        let hotkey = Keypair::insecure_dev(0, "a").hotkey();
        Local::open(folder, RunId(Hash32::of(b"run")), &hotkey, Disk::Durable).unwrap()
    }

    #[test]
    fn a_sparing_miner_rounds_and_an_exact_one_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let mut local = local(folder.path());
        let values: Vec<f32> = (1..100u16).map(|nth| 1.0 / f32::from(nth)).collect();
        for (saving, error, bytes_per_value) in [(Saving::Exact, 0.0, 4), (Saving::Sparing, 1.0 / 256.0, 2)] {
            let mut feedback = ErrorFeedback::zero(values.len());
            feedback.seal(&local, saving, values.clone(), &header(3)).unwrap();
            feedback.confirm(3);
            let record = feedback.record().clone();
            let file = &record.confirmed.as_ref().unwrap().file;
            assert_eq!(local.file(file).unwrap().len(), bytes_per_value * values.len());
            local.set(&record).unwrap();
            let (loaded, damage) = ErrorFeedback::load(&local, values.len()).unwrap();
            let is_near = |(a, b): (&f32, &f32)| (a - b).abs() <= error * b;
            assert!(damage.is_none() && loaded.values.iter().zip(&values).all(is_near), "{saving:?}");
            assert_eq!(loaded.previous(), header(3).hash());
            // What does not fit this run is damage, and not a shorter one.
            assert!(ErrorFeedback::load(&local, values.len() + 1).unwrap().1.is_some());
        }
    }

    #[test]
    fn what_the_chain_did_not_have_in_time_never_was() {
        let folder = tempfile::tempdir().unwrap();
        let local = local(folder.path());
        let mut feedback = ErrorFeedback::zero(2);
        let mut seal = |window: u64, value: f32, in_time: bool| {
            feedback.seal(&local, Saving::Exact, vec![value; 2], &header(window)).unwrap();
            assert_eq!(feedback.undecided(), Some(window));
            if in_time {
                feedback.confirm(window);
            } else {
                assert_eq!(feedback.lose(&local, window), None);
            }
            (feedback.values.clone(), feedback.previous())
        };
        let hash = |window: u64| header(window).hash();
        assert_eq!(seal(0, 9.0, false), (vec![0.0; 2], Hash32::default()));
        assert_eq!(seal(1, 1.0, true), (vec![1.0; 2], hash(1)));
        assert_eq!(seal(2, 2.0, false), (vec![1.0; 2], hash(1)));
        assert_eq!(seal(3, 3.0, true), (vec![3.0; 2], hash(3)));
        // What was lost is owed nothing, nor is what came before e began.
        assert_eq!([0, 1, 3].map(|window| feedback.is_owed(window)), [false, true, true]);
        feedback.keep_for(&entry(0));
        assert_eq!(feedback.values, vec![3.0; 2]);
        feedback.keep_for(&entry(1));
        assert_eq!((feedback.values.clone(), feedback.previous()), (vec![0.0; 2], Hash32::default()));
        assert!(!feedback.is_owed(3));
    }
}
