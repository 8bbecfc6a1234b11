//! Networks whose nodes train in PyTorch workers, through the real binary.
//!
//! Ignored by default, because PyTorch is not installed everywhere; `docs/contributing.md` says how to run it.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "helpers of tests panic and print as tests do")]

#[path = "networks/common.rs"]
mod common;

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use common::{alone, assert_certified, report, templar, text, windows};

/// Four windows of four miners and two validators, whose workers are the package of this repository.
fn demo(engines: &str) -> Value {
    assert!(std::env::var_os("TEMPLAR_PYTHON").is_some(), "TEMPLAR_PYTHON must name a Python that has torch");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.json");
    let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../python");
    let mut demo =
        templar(&["demo", "--windows", "4", "--seed", "8", "--device", "cpu", "--engine", engines, "--report"]);
    let output = demo.arg(&path).env("PYTHONPATH", package).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let report = report(&path);
    assert_certified(&report);
    let bits = |nth: usize| windows(&report)[nth]["val_bits_per_byte"].as_f64().unwrap();
    assert!(bits(3) < bits(0), "{} then {} bits per byte", bits(0), bits(3));
    report
}

/// The device on which each miner trained in the last window.
fn devices(report: &Value) -> Vec<&str> {
    let engines = windows(report)[3]["engines"].as_object().unwrap();
    engines.values().map(|engine| engine["device"].as_str().unwrap()).collect()
}

fn scores(report: &Value) -> Vec<f64> {
    let nodes = report["nodes"].as_array().unwrap().iter();
    nodes.filter(|node| node["role"] == "miner").map(|node| node["score"].as_f64().unwrap()).collect()
}

#[test]
#[ignore = "needs a Python with torch in TEMPLAR_PYTHON"]
fn a_network_trains_in_workers() {
    let _alone = alone();
    let report = demo("torch");
    eprintln!("scores: {:?}", scores(&report));
    assert_eq!(devices(&report), ["cpu"; 4]);
    assert!(scores(&report).iter().any(|&score| score > 0.0));
}

/// Engines differ in the last bits of Δ, not in what it is worth.
#[test]
#[ignore = "needs a Python with torch in TEMPLAR_PYTHON"]
fn engines_mix_with_one_root_and_comparable_scores() {
    let _alone = alone();
    let report = demo("builtin,builtin,torch,torch,builtin");
    eprintln!("scores: {:?}", scores(&report));
    let is_worker: Vec<bool> = devices(&report).iter().map(|&device| device == "cpu").collect();
    assert_eq!(is_worker, [false, false, true, true]);
    // A busy machine may make one miner late; the best of each pair stands for its engine.
    let [a, b, c, d] = scores(&report)[..] else { panic!("four miners") };
    let (built_in, worker) = (a.max(b), c.max(d));
    assert!((0.5..2.0).contains(&(built_in / worker)), "built-in {a} and {b}, workers {c} and {d}");
    let accepted = windows(&report).iter().flat_map(|window| window["accepted"].as_array().unwrap());
    let accepted: BTreeSet<u64> = accepted.map(|uid| uid.as_u64().unwrap()).collect();
    assert_eq!(accepted, BTreeSet::from([0, 1, 2, 3]), "each of them counted at least once");
}
