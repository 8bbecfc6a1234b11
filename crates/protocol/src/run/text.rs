//! A run as text: `run.toml`, and single values of it as people type them.

use toml::{Table, Value};

use crate::run::keys::{RunKey, Values};
use crate::run::spec::RunSpec;
use crate::run::validate::RunSpecError;

/// Why a value of a run cannot be set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SetError {
    #[error("a run has no key `{key}`: {hint}")]
    UnknownKey { key: String, hint: String },
    #[error("`{key}` cannot be {found:?}; it must be {allowed}")]
    BadValue { key: &'static str, found: String, allowed: String },
    #[error("another value of the run cannot be written as TOML ({reason}): no integer may be above {max}", max = i64::MAX)]
    Unwritable { reason: String },
}

impl RunSpec {
    /// Strictly parses and validates `run.toml`.
    pub fn from_toml(text: &str) -> Result<Self, RunSpecError> {
        if text.len() > 64 * 1024 {
            return Err(RunSpecError::TooLong { bytes: text.len() });
        }
        let spec: Self =
            toml::from_str(text).map_err(|error| wrong_type(text, &error).unwrap_or_else(|| syntax(text, &error)))?;
        spec.validate()?;
        Ok(spec)
    }

    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a run spec has no value that TOML lacks")
    }

    /// Sets one value, such as `outer.rate` to `0.65`, as `run.toml` has it but without quotes around text.
    ///
    /// Ranges that depend on other values are left to [`RunSpec::validate`], so that several can be set one by one.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), SetError> {
        let known =
            RunKey::find(key).ok_or_else(|| SetError::UnknownKey { key: key.to_owned(), hint: RunKey::hint(key) })?;
        let bad = || SetError::BadValue { key: known.key, found: value.to_owned(), allowed: known.allowed() };
        let parsed = match &known.values {
            Values::Integer { .. } => value.parse().map(Value::Integer).map_err(|_| bad())?,
            Values::Number { .. } => value.parse().map(Value::Float).map_err(|_| bad())?,
            Values::Switch(_) => value.parse().map(Value::Boolean).map_err(|_| bad())?,
            Values::Text { .. } | Values::Hash(_) | Values::Choice { .. } => Value::String(value.to_owned()),
        };
        // TOML has no integers above i64::MAX, which no valid run has either.
        let too_large = |error: toml::ser::Error| SetError::Unwritable { reason: error.to_string() };
        let mut table = Table::try_from(&*self).map_err(too_large)?;
        let section = match key.split_once('.') {
            Some((section, _)) => table[section].as_table_mut().expect("sections are tables"),
            None => &mut table,
        };
        section.insert(key.rsplit('.').next().unwrap_or(key).to_owned(), parsed);
        let changed: Self = table.try_into().map_err(|_| bad())?;
        if !known.allows(&changed) {
            return Err(bad());
        }
        *self = changed;
        Ok(())
    }
}

fn syntax(text: &str, error: &toml::de::Error) -> RunSpecError {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    RunSpecError::Syntax { line: before.matches('\n').count() + 1, reason: error.message().trim().to_owned() }
}

/// The error of [`RunSpec::from_toml`] with the key and its range, where `error` is about a number.
fn wrong_type(text: &str, error: &toml::de::Error) -> Option<RunSpecError> {
    let (section, key) = key_at(text, error.span()?.start)?;
    let path = if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") };
    let (min, max) = RunKey::find(&path)?.range()?;
    // If the file does not parse with a number in the value's place either, its syntax is wrong.
    let span = error.span()?;
    toml::from_str::<Table>(&format!("{}0{}", text.get(..span.start)?, text.get(span.end..)?)).ok()?;
    Some(RunSpecError::WrongType { key: path, reason: error.message().trim().to_owned(), min, max })
}

/// Section and key of the value at byte `at`.
fn key_at(text: &str, at: usize) -> Option<(&str, &str)> {
    let before = text.get(..at)?;
    let line = before.rsplit('\n').next()?;
    let key = line.split_once('=')?.0.trim();
    let mut headers = before.lines().filter_map(|line| line.trim().strip_prefix('[')?.strip_suffix(']'));
    Some((headers.next_back().unwrap_or(""), key))
}
