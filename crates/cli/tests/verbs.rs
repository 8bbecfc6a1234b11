//! The small verbs, as a person would use them: what they print, and what they say when something is wrong.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Exit code, standard output and standard error, without the folder's name.
fn command(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_templar"));
    // Without what may be set for the tests that need PyTorch.
    command.current_dir(folder).env_remove("TEMPLAR_PYTHON");
    command
}

fn templar(folder: &Path, arguments: &[&str]) -> String {
    let output = command(folder).args(arguments).output().unwrap();
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
    insta::assert_snapshot!(with("netuid = 3", "netuid = 70000"));
    insta::assert_snapshot!(with("\nsteps = 8\n", "\nsteps = 99999999999999999999\n"));
    insta::assert_snapshot!(with("\nsteps = 8\n", "\nsteps = = 3\n"));
}

#[test]
fn a_run_is_made_with_other_values_than_the_defaults() {
    let folder = folder();
    templar(folder.path(), &["data", "prepare", "text.txt", "--out", "data"]);
    let init = |sets: &[&str]| {
        let chain = ["--genesis", GENESIS, "--netuid", "3", "--start-block", "1000", "--data", "data"];
        let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
        templar(folder.path(), &[&["run", "init", "--name", "other"], &chain[..], &sets].concat())
    };
    for (set, says) in [
        ("outer.rat=1", "a run has no key `outer.rat`: did you mean `outer.rate`?"),
        ("outer.rate=fast", "`outer.rate` cannot be \"fast\"; it must be a number in 0.000001 ..= 16"),
        ("windows.blocks=5", "it must be a whole number in 10 ..= 1000000 (blocks)"),
        ("windows.put_block=112", "`windows.put_block` is 112, but must lie in 3 ..= 111"),
        ("theta0.root=00", "`theta0.root` cannot be set"),
        ("model.seq_len=64", "model takes sequences of 64"),
    ] {
        let said = init(&[set]);
        assert!(said.starts_with("exit 1") && said.contains(says), "{set}: {said}");
        assert!(!folder.path().join("run.toml").exists(), "{set}");
    }
    assert!(init(&["outer.rate"]).starts_with("exit 2"));
    // A model of another shape has another root, and verification agrees with it.
    let said = init(&["outer.rate=0.65", "model.layers=2", "theta0.seed=5"]);
    assert!(said.starts_with("exit 0"), "{said}");
    let run = fs::read_to_string(folder.path().join("run.toml")).unwrap();
    assert!(run.contains("rate = 0.65") && run.contains("layers = 2") && run.contains("seed = 5"), "{run}");
    assert!(templar(folder.path(), &["run", "verify", "--data", "data"]).starts_with("exit 0"));

    // The budget follows from what a window trains, unless it is set.
    let budget = |sets: &[&str]| -> u64 {
        fs::remove_file(folder.path().join("run.toml")).unwrap();
        assert!(init(sets).starts_with("exit 0"));
        let run = fs::read_to_string(folder.path().join("run.toml")).unwrap();
        run.split("budget_tokens = ").nth(1).unwrap().lines().next().unwrap().parse().unwrap()
    };
    let sixteen = ["inner.batch_sequences=16", "inner.steps=8", "roster.gather=10", "roster.reserve=0"];
    assert_eq!(budget(&sixteen), 10 * 8 * 16 * 128);
    assert_eq!(budget(&["scoring.budget_tokens=7", "inner.steps=8"]), 7);
}

#[test]
fn a_run_that_no_node_would_start_is_not_in_order() {
    let folder = folder();
    init(folder.path());
    let path = folder.path().join("run.toml");
    let run = fs::read_to_string(&path).unwrap();
    assert!(run.contains("seq_len = 128"));
    fs::write(&path, run.replace("seq_len = 128", "seq_len = 64")).unwrap();
    let said = templar(folder.path(), &["run", "verify", "--data", "data"]);
    assert!(said.starts_with("exit 1") && said.contains("model takes sequences of 64"), "{said}");
}

