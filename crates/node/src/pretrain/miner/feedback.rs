//! e, the error feedback: what was learned and not yet sent.
//!
//! On the disk of a sparing miner it is in bf16: a restart then rounds each value by at most one part in 256, which is far
//! less than the codec's one or two bits a value leave of it anyway.

use templar_codec::Codec;

use crate::frame::error::NodeError;
use crate::frame::files::{floats, to_bf16, to_bytes};
use crate::frame::local::{Local, Saving};
use crate::frame::records::{ErrorFeedbackRecord, FloatFormat};

#[derive(Debug)]
pub(super) struct ErrorFeedback {
    values: Vec<f32>,
    /// The file that has these values; none since they changed.
    record: Option<ErrorFeedbackRecord>,
}

impl ErrorFeedback {
    /// What is on disk, or zeros; and what is wrong with what is on disk, if something is.
    pub(super) fn load(local: &Local, codec: &Codec) -> Result<(Self, Option<String>), NodeError> {
        let length = codec.layout().len();
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
