//! Whole networks of real parts, through the real binary.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;

/// Networks train in real time: one at a time, or they make each other late.
fn alone() -> MutexGuard<'static, ()> {
    static MACHINE: Mutex<()> = Mutex::new(());
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn templar(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_templar"));
    command.args(arguments);
    command
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn report(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn demo(folder: &Path, name: &str, arguments: &[&str]) -> Value {
    let path = folder.join(name);
    let output = templar(&["demo", "--report"]).arg(&path).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    report(&path)
}

fn roots(report: &Value) -> Vec<&str> {
    report["windows"].as_array().unwrap().iter().map(|window| window["state_root"].as_str().unwrap()).collect()
}

#[test]
fn one_seed_gives_the_same_roots_and_every_miner_trains() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["--windows", "2", "--miners", "2", "--validators", "2", "--seed", "5"];
    let out = folder.path().join("model");
    let with_model = [&arguments[..], &["--out", out.to_str().unwrap()]].concat();
    let (first, second) = (demo(folder.path(), "1.json", &with_model), demo(folder.path(), "2.json", &arguments));
    assert_eq!((&first["late"], &second["late"]), (&Value::Array(vec![]), &Value::Array(vec![])));
    assert_eq!(roots(&first), roots(&second));
    assert_eq!(first["run_id"], second["run_id"]);
    let inner = &first["config"]["inner"];
    let slice = inner["steps"].as_u64().unwrap() * inner["batch_sequences"].as_u64().unwrap();
    let slice_tokens = slice * first["config"]["model"]["seq_len"].as_u64().unwrap();
    for window in first["windows"].as_array().unwrap() {
        assert!(window["certified"].as_bool().unwrap() && window["one_root"].as_bool().unwrap(), "{window}");
        assert_eq!(window["tokens"].as_u64().unwrap(), 2 * slice_tokens, "{window}");
        assert!(window["compute_s"].as_f64().unwrap() > 0.0 && window["train_loss"].as_f64().unwrap() > 0.0);
        assert!(window["bits_per_value"].as_f64().unwrap() < 13.5, "{window}");
    }
    let continued = templar(&["generate", "--tokens", "20", "--json"]).arg(&out).output().unwrap();
    assert!(continued.status.success(), "{}", text(&continued));
}

#[test]
fn noise_earns_next_to_nothing_with_the_real_engine() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["--windows", "3", "--miners", "3", "--validators", "1", "--seed", "6", "--adversary", "noise"];
    let report = demo(folder.path(), "noise.json", &arguments);
    let weight = |uid: usize| report["nodes"][uid]["weight"].as_f64().unwrap();
    assert_eq!(report["nodes"][2]["behaviour"], "noise");
    for honest in [0, 1] {
        assert!(weight(2) < 0.1 * weight(honest), "noise {} honest {}", weight(2), weight(honest));
    }
}

#[test]
fn ctrl_c_ends_a_demo_with_130_and_its_report() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.json");
    let arguments = ["demo", "--windows", "500", "--miners", "1", "--validators", "1", "--json", "--report"];
    let mut demo = templar(&arguments).arg(&path).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(demo.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("\"event\":\"settled\"")), "it ended by itself");
    assert!(Command::new("kill").args(["-INT", &demo.id().to_string()]).status().unwrap().success());
    // Whoever stops reading stops it in another way.
    lines.for_each(drop);
    assert_eq!(demo.wait().unwrap().code(), Some(130));
    let report = report(&path);
    assert!(report["windows"][0]["certified"].as_bool().unwrap());
}

/// The processes that `parent` has started.
fn children(parent: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let parent_of = |process: u32| -> Option<u32> {
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    };
    processes.filter(|process: &u32| parent_of(*process) == Some(parent)).collect()
}

/// Regular files below `folder` that a process has open or mapped.
fn files_in_use(process: u32, folder: &Path) -> BTreeSet<PathBuf> {
    let descriptors = fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten();
    let open = descriptors.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    let maps = fs::read_to_string(format!("/proc/{process}/maps")).unwrap_or_default();
    let mapped =
        maps.lines().filter_map(|line| line.split_once('/')).map(|(_, path)| PathBuf::from(format!("/{path}")));
    open.chain(mapped.collect::<Vec<_>>()).filter(|path| path.starts_with(folder)).collect()
}

/// Which node a process is, by its command line.
fn name_of(process: u32) -> Option<String> {
    let line = fs::read_to_string(format!("/proc/{process}/cmdline")).ok()?;
    let arguments: Vec<&str> = line.split('\0').collect();
    let name = arguments.iter().position(|argument| *argument == "--name")?;
    Some((*arguments.get(name + 1)?).to_owned())
}

/// Watches which files the nodes of a localnet use until it ends; asserts that each uses only its own.
fn assert_nodes_keep_to_themselves(localnet: &mut Child, folder: &Path) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    while localnet.try_wait().unwrap().is_none() {
        for process in children(localnet.id()) {
            let Some(name) = name_of(process) else { continue };
            let home = folder.join("nodes").join(&name);
            for file in files_in_use(process, folder) {
                assert!(file.starts_with(&home), "{name} uses {}", file.display());
                seen.insert(name.clone());
            }
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    seen
}

#[test]
fn processes_are_killed_come_back_and_share_nothing_but_chain_and_buckets() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let (network, path) = (folder.path().join("network"), folder.path().join("report.json"));
    let arguments = ["localnet", "--windows", "4", "--miners", "2", "--validators", "2", "--block-s", "1.2"];
    let mut localnet = templar(&arguments)
        .args(["--kill", "miner-1@1", "--kill", "validator-1@1", "--folder"])
        .arg(&network)
        .arg("--report")
        .arg(&path)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let seen = assert_nodes_keep_to_themselves(&mut localnet, &network);
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), ["miner-0", "miner-1", "validator-0", "validator-1"]);
    assert!(localnet.wait().unwrap().success());
    let report = report(&path);
    for window in report["windows"].as_array().unwrap() {
        assert!(window["certified"].as_bool().unwrap() && window["one_root"].as_bool().unwrap(), "{window}");
    }
    let last = report["windows"][3]["state_root"].clone();
    for node in report["nodes"].as_array().unwrap() {
        assert_eq!(node["final_state_root"], last, "{node}");
        let was_killed = ["miner-1", "validator-1"].contains(&node["name"].as_str().unwrap());
        assert_eq!(node["restarts"].as_u64().unwrap(), u64::from(was_killed), "{node}");
    }
    assert!(report["windows"][3]["accepted"].as_array().unwrap().contains(&serde_json::json!(1)), "it counts again");
}
