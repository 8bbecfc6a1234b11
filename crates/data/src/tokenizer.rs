//! Converts text to tokens and back: bytes by default, or any Hugging Face `tokenizer.json`.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use templar_protocol::hash::Hash32;
use tokenizers::models::ModelWrapper;

use crate::manifest::{Manifest, TokenizerId, VOCAB_MAX};

/// Name of the tokenizer's copy in a data folder.
pub const TOKENIZER_FILE: &str = "tokenizer.json";
/// Longest accepted `tokenizer.json`, in bytes.
pub const TOKENIZER_BYTES_MAX: u64 = 64 << 20;
/// Names of the end-of-text token in published tokenizers; the first one that a tokenizer knows is used.
pub const END_OF_TEXT_NAMES: [&str; 6] =
    ["<|endoftext|>", "<|end_of_text|>", "<｜end▁of▁sentence｜>", "</s>", "<eos>", "<|im_end|>"];

/// Converts text to tokens and back.
#[derive(Debug, Clone)]
pub enum Tokenizer {
    /// One token per byte, and 256 for the end of text. It encodes every text, and its loss needs no conversion to bits
    /// per byte.
    Bytes,
    /// A Hugging Face tokenizer. One that drops or replaces unknown text makes the bits per byte too low; all
    /// byte-level ones (GPT-2, Llama 3, Gemma with byte fallback, …) encode any text.
    Json(Box<JsonTokenizer>),
}

/// A checked `tokenizer.json`.
#[derive(Debug, Clone)]
pub struct JsonTokenizer {
    inner: tokenizers::Tokenizer,
    hash: Hash32,
    vocab_size: u32,
    end_of_text: u32,
}

/// Which token of a `tokenizer.json` follows each document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndOfText<'a> {
    /// The first of [`END_OF_TEXT_NAMES`] that the tokenizer knows.
    Known,
    /// The token with this text, which ordinary text must not encode to.
    Named(&'a str),
    /// The token that a dataset or a model was made with.
    Id(u32),
}

