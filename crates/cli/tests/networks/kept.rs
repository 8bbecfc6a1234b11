//! Networks that are interrupted: what their folder is good for.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;

use rustix::process::Signal;
use serde_json::json;

use super::common::{alone, assert_certified, demo, report, signal, templar, text, windows};

const PLAN: [&str; 6] = ["--windows", "3", "--miners", "2", "--validators", "1"];

/// Starts a network in `folder` and kills it when a node has settled window 0.
fn start_and_kill(arguments: &[&str], folder: &Path) {
    let mut network =
        templar(arguments).args(["--json", "--folder"]).arg(folder).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(network.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("\"event\":\"settled\"")), "it ended by itself");
    signal(network.id(), Signal::KILL);
    network.wait().unwrap();
}

#[test]
fn a_killed_demo_goes_on_to_the_same_roots_and_its_folder_gives_model_and_report() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let (network, plan) = (at("network"), [&PLAN[..], &["--seed", "8"]].concat());
    let unkilled = demo(folder.path(), "unkilled.json", &plan);
    start_and_kill(&[&["demo"], &plan[..]].concat(), Path::new(&network));

    // What it came to so far.
    let early = templar(&["export", &network, "--report", &at("early.json")]).output().unwrap();
    assert!(early.status.success(), "{}", text(&early));
    let early = report(Path::new(&at("early.json")));
    assert_eq!(early["windows"][0]["state_root"], unkilled["windows"][0]["state_root"]);
    assert_eq!(early["windows_planned"], 3);

    let other = templar(&["demo", "--folder", &network, "--seed", "9"]).args(PLAN).output().unwrap();
    assert_eq!(other.status.code(), Some(1));
    assert!(text(&other).contains("--seed was 8, and is 9 now"), "{}", text(&other));

    let resumed =
        demo(folder.path(), "resumed.json", &[&plan[..], &["--folder", &network, "--out", &at("model")]].concat());
    assert_certified(&resumed);
    let roots = |report: &serde_json::Value| {
        windows(report).iter().map(|window| window["state_root"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(roots(&resumed), roots(&unkilled));
    assert_eq!(resumed["run_id"], unkilled["run_id"]);

    let again = templar(&["demo", "--folder", &network]).args(&plan).output().unwrap();
    assert_eq!(again.status.code(), Some(1));
    assert!(
        text(&again).contains("has trained 3 windows") && text(&again).contains("templar export"),
        "{}",
        text(&again)
    );

    let export = templar(&["export", &network, "--out", &at("again"), "--report", &at("again.json")]).output().unwrap();
    assert!(export.status.success(), "{}", text(&export));
    let weights = |model: &str| fs::read(folder.path().join(model).join("model.safetensors")).unwrap();
    assert!(weights("again") == weights("model"), "the exported model is another");
    let exported = report(Path::new(&at("again.json")));
    for key in ["windows", "nodes", "run_id"] {
        assert_eq!(exported[key], resumed[key], "{key}");
    }
}

#[test]
fn a_killed_localnet_goes_on_at_the_same_place() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let (network, path) = (folder.path().join("network"), folder.path().join("report.json"));
    let arguments = ["localnet", "--windows", "2", "--miners", "1", "--validators", "1", "--block-s", "0.5"];
    start_and_kill(&arguments, &network);
    let place = || {
        let definition = fs::read_to_string(network.join("network.toml")).unwrap();
        definition.lines().filter(|line| line.contains("127.0.0.1:")).map(str::to_owned).collect::<Vec<_>>()
    };
    let before = place();
    let resumed = templar(&arguments).arg("--folder").arg(&network).arg("--report").arg(&path).output().unwrap();
    assert!(resumed.status.success(), "{}", text(&resumed));
    assert!(text(&resumed).contains("resuming this network: 1 of 2 windows"), "{}", text(&resumed));
    assert!(before.len() == 2 && place() == before, "chain and buckets moved");
    let report = report(&path);
    assert_certified(&report);
    assert_eq!((windows(&report).len(), &report["windows"][1]["accepted"]), (2, &json!([0])));
}
