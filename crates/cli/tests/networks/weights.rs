//! Runs that start from weights: a model of 128 tokens learns to use 512.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Output;

use serde_json::Value;
use templar_data::Grammar;
use templar_host::home::BucketFile;
use templar_model::{hf, presets};
use templar_protocol::layout::{Layout, ModelSpec};
use templar_store::{BucketSpec, S3Server, dev_credentials};
use templar_train::{CpuTrainer, TokenBatch, Trainer};

use super::common::{alone, templar, text};

const SHORT: usize = 128;
const LONG: usize = 512;

fn ran(output: &Output) {
    assert!(output.status.success(), "{}", text(output));
}

/// Mean loss of the tokens behind the first 128, in nats.
fn loss_beyond(model: &ModelSpec, theta: &[f32]) -> f64 {
    let model = ModelSpec { seq_len: LONG as u32, ..model.clone() };
    let mut trainer = CpuTrainer::new(&model, &presets::preset("nano").unwrap().inner);
    let text: String = Grammar::new(1).documents(77, 200_000).collect();
    let tokens: Vec<u32> = text.bytes().map(u32::from).collect();
    let mut mean = |length: usize| {
        let sequences = tokens.chunks_exact(LONG).take(16).flat_map(|tokens| tokens[..length].to_vec()).collect();
        let losses = trainer.evaluate(theta, &TokenBatch::new(16, length, sequences).unwrap()).unwrap();
        losses.iter().sum::<f64>() / losses.len() as f64
    };
    ((LONG - 1) as f64 * mean(LONG) - (SHORT - 1) as f64 * mean(SHORT)) / (LONG - SHORT) as f64
}

#[test]
fn a_longer_context_is_learned_from_the_weights_of_a_shorter_one() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let (short, long) = (folder.path().join("short"), folder.path().join("long"));
    let demo = ["demo", "--seed", "1", "--windows", "8", "--miners", "2", "--validators", "1", "--out"];
    ran(&templar(&demo).arg(&short).output().unwrap());
    let mut command = templar(&demo);
    command.arg(&long).arg("--from").arg(&short);
    for set in
        ["model.seq_len=512", "model.rope_theta=40000", "inner.batch_sequences=4", "inner.micro_batch_sequences=2"]
    {
        command.args(["--set", set]);
    }
    ran(&command.output().unwrap());
    let (before, after) = (hf::import(&short).unwrap(), hf::import(&long).unwrap());
    assert_eq!((before.0.seq_len, after.0.seq_len, after.0.rope_theta), (128, 512, 40_000.0));
    let as_it_was = loss_beyond(&before.0, &before.1);
    let stretched = loss_beyond(&ModelSpec { rope_theta: 40_000.0, ..before.0.clone() }, &before.1);
    let learned = loss_beyond(&after.0, &after.1);
    assert!(learned < as_it_was - 0.05 && learned < stretched - 0.05, "{as_it_was} {stretched} {learned}");
}

/// A network trains a model with norms of queries and keys and exports it as a Qwen 3; that starts another run and writes
/// text.
#[test]
fn a_model_with_norms_of_queries_and_keys_is_trained_exported_and_read_again() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let [first, second, report] = ["first", "second", "report.json"].map(|name| folder.path().join(name));
    let demo = ["demo", "--seed", "1", "--windows", "3", "--miners", "2", "--validators", "1", "--out"];
    let mut command = templar(&demo);
    command.arg(&first).args(["--set", "model.qk_norm=true", "--report"]).arg(&report);
    ran(&command.output().unwrap());
    let report: Value = serde_json::from_slice(&fs::read(report).unwrap()).unwrap();
    assert_eq!(report["config"]["model"]["qk_norm"], true);
    let config: Value = serde_json::from_slice(&fs::read(first.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["architectures"][0], "Qwen3ForCausalLM");
    let (model, theta) = hf::import(&first).unwrap();
    let layout = Layout::llama(&model);
    assert_eq!((model.qk_norm, layout.len()), (true, theta.len()));
    for tensor in layout.tensors().iter().filter(|tensor| tensor.name.contains("_norm.weight")) {
        assert!(theta[tensor.range()].iter().any(|weight| (weight - 1.0).abs() > 1e-6), "{} was trained", tensor.name);
    }
    ran(&templar(&["generate", &first.display().to_string(), "--prompt", "the ", "--tokens", "8"]).output().unwrap());
    ran(&templar(&demo).arg(&second).arg("--from").arg(&first).output().unwrap());
    assert!(hf::import(&second).unwrap().0.qk_norm, "the shape is that of the weights");
}

