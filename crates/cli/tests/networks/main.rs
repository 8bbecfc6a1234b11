//! Whole networks of real parts, through the real binary.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

mod common;
mod kept;
#[cfg(target_os = "linux")]
mod processes;
mod published;
mod verify;
mod weights;

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use common::{alone, assert_certified, demo, free_address, report, scrape, signal, templar, text, windows, within};

/// A tokenizer of a few letters and one end of text under a name of its own; its last id is 299.
const LETTERS: &str = r#"{"version": "1.0", "truncation": null, "padding": null, "normalizer": null,
    "pre_tokenizer": null, "post_processor": null, "decoder": null,
    "added_tokens": [{"id": 299, "content": "<|stop|>", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true}],
    "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
        "vocab": {"a": 0, "b": 1, "c": 2, "d": 3, "e": 4, "f": 5, "g": 6, "n": 7, "o": 8, "x": 9, " ": 10, "\n": 11,
            "an": 12, "<|stop|>": 299}, "merges": ["a n"]}}"#;

fn roots(report: &Value) -> Vec<&str> {
    windows(report).iter().map(|window| window["state_root"].as_str().unwrap()).collect()
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
    assert_certified(&first);
    for window in windows(&first) {
        assert_eq!(window["tokens"].as_u64().unwrap(), 2 * slice_tokens, "{window}");
        assert!(window["compute_s"].as_f64().unwrap() > 0.0 && window["train_loss"].as_f64().unwrap() > 0.0);
    }
    let continued = templar(&["generate", "--tokens", "20", "--json"]).arg(&out).output().unwrap();
    assert!(continued.status.success(), "{}", text(&continued));
}

#[test]
fn prepared_datasets_and_tokenizers_are_trained_on() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    fs::write(path("tokenizer.json"), LETTERS).unwrap();
    let (source, data, json) = (path("text.txt"), path("data"), path("tokenizer.json"));
    let line = "a fox and a dog and a cab and a bed\n";
    fs::write(&source, line.repeat(4000)).unwrap();
    let tokenizer = ["--tokenizer", &json, "--end-of-text", "<|stop|>"];
    let arguments = ["--windows", "1", "--miners", "1", "--validators", "1", "--data"];

    let text = [&arguments[..], &[&source], &tokenizer].concat();
    let from_text = demo(folder.path(), "text.json", &text);
    assert_certified(&from_text);
    // 300 tokens, in a multiple of 16.
    let shape = |report: &Value| {
        let model = &report["config"]["model"];
        (model["vocab_size"].as_u64().unwrap(), model["seq_len"].as_u64().unwrap())
    };
    assert_eq!(shape(&from_text), (304, 128));

    let prepare = [&["data", "prepare", &source, "--out", &data, "--seq-len", "48"], &tokenizer[..]];
    let output = templar(&prepare.concat()).output().unwrap();
    assert!(output.status.success(), "{}", self::text(&output));
    let prepared = [&arguments[..], &[&data]].concat();
    let report = demo(folder.path(), "prepared.json", &prepared);
    assert_certified(&report);
    assert_eq!(shape(&report), (304, 48));

    let both = [&["demo"], &prepared[..], &tokenizer].concat();
    let output = templar(&both).output().unwrap();
    assert!(self::text(&output).contains("omit --tokenizer"), "{}", self::text(&output));
    let two = [&["demo"], &prepared[..], &[&source]].concat();
    let output = templar(&two).output().unwrap();
    assert!(self::text(&output).contains("cannot be combined with other --data"), "{}", self::text(&output));
}

