//! `templar generate`

use std::path::PathBuf;

use clap::Args;
use color_eyre::eyre::{Context, Result};
use serde_json::json;
use templar_data::{EndOfText, Tokenizer};
use templar_model::{Sampling, generate, hf};

use crate::End;

/// Continue a text with a model in the Hugging Face layout.
#[derive(Debug, Args)]
pub(crate) struct Generate {
    /// The model's folder.
    model: PathBuf,
    /// The text to continue.
    #[arg(long, env = "TEMPLAR_PROMPT", default_value = "The ")]
    prompt: String,
    /// New tokens at most.
    #[arg(long, env = "TEMPLAR_TOKENS", default_value_t = 200)]
    tokens: usize,
    /// 0 takes the likeliest token; 1 samples from the model's own probabilities.
    #[arg(long, env = "TEMPLAR_TEMPERATURE", default_value_t = 0.8)]
    temperature: f64,
    #[arg(long, env = "TEMPLAR_SEED", default_value_t = 0)]
    seed: u64,
    /// A Hugging Face tokenizer.json; without one, tokens are bytes.
    #[arg(long, env = "TEMPLAR_TOKENIZER", value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    #[arg(long, env = "TEMPLAR_JSON")]
    json: bool,
}

impl Generate {
    pub(crate) fn run(self) -> Result<End> {
        let tokenizer = match &self.tokenizer {
            Some(path) => Tokenizer::open(path, EndOfText::Known)?,
            None => Tokenizer::Bytes,
        };
        let (spec, theta) = hf::import(&self.model).wrap_err_with(|| self.model.display().to_string())?;
        let sampling = Sampling { temperature: self.temperature, seed: self.seed };
        let prompt = tokenizer.encode(&self.prompt)?;
        let made = generate(&spec, &theta, &prompt, self.tokens, Some(tokenizer.end_of_text()), sampling)?;
        let text = tokenizer.decode(&made);
        if self.json {
            println!("{}", json!({ "prompt": self.prompt, "text": text, "tokens": made }));
        } else {
            println!("{}{text}", self.prompt);
        }
        Ok(End::Done)
    }
}