/// Why a tokenizer cannot be used or cannot encode a text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    #[error("cannot read the tokenizer {path}: {source}; check the path and its permissions", path = path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("the tokenizer has more than {TOKENIZER_BYTES_MAX} bytes; it is not a usable tokenizer.json")]
    TooLong,
    #[error("the tokenizer's BLAKE3 is {found}, but the manifest names {expected}; fetch tokenizer.json again")]
    WrongHash { expected: Hash32, found: Hash32 },
    #[error("the tokenizer is not a Hugging Face tokenizer.json: {reason}")]
    Malformed { reason: String },
    #[error("the tokenizer has dropout, so the same text gives different tokens; set model.dropout to null")]
    Dropout,
    #[error("the tokenizer has the token id {id}, but ids must be below {VOCAB_MAX}; use one with dense ids")]
    Vocabulary { id: u32 },
    #[error(
        "the tokenizer has none of the usual end-of-text tokens ({}); name its own with --end-of-text TOKEN",
        END_OF_TEXT_NAMES.join(" ")
    )]
    NoEndOfText,
    #[error(
        "the tokenizer has no token {name:?}; name one of its own with --end-of-text TOKEN, usually one of the special \
         ones in its added_tokens"
    )]
    UnknownEndOfText { name: String },
    #[error(
        "the token {name:?} also encodes ordinary text, which would then end documents; name a special token of \
         the tokenizer's added_tokens with --end-of-text TOKEN"
    )]
    EndOfTextInText { name: String },
    #[error(
        "the manifest says that token {token} ends a text, but the tokenizer has only {vocab_size}; fetch \
         tokenizer.json again"
    )]
    EndOfTextId { token: u32, vocab_size: u32 },
    #[error("the tokenizer cannot encode a text ({reason}); use one that covers all of Unicode, or byte tokens")]
    Encode { reason: String },
    #[error("the tokenizer produced token {token}, but its vocabulary has {vocab_size}; use another tokenizer.json")]
    Token { token: u32, vocab_size: u32 },
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    pub fn open(path: &Path, end_of_text: EndOfText<'_>) -> Result<Self, TokenizerError> {
        Self::from_json(&read_bounded(path)?, end_of_text)
    }

    /// Opens the tokenizer that a manifest names; `dir` is the data folder, whose `tokenizer.json` must have the right
    /// hash.
    pub fn open_for(dir: &Path, manifest: &Manifest) -> Result<Self, TokenizerError> {
        match &manifest.tokenizer {
            TokenizerId::Bytes => Ok(Self::Bytes),
            TokenizerId::Json { hash } => {
                let bytes = read_bounded(&dir.join(TOKENIZER_FILE))?;
                let found = Hash32::of(&bytes);
                if found != *hash {
                    return Err(TokenizerError::WrongHash { expected: *hash, found });
                }
                Self::from_json(&bytes, EndOfText::Id(manifest.end_of_text))
            }
        }
    }

    /// Parses the bytes of a `tokenizer.json`.
    pub fn from_json(bytes: &[u8], end_of_text: EndOfText<'_>) -> Result<Self, TokenizerError> {
        if bytes.len() as u64 > TOKENIZER_BYTES_MAX {
            return Err(TokenizerError::TooLong);
        }
        let malformed = |reason: &dyn ToString| TokenizerError::Malformed { reason: reason.to_string() };
        let mut inner = tokenizers::Tokenizer::from_bytes(bytes).map_err(|error| malformed(&error))?;
        if matches!(inner.get_model(), ModelWrapper::BPE(bpe) if bpe.dropout.is_some_and(|rate| rate > 0.0)) {
            return Err(TokenizerError::Dropout);
        }
        // A dataset holds all of its text, without padding, and text that spells a special token is still text.
        inner.with_truncation(None).map_err(|error| malformed(&error))?;
        inner.with_padding(None);
        inner.set_encode_special_tokens(true);
        // The largest id counts, not the number of entries: ids may have gaps.
        let last = inner.get_vocab(true).into_values().max().ok_or_else(|| malformed(&"empty vocabulary"))?;
        if last >= VOCAB_MAX {
            return Err(TokenizerError::Vocabulary { id: last });
        }
        let end_of_text = end_of_text.find(&inner, last + 1)?;
        let hash = Hash32::of(bytes);
        Ok(Self::Json(Box::new(JsonTokenizer { inner, hash, vocab_size: last + 1, end_of_text })))
    }

    /// Tokens of a text, without end of text; each is below [`Tokenizer::vocab_size`].
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let json = match self {
            Self::Bytes => return Ok(text.bytes().map(u32::from).collect()),
            Self::Json(json) => json,
        };
        let encoding = json
            .inner
            .encode_fast(text, false)
            .map_err(|error| TokenizerError::Encode { reason: error.to_string() })?;
        let tokens = encoding.get_ids().to_vec();
        match tokens.iter().find(|&&token| token >= json.vocab_size) {
            Some(&token) => Err(TokenizerError::Token { token, vocab_size: json.vocab_size }),
            None => Ok(tokens),
        }
    }

    /// Decodes tokens for display: end of text is left out, and invalid UTF-8 or unknown tokens become U+FFFD.
    pub fn decode(&self, tokens: &[u32]) -> String {
        match self {
            Self::Bytes => {
                let mut bytes = Vec::with_capacity(tokens.len());
                for &token in tokens.iter().filter(|&&token| token != 256) {
                    match u8::try_from(token) {
                        Ok(byte) => bytes.push(byte),
                        Err(_) => bytes.extend("\u{fffd}".bytes()),
                    }
                }
                String::from_utf8_lossy(&bytes).into_owned()
            }
            Self::Json(json) => json.inner.decode(tokens, true).unwrap_or_else(|_| "\u{fffd}".to_owned()),
        }
    }

    /// Size of the vocabulary; every token is below it.
    pub fn vocab_size(&self) -> u32 {
        match self {
            Self::Bytes => 257,
            Self::Json(json) => json.vocab_size,
        }
    }

    /// The token that follows each document.
    pub fn end_of_text(&self) -> u32 {
        match self {
            Self::Bytes => 256,
            Self::Json(json) => json.end_of_text,
        }
    }

    /// How a manifest identifies this tokenizer.
    pub fn id(&self) -> TokenizerId {
        match self {
            Self::Bytes => TokenizerId::Bytes,
            Self::Json(json) => TokenizerId::Json { hash: json.hash },
        }
    }
}

impl EndOfText<'_> {
    fn find(self, tokenizer: &tokenizers::Tokenizer, vocab_size: u32) -> Result<u32, TokenizerError> {
        match self {
            Self::Known => {
                let known = END_OF_TEXT_NAMES.iter().find_map(|name| tokenizer.token_to_id(name));
                known.ok_or(TokenizerError::NoEndOfText)
            }
            Self::Named(name) => {
                let unknown = || TokenizerError::UnknownEndOfText { name: name.to_owned() };
                let id = tokenizer.token_to_id(name).ok_or_else(unknown)?;
                let spelt = tokenizer.encode_fast(name, false);
                let spelt = spelt.map_err(|error| TokenizerError::Encode { reason: error.to_string() })?;
                if spelt.get_ids().contains(&id) {
                    return Err(TokenizerError::EndOfTextInText { name: name.to_owned() });
                }
                Ok(id)
            }
            Self::Id(token) if token < vocab_size => Ok(token),
            Self::Id(token) => Err(TokenizerError::EndOfTextId { token, vocab_size }),
        }
    }
}

