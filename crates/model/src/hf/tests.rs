use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use templar_protocol::layout::{Layout, ModelSpec, TensorSpec};

use super::export::export_in_shards;
use super::files::{CONFIG, INDEX, WEIGHTS};
use super::*;

fn tiny(tied_embeddings: bool) -> ModelSpec {
    ModelSpec {
        vocab_size: 32,
        hidden_size: 16,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        ffn_size: 24,
        seq_len: 8,
        rope_theta: 12_345.5,
        norm_eps: 1e-5,
        tied_embeddings,
        qk_norm: false,
    }
}

/// The shape of a small Qwen 3: queries and keys have norms.
fn tiny_qwen3() -> ModelSpec {
    ModelSpec { qk_norm: true, ..tiny(true) }
}

fn theta(spec: &ModelSpec) -> Vec<f32> {
    let mut theta = Layout::llama(spec).theta0(spec, 3);
    theta[0] = -0.0;
    theta[1] = f32::MIN_POSITIVE / 4.0;
    // Norms are ones, which could change places unseen.
    let layout = Layout::llama(spec);
    let norms = layout.tensors().iter().filter(|tensor| tensor.shape.len() == 1).flat_map(TensorSpec::range);
    norms.enumerate().for_each(|(nth, at)| theta[at] += nth as f32 / 256.0);
    theta
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn export_and_import_keep_every_bit() {
    for spec in [tiny(false), tiny(true), tiny_qwen3()] {
        let dir = tempfile::tempdir().unwrap();
        let theta = theta(&spec);
        // Shards first: the single file must replace them.
        for shard_bytes in [3000, 1 << 30] {
            export_in_shards(dir.path(), &spec, &theta, Some(5), shard_bytes).unwrap();
            assert_eq!(dir.path().join(INDEX).exists(), shard_bytes == 3000);
            let (read_spec, read_theta) = import(dir.path()).unwrap();
            assert_eq!(read_spec, spec);
            assert_eq!(bits(&read_theta), bits(&theta));
        }
    }
    let error = export(Path::new("unused"), &tiny(false), &[0.0], None).unwrap_err();
    assert!(matches!(error, ExportError::WrongLength { found: 1, .. }));
}

#[test]
fn a_model_with_norms_of_queries_and_keys_is_a_qwen3() {
    let (spec, dir) = (tiny_qwen3(), tempfile::tempdir().unwrap());
    export(dir.path(), &spec, &theta(&spec), Some(5)).unwrap();
    let config: Value = serde_json::from_slice(&fs::read(dir.path().join(CONFIG)).unwrap()).unwrap();
    for (key, expected) in [
        ("architectures", json!(["Qwen3ForCausalLM"])),
        ("model_type", json!("qwen3")),
        ("head_dim", json!(4)),
        ("num_key_value_heads", json!(2)),
        ("attention_bias", json!(false)),
        ("use_sliding_window", json!(false)),
        ("tie_word_embeddings", json!(true)),
    ] {
        assert_eq!(config[key], expected, "{key}");
    }
    rewrite(dir.path(), |header, _| {
        for (layer, norm) in [(0, "q_norm"), (0, "k_norm"), (1, "q_norm"), (1, "k_norm")] {
            let tensor = &header[format!("model.layers.{layer}.self_attn.{norm}.weight")];
            assert_eq!((&tensor["shape"], &tensor["dtype"]), (&json!([4]), &json!("F32")), "{layer} {norm}");
        }
    });
    let plain = exported(&tiny(false));
    let config: Value = serde_json::from_slice(&fs::read(plain.path().join(CONFIG)).unwrap()).unwrap();
    assert_eq!((&config["architectures"], &config["model_type"]), (&json!(["LlamaForCausalLM"]), &json!("llama")));
    assert!(config.get("use_sliding_window").is_none());
}

/// Rewrites an exported model's weights by `edit` over (header, data).
fn rewrite(dir: &Path, edit: impl Fn(&mut Value, &mut Vec<u8>)) {
    let file = fs::read(dir.join(WEIGHTS)).unwrap();
    let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&file[8..8 + length]).unwrap();
    let mut data = file[8 + length..].to_vec();
    edit(&mut header, &mut data);
    let header = header.to_string().into_bytes();
    fs::write(dir.join(WEIGHTS), [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()).unwrap();
}

fn exported(spec: &ModelSpec) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    export(dir.path(), spec, &theta(spec), None).unwrap();
    dir
}

