//! `templar generate`

use std::ops::RangeInclusive;
use std::path::PathBuf;

use clap::Args;
use color_eyre::eyre::{Context, Result, bail};
use serde_json::json;
use templar_data::tokenizer::END_OF_TEXT_NAMES;
use templar_data::{EndOfText, Tokenizer, TokenizerError};
use templar_model::{Generator, Sampling, TextStream, hf};

use crate::end::End;
use crate::numbers::{real, whole};
use crate::output::{self, is_json, say};

/// What the options accept.
const TOKENS: RangeInclusive<u64> = 0..=1_000_000;
const TEMPERATURE: RangeInclusive<f64> = 0.0..=100.0;

/// Continue a text with a model in the Hugging Face layout.
#[derive(Debug, Args)]
pub(crate) struct Generate {
    /// The model's folder.
    model: PathBuf,
    /// The text to continue.
    #[arg(long, env = "TEMPLAR_PROMPT", default_value = "The ")]
    prompt: String,
    /// Maximum number of new tokens.
    #[arg(long, env = "TEMPLAR_TOKENS", default_value_t = 200, value_parser = whole::<usize>(TOKENS))]
    tokens: usize,
    /// 0 takes the most likely token; 1 samples from the model's own probabilities.
    #[arg(long, env = "TEMPLAR_TEMPERATURE", default_value_t = 0.8, value_parser = real(TEMPERATURE))]
    temperature: f64,
    #[arg(long, env = "TEMPLAR_SEED", default_value_t = 0, value_parser = whole::<u64>(0..=u64::MAX))]
    seed: u64,
    /// A Hugging Face tokenizer.json; by default the one in the model's folder; without one, tokens are bytes.
    #[arg(long, env = "TEMPLAR_TOKENIZER", value_name = "FILE")]
    tokenizer: Option<PathBuf>,
}

/// The name under which a model's folder has its tokenizer.
const TOKENIZER_FILE: &str = "tokenizer.json";

impl Generate {
    pub(crate) fn run(self) -> Result<End> {
        let tokenizer = self.tokenizer()?;
        let (spec, theta) = hf::import(&self.model)
            .wrap_err_with(|| format!("the model in {} cannot be read", self.model.display()))?;
        let sampling = Sampling { temperature: self.temperature, seed: self.seed };
        let prompt = tokenizer.encode(&self.prompt)?;
        let end_of_text = Some(tokenizer.end_of_text());
        let generator = Generator::new(&spec, &theta, &prompt, self.tokens, end_of_text, sampling)?;
        if generator.cut_tokens() > 0 {
            eprintln!(
                "the prompt has {} tokens, but the model takes at most {}: the first {} were cut off",
                prompt.len(),
                spec.seq_len,
                generator.cut_tokens()
            );
        }
        let mut text = TextStream::new(|tokens: &[u32]| tokenizer.decode(tokens), &prompt);
        let mut made = Vec::new();
        let mut said = String::new();
        if !is_json() {
            output::write(format_args!("{}", self.prompt));
        }
        for token in generator {
            made.push(token?);
            let piece = text.push(made[made.len() - 1]);
            if !is_json() {
                output::write(format_args!("{piece}"));
            }
            said += &piece;
            if output::failure().is_some() {
                break;
            }
        }
        let last = text.finish();
        if is_json() {
            say!("{}", json!({ "prompt": self.prompt, "text": said + &last, "tokens": made }));
        } else {
            say!("{last}");
        }
        Ok(End::Done)
    }

    /// The tokenizer that was named, else the folder's own, else bytes.
    fn tokenizer(&self) -> Result<Tokenizer> {
        let own = self.model.join(TOKENIZER_FILE);
        let path = self.tokenizer.as_ref().or_else(|| own.is_file().then_some(&own));
        let Some(path) = path else { return Ok(Tokenizer::Bytes) };
        // The model knows which token ended its texts, whatever that is called. With another tokenizer, which may lack
        // that token, the name decides.
        if let Some(own) = hf::end_of_text(&self.model)? {
            match Tokenizer::open(path, EndOfText::Id(own)) {
                Err(TokenizerError::EndOfTextId { .. }) => {}
                opened => return Ok(opened?),
            }
        }
        match Tokenizer::open(path, EndOfText::Known) {
            Err(TokenizerError::NoEndOfText) => bail!(
                "nothing says which token of {} ends a text: it has none of {}; write the token's number into the \
                 model's generation_config.json, as in {{\"eos_token_id\": 2}}",
                path.display(),
                END_OF_TEXT_NAMES.join(" ")
            ),
            opened => Ok(opened?),
        }
    }
}
