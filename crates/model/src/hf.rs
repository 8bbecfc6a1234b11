//! Models in Hugging Face's folder layout: `config.json`, `generation_config.json`, `model.safetensors`.
//!
//! [`export()`] writes what `transformers` loads as `LlamaForCausalLM`; [`import()`] reads such a folder, whoever wrote it, and
//! checks everything before it allocates: a downloaded folder is as hostile as any other stranger's bytes.

mod config;
mod export;
mod import;

pub use export::{ExportError, export, export_logits};
pub use import::{ImportError, import};

const CONFIG: &str = "config.json";
const GENERATION_CONFIG: &str = "generation_config.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const LOGITS: &str = "logits.json";

#[cfg(test)]
mod tests;
