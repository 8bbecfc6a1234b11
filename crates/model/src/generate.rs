//! Sampling of tokens, for people who want to see what a model has learned.

use templar_cpu::Engine;
use templar_protocol::hash::{Hasher, Stream};
use templar_protocol::layout::ModelSpec;

/// Most tokens that one call makes: without a cache of keys the work grows with their square.
pub const MAX_NEW_TOKENS: usize = 4096;

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
    #[error("{requested} new tokens were asked for; at most {MAX_NEW_TOKENS} are made in one call")]
    TooMany { requested: usize },
    #[error("the temperature is {found}; it must be 0 (greedy) or a positive number up to 100")]
    Temperature { found: f64 },
    #[error("the model's logits are not finite after {made} tokens: its parameters are damaged or diverged")]
    NotFinite { made: usize },
}

/// Continues `prompt` by up to `new_tokens` tokens, which are returned without the prompt; stops before `end_of_text`.
///
/// The model sees the last `seq_len` tokens. The same model, prompt and sampling give the same tokens on one machine.
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
    let vocabulary = model.vocab_size;
    if prompt.is_empty() {
        return Err(GenerateError::EmptyPrompt);
    }
    if let Some(&token) = prompt.iter().find(|&&token| token >= vocabulary) {
        return Err(GenerateError::OutsideVocabulary { token, vocabulary });
    }
    if new_tokens > MAX_NEW_TOKENS {
        return Err(GenerateError::TooMany { requested: new_tokens });
    }
    if !(0.0..=100.0).contains(&sampling.temperature) {
        return Err(GenerateError::Temperature { found: sampling.temperature });
    }
    let context = model.seq_len as usize;
    let mut engine = Engine::new(model);
    let mut stream = Hasher::new("templar generate").update_value(&sampling.seed).clone().into_stream();
    let mut text = prompt.to_vec();
    for made in 0..new_tokens {
        let logits = engine.next_logits(theta, &text[text.len().saturating_sub(context)..]);
        let next = choose(&logits, sampling.temperature, &mut stream).ok_or(GenerateError::NotFinite { made })?;
        if Some(next) == end_of_text {
            break;
        }
        text.push(next);
    }
    Ok(text.split_off(prompt.len()))
}

/// The next token, or nothing where a logit is not finite.
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
    use super::*;

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
