//! Files that people wrote: runs, keys, credentials. No part of a secret ever appears in an error.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use color_eyre::eyre::{Context, ContextCompat as _, Result, bail, ensure};
use serde::de::DeserializeOwned;
use templar_protocol::hash::Hash32;
use templar_protocol::keys::Keypair;
use templar_protocol::run::RunSpec;
use templar_store::{bucket_name_fault, endpoint_fault};
use toml::de::{DeTable, DeValue};

use crate::failure::coded;

/// The keys of each table of a file with credentials; the table `""` is the file itself. Every value is a string.
type Keys = &'static [(&'static str, &'static [&'static str])];

/// Keys of the file that says where a readable bucket is.
pub(crate) const LOCATOR_KEYS: Keys = &[("", LOCATOR)];
/// Keys of a node's own bucket: the credential that may write, and what is published on chain.
pub(crate) const BUCKET_KEYS: Keys = &[("write", &["access_key_id", "secret_access_key"]), ("public", LOCATOR)];
const LOCATOR: &[&str] = &["endpoint", "bucket", "region", "access_key_id", "secret_access_key"];

/// Longest region, name or secret of a credential that S3 clients here send.
const VALUE_CHARS_MAX: usize = 128;

/// Largest text file that a verb reads: runs, keys and credentials are far smaller.
const TEXT_BYTES_MAX: u64 = 64 * 1024;

/// Reads a small text file. One byte over the limit is enough for a refusal.
pub(crate) fn read_small(path: &Path) -> Result<String> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(TEXT_BYTES_MAX + 1).read_to_string(&mut text));
    read.wrap_err_with(|| format!("{} cannot be read", path.display()))?;
    ensure!(text.len() as u64 <= TEXT_BYTES_MAX, "{} has more than 64 KiB; is this the right file?", path.display());
    Ok(text)
}

/// The hotkey whose seed is in a file.
pub(crate) fn read_key(path: &Path) -> Result<Keypair> {
    let text = read_small(path)?;
    warn_if_shared(path);
    // Whatever the file holds may be a secret: no error quotes it.
    let seed = parse_seed(&text).with_context(|| {
        let (path, characters) = (path.display(), text.trim().chars().count());
        format!(
            "{path} is not a key file: it must contain a seed of 64 hexadecimal digits, optionally with 0x, but contains \
             {characters} characters of something else; `templar key new` makes one"
        )
    });
    let seed = seed.map_err(coded("credentials"))?;
    Ok(Keypair::from_seed(seed.0))
}

/// Warns if users other than its owner may read a file with a secret.
fn warn_if_shared(path: &Path) {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::metadata(path).map_or(0, |metadata| metadata.permissions().mode()) & 0o777;
        if mode & 0o077 != 0 {
            let path = path.display();
            tracing::warn!(
                "{path} holds a secret, and users other than its owner have access to it (mode {mode:o}): chmod 600 {path}"
            );
        }
    }
    #[cfg(not(unix))]
    let _ = path;
}

/// Reads a seed, also as wallets write it: with `0x`, or in capitals.
fn parse_seed(text: &str) -> Option<Hash32> {
    let text = text.trim().to_ascii_lowercase();
    text.strip_prefix("0x").unwrap_or(&text).parse().ok()
}

/// Reads a run from its file.
pub(crate) fn read_run(path: &Path) -> Result<RunSpec> {
    let text = read_small(path)?;
    RunSpec::from_toml(&text).wrap_err_with(|| format!("{} does not describe a run", path.display()))
}

/// Reads a TOML file with credentials, which has these keys.
pub(crate) fn read_secret<T: DeserializeOwned>(path: &Path, keys: Keys) -> Result<T> {
    let text = read_small(path)?;
    warn_if_shared(path);
    let checked = check_keys(&text, keys).wrap_err_with(|| format!("{} cannot be used", path.display()));
    checked.map_err(coded("credentials"))?;
    // The keys have been checked; this error might quote a secret.
    let parsed = toml::from_str(&text).ok();
    let parsed = parsed.wrap_err_with(|| format!("{} cannot be used: its values must be texts", path.display()));
    parsed.map_err(coded("credentials"))
}