/// The verbs of an operator: a run from a model's folder is made, checked and published.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_from_weights_is_made_checked_and_published() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let model = presets::preset("nano").unwrap().model;
    let theta = Layout::llama(&model).theta0(&model, 9);
    fs::create_dir(at("model")).unwrap();
    hf::export(Path::new(&at("model")), &model, &theta, None).unwrap();
    fs::write(at("text"), Grammar::new(1).documents(1, 200_000).collect::<String>()).unwrap();
    ran(&templar(&["data", "prepare", &at("text"), "--out", &at("dataset"), "--seq-len", "128"]).output().unwrap());
    let genesis = "ab".repeat(32);
    let init =
        ["run", "init", "--name", "t", "--genesis", &genesis, "--netuid", "3", "--start-block", "1000", "--dataset"];
    let (dataset, run, weights) = (at("dataset"), at("run.toml"), at("weights"));
    ran(&templar(&init).args([&dataset, "--from", &at("model"), "--out", &run]).output().unwrap());
    let shown = templar(&["run", "show", &run, "--json"]).output().unwrap();
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(shown["spec"]["theta0"]["source"], "weights", "{shown}");

    ran(&templar(&["run", "verify", &run, "--weights", &weights]).output().unwrap());
    let unnamed = templar(&["run", "verify", &run]).output().unwrap();
    assert!(!unnamed.status.success() && text(&unnamed).contains("--weights"), "{}", text(&unnamed));
    let other = templar(&init).args([&dataset, "--from", &at("model"), "--set", "model.layers=2"]).output().unwrap();
    assert!(!other.status.success() && text(&other).contains("shape"), "{}", text(&other));

    let (write, read) = dev_credentials(1, "data");
    let buckets = vec![BucketSpec { name: "data".to_owned(), write, read }];
    let s3 = S3Server::start(Path::new(&at("s3")), (Ipv4Addr::LOCALHOST, 0).into(), buckets).await.unwrap();
    fs::write(at("bucket.toml"), toml::to_string(&BucketFile::from(s3.own_bucket("data").unwrap())).unwrap()).unwrap();
    let publish =
        ["run", "publish", &run, "--dataset", &dataset, "--weights", &weights, "--bucket", &at("bucket.toml")];
    let publish: Vec<String> = publish.iter().map(ToString::to_string).collect();
    let published = tokio::task::spawn_blocking(move || {
        templar(&publish.iter().map(String::as_str).collect::<Vec<_>>()).output().unwrap()
    });
    ran(&published.await.unwrap());
    let root = shown["spec"]["theta0"]["root"].as_str().unwrap();
    let objects: Vec<String> = fs::read_dir(at("s3/data/objects"))
        .unwrap()
        .map(|object| object.unwrap().file_name().to_string_lossy().replace('+', "/"))
        .collect();
    assert!(objects.iter().any(|object| object.contains(&format!("weights/{root}/00000"))), "{objects:?}");
    s3.shutdown().await;

    let part = Path::new(&weights).join("00000");
    let mut bytes = fs::read(&part).unwrap();
    bytes[100] ^= 1;
    fs::write(&part, bytes).unwrap();
    let damaged = templar(&["run", "verify", &run, "--weights", &weights]).output().unwrap();
    assert!(!damaged.status.success() && text(&damaged).contains("part 0"), "{}", text(&damaged));
}
