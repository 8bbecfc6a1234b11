//! `--config FILE`: options of a verb from a TOML file. What stands on the command line wins, then the environment.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{Arg, CommandFactory, Parser};
use color_eyre::eyre::{Context, ContextCompat, Result, bail};
use toml::{Table, Value};

use crate::Cli;
use crate::commands::node::read_small;

/// The command line, with what its configuration file adds. Ends the process if there is something wrong with it.
pub(crate) fn parse() -> Cli {
    match completed(std::env::args_os().collect()) {
        Ok(arguments) => Cli::parse_from(arguments),
        Err(report) => {
            eprintln!("error: {report:#}");
            std::process::exit(2);
        }
    }
}

/// The arguments, and those options of the file that are given nowhere else.
fn completed(mut arguments: Vec<OsString>) -> Result<Vec<OsString>> {
    let command = Cli::command();
    // Whatever is wrong with the command line is said when it is complete.
    let Ok(matches) = command.clone().ignore_errors(true).try_get_matches_from(&arguments) else {
        return Ok(arguments);
    };
    let Some(path) = matches.get_one::<PathBuf>("config") else { return Ok(arguments) };
    let (mut verb, mut given) = (&command, &matches);
    while let Some((name, inner)) = given.subcommand() {
        (verb, given) = (verb.find_subcommand(name).wrap_err("a verb without a definition")?, inner);
    }
    let mut added = Vec::new();
    for (key, value) in read(path)? {
        let option = verb.get_arguments().find(|option| is_named(option, &key));
        let unknown = || format!("{} has the key `{key}`, which `{}` does not take", path.display(), verb.get_name());
        let source = given.value_source(option.with_context(unknown)?.get_id().as_str());
        if !matches!(source, Some(ValueSource::CommandLine | ValueSource::EnvVariable)) {
            added.extend(options(&key, &value).wrap_err_with(|| path.display().to_string())?);
        }
    }
    let end = arguments.iter().position(|argument| argument == "--").unwrap_or(arguments.len());
    arguments.splice(end..end, added);
    Ok(arguments)
}

/// Whether an option has this long name, or had it once.
fn is_named(option: &Arg, key: &str) -> bool {
    option.get_long() == Some(key) || option.get_all_aliases().is_some_and(|aliases| aliases.contains(&key))
}

fn read(path: &Path) -> Result<Table> {
    read_small(path)?.parse().wrap_err_with(|| format!("{} is no TOML", path.display()))
}

/// A key and its value as they would stand on the command line.
fn options(key: &str, value: &Value) -> Result<Vec<OsString>> {
    Ok(match value {
        Value::Boolean(true) => vec![format!("--{key}").into()],
        Value::Boolean(false) => Vec::new(),
        Value::String(text) => vec![format!("--{key}={text}").into()],
        Value::Integer(_) | Value::Float(_) => vec![format!("--{key}={value}").into()],
        Value::Array(values) => values.iter().map(|value| options(key, value)).collect::<Result<Vec<_>>>()?.concat(),
        Value::Datetime(_) | Value::Table(_) => bail!("`{key}` is neither text, number, true or false, nor a list"),
    })
}
