//! What a network on this machine trains on, and a model that fits it.

use std::path::{Path, PathBuf};

use clap::Args;
use color_eyre::eyre::{Context, Result, bail, ensure};
use templar_data::{EndOfText, Manifest, Tokenizer, prepared_dataset};
use templar_model::presets::Preset;
use templar_sim::local::network::Text;

/// Options that choose the training data.
#[derive(Debug, Args)]
pub(crate) struct CorpusArgs {
    /// What to train on instead of the built-in corpus: files or folders of UTF-8 text or JSON Lines, or the folder of
    /// a dataset that `data prepare` wrote.
    #[arg(long, env = "TEMPLAR_DATA", num_args = 1.., value_name = "PATH")]
    data: Vec<PathBuf>,
    /// A Hugging Face tokenizer.json for the text of --data; without one, tokens are bytes.
    #[arg(long, env = "TEMPLAR_TOKENIZER", value_name = "FILE", requires = "data")]
    tokenizer: Option<PathBuf>,
    /// The tokenizer's token that ends a text, if its name is not one of the usual ones, such as <|endoftext|>.
    #[arg(long, env = "TEMPLAR_END_OF_TEXT", value_name = "TOKEN", requires = "tokenizer")]
    end_of_text: Option<String>,
}

impl CorpusArgs {
    /// Chooses the text, and fits the model to it.
    pub(crate) fn text(&self, preset: &mut Preset) -> Result<Text> {
        if self.data.is_empty() {
            return Ok(Text::BuiltIn);
        }
        if let Some((folder, manifest)) = self.prepared()? {
            ensure!(
                self.tokenizer.is_none(),
                "{} is already prepared with its own tokenizer: omit --tokenizer, or give the raw text",
                folder.display()
            );
            fit(preset, manifest.seq_len, manifest.vocab_size);
            return Ok(Text::Prepared(folder.to_owned()));
        }
        if let Some(path) = &self.tokenizer {
            let end_of_text = self.end_of_text.as_deref().map_or(EndOfText::Known, EndOfText::Named);
            let tokenizer = Tokenizer::open(path, end_of_text)
                .wrap_err_with(|| format!("the tokenizer {} cannot be used", path.display()))?;
            fit(preset, preset.model.seq_len, tokenizer.vocab_size());
        }
        let (tokenizer, end_of_text) = (self.tokenizer.clone(), self.end_of_text.clone());
        Ok(Text::Paths { sources: self.data.clone(), tokenizer, end_of_text })
    }

    fn prepared(&self) -> Result<Option<(&Path, Manifest)>> {
        for path in &self.data {
            let Some(manifest) = prepared_dataset(path)? else { continue };
            if self.data.len() > 1 {
                bail!("{} is a prepared dataset, which cannot be combined with other --data", path.display());
            }
            return Ok(Some((path, manifest)));
        }
        Ok(None)
    }
}

/// Fits the model to the data, and prints what that changed.
fn fit(preset: &mut Preset, seq_len: u32, vocab_size: u32) {
    let before = preset.model.clone();
    preset.fit(seq_len, vocab_size);
    let model = &preset.model;
    if model.seq_len != before.seq_len {
        eprintln!(
            "sequence length is now {} tokens, to match the dataset's samples, instead of {}",
            model.seq_len, before.seq_len
        );
    }
    if model.vocab_size != before.vocab_size {
        eprintln!(
            "the model's vocabulary grows from {} to {} tokens, for a tokenizer of {vocab_size}",
            before.vocab_size, model.vocab_size
        );
    }
}
