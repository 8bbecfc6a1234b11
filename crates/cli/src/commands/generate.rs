//! `templar generate`

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;
use color_eyre::eyre::{Context, Result};
use serde_json::json;
use templar_data::Tokenizer;
use templar_model::{Generator, Sampling, TextStream, hf};

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
    /// A Hugging Face tokenizer.json; else the one in the model's folder; without one, tokens are bytes.
    #[arg(long, env = "TEMPLAR_TOKENIZER", value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    #[arg(long, env = "TEMPLAR_JSON")]
    json: bool,
}

/// The name under which a model's folder has its tokenizer.
const TOKENIZER_FILE: &str = "tokenizer.json";

impl Generate {
    pub(crate) fn run(self) -> Result<End> {
        let tokenizer = self.tokenizer()?;
        let (spec, theta) = hf::import(&self.model).wrap_err_with(|| self.model.display().to_string())?;
        let sampling = Sampling { temperature: self.temperature, seed: self.seed };
        let prompt = tokenizer.encode(&self.prompt)?;
        let end_of_text = Some(tokenizer.end_of_text());
        let generator = Generator::new(&spec, &theta, &prompt, self.tokens, end_of_text, sampling)?;
        if generator.cut_tokens() > 0 {
            eprintln!(
                "the prompt has {} tokens and the model sees {} at most: the first {} were cut off",
                prompt.len(),
                spec.seq_len,
                generator.cut_tokens()
            );
        }
        let mut text = TextStream::new(|tokens: &[u32]| tokenizer.decode(tokens), &prompt);
        if self.json {
            let (mut made, mut said) = (vec![], String::new());
            for token in generator {
                made.push(token?);
                said += &text.push(made[made.len() - 1]);
            }
            said += &text.finish();
            println!("{}", json!({ "prompt": self.prompt, "text": said, "tokens": made }));
            return Ok(End::Done);
        }
        let mut output = io::stdout().lock();
        let mut say = |piece: &str| output.write_all(piece.as_bytes()).and_then(|()| output.flush());
        if !still_read(say(&self.prompt))? {
            return Ok(End::Done);
        }
        for token in generator {
            if !still_read(say(&text.push(token?)))? {
                return Ok(End::Done);
            }
        }
        still_read(say(&format!("{}\n", text.finish())))?;
        Ok(End::Done)
    }

    /// The one that was named, else the folder's own, else bytes.
    fn tokenizer(&self) -> Result<Tokenizer> {
        let own = self.model.join(TOKENIZER_FILE);
        let path = self.tokenizer.as_ref().or_else(|| own.is_file().then_some(&own));
        path.map_or(Ok(Tokenizer::Bytes), |path| Ok(Tokenizer::open(path)?))
    }
}

/// Whether somebody still reads what is written: `| head` is no error, a full disk is.
fn still_read(written: io::Result<()>) -> Result<bool> {
    match written {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error).wrap_err("the text cannot be written to the standard output"),
    }
}
