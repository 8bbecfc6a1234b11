//! Generated pages of the book, docs/cli.md, docs/environment.md and docs/adversaries.md, and what must hold of variables.
//!
//! `cargo xtask pages` (that is `TEMPLAR_BLESS=1`) writes the pages; without it these tests compare them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use clap::builder::StyledStr;
use clap::{Arg, ArgAction, Command, CommandFactory as _};
use templar_record::event::Role;
use templar_sim::zoo::attack::KINDS;

use crate::cli::Cli;

/// Variables that no option reads: who reads them, and why.
const OTHERS: [(&str, &str, &str); 6] = [
    ("TEMPLAR_BIN", "a guest's start.sh", "Path of the binary that runs the node."),
    ("TEMPLAR_BLESS", "tests", "Rewrite golden files and generated pages instead of comparing them."),
    (
        "TEMPLAR_TEST_DEVICE",
        "tests of the PyTorch engine on a device",
        "Device that they compare with the CPU, as PyTorch names it; cuda if not set.",
    ),
    (
        "TEMPLAR_TEST_FIGURES",
        "the same tests",
        "File to which they append the differences found, one line of JSON each.",
    ),
    ("TEMPLAR_TEST_TEXT", "long tests", "Path of tinyshakespeare.txt, which a long test trains on."),
    (
        "TEMPLAR_TORCH_DEVICE",
        "tests of the PyTorch worker",
        "Device that they use, as PyTorch names it; cpu if not set. `TEMPLAR_PYTHON` must name a Python with torch.",
    ),
];

const GENERATED: &str = "<!-- Generated: `cargo xtask pages` writes this file, and a test compares it. -->\n\n";

/// One option, flag or argument of a verb.
struct Entry {
    verb: String,
    arg: Arg,
}

impl Entry {
    /// The option as it is typed, such as `--miners <N>`.
    fn typed(&self) -> String {
        let value = self.value();
        match self.arg.get_long() {
            Some(long) if value.is_empty() => format!("--{long}"),
            Some(long) => format!("--{long} {value}"),
            None => value,
        }
    }

    /// What is typed as its value; empty for flags.
    fn value(&self) -> String {
        if !self.takes_value() {
            return String::new();
        }
        let names = self.arg.get_value_names().unwrap_or_default();
        let names: Vec<&str> = names.iter().map(clap::builder::Str::as_str).collect();
        names.join(" ") + if self.is_list() { "…" } else { "" }
    }

    fn takes_value(&self) -> bool {
        matches!(self.arg.get_action(), ArgAction::Set | ArgAction::Append)
    }

    fn is_list(&self) -> bool {
        matches!(self.arg.get_action(), ArgAction::Append)
            || self.arg.get_num_args().is_some_and(|range| range.max_values() > 1)
    }

    fn variable(&self) -> Option<String> {
        Some(self.arg.get_env()?.to_string_lossy().into_owned())
    }

    fn help(&self) -> String {
        cell(self.arg.get_help())
    }

    /// The default, if there is one and the option is not a flag.
    fn default(&self) -> String {
        let values = self.arg.get_default_values().iter();
        let values: Vec<String> = values.map(|value| format!("`{}`", value.to_string_lossy())).collect();
        if self.takes_value() { values.join(" ") } else { String::new() }
    }
}

/// Help in a cell of a table.
fn cell(text: Option<&StyledStr>) -> String {
    let text = text.map(ToString::to_string).unwrap_or_default();
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|").replace('<', "&lt;")
}

fn built() -> Command {
    let mut command = Cli::command();
    command.build();
    command
}

/// The verbs, with the names that lead to them, in the order of the help.
fn verbs(command: &Command, with_hidden: bool) -> Vec<(String, &Command)> {
    let mut found = Vec::new();
    let inner = command.get_subcommands().filter(|inner| inner.get_name() != "help");
    let inner = inner.filter(|inner| with_hidden || !inner.is_hide_set());
    for inner in inner {
        if inner.has_subcommands() {
            found.extend(
                verbs(inner, with_hidden)
                    .into_iter()
                    .map(|(name, verb)| (format!("{} {name}", inner.get_name()), verb)),
            );
        } else {
            found.push((inner.get_name().to_owned(), inner));
        }
    }
    found
}

fn entries(verb: &str, command: &Command, with_hidden: bool) -> Vec<Entry> {
    let args = command.get_arguments().filter(|arg| with_hidden || !arg.is_hide_set());
    let args = args.filter(|arg| !matches!(arg.get_id().as_str(), "help" | "version"));
    args.map(|arg| Entry { verb: verb.to_owned(), arg: arg.clone() }).collect()
}

/// Options of all verbs; those that every verb takes are listed once, with an empty verb.
fn all(command: &Command, with_hidden: bool) -> Vec<Entry> {
    let mut found = entries("", command, with_hidden);
    for (name, verb) in verbs(command, with_hidden) {
        found.extend(entries(&name, verb, with_hidden).into_iter().filter(|entry| !entry.arg.is_global_set()));
    }
    found
}

fn table(entries: &[Entry]) -> String {
    let mut text = "| option | variable | default | meaning |\n|---|---|---|---|\n".to_owned();
    for entry in entries {
        let variable = entry.variable().map(|name| format!("`{name}`")).unwrap_or_default();
        writeln!(text, "| `{}` | {variable} | {} | {} |", entry.typed(), entry.default(), entry.help()).unwrap();
    }
    text
}