#[test]
fn wrong_usage_ends_with_2() {
    let folder = folder();
    assert!(templar(folder.path(), &["demo", "--windows", "0"]).starts_with("exit 2"));
    insta::assert_snapshot!(templar(folder.path(), &["demo", "--preset", "giant"]));
    insta::assert_snapshot!(templar(folder.path(), &["localnet", "--kill", "miner-9@1"]));
}

/// Nothing is trained for a result that has no place to go, and nothing is left behind.
#[test]
fn results_have_a_place_before_anything_starts() {
    let folder = folder();
    let temporary = folder.path().join("tmp");
    fs::create_dir(&temporary).unwrap();
    for verb in ["demo", "localnet"] {
        for (arguments, cause) in [
            (["--report", "none/report.json"], "the folder none does not exist; make it first"),
            (["--report", "tmp"], "is a folder; name a file"),
            (["--out", "text.txt"], "is a file; name a folder"),
            (["--out", "."], "contains files that do not belong to a model"),
            (["--preset", "72b"], "needs about 1"),
        ] {
            let output = command(folder.path()).arg(verb).args(arguments).env("TMPDIR", &temporary).output().unwrap();
            let said = String::from_utf8(output.stderr).unwrap();
            assert!(output.status.code() == Some(1) && said.contains(cause), "{verb} {arguments:?}: {said}");
            assert!(output.stdout.is_empty() && !said.contains("network failed"), "{said}");
            assert_eq!(fs::read_dir(&temporary).unwrap().count(), 0);
        }
    }
    let said = templar(folder.path(), &["demo", "--preset", "72b"]);
    assert!(
        said.contains("TB of memory for 6 nodes; this machine has ") && said.contains("try --preset nano"),
        "{said}"
    );
    let said = templar(folder.path(), &["export", "tmp", "--out", "model"]);
    assert!(said.starts_with("exit 1") && said.contains("tmp holds no network"), "{said}");
}

#[test]
fn a_simulation_says_who_had_no_seat_and_that_its_loss_is_of_no_text() {
    let folder = folder();
    let said =
        templar(folder.path(), &["sim", "--windows", "2", "--miners", "24", "--validators", "1", "--report", "r"]);
    assert!(said.starts_with("exit 0") && said.contains("20 of 24 counted"), "{said}");
    assert!(said.contains("4 had no seat: 20 contributions count per window at most"), "{said}");
    assert!(said.contains("contributions: 40 of 48 counted, 8 had no seat"), "{said}");
    assert!(
        said.contains("synthetic loss") && !said.contains("bits per byte") && !said.contains("bits/byte"),
        "{said}"
    );
    let report: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(folder.path().join("r")).unwrap()).unwrap();
    assert_eq!(report["final"]["val_bits_per_byte"], serde_json::Value::Null);
    assert_eq!(report["windows"][1]["opened"].as_array().unwrap().len(), 24);
}

