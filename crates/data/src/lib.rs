//! Turns text into content-addressed token shards, from which a run assigns samples to miners.
//!
//! A *sample* is `seq_len` consecutive tokens of one split. A split is the concatenation of its documents, each
//! followed by the end-of-text token, cut into windows that do not overlap; tokens that do not fill the last window are
//! left out. Samples are stored in shard files named by their BLAKE3, and the [`Manifest`] lists these files. The
//! manifest's own hash stands in `run.toml`, so that all nodes of a run read the same tokens or notice that they do
//! not.
//!
//! | step | module |
//! |---|---|
//! | files and folders → documents | [`source`] |
//! | documents → segments, each trained on or held out | [`segment`] |
//! | segments → tokens | [`tokenizer`] |
//! | tokens → samples → shard files | [`shard`] |
//! | all of these steps, in bounded memory | [`mod@prepare`] |
//! | what a dataset consists of | [`manifest`] |
//! | samples by index, memory-mapped | [`dataset`] |
//! | every hash of a dataset, checked in little memory | [`verify`] |
//! | which files of a folder belong to a dataset | [`folder`] |
//! | fetching a dataset by hash | [`object`] |
//! | generated text with a known entropy | [`grammar`] |
//!
//! ```
//! use templar_data::{Dataset, Grammar, PrepareOptions, Split, Tokenizer, prepare_text};
//!
//! let folder = tempfile::tempdir()?;
//! let options = PrepareOptions { seq_len: 128, ..PrepareOptions::default() };
//! let corpus = Grammar::new(1).documents(7, 100_000);
//! let manifest = prepare_text(corpus, folder.path(), &options, &mut |_| ())?;
//!
//! let dataset = Dataset::open(folder.path())?;
//! dataset.verify(&mut |_| ())?;
//! assert_eq!(dataset.manifest().hash(), manifest.hash());
//! let tokens = dataset.sample(Split::HeldOut, 0)?;
//! println!("{}", Tokenizer::Bytes.decode(&tokens));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod dataset;
pub mod folder;
pub mod grammar;
pub mod manifest;
pub mod object;
pub mod prepare;
pub mod segment;
pub mod shard;
pub mod source;
pub mod tokenizer;
pub mod verify;

pub use dataset::{Dataset, OpenError, ReadError, prepared_dataset};
pub use grammar::Grammar;
pub use manifest::{Manifest, ManifestError, ShardEntry, Split, SplitManifest, TokenizerId, shard_files};
pub use object::{StoreError, file_has_hash, store_object, write_whole};
pub use prepare::{Existing, Holds, PrepareError, PrepareOptions, Progress, prepare, prepare_text};
pub use source::SourceError;
pub use tokenizer::{EndOfText, Tokenizer, TokenizerError};
pub use verify::VerifyError;
