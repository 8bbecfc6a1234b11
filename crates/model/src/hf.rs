//! Models in Hugging Face's folder layout: `config.json`, `generation_config.json`, `model.safetensors`, and the
//! tokenizer's `tokenizer.json` with `tokenizer_config.json`.
//!
//! [`export()`] writes what `transformers` loads as `LlamaForCausalLM`, or as `Qwen3ForCausalLM` where queries and keys have
//! norms, and [`export_tokenizer`] what it loads as a tokenizer. [`import()`] reads such a folder from any source and checks everything before it allocates: a downloaded
//! folder is as hostile as any other stranger's bytes.

mod config;
mod export;
mod files;
mod import;
mod tokenizer;

pub use export::{export, export_logits};
pub use files::ExportError;
pub use import::{ImportError, end_of_text, import, import_shape};
pub use tokenizer::{TokenizerFile, export_tokenizer};

#[cfg(test)]
mod tests;