#[test]
fn half_precision_is_widened() {
    let spec = tiny(false);
    for (kind, one) in [("BF16", 0x3f80u16), ("F16", 0x3c00)] {
        let dir = exported(&tiny(false));
        rewrite(dir.path(), |header, data| {
            let tensors = header.as_object_mut().unwrap();
            tensors.remove("__metadata__");
            for tensor in tensors.values_mut() {
                tensor["dtype"] = json!(kind);
                for offset in tensor["data_offsets"].as_array_mut().unwrap() {
                    *offset = json!(offset.as_u64().unwrap() / 2);
                }
            }
            *data = one.to_le_bytes().repeat(data.len() / 4);
        });
        assert_eq!(import(dir.path()).unwrap().1, vec![1.0; Layout::llama(&spec).len()]);
    }
}

#[test]
fn hostile_weights_are_errors() {
    const NORM: &str = "model.norm.weight";
    type Edit = fn(&mut Value, &mut Vec<u8>);
    let cases: [(Edit, &str); 8] = [
        (|_, data| data.truncate(100), "its tensors take"),
        (|header, _| header[NORM]["shape"] = json!([4, 4]), "has shape [4, 4], but config.json asks for [16]"),
        (|header, _| header[NORM]["dtype"] = json!("I32"), "has elements of type I32"),
        (|header, _| header[NORM]["shape"] = json!([usize::MAX, 16]), "not a valid safetensors file"),
        (|header, _| header[NORM]["data_offsets"] = json!([0, 64]), "not a valid safetensors file"),
        (
            |header, data| {
                header["extra"] = json!({ "dtype": "F32", "shape": [1], "data_offsets": [data.len(), data.len() + 4] });
                data.extend([0; 4]);
            },
            "tensor extra is in the weights",
        ),
        (
            |header, _| {
                let norm = header[NORM].take();
                header.as_object_mut().unwrap().remove(NORM);
                header["renamed"] = norm;
            },
            "tensor model.norm.weight is missing",
        ),
        (
            |_, data| data[..4].copy_from_slice(&f32::NAN.to_le_bytes()),
            "value 0 of tensor model.embed_tokens.weight is NaN",
        ),
    ];
    for (edit, expected) in cases {
        let dir = exported(&tiny(false));
        rewrite(dir.path(), edit);
        let error = import(dir.path()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?} lacks {expected:?}");
    }
    let dir = exported(&tiny(false));
    fs::write(dir.path().join(WEIGHTS), u64::MAX.to_le_bytes()).unwrap();
    assert!(import(dir.path()).unwrap_err().to_string().contains("header claims"));
}

/// An exported model whose `config.json` `edit` changed.
fn configured(spec: &ModelSpec, edit: impl FnOnce(&mut Value)) -> tempfile::TempDir {
    let dir = exported(spec);
    let path = dir.path().join(CONFIG);
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    edit(&mut config);
    fs::write(&path, config.to_string()).unwrap();
    dir
}