/// Events come while the virtual clock runs, and not after its end.
#[test]
fn a_simulation_prints_as_it_goes() {
    let folder = folder();
    let mut sim = command(folder.path());
    let mut sim = sim.args(["sim", "--windows", "100000", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(sim.stdout.take().unwrap()).lines();
    let is_told = lines.any(|line| line.unwrap().contains("\"event\":\"settled\""));
    sim.kill().unwrap();
    sim.wait().unwrap();
    assert!(is_told);
}

#[test]
fn one_seed_gives_one_simulation() {
    let folder = folder();
    let sim = || templar(folder.path(), &["sim", "--windows", "2", "--seed", "3", "--json"]);
    let log = sim();
    assert!(log.starts_with("exit 0") && log.lines().count() > 30);
    assert_eq!(log, sim());
}

#[test]
fn every_codec_can_be_simulated_and_chosen_for_a_run() {
    let folder = folder();
    for codec in ["topk-sign", "topk-2bit", "dense-f32"] {
        let log = templar(folder.path(), &["sim", "--windows", "2", "--json", "--codec", codec]);
        let report: serde_json::Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
        assert_eq!(report["config"]["codec"]["kind"], codec);
        assert!(report["windows"].as_array().unwrap().iter().all(|window| window["certified"] == true), "{report}");
    }
    templar(folder.path(), &["data", "prepare", "text.txt", "--out", "data"]);
    let chain = ["--genesis", GENESIS, "--netuid", "3", "--start-block", "1000", "--codec", "dense-f32"];
    templar(folder.path(), &[&["run", "init", "--name", "dense", "--data", "data"], &chain[..]].concat());
    assert!(fs::read_to_string(folder.path().join("run.toml")).unwrap().contains("kind = \"dense-f32\""));
    insta::assert_snapshot!(templar(folder.path(), &["sim", "--codec", "zip"]));
}

#[test]
fn what_no_engine_reads_is_refused() {
    let folder = folder();
    insta::assert_snapshot!(templar(folder.path(), &["demo", "--device", "cuda:0"]));
    let valued = [&["--nproc", "2"][..], &["--python", "p"], &["--threads", "2"]];
    for options in valued.into_iter().chain([&["--offload-optimiser"][..], &["--deterministic"]]) {
        let said = templar(folder.path(), &[&["localnet"], options].concat());
        assert!(
            said.starts_with("exit 2") && said.contains(&format!("{} applies to PyTorch only", options[0])),
            "{said}"
        );
    }
}

#[test]
fn a_file_of_options_gives_way_to_environment_and_command_line() {
    let folder = folder();
    let options = "windows = 2\nminers = 3\nvalidators = 3\nadversary = [\"noise\", \"withhold\"]\njson = true\n";
    fs::write(folder.path().join("sim.toml"), options).unwrap();
    let mut sim = command(folder.path());
    sim.args(["sim", "--config", "sim.toml", "--miners", "4"]).env("TEMPLAR_VALIDATORS", "1");
    let output = sim.output().unwrap();
    let log = String::from_utf8(output.stdout).unwrap();
    let report: serde_json::Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
    let behaviours: Vec<_> = report["nodes"].as_array().unwrap().iter().map(|node| &node["behaviour"]).collect();
    assert_eq!(behaviours, ["honest", "honest", "noise", "withhold", "honest"]);
    assert_eq!(report["windows"].as_array().unwrap().len(), 2);
    fs::write(folder.path().join("sim.toml"), "window = 2").unwrap();
    insta::assert_snapshot!(templar(folder.path(), &["sim", "--config", "sim.toml"]));
    fs::write(folder.path().join("sim.toml"), "windows = \"many\"").unwrap();
    assert!(templar(folder.path(), &["sim", "--config", "sim.toml"]).contains("invalid value 'many' for '--windows"));
}

#[test]
fn adversaries_have_names_and_counts_and_are_never_all() {
    let folder = folder();
    let said = |adversary: &str| templar(folder.path(), &["sim", "--windows", "1", "--adversary", adversary]);
    assert!(said("late-vote=2").contains("2 of 2 validators would misbehave; at least one must be honest"));
    assert!(said("noise=4").contains("4 of 4 miners would misbehave; at least one must be honest"));
    assert!(said("mischief").contains("there is no adversary \"mischief\"; give one of blind-voter, censor, clones"));
    assert!(said("noise=0").contains("has no count of 1 to 65535"));
    let done = said("noise=2");
    assert!(done.starts_with("exit 0") && done.matches(" noise ").count() == 2, "{done}");
}

#[test]
fn a_key_is_made_once_and_shown() {
    let folder = folder();
    let made = templar(folder.path(), &["key", "new"]);
    assert!(made.starts_with("exit 0") && made.lines().nth(1).unwrap().len() == 64, "{made}");
    assert_eq!(templar(folder.path(), &["key", "show", "key.hex"]), made);
    let seed = fs::read_to_string(folder.path().join("key.hex")).unwrap();
    insta::assert_snapshot!(templar(folder.path(), &["key", "new"]));
    assert_eq!(fs::read_to_string(folder.path().join("key.hex")).unwrap(), seed);
    assert_ne!(templar(folder.path(), &["key", "new", "other.hex"]), made);
}

/// Files with a secret are the owner's alone, and none of it is told.
#[cfg(unix)]
#[test]
fn what_may_be_a_secret_is_not_told() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = folder();
    let key = folder.path().join("key.hex");
    templar(folder.path(), &["key", "new"]);
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    let seed = fs::read_to_string(&key).unwrap();
    let words = "legal winner thank year wave sausage worth useful legal winner thank yellow";
    for (secret, length) in
        [(&seed[..63], "contains 63 characters"), (words, "contains 75 characters"), ("0xzz", "contains 4 ")]
    {
        fs::write(&key, secret).unwrap();
        let said = templar(folder.path(), &["key", "show"]);
        assert!(
            said.starts_with("exit 1") && said.contains("key.hex is not a key file") && said.contains(length),
            "{said}"
        );
        assert!(!said.contains("WARN") && !said.contains(&secret[..4]), "{said}");
    }
    fs::write(&key, seed).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    let said = templar(folder.path(), &["key", "show"]);
    assert!(said.starts_with("exit 0") && said.contains("(mode 640): chmod 600 key.hex"), "{said}");
}

#[test]
fn flags_and_files_are_called_by_their_names() {
    let folder = folder();
    let prepare = |options: &[&str]| templar(folder.path(), &[&["data", "prepare", "text.txt"], options].concat());
    let said = prepare(&["--out", "data", "--held-out", "0.9"]);
    assert!(said.starts_with("exit 2") && said.contains("it must be a number from 0.001 to 0.5"), "{said}");
    assert!(prepare(&["--out", "data", "--seq-len", "1"]).contains("it must be a whole number from 2 to 1048576"));
    assert!(prepare(&["--out", "text.txt"]).contains("text.txt is a file; name a folder"));
    // Both splits get text, but the held-out one no whole sample.
    let said = prepare(&["--out", "data", "--seq-len", "4000"]);
    assert!(said.contains("too short") && said.contains("see --seq-len and --held-out"), "{said}");
    assert!(!folder.path().join("data").exists(), "what failed leaves nothing behind");
    let said = templar(folder.path(), &["key", "show", "--log", "bad=filter=x"]);
    assert!(said.starts_with("exit 2") && said.contains("invalid value 'bad=filter=x' for '--log"), "{said}");
}

/// Before a file is looked at.
#[test]
fn a_number_that_is_not_accepted_is_answered_with_the_numbers_that_are() {
    let folder = folder();
    for (arguments, says) in [
        (&["sim", "--windows", "-1"][..], "it must be a whole number from 1 to"),
        (&["demo", "--seed", "-1"], "it must be a whole number from 0 to"),
        (&["demo", "--pace-cap-s", "-3"], "it must be a whole number from 1 to 86400"),
        (&["generate", "none", "--tokens", "-3"], "it must be a whole number from 0 to 1000000"),
        (&["generate", "none", "--temperature", "-0.5"], "it must be a number from 0 to 100"),
        (&["miner", "--until-window", "-1"], "it must be a whole number, 1 or more"),
        (&["bench", "train", "--seconds", "-1"], "it must be a number from 0 to 3600"),
        (&["data", "prepare", "none", "--out", "o", "--held-out", "-0.1"], "it must be a number from 0.001 to 0.5"),
    ] {
        let said = templar(folder.path(), arguments);
        assert!(said.starts_with("exit 2") && said.contains(says), "{arguments:?}: {said}");
    }
}

/// The only document of a verb with `--json`, which must fail.
fn failure(folder: &Path, arguments: &[&str]) -> (i32, serde_json::Value) {
    let output = command(folder).args(arguments).arg("--json").output().unwrap();
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    (output.status.code().unwrap(), document["error"].clone())
}

#[test]
fn failures_have_the_code_of_what_is_wrong() {
    let folder = folder();
    fs::write(folder.path().join("key.hex"), "no key").unwrap();
    for (arguments, exit, code) in [
        (&["demo", "--report", "none/r.json"][..], 1, "io"),
        (&["sim", "--report", "none/r.json"], 1, "io"),
        (&["demo", "--data", "none"], 1, "data"),
        (&["key", "show"], 1, "credentials"),
        (&["sim", "--adversary", "noise=5"], 2, "usage"),
        (&["localnet", "--kill", "miner-9@1"], 2, "usage"),
        (&["demo", "--preset", "giant"], 2, "usage"),
        (&["sim", "--windows", "-1"], 2, "usage"),
    ] {
        let (exited, error) = failure(folder.path(), arguments);
        assert_eq!((exited, error["code"].as_str()), (exit, Some(code)), "{arguments:?}: {error}");
    }
    let (_, error) = failure(folder.path(), &["sim", "--windows", "-1"]);
    let message = error["message"].as_str().unwrap();
    assert!(message.starts_with("invalid value '-1' for '--windows"), "{error}");
    assert!(!error.to_string().contains("--help") && !error.to_string().contains("Usage"), "{error}");
    let (exited, error) = failure(folder.path(), &[]);
    assert!(
        exited == 2 && error.to_string().contains("validator") && !error.to_string().contains("adversary"),
        "{error}"
    );
}

#[cfg(target_os = "linux")]
#[test]
fn help_that_cannot_be_printed_is_a_failure() {
    let folder = folder();
    for arguments in [&["--help"][..], &["--version"], &["help", "miner"]] {
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let output = command(folder.path()).args(arguments).stdout(full).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output:?}");
    }
}

