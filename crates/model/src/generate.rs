//! Samples tokens, for people who want to see what a model has learned.

use templar_cpu::Engine;
use templar_protocol::hash::{Hasher, Stream};
use templar_protocol::layout::ModelSpec;

/// Most tokens that one call generates. Without a cache of keys, the work grows with their square.
pub const NEW_TOKENS_MAX: usize = 4096;

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// 0 takes the likeliest token (the first of equals); above, probabilities are softmax(logits / temperature).
    pub temperature: f64,
    pub seed: u64,
}

/// Why nothing can be generated.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateError {
    #[error("the prompt is empty; give at least one token")]
    EmptyPrompt,
    #[error("token {token} of the prompt is outside the model's vocabulary of {vocabulary}; use the run's tokenizer")]
    OutsideVocabulary { token: u32, vocabulary: u32 },
    #[error("{requested} new tokens were requested; ask for at most {NEW_TOKENS_MAX} per call")]
    TooMany { requested: usize },
    #[error("the temperature is {found}; it must be 0 (greedy) or a positive number up to 100")]
    Temperature { found: f64 },
    #[error(
        "the model's logits are not finite after {made} tokens; its parameters are damaged or diverged, use another model"
    )]
    NotFinite { made: usize },
}

/// Continues `prompt` by up to `new_tokens` tokens, which are returned without the prompt; stops before `end_of_text`.
///
/// This is [`Generator`], run to its end.
///
/// # Panics
/// If `theta` does not have as many elements as the model has parameters.
pub fn generate(
    model: &ModelSpec,
    theta: &[f32],
    prompt: &[u32],
    new_tokens: usize,
    end_of_text: Option<u32>,
    sampling: Sampling,
) -> Result<Vec<u32>, GenerateError> {
    Generator::new(model, theta, prompt, new_tokens, end_of_text, sampling)?.collect()
}

/// Iterates over the tokens as it generates them. It ends before `end_of_text`, and after an error.
///
/// The model sees the last `seq_len` tokens. The same model, prompt and sampling give the same tokens on one machine.
#[derive(Debug)]
pub struct Generator<'a> {
    engine: Engine,
    theta: &'a [f32],
    /// The prompt and the generated tokens.
    text: Vec<u32>,
    prompt_tokens: usize,
    /// How many tokens are still to be generated.
    left: usize,
    end_of_text: Option<u32>,
    temperature: f64,
    stream: Stream,
}

impl<'a> Generator<'a> {
    /// Checks everything that can be known before the first token.
    pub fn new(
        model: &ModelSpec,
        theta: &'a [f32],
        prompt: &[u32],
        new_tokens: usize,
        end_of_text: Option<u32>,
        sampling: Sampling,
    ) -> Result<Self, GenerateError> {
        let vocabulary = model.vocab_size;
        if prompt.is_empty() {
            return Err(GenerateError::EmptyPrompt);
        }
        if let Some(&token) = prompt.iter().find(|&&token| token >= vocabulary) {
            return Err(GenerateError::OutsideVocabulary { token, vocabulary });
        }
        if new_tokens > NEW_TOKENS_MAX {
            return Err(GenerateError::TooMany { requested: new_tokens });
        }
        if !(0.0..=100.0).contains(&sampling.temperature) {
            return Err(GenerateError::Temperature { found: sampling.temperature });
        }
        Ok(Self {
            engine: Engine::new(model),
            theta,
            text: prompt.to_vec(),
            prompt_tokens: prompt.len(),
            left: new_tokens,
            end_of_text,
            temperature: sampling.temperature,
            stream: Hasher::new("templar generate").update_value(&sampling.seed).clone().into_stream(),
        })
    }

    /// Tokens at the beginning of the prompt that the model never sees, because the prompt is longer than its context.
    pub fn cut_tokens(&self) -> usize {
        self.prompt_tokens.saturating_sub(self.context())
    }

    fn context(&self) -> usize {
        self.engine.spec().seq_len as usize
    }
}