fn cli_page() -> String {
    let command = built();
    let mut text = format!("{GENERATED}# Verbs and options\n\nOptions of every verb:\n\n");
    text += &table(&entries("", &command, false));
    for (name, verb) in verbs(&command, false) {
        write!(text, "\n## templar {name}\n\n{}\n", cell(verb.get_about())).unwrap();
        let mut own = entries(&name, verb, false);
        own.retain(|entry| !entry.arg.is_global_set());
        if !own.is_empty() {
            write!(text, "\n{}", table(&own)).unwrap();
        }
    }
    text
}

fn environment_page() -> String {
    let mut text = format!(
        "{GENERATED}# Variables\n\nThe command line wins, then the variable, then the file of `--config`. A flag is set by \
         `true`; values of a list (`…`) are separated by commas, except paths, which must be given on the command line.\n\n\
         | variable | value | options | meaning |\n|---|---|---|---|\n"
    );
    for (name, entries) in by_variable(all(&built(), false)) {
        let value = entries[0].value();
        let value = if value.is_empty() { "`true`".to_owned() } else { format!("`{value}`") };
        let mut options: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut meanings = Vec::new();
        for entry in &entries {
            options
                .entry(format!("`--{}`", entry.arg.get_long().unwrap_or_default()))
                .or_default()
                .push(entry.verb.clone());
            if !entry.help().is_empty() && !meanings.contains(&entry.help()) {
                meanings.push(entry.help());
            }
        }
        let of = |verbs: &[String]| if verbs == [""] { "every verb".to_owned() } else { verbs.join(", ") };
        let options: Vec<_> = options.iter().map(|(option, verbs)| format!("{option} of {}", of(verbs))).collect();
        writeln!(text, "| `{name}` | {value} | {} | {} |", options.join("; "), meanings.join("; ")).unwrap();
    }
    text += "\nVariables that no option reads:\n\n| variable | read by | meaning |\n|---|---|---|\n";
    for (name, reader, meaning) in OTHERS {
        writeln!(text, "| `{name}` | {reader} | {meaning} |").unwrap();
    }
    text
}

fn adversaries_page() -> String {
    let mut text = format!(
        "{GENERATED}# Adversaries\n\nKinds of attack that rehearsals know: `--adversary KIND` or `KIND=COUNT` of \
         [demo, localnet and sim](cli.md) makes the last miners or validators such nodes. [Contributing](contributing.md) says \
         how one is added. What nothing stops yet is called open.\n\n| kind | of a | what it tries | what stops it |\n|---|---|---|---|\n"
    );
    for kind in KINDS {
        let role = match kind.role {
            Role::Miner => "miner",
            Role::Validator => "validator",
        };
        writeln!(text, "| `{kind}` | {role} | {} | {} |", kind.tries, kind.stopped_by).unwrap();
    }
    text
}

fn by_variable(entries: Vec<Entry>) -> BTreeMap<String, Vec<Entry>> {
    let mut found: BTreeMap<String, Vec<Entry>> = BTreeMap::new();
    for entry in entries {
        if let Some(name) = entry.variable() {
            found.entry(name).or_default().push(entry);
        }
    }
    found
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Compares a page with its file, or writes it.
fn check(file: &str, page: &str) {
    let path = root().join(file);
    if std::env::var_os("TEMPLAR_BLESS").is_some() {
        fs::write(&path, page).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    let line = found.lines().zip(page.lines()).position(|(found, wanted)| found != wanted);
    assert!(found == page, "{file} is out of date (line {:?}): run `cargo xtask pages`", line.map(|line| line + 1));
}

#[test]
fn the_page_of_verbs_is_up_to_date() {
    check("docs/cli.md", &cli_page());
}

#[test]
fn the_page_of_adversaries_is_up_to_date() {
    check("docs/adversaries.md", &adversaries_page());
}

#[test]
fn the_page_of_variables_is_up_to_date() {
    check("docs/environment.md", &environment_page());
}

/// A variable that is set for one verb must not be taken for something else by another.
#[test]
fn a_variable_means_one_thing() {
    for (name, entries) in by_variable(all(&built(), true)) {
        let values: BTreeSet<String> = entries.iter().map(Entry::value).collect();
        let verbs: Vec<_> = entries.iter().map(|entry| format!("{} ({})", entry.verb, entry.typed())).collect();
        assert_eq!(values.len(), 1, "{name} is several things: {}", verbs.join(", "));
    }
}

#[test]
fn every_variable_that_the_sources_name_is_on_the_page() {
    let known: BTreeSet<String> = by_variable(all(&built(), true)).into_keys().collect();
    let others: BTreeSet<String> = OTHERS.iter().map(|(name, ..)| (*name).to_owned()).collect();
    let mut found = BTreeSet::new();
    for folder in ["crates", "python", "tools", "xtask", ".ci"] {
        variables_below(&root().join(folder), &mut found);
    }
    let unknown: Vec<_> = found.iter().filter(|name| !known.contains(*name) && !others.contains(*name)).collect();
    assert!(unknown.is_empty(), "no option and no entry of OTHERS has {unknown:?}");
    let unused: Vec<_> = others.difference(&found).collect();
    assert!(unused.is_empty(), "OTHERS lists {unused:?}, which nothing reads");
}

/// The variables that files below a folder name, this file left out.
fn variables_below(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text =
            if path.is_dir() || path.ends_with("cli/src/pages.rs") { None } else { fs::read_to_string(&path).ok() };
        if path.is_dir() {
            variables_below(&path, found);
        }
        for after in text.unwrap_or_default().split("TEMPLAR_").skip(1) {
            let name = after.split(|c: char| !c.is_ascii_uppercase() && !c.is_ascii_digit() && c != '_').next();
            // A prefix is followed by anything else, as in `TEMPLAR_*`.
            found.extend(name.filter(|name| !name.is_empty()).map(|name| format!("TEMPLAR_{name}")));
        }
    }
}