/// A `start.sh` passes on what its owner adds: the last one of two equal options counts.
#[test]
fn options_of_a_node_can_be_given_again() {
    let folder = folder();
    let files = ["--key", "k", "--bucket", "b", "--data-bucket", "d", "--chain", "ws://127.0.0.1:1"];
    let said = templar(folder.path(), &[&["miner", "--run", "first", "--run", "last"], &files[..]].concat());
    assert!(said.starts_with("exit 1") && said.contains("last cannot be read"), "{said}");
}

#[cfg(unix)]
#[test]
fn a_signal_ends_a_verb_with_130_and_a_document() {
    let folder = folder();
    let temporary = folder.path().join("tmp");
    fs::create_dir(&temporary).unwrap();
    for signal in ["-TERM", "-INT"] {
        let mut sim = command(folder.path());
        sim.args(["sim", "--windows", "100000", "--json"]).env("TMPDIR", &temporary).stdout(Stdio::piped());
        let mut sim = sim.spawn().unwrap();
        let mut lines = BufReader::new(sim.stdout.take().unwrap()).lines();
        lines.next().unwrap().unwrap();
        assert!(Command::new("kill").args([signal, &sim.id().to_string()]).status().unwrap().success());
        let last: serde_json::Value = serde_json::from_str(&lines.last().unwrap().unwrap()).unwrap();
        assert_eq!((sim.wait().unwrap().code(), &last["error"]["code"]), (Some(130), &"stopped".into()), "{signal}");
        assert_eq!(fs::read_dir(&temporary).unwrap().count(), 0, "{signal}");
    }
}

