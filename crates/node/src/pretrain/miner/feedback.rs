//! e, the error feedback: what was learned and not yet sent.
//!
//! On the disk of a sparing miner it is in bf16: a restart then rounds each value by at most one part in 256, which is
//! far less than the codec's one or two bits per value leave of it anyway.

use crate::frame::error::NodeError;
use crate::frame::files::{floats, to_bf16, to_bytes};
use crate::frame::local::{Local, Saving};
use crate::frame::records::{ErrorFeedbackRecord, FloatFormat};

#[derive(Debug)]
pub(super) struct ErrorFeedback {
    values: Vec<f32>,
    /// The file that has these values; `None` once they have changed.
    record: Option<ErrorFeedbackRecord>,
}

impl ErrorFeedback {
    /// The `length` values on disk, or zeros; and what is wrong with those on disk, if something is.
    pub(super) fn load(local: &Local, length: usize) -> Result<(Self, Option<String>), NodeError> {
        let Some(record) = local.get::<ErrorFeedbackRecord>()? else { return Ok((Self::zero(length), None)) };
        let cause = match local.file(&record.file) {
            Ok(bytes) => {
                let values = floats(&bytes, record.format);
                if values.len() == length && values.iter().all(|value| value.is_finite()) {
                    return Ok((Self { values, record: Some(record) }, None));
                }
                format!("{} has {} values, and not {length} finite ones", record.file, values.len())
            }
            Err(damage) => damage.to_string(),
        };
        Ok((Self::zero(length), Some(cause)))
    }

    fn zero(length: usize) -> Self {
        Self { values: vec![0.0; length], record: None }
    }

    pub(super) fn values_mut(&mut self) -> &mut Vec<f32> {
        self.record = None;
        &mut self.values
    }

    /// Writes it, if it has changed since.
    pub(super) fn store(&mut self, local: &Local, saving: Saving) -> Result<ErrorFeedbackRecord, NodeError> {
        if let Some(record) = &self.record {
            return Ok(record.clone());
        }
        let (format, bytes) = match saving {
            Saving::Exact => (FloatFormat::F32, to_bytes(&self.values)),
            Saving::Sparing => (FloatFormat::Bf16, to_bf16(&self.values)),
        };
        let file = local.put_file("error", &bytes)?;
        Ok(self.record.insert(ErrorFeedbackRecord { file, format }).clone())
    }
}

#[cfg(test)]
mod tests {
    use templar_protocol::hash::Hash32;
    use templar_protocol::keys::Keypair;
    use templar_protocol::run::RunId;

    use super::*;
    use crate::frame::files::Disk;

    #[test]
    fn a_sparing_miner_rounds_and_an_exact_one_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let hotkey = Keypair::insecure_dev(0, "a").hotkey();
        let mut local = Local::open(folder.path(), RunId(Hash32::of(b"run")), &hotkey, Disk::Durable).unwrap();
        let values: Vec<f32> = (1..100u16).map(|nth| 1.0 / f32::from(nth)).collect();
        for (saving, error, bytes_a_value) in [(Saving::Exact, 0.0, 4), (Saving::Sparing, 1.0 / 256.0, 2)] {
            let mut feedback = ErrorFeedback::zero(values.len());
            feedback.values_mut().copy_from_slice(&values);
            let record = feedback.store(&local, saving).unwrap();
            assert_eq!(local.file(&record.file).unwrap().len(), bytes_a_value * values.len());
            local.set(&record).unwrap();
            let (loaded, damage) = ErrorFeedback::load(&local, values.len()).unwrap();
            let is_near = |(a, b): (&f32, &f32)| (a - b).abs() <= error * b;
            assert!(damage.is_none() && loaded.values.iter().zip(&values).all(is_near), "{saving:?}");
            // A file that does not fit this run is damaged, rather than a shorter error feedback.
            assert!(ErrorFeedback::load(&local, values.len() + 1).unwrap().1.is_some());
        }
    }
}
