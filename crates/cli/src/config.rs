//! `--config FILE`: options of a verb from a TOML file. The command line takes precedence, then the environment.

use std::ffi::OsString;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command, CommandFactory, FromArgMatches};
use color_eyre::eyre::{Context, ContextCompat, Result, bail, eyre};
use toml::{Table, Value};

use crate::cli::Cli;
use crate::files::read_small;
use crate::{failure, output};

/// The command line, with what its configuration file adds. If it is wrong or asks for help, this prints the message,
/// and returns the code with which the process ends.
pub(crate) fn parse() -> Result<Cli, ExitCode> {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let json = asks_for_json(&arguments);
    let parsed =
        completed(arguments).map(|arguments| matches(arguments).and_then(|found| Cli::from_arg_matches(&found)));
    let (message, code) = match parsed {
        Ok(Ok(cli)) => return Ok(cli),
        Ok(Err(mut error)) if json && error.use_stderr() => {
            hide_verbs(&mut error);
            (error.to_string(), 2)
        }
        Ok(Err(error)) => {
            // In colours on a terminal.
            let printed = error.print().and_then(|()| std::io::stdout().flush());
            return Err(printed.map_or_else(
                |error| unprinted(&error),
                |()| ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2)),
            ));
        }
        Err(report) => (format!("{report:#}"), 2),
    };
    if json {
        output::choose(true);
        failure::tell_usage(message.trim_end());
    } else {
        eprintln!("error: {message}");
    }
    Err(ExitCode::from(code))
}

/// The code of a process whose help or version could not be printed.
fn unprinted(error: &std::io::Error) -> ExitCode {
    if error.kind() == ErrorKind::BrokenPipe {
        return ExitCode::from(141);
    }
    eprintln!("error: standard output cannot be written: {error}; name a file on a disk with space");
    ExitCode::FAILURE
}

/// Leaves out verbs that are not for people where the parser lists all of them.
fn hide_verbs(error: &mut clap::Error) {
    let command = Cli::command();
    let is_shown = |name: &String| !command.find_subcommand(name).is_some_and(Command::is_hide_set);
    if let Some(ContextValue::Strings(verbs)) = error.get(ContextKind::ValidSubcommand).cloned() {
        let shown = verbs.into_iter().filter(is_shown).collect();
        error.insert(ContextKind::ValidSubcommand, ContextValue::Strings(shown));
    }
}

/// Verbs whose command line may come from a `start.sh`, to which its owner adds: the last one of two equal options counts.
const SCRIPTED: [&str; 3] = ["miner", "validator", "adversary"];

/// Makes `-1` the value of an option, which then says what it accepts, rather than an option.
fn matches(arguments: Vec<OsString>) -> Result<ArgMatches, clap::Error> {
    fn numbers(command: Command) -> Command {
        let is_scripted = SCRIPTED.contains(&command.get_name());
        command.allow_negative_numbers(true).args_override_self(is_scripted).mut_subcommands(numbers)
    }
    numbers(Cli::command()).try_get_matches_from(arguments)
}

/// Whether a command line, which may be wrong otherwise, asks for JSON.
fn asks_for_json(arguments: &[OsString]) -> bool {
    let named = arguments.iter().take_while(|argument| *argument != "--").any(|argument| argument == "--json");
    named || std::env::var("TEMPLAR_JSON").is_ok_and(|value| value == "true")
}

/// The arguments, and those options of the file that nothing else gives.
fn completed(mut arguments: Vec<OsString>) -> Result<Vec<OsString>> {
    let command = Cli::command();
    // Errors of the command line are reported once it is complete.
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
        let mut known = verb.get_arguments().chain(command.get_arguments());
        let option = known.find(|option| is_named(option, &key));
        let unknown = || format!("{} has the key `{key}`, which `{}` does not take", path.display(), verb.get_name());
        let source = given.value_source(option.with_context(unknown)?.get_id().as_str());
        if !matches!(source, Some(ValueSource::CommandLine | ValueSource::EnvVariable)) {
            added.extend(
                options(&key, &value).wrap_err_with(|| format!("the options in {} are wrong", path.display()))?,
            );
        }
    }
    let end = arguments.iter().position(|argument| argument == "--").unwrap_or(arguments.len());
    arguments.splice(end..end, added);
    Ok(arguments)
}

/// Whether an option has this long name, or had it in an earlier version.
fn is_named(option: &Arg, key: &str) -> bool {
    option.get_long() == Some(key) || option.get_all_aliases().is_some_and(|aliases| aliases.contains(&key))
}

fn read(path: &Path) -> Result<Table> {
    let text = read_small(path)?;
    // It may be the wrong file, and hold a secret: no error quotes it.
    text.parse().map_err(|error: toml::de::Error| {
        let line = error.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
        eyre!("{} is not TOML: line {line}: {}", path.display(), error.message().trim())
    })
}

/// A key and its value as one would type them on the command line.
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