#[test]
fn people_see_a_line_a_window_and_a_table() {
    let _alone = alone();
    let output = templar(&["demo", "--windows", "1", "--miners", "1", "--validators", "1"]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let said = String::from_utf8(output.stdout).unwrap();
    let line = |start: &str| said.lines().find(|line| line.trim_start().starts_with(start)).expect(&said);
    let after = |line: &str, label: &str| -> String {
        let (_, rest) = line.split_once(label).unwrap_or_else(|| panic!("no {label}: {line}"));
        rest.split_whitespace().next().unwrap_or_default().to_owned()
    };
    let number = |text: String| text.parse::<f64>().unwrap_or_else(|_| panic!("{text}: {said}"));
    for line in said.lines() {
        assert!(line.chars().count() <= 100, "{} columns: {line}", line.chars().count());
    }
    // What is about to happen comes first, and what to do next last.
    let intro = said.split("window   0").next().unwrap();
    for part in [
        "1 miner and 1 validator, all",
        "nano, 857216 parameters",
        "built-in corpus",
        "removed at the end",
        "2 nodes are up",
    ] {
        assert!(intro.contains(part), "{part}: {intro}");
    }
    let end = said.split("final root").nth(1).unwrap();
    for part in ["nats per token", "no value", "templar demo --out DIR", "--report FILE"] {
        assert!(end.contains(part), "{part}: {end}");
    }
    let window = line("window   0  certified  train loss");
    // Nats a token of one byte, and bits a byte of text: little better than a guess.
    assert!((1.0..6.0).contains(&number(after(window, "train loss "))), "{window}");
    assert!((1.0..8.2).contains(&number(after(window, "held-out "))) && window.contains("bits/byte"), "{window}");
    assert!(number(after(window, "1 of 1 counted ")) > 1.0 && window.trim_end().ends_with("kB each"), "{window}");
    let columns: Vec<&str> = line("uid").split_whitespace().collect();
    assert_eq!(columns, ["uid", "node", "behaviour", "score", "weight", "paid", "restarts", "final", "root"]);
    for (uid, name) in [("0", "miner-0"), ("1", "validator-0")] {
        let row: Vec<&str> = line(&format!("{uid}  {name}")).split_whitespace().collect();
        assert_eq!((row.len(), row[2], row[6]), (8, "honest", "0"), "{row:?}");
        assert!(row[7].len() == 8 && row[7].bytes().all(|digit| digit.is_ascii_hexdigit()), "{row:?}");
        number(row[5].to_owned());
        assert_eq!(row[3].parse::<f64>().is_ok(), name == "miner-0", "{row:?}");
        number(row[4].trim_end_matches('%').to_owned());
    }
    assert!(said.contains("1 of 1 windows certified") && line("held-out text").contains("bits per byte"), "{said}");
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
fn a_demo_shows_metrics_until_ctrl_c_ends_it_with_130_and_its_report() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.json");
    let arguments = ["demo", "--windows", "500", "--miners", "1", "--validators", "1", "--json", "--report"];
    let address = free_address();
    let metrics = format!("--metrics={address}");
    let mut demo = templar(&arguments).arg(&path).arg(metrics).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(demo.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("\"event\":\"settled\"")), "it ended by itself");
    let metrics = scrape(address);
    for start in [
        "templar_verdicts_total{node=",
        "templar_engine_tokens_per_second{node=\"miner-0\"",
        "# HELP templar_verdicts_total",
    ] {
        assert!(metrics.lines().any(|line| line.starts_with(start)), "{start} is not in {metrics}");
    }
    signal(demo.id(), Signal::INT);
    // Whoever stops reading stops it in another way.
    lines.for_each(drop);
    assert_eq!(demo.wait().unwrap().code(), Some(130));
    let report = report(&path);
    assert_eq!(report["windows_planned"], 500);
    assert!(report["windows"][0]["certified"].as_bool().unwrap() && windows(&report).len() < 500);
    for (nth, window) in windows(&report).iter().enumerate() {
        assert_eq!(window["window"], nth, "it lists what was reached");
        let root_is_zero = window["state_root"].as_str().unwrap().bytes().all(|digit| digit == b'0');
        assert_eq!(root_is_zero, window["settled_by"] == 0, "{window}");
    }
}

#[test]
fn ctrl_c_is_heard_while_the_text_is_prepared() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let (source, network) = (folder.path().join("text.txt"), folder.path().join("network"));
    fs::write(&source, "the quick brown fox jumps over the lazy dog and comes back by night\n".repeat(2_000_000))
        .unwrap();
    let mut demo =
        templar(&["demo", "--windows", "1", "--data"]).arg(&source).arg("--folder").arg(&network).spawn().unwrap();
    within(Duration::from_secs(30), "a dataset is begun", || network.join("dataset").exists().then_some(()));
    signal(demo.id(), Signal::INT);
    assert_eq!(demo.wait().unwrap().code(), Some(130));
    assert!(!network.join("dataset/manifest").exists(), "the text was prepared to its end");
}

#[test]
fn every_codec_trains_a_network() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    // What a value takes on the wire: positions included where they are sent, and of f32 nothing but itself.
    for (codec, least_bits, most_bits) in [("topk-sign", 8.0, 9.2), ("topk-2bit", 9.0, 10.3), ("dense-f32", 32.0, 32.1)]
    {
        let arguments = ["--windows", "2", "--miners", "1", "--validators", "1", "--seed", "7", "--codec", codec];
        let report = demo(folder.path(), codec, &arguments);
        assert_eq!(report["config"]["codec"]["kind"], codec);
        assert_certified(&report);
        for window in windows(&report) {
            assert_eq!(window["accepted"], serde_json::json!([0]), "{window}");
            let bits = window["bits_per_value"].as_f64().unwrap();
            assert!((least_bits..=most_bits).contains(&bits), "{codec}: {bits} bits a value");
        }
        let bits = |nth: usize| windows(&report)[nth]["val_bits_per_byte"].as_f64().unwrap();
        assert!(bits(1) < bits(0), "{codec}: {} then {}", bits(0), bits(1));
    }
}
