//! The small verbs, as a person would use them: what they print, and what they say when something is wrong.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use std::fs;
use std::path::Path;
use std::process::Command;

/// Exit code, standard output and standard error, without the folder's name.
fn templar(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_templar")).current_dir(folder).args(arguments).output().unwrap();
    let text = format!(
        "exit {}\n{}{}",
        output.status.code().unwrap(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    text.replace(&folder.display().to_string(), "FOLDER")
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let line = "the quick brown fox jumps over the lazy dog and comes back by night\n";
    fs::write(folder.path().join("text.txt"), line.repeat(400)).unwrap();
    folder
}

const GENESIS: &str = "00000000000000000000000000000000000000000000000000000000000000ff";

fn init(folder: &Path) -> String {
    templar(folder, &["data", "prepare", "text.txt", "--out", "data"]);
    let chain = ["--genesis", GENESIS, "--netuid", "3", "--start-block", "1000"];
    templar(folder, &[&["run", "init", "--name", "first", "--data", "data"], &chain[..]].concat())
}

#[test]
fn data_is_prepared_inspected_and_verified() {
    let folder = folder();
    insta::assert_snapshot!(templar(folder.path(), &["data", "prepare", "text.txt", "--out", "data"]));
    insta::assert_snapshot!(templar(folder.path(), &["data", "inspect", "data"]));
    insta::assert_snapshot!(templar(folder.path(), &["data", "verify", "data", "--json"]));
    let manifest = folder.path().join("data/manifest");
    let mut bytes = fs::read(&manifest).unwrap();
    bytes.truncate(20);
    fs::write(&manifest, bytes).unwrap();
    insta::assert_snapshot!(templar(folder.path(), &["data", "verify", "data"]));
    insta::assert_snapshot!(templar(folder.path(), &["data", "prepare", "none.txt", "--out", "other"]));
}

#[test]
fn a_run_is_made_shown_and_verified() {
    let folder = folder();
    insta::assert_snapshot!(init(folder.path()));
    insta::assert_snapshot!(templar(folder.path(), &["run", "show"]));
    insta::assert_snapshot!(templar(folder.path(), &["run", "verify", "--data", "data"]));
    insta::assert_snapshot!(init(folder.path()).lines().next().unwrap());
}

#[test]
fn a_wrong_run_is_told_what_is_wrong() {
    let folder = folder();
    init(folder.path());
    let path = folder.path().join("run.toml");
    let good = fs::read_to_string(&path).unwrap();
    let with = |from: &str, to: &str| {
        assert!(good.contains(from));
        fs::write(&path, good.replace(from, to)).unwrap();
        templar(folder.path(), &["run", "verify"])
    };
    insta::assert_snapshot!(with("put_block = 100", "put_block = 400"));
    insta::assert_snapshot!(with("put_block = 100", "put_blocks = 100"));
    insta::assert_snapshot!(with("seed = 0", "seed = 1"));
}

#[test]
fn wrong_usage_ends_with_2() {
    let folder = folder();
    assert!(templar(folder.path(), &["demo", "--windows", "0"]).starts_with("exit 2"));
    insta::assert_snapshot!(templar(folder.path(), &["demo", "--preset", "giant"]));
    insta::assert_snapshot!(templar(folder.path(), &["localnet", "--kill", "miner-9@1"]));
}

#[test]
fn one_seed_gives_one_simulation() {
    let folder = folder();
    let sim = || templar(folder.path(), &["sim", "--windows", "2", "--seed", "3", "--json"]);
    let log = sim();
    assert!(log.starts_with("exit 0") && log.lines().count() > 30);
    assert_eq!(log, sim());
}