/// Only where all seats are taken does anybody lack one.
#[test]
fn nobody_lacks_a_seat_while_seats_are_free() {
    let folder = folder();
    let log = templar(folder.path(), &["sim", "--miners", "32", "--windows", "6", "--json"]);
    let report: serde_json::Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
    let windows = report["windows"].as_array().unwrap();
    for window in windows {
        let counted = window["accepted"].as_array().unwrap().len();
        assert!(counted == 20 || window["no_seat"] == 0, "{window}");
    }
    assert!(windows.iter().any(|window| window["no_seat"].as_u64().unwrap() > 0), "{windows:?}");
}

#[test]
fn a_dataset_is_replaced_on_demand_alone_and_strays_are_told() {
    let folder = folder();
    let prepare = |options: &[&str]| {
        templar(folder.path(), &[&["data", "prepare", "text.txt", "--out", "data"], options].concat())
    };
    assert!(prepare(&[]).starts_with("exit 0"));
    let said = prepare(&["--seq-len", "64"]);
    assert!(said.starts_with("exit 1") && said.contains("it holds a dataset; replace it with --replace"), "{said}");
    fs::write(folder.path().join("data/notes.txt"), "mine").unwrap();
    let said = prepare(&["--seq-len", "64", "--replace", "--json"]);
    let result: serde_json::Value = serde_json::from_str(said.strip_prefix("exit 0\n").unwrap()).unwrap();
    assert_eq!(result["strays"], serde_json::json!(["notes.txt"]));
    let said = templar(folder.path(), &["data", "verify", "data"]);
    assert!(said.starts_with("exit 0") && said.contains("valid\n1 entry does not belong to the dataset"), "{said}");
    assert!(said.ends_with("\n  notes.txt\n"), "{said}");
    assert!(templar(folder.path(), &["data", "inspect", "data"]).contains("samples of 64 tokens"));
    let said = prepare(&["--end-of-text", "<stop>"]);
    assert!(said.starts_with("exit 2") && said.contains("--tokenizer <FILE>"), "{said}");
}

