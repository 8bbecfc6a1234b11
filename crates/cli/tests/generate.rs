//! `templar generate`, with models that have learned nothing.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use templar_model::hf::{self, TokenizerFile};
use templar_model::presets;
use templar_protocol::layout::{Layout, ModelSpec};

/// A folder with a small model that sees 16 tokens, and its tokenizer.
fn model() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let model = ModelSpec { seq_len: 16, ..presets::preset("nano").unwrap().model };
    hf::export(folder.path(), &model, &Layout::llama(&model).theta0(&model, 7), Some(256)).unwrap();
    hf::export_tokenizer(folder.path(), &model, TokenizerFile::Bytes).unwrap();
    folder
}

fn command(model: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_templar"));
    command.arg("generate").arg(model).args(arguments);
    command
}

fn generate(model: &Path, arguments: &[&str]) -> Output {
    let output = command(model, arguments).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    output
}

fn json(model: &Path, arguments: &[&str]) -> Value {
    serde_json::from_slice(&generate(model, &[arguments, &["--json"]].concat()).stdout).unwrap()
}

#[test]
fn text_is_written_as_it_is_made_and_nobody_need_read_it_all() {
    let model = model();
    let mut child = command(model.path(), &["--tokens", "4096"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut output = child.stdout.take().unwrap();
    // What is there when anything is: of a text that is written at its end, all that fits.
    let length = output.read(&mut [0; 8192]).unwrap();
    assert!(length < 1000, "{length} bytes came at once");
    drop(output);
    assert_eq!(child.wait().unwrap().code(), Some(141));
}

#[test]
fn the_stream_is_the_text_of_the_document() {
    let model = model();
    let arguments = ["--tokens", "60", "--prompt", "naïve ", "--temperature", "1", "--seed", "4"];
    let (streamed, document) = (generate(model.path(), &arguments), json(model.path(), &arguments));
    let text = document["text"].as_str().unwrap();
    assert_eq!(String::from_utf8(streamed.stdout).unwrap(), format!("naïve {text}\n"));
    assert!(document["tokens"].as_array().unwrap().len() > 10 && streamed.stderr.is_empty(), "{document}");
}

#[test]
fn a_prompt_that_is_cut_is_told_so() {
    let model = model();
    let long = "0123456789 and more";
    let output = generate(model.path(), &["--tokens", "3", "--prompt", long]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("has 19 tokens") && said.contains("takes at most 16: the first 3 were cut off"), "{said}");
    // Beside a document too, which stays one document.
    let output = generate(model.path(), &["--tokens", "3", "--prompt", long, "--json"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("cut off"));
    serde_json::from_slice::<Value>(&output.stdout).unwrap();
}

/// The folder's tokenizer is taken, and another one if it is named.
#[test]
fn the_folders_tokenizer_is_found() {
    let (model, elsewhere) = (model(), tempfile::tempdir().unwrap());
    let arguments = ["--tokens", "8", "--prompt", "ab", "--temperature", "0"];
    let bytes = json(model.path(), &arguments);
    let own = model.path().join("tokenizer.json");
    fs::remove_file(&own).unwrap();
    assert_eq!(json(model.path(), &arguments), bytes, "bytes without a tokenizer, as with that of bytes");
    let other = elsewhere.path().join("other.json");
    let two_letters = r#"{"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "merges": [],
        "vocab": {"a": 0, "b": 1, "<|endoftext|>": 2}}}"#;
    fs::write(&other, two_letters).unwrap();
    let named = json(model.path(), &[&arguments[..], &["--tokenizer", other.to_str().unwrap()]].concat());
    assert_ne!(named["tokens"], bytes["tokens"]);
    fs::copy(&other, &own).unwrap();
    assert_eq!(json(model.path(), &arguments), named);
}

/// The end of a text may have any name: the model's folder says which token it is.
#[test]
fn the_models_own_end_of_text_needs_no_usual_name() {
    let model = model();
    let arguments = ["--tokens", "8", "--prompt", "ab", "--temperature", "0"];
    let unusual = r#"{"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "merges": [],
        "vocab": {"a": 0, "b": 1, "<|fin|>": 256}}}"#;
    fs::write(model.path().join("tokenizer.json"), unusual).unwrap();
    let first = json(model.path(), &arguments)["tokens"][0].as_u64().unwrap();
    // With the token that comes first as its end, the text is empty; config.json is read where the other says nothing.
    let name = |file: &str, token: &Value| {
        let path = model.path().join(file);
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config["eos_token_id"] = token.clone();
        fs::write(&path, config.to_string()).unwrap();
    };
    name("generation_config.json", &serde_json::json!([first, 256]));
    assert_eq!(json(model.path(), &arguments)["tokens"], serde_json::json!([]));
    name("generation_config.json", &Value::Null);
    assert_ne!(json(model.path(), &arguments)["tokens"], serde_json::json!([]));
    name("config.json", &Value::Null);
    let output = command(model.path(), &arguments).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("eos_token_id") && !said.contains("--end-of-text"), "{said}");
}
