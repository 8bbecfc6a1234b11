//! The tokenizer in a byte model's folder, read by the `tokenizers` crate: one token per byte, for any text.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use std::fs;

use proptest::prelude::*;
use serde_json::Value;
use templar_data::{EndOfText, Tokenizer};
use templar_model::hf::{ExportError, TokenizerFile, export_tokenizer};
use templar_model::presets;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

/// Text of `tokenizer.json` and of `tokenizer_config.json`.
fn exported(tokenizer: TokenizerFile<'_>) -> (Vec<u8>, Value) {
    let dir = tempfile::tempdir().unwrap();
    export_tokenizer(dir.path(), &presets::preset("nano").unwrap().model, tokenizer).unwrap();
    let read = |name| fs::read(dir.path().join(name)).unwrap();
    (read("tokenizer.json"), serde_json::from_slice(&read("tokenizer_config.json")).unwrap())
}

fn bytes() -> tokenizers::Tokenizer {
    tokenizers::Tokenizer::from_bytes(exported(TokenizerFile::Bytes).0).unwrap()
}

#[test]
fn every_byte_is_a_token_with_its_own_number() {
    let tokenizer = bytes();
    assert_eq!(tokenizer.get_vocab_size(true), 257);
    let letters = ByteLevel::alphabet();
    let mut seen: Vec<u32> = letters.iter().map(|letter| tokenizer.token_to_id(&letter.to_string()).unwrap()).collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..256).collect::<Vec<_>>());
    // This includes bytes that never occur in UTF-8: the decoder takes each as it is.
    for first in 0..=255u8 {
        for second in [b'a', 0x80, 0xbf, first] {
            let tokens = [u32::from(first), u32::from(second)];
            assert_eq!(tokenizer.decode(&tokens, false).unwrap(), String::from_utf8_lossy(&[first, second]));
        }
    }
    assert_eq!(tokenizer.token_to_id("<|endoftext|>"), Some(Tokenizer::Bytes.end_of_text()));
    assert_eq!(tokenizer.decode(&[104, 105, 256], true).unwrap(), "hi");
}

proptest! {
    #[test]
    fn texts_become_their_bytes_and_come_back(text in any::<String>(), spaces in "[ \n\t]{0,3}") {
        let tokenizer = bytes();
        for text in [format!("{spaces}{text}"), format!("{text}{spaces}")] {
            let tokens = Tokenizer::Bytes.encode(&text).unwrap();
            let encoding = tokenizer.encode(text.as_str(), true).unwrap();
            prop_assert_eq!(encoding.get_ids(), &tokens[..]);
            prop_assert_eq!(tokenizer.decode(&tokens, true).unwrap(), text);
        }
    }
}

/// Our own reader reads it as byte tokens, and text that spells the end of text stays text.
#[test]
fn our_own_reader_encodes_as_bytes_do() {
    let tokenizer = Tokenizer::from_json(&exported(TokenizerFile::Bytes).0, EndOfText::Known).unwrap();
    assert_eq!((tokenizer.vocab_size(), tokenizer.end_of_text()), (257, 256));
    for text in [" a<|endoftext|>b ", "naïve\r\n日本 🦀", "\0\u{7f}"] {
        assert_eq!(tokenizer.encode(text).unwrap(), Tokenizer::Bytes.encode(text).unwrap());
    }
}

#[test]
fn the_configuration_names_the_end_of_text() {
    let (_, config) = exported(TokenizerFile::Bytes);
    assert_eq!((&config["eos_token"], &config["model_max_length"]), (&"<|endoftext|>".into(), &128.into()));
    let json = br#" {"added_tokens": [{"id": 3, "content": "</s>"}], "model": {"vocab": {"a": 0, "<end>": 9}}}"#;
    for (end_of_text, name) in [(3, Value::from("</s>")), (9, "<end>".into()), (5, Value::Null)] {
        let (copied, config) = exported(TokenizerFile::Json { json, end_of_text });
        assert!(copied == json && config["eos_token"] == name, "{config}");
    }
    let dir = tempfile::tempdir().unwrap();
    let model = presets::preset("nano").unwrap().model;
    let refused = export_tokenizer(dir.path(), &model, TokenizerFile::Json { json: b"no JSON", end_of_text: 0 });
    assert!(matches!(refused, Err(ExportError::Tokenizer { .. })), "{refused:?}");
    assert!(fs::read_dir(dir.path()).unwrap().next().is_none(), "nothing is written");
}
