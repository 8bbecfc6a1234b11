//! Whether a run is possible: each value against the range that [`KEYS`] gives it, then values against each other.

use std::fmt;

use crate::run::keys::{KEYS, Values};
use crate::run::spec::{CANDIDATES_MAX, CodecKind, CodecSpec, RunSpec, TRANSFORM_CHUNK, Transform};

/// Most parameters that a model may have: far more than any model of today, and few enough to calculate with.
const PARAMETERS_MAX: u64 = 1 << 40;

impl RunSpec {
    /// Checks every value against its range, in the order in which they stand in the file, then one against another.
    pub fn validate(&self) -> Result<(), RunSpecError> {
        for key in KEYS {
            match &key.values {
                Values::Integer { get, min, max } => check(key.key, get(self), min.of(self), max.of(self))?,
                Values::Number { get, min, max } => check(key.key, get(self), min.of(self), max.of(self))?,
                Values::Text { get, bytes_max } => text(key.key, get(self), *bytes_max)?,
                // Every value that parses is valid.
                Values::Hash(_) | Values::Switch(_) | Values::Choice { .. } => {}
            }
        }
        let (model, inner, roster) = (&self.model, &self.inner, &self.roster);
        multiple("model.hidden_size", model.hidden_size, "model.heads", model.heads)?;
        multiple("model.heads", model.heads, "model.kv_heads", model.kv_heads)?;
        multiple("model.hidden_size / model.heads", model.head_dim(), "2 (rotary pairs)", 2)?;
        check("model (parameters)", self.layout().len() as u64, 1, PARAMETERS_MAX)?;
        multiple(
            "inner.batch_sequences",
            inner.batch_sequences,
            "inner.micro_batch_sequences",
            inner.micro_batch_sequences,
        )?;
        transform(&self.codec)?;
        check("roster.gather + roster.reserve", roster.gather + roster.reserve, 1, CANDIDATES_MAX)
    }
}

/// Why a text or value is not a run.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RunSpecError {
    #[error("it has {bytes} bytes; a run needs less than 64 KiB. Is this the right file?")]
    TooLong { bytes: usize },
    #[error("`{key}` has the wrong type ({reason}); it must lie in {min} ..= {max}")]
    WrongType { key: String, reason: String, min: String, max: String },
    /// Without the line itself: it may be another file by mistake, and hold a secret.
    #[error("it does not parse: line {line}: {reason}")]
    Syntax { line: usize, reason: String },
    #[error("`{key}` is {found}, but must lie in {min} ..= {max}")]
    OutOfRange { key: &'static str, found: String, min: String, max: String },
    #[error("`{key}` is {found}, but must be a multiple of {of}, which is {divisor}")]
    NotMultiple { key: &'static str, found: u32, of: &'static str, divisor: u32 },
    #[error("`{key}` is {found:?}, but must not have control characters: a terminal would obey them")]
    ControlCharacter { key: &'static str, found: String },
    #[error("`{key}` is {found}, which needs {needs}")]
    Needs { key: &'static str, found: &'static str, needs: String },
}

fn check<T: PartialOrd + fmt::Display + Copy>(key: &'static str, found: T, min: T, max: T) -> Result<(), RunSpecError> {
    if found >= min && found <= max {
        return Ok(());
    }
    Err(RunSpecError::OutOfRange { key, found: found.to_string(), min: min.to_string(), max: max.to_string() })
}

fn text(key: &'static str, found: &str, bytes_max: usize) -> Result<(), RunSpecError> {
    check("name (length)", found.len(), 1, bytes_max)?;
    if found.contains(char::is_control) {
        return Err(RunSpecError::ControlCharacter { key, found: found.to_owned() });
    }
    Ok(())
}

fn multiple(key: &'static str, found: u32, of: &'static str, divisor: u32) -> Result<(), RunSpecError> {
    if found.is_multiple_of(divisor) {
        return Ok(());
    }
    Err(RunSpecError::NotMultiple { key, found, of, divisor })
}

fn transform(codec: &CodecSpec) -> Result<(), RunSpecError> {
    if codec.transform == Transform::None {
        return Ok(());
    }
    let needs = |needs: String| Err(RunSpecError::Needs { key: "codec.transform", found: "dct", needs });
    match codec.kind {
        CodecKind::DenseF32 => {
            needs("a codec.kind that picks values: topk-sign or topk-2bit, not dense-f32".to_owned())
        }
        _ if codec.chunk != TRANSFORM_CHUNK => needs(format!("codec.chunk = {TRANSFORM_CHUNK}, not {}", codec.chunk)),
        CodecKind::TopkSign | CodecKind::TopkTwoBit => Ok(()),
    }
}
