//! `config.json` of a Llama model, or of a Qwen 3 one where queries and keys have norms: what we write, and which foreign
//! configurations we can run.

use serde::Deserialize;
use serde_json::{Value, json};
use templar_protocol::layout::ModelSpec;

/// The text of `config.json`, for `transformers` 4 (`torch_dtype`, `rope_theta`) and 5 (`dtype`, `rope_parameters`).
pub(super) fn write(spec: &ModelSpec, end_of_text: Option<u32>) -> Value {
    let mut config = json!({
        "architectures": [if spec.qk_norm { "Qwen3ForCausalLM" } else { "LlamaForCausalLM" }],
        "model_type": if spec.qk_norm { QWEN3 } else { LLAMA },
        "hidden_act": "silu",
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.ffn_size,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_dim(),
        "max_position_embeddings": spec.seq_len,
        "rms_norm_eps": spec.norm_eps,
        "rope_theta": spec.rope_theta,
        "rope_scaling": null,
        "rope_parameters": { "rope_type": "default", "rope_theta": spec.rope_theta },
        "tie_word_embeddings": spec.tied_embeddings,
        "attention_bias": false,
        "mlp_bias": false,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": true,
        "bos_token_id": null,
        "eos_token_id": end_of_text,
        "pad_token_id": end_of_text,
        "torch_dtype": "float32",
        "dtype": "float32",
    });
    if spec.qk_norm {
        config["use_sliding_window"] = json!(false);
        config["sliding_window"] = Value::Null;
    }
    config
}

/// The text of `generation_config.json`.
pub(super) fn write_generation(end_of_text: Option<u32>) -> Value {
    json!({
        "do_sample": true,
        "temperature": 1.0,
        "bos_token_id": null,
        "eos_token_id": end_of_text,
        "pad_token_id": end_of_text,
    })
}

/// The token that ends a text, if a foreign `config.json` or `generation_config.json` names one. Of several, the first.
pub(super) fn read_end_of_text(text: &[u8]) -> Result<Option<u32>, String> {
    let config: Value = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    let named = config.get("eos_token_id").unwrap_or(&Value::Null);
    let token = named.as_array().map_or(named, |several| several.first().unwrap_or(&Value::Null));
    Ok(token.as_u64().and_then(|token| u32::try_from(token).ok()))
}

const LLAMA: &str = "llama";
const QWEN3: &str = "qwen3";
/// What `transformers` takes for a Qwen 3 model whose configuration leaves these keys out, whatever its other sizes.
const QWEN3_HEAD_DIM: u64 = 128;
const QWEN3_KV_HEADS: u64 = 32;