#[test]
fn a_typo_leaves_no_folder_behind() {
    let folder = folder();
    let temporary = folder.path().join("tmp");
    fs::create_dir(&temporary).unwrap();
    let output = command(folder.path()).args(["demo", "--data", "nofile"]).env("TMPDIR", &temporary).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && said.contains("cannot read nofile"), "{said}");
    assert_eq!(fs::read_dir(&temporary).unwrap().count(), 0);
}

#[test]
fn a_node_says_for_which_chain_it_waits_and_shows_no_credential() {
    let folder = folder();
    init(folder.path());
    templar(folder.path(), &["key", "new"]);
    let locator = "endpoint = \"http://127.0.0.1:1\"\nbucket = \"bkt\"\nregion = \"r\"\naccess_key_id = \"a\"\n";
    let read = format!("{locator}secret_access_key = \"s\"\n");
    fs::write(folder.path().join("data.toml"), &read).unwrap();
    let write = "[write]\naccess_key_id = \"a\"\nsecret_access_key = ";
    let node = || {
        let mut node = command(folder.path());
        let files = ["--run", "run.toml", "--key", "key.hex", "--bucket", "bucket.toml", "--data", "data.toml"];
        node.args(["miner", "--chain", "ws://127.0.0.1:1"]).args(files);
        node.stderr(Stdio::piped());
        node
    };
    fs::write(folder.path().join("bucket.toml"), format!("{write}12345678\n[public]\n{read}")).unwrap();
    let said = String::from_utf8(node().output().unwrap().stderr).unwrap();
    assert!(said.contains("line 3: the value of `secret_access_key`") && !said.contains("12345678"), "{said}");
    fs::write(folder.path().join("bucket.toml"), format!("{write}\"w\"\n[public]\n{read}")).unwrap();
    let mut node = node().spawn().unwrap();
    let mut lines = BufReader::new(node.stderr.take().unwrap()).lines();
    // Long before it gives up.
    let waits = lines.any(|line| line.unwrap().contains("chain at ws://127.0.0.1:1 "));
    assert!(waits && node.try_wait().unwrap().is_none());
    node.kill().unwrap();
    node.wait().unwrap();
}

#[test]
fn a_simulation_ends_when_nobody_reads_it_any_more() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["sim", "--windows", "100000", "--miners", "1", "--validators", "1"];
    let mut sim = command(folder.path()).args(arguments).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(sim.stdout.take().unwrap());
    lines.read_line(&mut String::new()).unwrap();
    drop(lines);
    let deadline = Instant::now() + Duration::from_secs(30);
    let status = loop {
        if let Some(status) = sim.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > deadline {
            sim.kill().unwrap();
            sim.wait().unwrap();
            panic!("it goes on though nobody reads it");
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    assert_eq!(status.code(), Some(141));
}
