//! What a model's folder holds besides the weights.

use std::fs;
use std::path::Path;

use color_eyre::eyre::{Context, Result};
use templar_data::tokenizer::TOKENIZER_FILE;
use templar_data::{Manifest, Tokenizer, TokenizerId};
use templar_model::hf::{self, TokenizerFile};
use templar_protocol::layout::ModelSpec;

/// Puts the tokenizer of the dataset in `dataset` next to the model in `out`, so that other tools can encode text for
/// it.
pub(crate) fn export_tokenizer(out: &Path, model: &ModelSpec, dataset: &Path, manifest: &Manifest) -> Result<()> {
    let json = match &manifest.tokenizer {
        TokenizerId::Bytes => None,
        TokenizerId::Json { .. } => {
            // This also checks its hash.
            Tokenizer::open_for(dataset, manifest)?;
            let path = dataset.join(TOKENIZER_FILE);
            Some(fs::read(&path).wrap_err_with(|| format!("{} cannot be read", path.display()))?)
        }
    };
    let end_of_text = manifest.end_of_text;
    let file = json.as_deref().map_or(TokenizerFile::Bytes, |json| TokenizerFile::Json { json, end_of_text });
    hf::export_tokenizer(out, model, file)
        .wrap_err_with(|| format!("the model's tokenizer cannot be written to {}", out.display()))
}
