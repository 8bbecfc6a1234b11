//! What takes minutes: `.ci/run long` runs it, one after the other, on a machine that has nothing else to do.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "helpers of tests panic and print as tests do")]

#[path = "networks/common.rs"]
mod common;
#[path = "long/traces.rs"]
mod traces;

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use common::{assert_certified, demo, report, templar, text, windows};

#[test]
#[ignore = "long: fifteen minutes"]
fn forty_windows_of_shakespeare() {
    let Some(source) = std::env::var_os("TEMPLAR_TEST_TEXT") else {
        eprintln!("skipped: TEMPLAR_TEST_TEXT names no text; it wants tinyshakespeare.txt, 1.1 MB");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let source = source.to_str().unwrap();
    let report = demo(folder.path(), "report.json", &["--data", source, "--windows", "40", "--seed", "1"]);
    assert_certified(&report);
    let bits = |windows: usize| common::windows(&report)[windows - 1]["val_bits_per_byte"].as_f64().unwrap();
    eprintln!("bits per byte: {:.3} at 10, {:.3} at 20, {:.3} at 40", bits(10), bits(20), bits(40));
    assert!(bits(40) < bits(20) && bits(20) < bits(10) && bits(40) < 3.2);
    let wall_s = report["final"]["wall_s"].as_f64().unwrap();
    assert!(wall_s < 15.0 * 60.0, "{wall_s} s");
}

#[test]
#[ignore = "long: five minutes"]
fn twelve_windows_of_processes_of_which_two_are_killed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.json");
    let arguments = ["localnet", "--windows", "12", "--kill", "miner-1@4", "--kill", "validator-1@6", "--report"];
    let output = templar(&arguments).arg(&path).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let report = report(&path);
    assert_certified(&report);
    for node in report["nodes"].as_array().unwrap() {
        let was_killed = ["miner-1", "validator-1"].contains(&node["name"].as_str().unwrap());
        assert_eq!(node["restarts"].as_u64().unwrap(), u64::from(was_killed), "{node}");
    }
    assert!(windows(&report)[11]["accepted"].as_array().unwrap().contains(&serde_json::json!(1)), "it counts again");
}

#[test]
#[ignore = "long: two minutes"]
fn the_default_demo_keeps_its_promises() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.json");
    let start = Instant::now();
    let mut demo = templar(&["demo", "--json", "--report"]).arg(&path).stdout(Stdio::piped()).spawn().unwrap();
    let (mut first, mut peak_kib) = (None, 0);
    for line in BufReader::new(demo.stdout.take().unwrap()).lines() {
        let event: Value = serde_json::from_str(&line.unwrap()).unwrap();
        if event["event"] == "settled" && event["verdict"]["certified"].is_object() {
            first.get_or_insert_with(|| start.elapsed());
        }
        // The kernel's own high-water mark; gone with the process, hence read at each event.
        let status = fs::read_to_string(format!("/proc/{}/status", demo.id())).unwrap_or_default();
        let mark = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse().ok());
        peak_kib = mark.unwrap_or(peak_kib);
    }
    assert!(demo.wait().unwrap().success());
    let (all, first) = (start.elapsed(), first.unwrap());
    eprintln!("first certified window after {first:.1?}, all after {all:.1?}, at most {} MiB", peak_kib / 1024);
    let report = report(&path);
    assert_eq!(windows(&report).len(), 12);
    assert_certified(&report);
    assert!(first < Duration::from_secs(15) && all < Duration::from_mins(2));
    assert!(peak_kib > 0 && peak_kib < 2 * 1024 * 1024_u64);
}

#[test]
#[ignore = "long: two minutes"]
fn no_node_opens_a_file_of_another() {
    if Command::new("strace").arg("-V").output().is_err() {
        eprintln!("skipped: there is no strace, which sees each opening of a file");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (network, trace) = (folder.path().join("network"), folder.path().join("trace"));
    fs::create_dir(&trace).unwrap();
    let mut strace = Command::new("strace");
    strace.args(["-f", "-ff", "-qq", "-s", "4096", "-e", "trace=%file,clone,clone3,fork,vfork", "-o"]);
    strace.arg(trace.join("of")).arg(env!("CARGO_BIN_EXE_templar"));
    strace.args(["localnet", "--windows", "2", "--miners", "2", "--validators", "1", "--block-s", "2", "--folder"]);
    let output = strace.arg(&network).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let opened = traces::opened_by_nodes(&trace, &network);
    for name in ["miner-0", "miner-1", "validator-0"] {
        let home = network.join("nodes").join(name);
        let files = &opened[name];
        eprintln!("{name}: {} files below the network's folder", files.len());
        assert!(files.contains(&home.join("key.hex")) && files.contains(&home.join("run.toml")), "{files:?}");
        // Looking a path up touches the folders that lead to it.
        let foreign: Vec<_> = files.iter().filter(|file| !file.starts_with(&home) && !home.starts_with(file)).collect();
        assert!(foreign.is_empty(), "{name} opened {foreign:?}");
    }
}