/// Names the key that is missing, unknown or not a string, and its line.
fn check_keys(text: &str, keys: Keys) -> Result<()> {
    let line = |at: usize| text.get(..at).map_or(1, |before| before.matches('\n').count() + 1);
    let document = match DeTable::parse(text) {
        Ok(document) => document.into_inner(),
        Err(error) => {
            bail!(
                "line {} is not TOML: write each value as `key = \"text\"`",
                error.span().map_or(1, |span| line(span.start))
            )
        }
    };
    let tables: Vec<&str> = keys.iter().map(|(table, _)| *table).collect();
    if !tables.contains(&"")
        && let Some((key, _)) = document.iter().find(|(key, _)| !tables.contains(&key.get_ref().as_ref()))
    {
        bail!(
            "line {}: `{}` is unknown here; the tables are [{}]",
            line(key.span().start),
            key.get_ref(),
            tables.join("], [")
        );
    }
    for (table, names) in keys {
        let within = if table.is_empty() {
            &document
        } else {
            match document.get(*table).map(toml::Spanned::get_ref) {
                Some(DeValue::Table(within)) => within,
                _ => bail!("the table `[{table}]` is missing: it must have {}", names.join(", ")),
            }
        };
        let place = if table.is_empty() { String::new() } else { format!(" in `[{table}]`") };
        for (key, value) in within {
            let (name, line) = (key.get_ref().as_ref(), line(key.span().start));
            ensure!(
                names.contains(&name),
                "line {line}: the key `{name}`{place} is unknown; known are {}",
                names.join(", ")
            );
            let DeValue::String(value) = value.get_ref() else {
                bail!("line {line}: the value of `{name}`{place} must be a text in quotes");
            };
            if let Some(fault) = value_fault(name, value) {
                bail!("line {line}: the value of `{name}`{place} cannot be used: {fault}");
            }
        }
        if let Some(missing) = names.iter().find(|name| !within.contains_key(**name)) {
            bail!("the key `{missing}`{place} is missing: all of {} are needed", names.join(", "));
        }
    }
    Ok(())
}

/// What is wrong with a value, if something is. Without a part of the value, which may be a secret.
fn value_fault(key: &str, value: &str) -> Option<&'static str> {
    match key {
        _ if value.is_empty() => Some("it is empty"),
        _ if !value.bytes().all(|byte| byte.is_ascii_graphic()) => Some("it has a space or a character outside ASCII"),
        "endpoint" => endpoint_fault(value),
        "bucket" => bucket_name_fault(value),
        _ if value.len() > VALUE_CHARS_MAX => Some("it has more than 128 characters"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_may_look_as_wallets_write_it() {
        let seed = "ab".repeat(32);
        for text in [seed.clone(), format!("0x{seed}\n"), format!("0x{}", seed.to_uppercase())] {
            assert_eq!(parse_seed(&text).unwrap(), Hash32([0xab; 32]));
        }
        assert_eq!(parse_seed("0xab"), None);
    }

    #[test]
    fn credentials_that_are_wrong_are_told_by_key_and_line_and_never_by_value() {
        let good = "[write]\naccess_key_id = \"w\"\nsecret_access_key = \"SECRET\"\n[public]\nendpoint = \"https://s3.org\"\n\
                    bucket = \"bkt\"\nregion = \"r\"\naccess_key_id = \"i\"\nsecret_access_key = \"SECRET\"\n";
        assert!(check_keys(good, BUCKET_KEYS).is_ok());
        let cases = [
            (good.replace("region = \"r\"\n", ""), "the key `region` in `[public]` is missing"),
            (good.replace("bucket = ", "bukket = "), "line 6: the key `bukket` in `[public]` is unknown"),
            (
                good.replace("\"SECRET\"", "5123"),
                "line 3: the value of `secret_access_key` in `[write]` must be a text",
            ),
            (good.replace("= \"SECRET\"", "= SECRET"), "line 3 is not TOML"),
            (good.replace("[write]", "[rite]"), "line 1: `rite` is unknown here; the tables are [write], [public]"),
            (
                good.replace("https:", "ftp:"),
                "line 5: the value of `endpoint` in `[public]` cannot be used: it is neither",
            ),
            (good.replace("https:", "https://SECRET@"), "line 5: the value of `endpoint` in `[public]` cannot be used"),
            (
                good.replace("\"bkt\"", "\"B_K\""),
                "line 6: the value of `bucket` in `[public]` cannot be used: it is not",
            ),
            (
                good.replace("\"SECRET\"", "\"\""),
                "line 3: the value of `secret_access_key` in `[write]` cannot be used: it is empty",
            ),
            (format!("{good}[more]\n"), "line 10: `more` is unknown"),
        ];
        for (text, expected) in cases {
            let said = check_keys(&text, BUCKET_KEYS).unwrap_err().to_string();
            assert!(said.starts_with(expected) && !said.contains("SECRET") && !said.contains("5123"), "{said}");
        }
        assert!(
            check_keys("endpoint = \"https://s3.org\"", LOCATOR_KEYS)
                .unwrap_err()
                .to_string()
                .contains("`bucket` is missing")
        );
    }
}
