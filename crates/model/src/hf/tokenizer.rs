//! The tokenizer in a model's folder, for tools that read `tokenizer.json`.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};
use templar_protocol::layout::ModelSpec;

use crate::hf::files::{ExportError, TOKENIZER, TOKENIZER_CONFIG, write_json};

/// The token after each document where tokens are bytes.
const BYTES_END_OF_TEXT: u32 = 256;
/// Its name, as in most byte-level tokenizers.
const END_OF_TEXT_NAME: &str = "<|endoftext|>";

/// What turned a model's text into tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenizerFile<'a> {
    /// Tokens 0 to 255 are bytes, 256 is the end of text.
    Bytes,
    /// The bytes of a Hugging Face `tokenizer.json`, and the token after each document.
    Json { json: &'a [u8], end_of_text: u32 },
}

/// Writes `tokenizer.json` and `tokenizer_config.json` beside an exported model. A `tokenizer.json` is copied byte by byte.
pub fn export_tokenizer(dir: &Path, spec: &ModelSpec, tokenizer: TokenizerFile<'_>) -> Result<(), ExportError> {
    let path = dir.join(TOKENIZER);
    let end_of_text = match tokenizer {
        TokenizerFile::Bytes => {
            write_json(&path, &byte_tokenizer())?;
            Some(END_OF_TEXT_NAME.to_owned())
        }
        TokenizerFile::Json { json, end_of_text } => {
            let parsed: Value =
                serde_json::from_slice(json).map_err(|error| ExportError::Tokenizer { why: error.to_string() })?;
            fs::write(&path, json).map_err(ExportError::io(&path))?;
            name(&parsed, end_of_text)
        }
    };
    write_json(&dir.join(TOKENIZER_CONFIG), &config(spec, end_of_text.as_deref()))
}

/// What `transformers` needs beside `tokenizer.json`. Text that spells the end of text is text, as it was in training.
fn config(spec: &ModelSpec, end_of_text: Option<&str>) -> Value {
    let mut config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": spec.seq_len,
        "clean_up_tokenization_spaces": false,
        "split_special_tokens": true,
    });
    if let Some(name) = end_of_text {
        config["eos_token"] = json!(name);
        config["pad_token"] = json!(name);
    }
    config
}

/// The name of a token in a `tokenizer.json`.
fn name(tokenizer: &Value, id: u32) -> Option<String> {
    let added = tokenizer["added_tokens"].as_array().into_iter().flatten();
    let mut added = added.filter(|token| token["id"].as_u64() == Some(u64::from(id)));
    if let Some(name) = added.find_map(|token| token["content"].as_str()) {
        return Some(name.to_owned());
    }
    let vocabulary = tokenizer["model"]["vocab"].as_object()?;
    vocabulary.iter().find(|(_, token)| token.as_u64() == Some(u64::from(id))).map(|(name, _)| name.clone())
}

/// Byte-pair encoding without merges: each byte of a text's UTF-8 stays a token of its own.
fn byte_tokenizer() -> Value {
    let mut vocabulary = Map::new();
    for (byte, letter) in (0..=u8::MAX).zip(letters()) {
        vocabulary.insert(letter.to_string(), json!(byte));
    }
    vocabulary.insert(END_OF_TEXT_NAME.to_owned(), json!(BYTES_END_OF_TEXT));
    let byte_level =
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false });
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [{
            "id": BYTES_END_OF_TEXT,
            "content": END_OF_TEXT_NAME,
            "single_word": false,
            "lstrip": false,
            "rstrip": false,
            "normalized": false,
            "special": true,
        }],
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": null,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": false,
            "vocab": vocabulary,
            "merges": [],
        },
    })
}

/// The letter that byte-level tokenizers write for each byte, as GPT-2's does: the byte's own Latin-1 character if it
/// is visible, and for all others the characters from U+0100 on, one after the other.
fn letters() -> impl Iterator<Item = char> {
    let mut unseen = 0x100u32;
    (0..=u8::MAX).map(move |byte| {
        if matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff) {
            return char::from(byte);
        }
        let letter = char::from_u32(unseen).expect("68 characters from U+0100 on are letters");
        unseen += 1;
        letter
    })
}