/// The keys of a foreign `config.json` that decide what is computed; others are ignored.
#[derive(Debug, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "the keys of somebody else's file")]
struct ForeignConfig {
    model_type: String,
    #[serde(default = "silu")]
    hidden_act: String,
    vocab_size: u64,
    hidden_size: u64,
    intermediate_size: u64,
    num_hidden_layers: u64,
    num_attention_heads: u64,
    num_key_value_heads: Option<u64>,
    head_dim: Option<u64>,
    max_position_embeddings: u64,
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    rope_scaling: Option<Value>,
    rope_parameters: Option<RopeParameters>,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    /// Of Qwen 3 alone, as is `layer_types`.
    #[serde(default)]
    use_sliding_window: bool,
    layer_types: Option<Vec<String>>,
    quantization_config: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct RopeParameters {
    rope_theta: Option<f64>,
    rope_type: Option<String>,
}

fn silu() -> String {
    "silu".to_owned()
}

/// Parses a foreign `config.json`. An error says which key we cannot run and why.
pub(super) fn read(text: &[u8]) -> Result<ModelSpec, String> {
    let config: ForeignConfig = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    unsupported(&config)?;
    let qk_norm = config.model_type == QWEN3;
    let default_kv_heads = if qk_norm { QWEN3_KV_HEADS } else { config.num_attention_heads };
    let default_head_dim = qk_norm.then_some(QWEN3_HEAD_DIM);
    let rope_theta = config.rope_parameters.as_ref().and_then(|rope| rope.rope_theta).or(config.rope_theta);
    let spec = ModelSpec {
        vocab_size: within("vocab_size", config.vocab_size, 2, 1 << 20)?,
        hidden_size: within("hidden_size", config.hidden_size, 2, 1 << 16)?,
        layers: within("num_hidden_layers", config.num_hidden_layers, 1, 1024)?,
        heads: within("num_attention_heads", config.num_attention_heads, 1, 1 << 16)?,
        kv_heads: within(
            "num_key_value_heads",
            config.num_key_value_heads.unwrap_or(default_kv_heads),
            1,
            config.num_attention_heads,
        )?,
        ffn_size: within("intermediate_size", config.intermediate_size, 1, 1 << 20)?,
        seq_len: within("max_position_embeddings", config.max_position_embeddings, 2, 1 << 20)?,
        rope_theta: rope_theta.unwrap_or(10_000.0),
        norm_eps: config.rms_norm_eps,
        tied_embeddings: config.tie_word_embeddings,
        qk_norm,
    };
    shape_is_possible(&spec, config.head_dim.or(default_head_dim))?;
    Ok(spec)
}

fn unsupported(config: &ForeignConfig) -> Result<(), String> {
    let scaled = config.rope_scaling.as_ref().is_some_and(|scaling| {
        let kind = scaling.get("rope_type").or_else(|| scaling.get("type")).and_then(Value::as_str);
        !scaling.is_null() && kind != Some("default")
    });
    let kind = config.rope_parameters.as_ref().and_then(|rope| rope.rope_type.as_deref()).unwrap_or("default");
    let slides = config.layer_types.iter().flatten().any(|kind| kind != "full_attention");
    let refused = [
        (![LLAMA, QWEN3].contains(&&*config.model_type), "`model_type` is neither \"llama\" nor \"qwen3\""),
        (config.hidden_act != "silu", "`hidden_act` is not \"silu\""),
        (config.attention_bias || config.mlp_bias, "the projections have biases"),
        (scaled || kind != "default", "the rotary embedding is scaled"),
        (config.use_sliding_window || slides, "layers attend to a sliding window"),
        (config.quantization_config.as_ref().is_some_and(|value| !value.is_null()), "the weights are quantised"),
    ];
    match refused.iter().find(|(is, _)| *is) {
        Some((_, why)) => Err(format!("{why}; only plain Llama and Qwen 3 models can be read")),
        None => Ok(()),
    }
}

fn shape_is_possible(spec: &ModelSpec, head_dim: Option<u64>) -> Result<(), String> {
    let even = spec.hidden_size.is_multiple_of(spec.heads) && spec.head_dim().is_multiple_of(2);
    if !even || !spec.heads.is_multiple_of(spec.kv_heads) {
        return Err(format!(
            "{} hidden values, {} heads and {} key-value heads do not fit together (heads of equal, even size)",
            spec.hidden_size, spec.heads, spec.kv_heads
        ));
    }
    if head_dim.is_some_and(|dim| dim != u64::from(spec.head_dim())) {
        return Err(format!("`head_dim` is not hidden_size / num_attention_heads = {}", spec.head_dim()));
    }
    if !(1.0..=1e12).contains(&spec.rope_theta) {
        return Err(format!("`rope_theta` is {}, but must lie in 1 ..= 1e12", spec.rope_theta));
    }
    if !(1e-12..=1e-1).contains(&spec.norm_eps) {
        return Err(format!("`rms_norm_eps` is {}, but must lie in 1e-12 ..= 0.1", spec.norm_eps));
    }
    Ok(())
}

fn within(key: &str, found: u64, min: u64, max: u64) -> Result<u32, String> {
    match u32::try_from(found) {
        Ok(value) if (min..=max).contains(&found) => Ok(value),
        _ => Err(format!("`{key}` is {found}, but must lie in {min} ..= {max}")),
    }
}