#[test]
fn what_a_qwen3_can_be_and_is_not_here_is_refused() {
    let without = |key: &'static str| move |config: &mut Value| drop(config.as_object_mut().unwrap().remove(key));
    let with = |key: &'static str, value: Value| move |config: &mut Value| config[key] = value;
    let layers = json!(["full_attention", "sliding_attention"]);
    let cases = [
        (configured(&tiny_qwen3(), with("use_sliding_window", json!(true))), "sliding window"),
        (configured(&tiny_qwen3(), with("layer_types", layers)), "sliding window"),
        (configured(&tiny_qwen3(), with("attention_bias", json!(true))), "the projections have biases"),
        (configured(&tiny_qwen3(), with("model_type", json!("qwen3_moe"))), "neither \"llama\" nor \"qwen3\""),
        (configured(&tiny_qwen3(), with("model_type", json!("llama"))), "_norm.weight is in the weights, but not"),
        // What transformers takes where a key is missing: heads of 128 elements, and 32 of keys and values.
        (configured(&tiny_qwen3(), without("head_dim")), "`head_dim` is not"),
        (configured(&tiny_qwen3(), without("num_key_value_heads")), "`num_key_value_heads` is 32"),
    ];
    for (dir, expected) in cases {
        let error = import(dir.path()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?} lacks {expected:?}");
    }
    // As `transformers` writes it: the kinds of all layers, and a window that is not used.
    let dir = configured(&tiny_qwen3(), |config| {
        config["layer_types"] = json!(["full_attention", "full_attention"]);
        config["sliding_window"] = json!(4096);
        config["max_window_layers"] = json!(28);
    });
    assert_eq!(import(dir.path()).unwrap().0, tiny_qwen3());
}

/// What a header says is repeated in part, and without what a terminal would obey.
#[test]
fn names_of_strangers_are_cut_and_escaped() {
    for (name, expected) in [("\u{1b}[2J".to_owned(), "\\u{1b}[2J is in"), ("x".repeat(100_000), "xxx… is in")] {
        let dir = exported(&tiny(false));
        rewrite(dir.path(), |header, data| {
            header[&name] = json!({ "dtype": "F32", "shape": [1], "data_offsets": [data.len(), data.len() + 4] });
            data.extend([0; 4]);
        });
        let error = import(dir.path()).unwrap_err().to_string();
        assert!(error.contains(expected) && error.len() < 200 && !error.contains('\u{1b}'), "{error:?}");
    }
    let dir = exported(&tiny(false));
    rewrite(dir.path(), |header, _| {
        header["model.norm.weight"]["dtype"] = json!(format!("\u{1b}{}", "x".repeat(9999)));
    });
    let error = import(dir.path()).unwrap_err().to_string();
    assert!(
        error.contains("not a valid safetensors file") && !error.contains('\u{1b}') && error.len() < 1000,
        "{error:?}"
    );
}

/// An index over files with headers of so many bytes, which hold nothing else.
fn headers(dir: &Path, lengths: &[u64]) {
    fs::remove_file(dir.join(WEIGHTS)).unwrap();
    let name = |nth: usize| format!("part-{nth}.safetensors");
    for (nth, &length) in lengths.iter().enumerate() {
        let mut file = [&length.to_le_bytes()[..], b"{}"].concat();
        file.resize(8 + length as usize, b' ');
        fs::write(dir.join(name(nth)), file).unwrap();
    }
    let names: serde_json::Map<_, _> = (0..lengths.len()).map(|nth| (nth.to_string(), json!(name(nth)))).collect();
    fs::write(dir.join(INDEX), json!({ "weight_map": names }).to_string()).unwrap();
}

#[test]
fn the_headers_of_all_files_are_bounded_together() {
    let dir = exported(&tiny(false));
    headers(dir.path(), &[16 << 20; 5]);
    let error = import(dir.path()).unwrap_err();
    assert!(matches!(error, ImportError::TooManyHeaders { found, .. } if found == 80 << 20), "{error}");
}

