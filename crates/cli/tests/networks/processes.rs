//! Networks of processes: who dies, who outlives whom, who joins from outside, and whose files are whose.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;
use templar_chain::{Chain as _, DevChain};
use templar_model::presets;
use templar_protocol::clock::Schedule;
use templar_protocol::hash::Hash32;
use templar_protocol::run::RunSpec;
use templar_protocol::word::{Vote, WordError};
use templar_sim::plan::Plan;

use super::common::{
    alone, assert_certified, children, free_address, is_running, report, scrape, signal, templar, text, windows, within,
};

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

/// Watches which files the nodes of a localnet hold open or mapped until it ends; asserts that these are only their
/// own. It looks ten times a second, so it sees databases, θ and data, which stay open, but perhaps not a file that is
/// read and closed at once: `long.rs` has a test that sees each opening.
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
    assert_certified(&report);
    for node in report["nodes"].as_array().unwrap() {
        let was_killed = ["miner-1", "validator-1"].contains(&node["name"].as_str().unwrap());
        assert_eq!(node["restarts"].as_u64().unwrap(), u64::from(was_killed), "{node}");
    }
    assert!(windows(&report)[3]["accepted"].as_array().unwrap().contains(&json!(1)), "it counts again");
    let votes = votes_by_deadline(&network, 3);
    assert!(votes.len() == 2 && votes[0].is_ok() && votes[1] == votes[0], "both votes count, and agree: {votes:?}");
    assert_eq!(windows(&report)[3]["misvotes"], json!([]));
}

/// What the chain had of each validator's vote on `window` as of its deadline.
fn votes_by_deadline(network: &Path, window: u64) -> Vec<Result<Hash32, WordError>> {
    let spec = RunSpec::from_toml(&fs::read_to_string(network.join("run.toml")).unwrap()).unwrap();
    let preset = presets::preset("nano").unwrap();
    let plan = Plan { miners: 2, validators: 2, windows: 4, seed: 0, preset, adversaries: Vec::new() };
    let chain = DevChain::open(Some(&network.join("chain.sqlite")), plan.chain_config()).unwrap();
    let deadline = Schedule::new(&spec).vote_deadline(window);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let at_vote = runtime.block_on(chain.snapshot(spec.chain.netuid, deadline)).unwrap();
    let validators = at_vote.neurons.iter().filter(|neuron| neuron.stake_rao > 0);
    validators.map(|neuron| Vote::read_root(neuron.commitment.as_ref().unwrap(), window as u32)).collect()
}

#[test]
fn nodes_do_not_outlive_a_localnet_that_is_killed() {
    let _alone = alone();
    let arguments = ["localnet", "--windows", "50", "--miners", "1", "--validators", "1", "--block-s", "0.3", "--json"];
    let mut localnet = templar(&arguments).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(localnet.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("\"event\":\"trained\"")), "it ended by itself");
    let nodes = children(localnet.id());
    assert_eq!(nodes.len(), 2);
    signal(localnet.id(), Signal::KILL);
    localnet.wait().unwrap();
    within(Duration::from_secs(5), "both nodes end", || (!nodes.iter().any(|node| is_running(*node))).then_some(()));
}

#[test]
fn nodes_that_die_at_each_start_are_named_and_their_logs_stay() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.json");
    let localnet = |engines: &[&str]| {
        let arguments = ["localnet", "--windows", "1", "--miners", "1", "--validators", "1", "--block-s", "0.2"];
        let torch = [&["--python", "/no/such/python", "--engine"], engines].concat();
        let mut command = templar(&[&arguments[..], &torch[..]].concat());
        let output = command.arg("--report").arg(&path).env("TMPDIR", folder.path()).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        let said = String::from_utf8(output.stderr).unwrap();
        let logs: Vec<PathBuf> =
            said.split_whitespace().filter(|word| word.ends_with("/log")).map(PathBuf::from).collect();
        let logs: Vec<PathBuf> = logs.into_iter().filter(|log| !log.to_str().unwrap().contains('*')).collect();
        for log in &logs {
            assert!(fs::read_to_string(log).unwrap().contains("/no/such/python"), "{}", log.display());
        }
        (said, logs.len())
    };
    let (said, logs) = localnet(&["torch"]);
    assert!(said.contains("miner-0 ended") && said.contains("validator-0 ended") && logs == 2, "{said}");
    // The others go on to the end, and the report is there.
    fs::remove_file(&path).unwrap();
    let (said, logs) = localnet(&["builtin", "torch"]);
    assert!(!said.contains("miner-0 ended") && said.contains("validator-0 ended") && logs == 1, "{said}");
    assert_eq!(windows(&report(&path))[0]["settled_by"], 1);
}

#[test]
fn a_guest_with_nothing_but_its_folder_and_its_key_takes_part() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key.hex");
    let made = templar(&["key", "new"]).arg(&key).output().unwrap();
    let hotkey = String::from_utf8(made.stdout).unwrap();
    let (network, path) = (folder.path().join("network"), folder.path().join("report.json"));
    let arguments = ["localnet", "--windows", "3", "--miners", "1", "--validators", "2", "--block-s", "0.6", "--json"];
    let mut localnet = templar(&arguments)
        .args(["--listen", "127.0.0.1", "--join", hotkey.trim(), "--folder"])
        .arg(&network)
        .arg("--report")
        .arg(&path)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(localnet.stderr.take().unwrap()).lines();
    assert!(said.any(|line| line.unwrap().contains("guest-0 may take part")), "it invites nobody");
    // Its machine: what it was sent, its key, and the binary.
    let home = folder.path().join("elsewhere");
    fs::create_dir(&home).unwrap();
    for name in ["run.toml", "bucket.toml", "data.toml", "start.sh"] {
        fs::rename(network.join("guests/guest-0").join(name), home.join(name)).unwrap();
    }
    fs::rename(key, home.join("key.hex")).unwrap();
    let mut start = Command::new("sh");
    let (address, script) = (free_address(), home.join("start.sh"));
    let metrics = format!("--metrics={address}");
    // There is no templar in this PATH: the script knows the one that wrote it.
    let guest = start.arg(script).arg(metrics).env("PATH", "/usr/bin:/bin").stdout(Stdio::piped()).spawn().unwrap();
    let total = "templar_contributions_total{node=\"guest-0\"}";
    within(Duration::from_mins(2), "the guest contributes", || {
        let is_up = TcpStream::connect(address).is_ok();
        is_up.then(|| scrape(address)).filter(|metrics| metrics.contains(total))
    });
    assert!(localnet.wait().unwrap().success());
    // It ends by itself, and says what it came to.
    let guest = guest.wait_with_output().unwrap();
    let said = String::from_utf8(guest.stdout).unwrap();
    assert!(guest.status.success(), "{said}");
    for part in ["final result of uid 4: contributions counted in ", "score ", "weight ", "paid "] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let report = report(&path);
    assert_certified(&report);
    let counted = windows(&report).iter().filter(|window| window["accepted"].as_array().unwrap().contains(&json!(4)));
    assert!(counted.count() > 0, "uid 4 is the guest's: {}", report["windows"]);
    let guest = &report["nodes"][3];
    assert_eq!((&guest["name"], &guest["behaviour"]), (&json!("guest-0"), &json!("guest")));
    assert!(guest["emission"].as_f64().unwrap() > 0.0 && guest["score"].as_f64().unwrap() > 0.0, "{guest}");
    assert!(home.join("state").exists() && home.join("dataset/manifest").exists());
}