impl Iterator for Generator<'_> {
    type Item = Result<u32, GenerateError>;

    /// # Panics
    /// If `theta` does not have as many elements as the model has parameters.
    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let seen = self.text.len().saturating_sub(self.context());
        let logits = self.engine.next_logits(self.theta, &self.text[seen..]);
        let Some(next) = choose(&logits, self.temperature, &mut self.stream) else {
            self.left = 0;
            return Some(Err(GenerateError::NotFinite { made: self.text.len() - self.prompt_tokens }));
        };
        if Some(next) == self.end_of_text {
            self.left = 0;
            return None;
        }
        self.text.push(next);
        Some(Ok(next))
    }
}

/// The next token, or `None` if a logit is not finite.
fn choose(logits: &[f32], temperature: f64, stream: &mut Stream) -> Option<u32> {
    if !logits.iter().all(|logit| logit.is_finite()) {
        return None;
    }
    let mut best = 0;
    for (token, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = token;
        }
    }
    // A temperature so small that the division overflows is greedy too.
    let weight = |logit: f32| ((f64::from(logit) - f64::from(logits[best])) / temperature).exp();
    let total: f64 = logits.iter().map(|&logit| weight(logit)).sum();
    if temperature == 0.0 || !total.is_finite() {
        return Some(best as u32);
    }
    // 53 random bits, uniform in [0, 1).
    let mut left = (stream.next_u64() >> 11) as f64 / (1u64 << 53) as f64 * total;
    for (token, &logit) in logits.iter().enumerate() {
        left -= weight(logit);
        if left < 0.0 {
            return Some(token as u32);
        }
    }
    Some(best as u32)
}

#[cfg(test)]
mod tests {
    use templar_protocol::layout::Layout;

    use super::*;

    #[test]
    fn tokens_come_one_at_a_time_and_the_model_sees_the_end_of_the_prompt() {
        let model = ModelSpec { seq_len: 8, ..crate::presets::preset("nano").unwrap().model };
        let theta = Layout::llama(&model).theta0(&model, 7);
        let sampling = Sampling { temperature: 1.0, seed: 3 };
        let prompt: Vec<u32> = (40..52).collect();
        let made = generate(&model, &theta, &prompt, 6, None, sampling).unwrap();
        let mut generator = Generator::new(&model, &theta, &prompt, 6, None, sampling).unwrap();
        assert_eq!(generator.cut_tokens(), 4, "of 12 tokens, where 8 fit");
        assert_eq!(generator.next(), Some(Ok(made[0])));
        assert_eq!(generator.map(Result::unwrap).collect::<Vec<_>>(), made[1..]);
        assert_eq!(
            generate(&model, &theta, &prompt[4..], 6, None, sampling).unwrap(),
            made,
            "the model does not see the first four"
        );
        assert_eq!(Generator::new(&model, &theta, &prompt[4..], 6, None, sampling).unwrap().cut_tokens(), 0);
        // The end of text ends generation and is not returned.
        let end = made.iter().position(|token| *token == made[2]).unwrap();
        assert_eq!(generate(&model, &theta, &prompt, 6, Some(made[2]), sampling).unwrap(), made[..end]);
        let damaged = vec![f32::NAN; theta.len()];
        let mut generator = Generator::new(&model, &damaged, &prompt, 6, None, sampling).unwrap();
        assert_eq!(generator.next(), Some(Err(GenerateError::NotFinite { made: 0 })));
        assert_eq!(generator.next(), None);
    }

    #[test]
    fn choice_follows_the_probabilities() {
        let logits = [0.0, 3.0f32.ln(), f32::MIN];
        let mut stream = Hasher::new("test").into_stream();
        let mut counts = [0u32; 3];
        for _ in 0..4000 {
            counts[choose(&logits, 1.0, &mut stream).unwrap() as usize] += 1;
        }
        assert!((2850..3150).contains(&counts[1]) && counts[2] == 0, "{counts:?}");
        assert_eq!(choose(&logits, 0.0, &mut stream), Some(1));
        assert_eq!(choose(&logits, f64::MIN_POSITIVE, &mut stream), Some(1));
        assert_eq!(choose(&[0.0, f32::NAN], 1.0, &mut stream), None);
    }
}