#[test]
#[cfg(unix)]
fn links_and_pipes_are_refused_before_they_cost_anything() {
    let dir = exported(&tiny(false));
    headers(dir.path(), &[8, 8]);
    fs::remove_file(dir.path().join("part-1.safetensors")).unwrap();
    std::os::unix::fs::symlink("part-0.safetensors", dir.path().join("part-1.safetensors")).unwrap();
    let error = import(dir.path()).unwrap_err();
    assert!(matches!(error, ImportError::SameFile { .. }), "{error}");
    for name in [CONFIG, WEIGHTS] {
        let dir = exported(&tiny(false));
        let path = dir.path().join(name);
        fs::remove_file(&path).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        // Whoever opens it waits for a writer.
        let (sender, imported) = std::sync::mpsc::channel();
        std::thread::spawn(move || sender.send(import(dir.path()).map(|_| ())));
        let error = imported.recv_timeout(std::time::Duration::from_secs(20)).expect("it opened the pipe").unwrap_err();
        assert!(matches!(error, ImportError::NotAFile { .. }), "{error}");
    }
}

#[test]
fn hostile_configurations_are_errors() {
    let cases = [
        ("hidden_size", json!(15), "do not fit together"),
        ("num_attention_heads", json!(0), "`num_attention_heads` is 0"),
        ("num_hidden_layers", json!(u64::MAX), "must lie in 1 ..= 1024"),
        ("vocab_size", json!(-1), "invalid value"),
        ("head_dim", json!(8), "`head_dim` is not"),
        ("rms_norm_eps", json!(0.0), "`rms_norm_eps` is 0"),
        ("rope_parameters", json!({ "rope_type": "llama3", "rope_theta": 1e4 }), "is scaled"),
        ("rope_scaling", json!({ "type": "linear", "factor": 2.0 }), "is scaled"),
        ("attention_bias", json!(true), "biases"),
        ("model_type", json!("mistral"), "neither \"llama\" nor \"qwen3\""),
        // The same tensors as another model: norms that nobody has, and norms that nobody uses.
        ("model_type", json!("qwen3"), "q_norm.weight is missing"),
        ("tie_word_embeddings", json!(true), ""),
    ];
    for (key, value, expected) in cases {
        match import(configured(&tiny(false), |config| config[key] = value).path()) {
            // A tied model may hold a copy of its embedding as output projection.
            Ok((spec, _)) => assert!(spec.tied_embeddings && expected.is_empty()),
            Err(error) => assert!(error.to_string().contains(expected) && !expected.is_empty(), "{key}: {error}"),
        }
    }
}

#[test]
fn an_index_cannot_lead_out_of_the_folder() {
    for name in ["../model.safetensors", "/etc/x.safetensors", "..", "a\\b.safetensors", ""] {
        let dir = exported(&tiny(false));
        fs::remove_file(dir.path().join(WEIGHTS)).unwrap();
        fs::write(dir.path().join(INDEX), json!({ "weight_map": { "x": name } }).to_string()).unwrap();
        assert!(matches!(import(dir.path()), Err(ImportError::Index { .. })), "{name}");
    }
}

/// Every file has the mode of an ordinary new file, including the weights, which are written under another name first.
#[test]
#[cfg(unix)]
fn all_files_of_a_folder_have_the_mode_of_ordinary_files() {
    use std::os::unix::fs::PermissionsExt;
    let (spec, dir) = (tiny(false), tempfile::tempdir().unwrap());
    fs::write(dir.path().join("ordinary"), "x").unwrap();
    export(dir.path(), &spec, &theta(&spec), Some(5)).unwrap();
    export_logits(dir.path(), &spec, &theta(&spec), &[1, 2, 3], 1).unwrap();
    export_tokenizer(dir.path(), &spec, TokenizerFile::Bytes).unwrap();
    let files: Vec<_> = fs::read_dir(dir.path()).unwrap().map(Result::unwrap).collect();
    assert_eq!(files.len(), 7, "{files:?}");
    let mode = |name: &Path| fs::metadata(name).unwrap().permissions().mode();
    let ordinary = mode(&dir.path().join("ordinary"));
    for file in files {
        assert_eq!(mode(&file.path()), ordinary, "{file:?}");
    }
}
