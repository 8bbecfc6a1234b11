//! The range of a value that is of the wrong kind, for its error message.

use toml::{Table, Value};

use super::{RunSpec, RunSpecError};

/// The error of [`RunSpec::from_toml`] with the key and its range, where `error` is about a number.
///
/// The ranges stand in [`RunSpec::validate`] alone: this puts numbers that no key accepts in the place of the value, and
/// reads the range from what validation says of them.
pub(super) fn of_wrong_type(text: &str, error: &toml::de::Error) -> Option<RunSpecError> {
    let span = error.span()?;
    let (section, key) = key_at(text, span.start)?;
    // Without the value: TOML itself takes no number of more than 64 bits.
    let table: Table = toml::from_str(&format!("{}0{}", text.get(..span.start)?, text.get(span.end..)?)).ok()?;
    let path = if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") };
    let probes = [
        Value::Integer(i64::MAX),
        Value::Integer(u32::MAX.into()),
        Value::Integer(u16::MAX.into()),
        Value::Float(1e300),
    ];
    probes.into_iter().find_map(|probe| {
        let (mut table, largest) = (table.clone(), probe.to_string());
        let place = if section.is_empty() { &mut table } else { table.get_mut(section)?.as_table_mut()? };
        *place.get_mut(key)? = probe;
        let (min, max) = match table.try_into::<RunSpec>().ok()?.validate() {
            Err(RunSpecError::OutOfRange { key, min, max, .. }) if key == path => (min, max),
            // The largest value of its type, and in order: such a key takes them all.
            Ok(()) => ("0".to_owned(), largest),
            Err(_) => return None,
        };
        Some(RunSpecError::WrongType { key: path.clone(), reason: error.message().trim().to_owned(), min, max })
    })
}

/// Section and key of the value at byte `at`.
fn key_at(text: &str, at: usize) -> Option<(&str, &str)> {
    let before = text.get(..at)?;
    let line = before.rsplit('\n').next()?;
    let key = line.split_once('=')?.0.trim();
    let mut headers = before.lines().filter_map(|line| line.trim().strip_prefix('[')?.strip_suffix(']'));
    Some((headers.next_back().unwrap_or(""), key))
}