/// Reads the file, unless it is longer than any tokenizer.
pub(crate) fn read_bounded(path: &Path) -> Result<Vec<u8>, TokenizerError> {
    let io = |source| TokenizerError::Io { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    fs::File::open(path).map_err(io)?.take(TOKENIZER_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > TOKENIZER_BYTES_MAX { Err(TokenizerError::TooLong) } else { Ok(bytes) }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A byte-pair tokenizer of 8 tokens: a, b, c, space (Ġ), newline (Ċ), "ab", end of text, and a gap before 12.
    pub(crate) const TINY: &str = r#"{
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [{"id": 6, "content": "<|endoftext|>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true}],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": {"a": 0, "b": 1, "c": 2, "Ġ": 3, "Ċ": 4, "ab": 5, "<|endoftext|>": 6, "unused": 12},
            "merges": ["a b"]}
    }"#;

    #[test]
    fn bytes_round_trip_and_never_fail_to_decode() {
        let text = "naïve\n日本";
        let tokens = Tokenizer::Bytes.encode(text).unwrap();
        assert_eq!(tokens.len(), text.len());
        assert_eq!(Tokenizer::Bytes.decode(&tokens), text);
        assert_eq!(Tokenizer::Bytes.decode(&[104, 256, 105, 255, 9999]), "hi\u{fffd}\u{fffd}");
    }

    #[test]
    fn json_tokenizer_knows_its_vocabulary_and_end_of_text() {
        let tokenizer = Tokenizer::from_json(TINY.as_bytes(), EndOfText::Known).unwrap();
        assert_eq!((tokenizer.vocab_size(), tokenizer.end_of_text()), (13, 6));
        assert_eq!(tokenizer.encode("abc ab\n").unwrap(), [5, 2, 3, 5, 4]);
        assert_eq!(tokenizer.decode(&[5, 2, 3, 5, 4, 6]), "abc ab\n");
        // Text cannot forge the end of a document.
        assert!(!tokenizer.encode("a<|endoftext|>b").unwrap().contains(&6));
    }

    #[test]
    fn unusable_tokenizers_are_refused() {
        let parse = |from: &str, to: &str| {
            assert!(TINY.contains(from));
            Tokenizer::from_json(TINY.replace(from, to).as_bytes(), EndOfText::Known).unwrap_err()
        };
        assert!(matches!(parse("\"dropout\": null", "\"dropout\": 0.1"), TokenizerError::Dropout));
        assert!(matches!(parse("\"unused\": 12", "\"unused\": 4000000000"), TokenizerError::Vocabulary { .. }));
        assert!(matches!(parse("<|endoftext|>", "<|stop|>"), TokenizerError::NoEndOfText));
        assert!(matches!(parse("\"BPE\"", "\"GPT\""), TokenizerError::Malformed { .. }));
        assert!(matches!(Tokenizer::from_json(b"{}", EndOfText::Known).unwrap_err(), TokenizerError::Malformed { .. }));
    }

    #[test]
    fn an_unusual_end_of_text_is_named_by_hand() {
        let json = TINY.replace("<|endoftext|>", "<|stop|>");
        let open = |end_of_text| Tokenizer::from_json(json.as_bytes(), end_of_text);
        let refused = open(EndOfText::Known).unwrap_err();
        assert!(refused.to_string().contains("--end-of-text"), "{refused}");
        let tokenizer = open(EndOfText::Named("<|stop|>")).unwrap();
        assert_eq!(tokenizer.end_of_text(), 6);
        assert!(!tokenizer.encode("a<|stop|>b").unwrap().contains(&6));
        assert_eq!(open(EndOfText::Id(6)).unwrap().end_of_text(), 6);

        let unknown = open(EndOfText::Named("<stop>")).unwrap_err();
        assert!(matches!(&unknown, TokenizerError::UnknownEndOfText { name } if name == "<stop>"), "{unknown}");
        assert!(unknown.to_string().contains("--end-of-text"), "{unknown}");
        // "ab" is a word, not an end: documents would end wherever it occurs.
        let word = open(EndOfText::Named("ab")).unwrap_err();
        assert!(matches!(word, TokenizerError::EndOfTextInText { .. }), "{word}");
        assert!(matches!(open(EndOfText::Id(13)), Err(TokenizerError::EndOfTextId { token: 13, vocab_size: 13 })));
    }
}
