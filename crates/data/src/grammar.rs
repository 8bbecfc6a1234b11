//! The built-in corpus: English-like text whose entropy is known exactly, so that a loss can be compared with its
//! floor.
//!
//! Sentences are independent and identically distributed, one per line. A seed decides how often each of some 330 words
//! is drawn, and which words tend to follow which. Number agrees, even across a relative clause, and the noun at the
//! beginning of a sentence returns at its end: a model learns letters, then words, then neighbours, then these.
//!
//! # Unambiguous
//! A sentence is a sequence of choices from menus. All words within a menu differ (this is checked when the menu is
//! built), a word has only letters or only digits, single spaces separate words, and a line end comes after the choice
//! to stop and nowhere else. A reader who knows the menu therefore knows the choice, hence the next menu and, by
//! induction, the whole derivation. Each text has exactly one, and the probability of a text is the product of its
//! choices' probabilities.
//!
//! # The floor
//! Hence bits per sentence = Σ over reachable states of P(state) · H(menu), and
//! [`entropy_bits_per_byte`](Grammar::entropy_bits_per_byte) = E\[bits of a sentence\] ÷ E\[bytes of a sentence,
//! including spaces, full stop and line end\]. Both expectations come from the rules, without sampling. Since sentences
//! are independent, this is the entropy rate of the text, however long its documents are: a document ends before a
//! sentence, never within one, by a rule that looks only at past sentences (Wald's identity preserves the ratio).
//!
//! On a prepared dataset it remains a lower bound, on average over texts, on what a model can reach, if bits per byte =
//! (mean bits per predicted token) ÷ [`bytes_per_token`](crate::Manifest::bytes_per_token):
//! - *Cutting into samples.* A window starts in mid-sentence, and the model does not see what came before. Less context
//!   never lowers an expected loss. In a window of `seq_len` byte tokens the mean excess is about the loss of one
//!   broken sentence, so it falls as 1 ÷ `seq_len`. A trainer that does not predict the first token of a window leaves
//!   out tokens by position, not by content, and the others have the same rate.
//! - *End of text.* This is one more token to predict, without bytes of text: its loss, 0 at best, is added, and no
//!   bytes are. A document's length follows from its beginning, so the source itself gives the token no entropy, but a
//!   model that cannot count sentences pays for it. About 1 token in 3000 is one, somewhat more in small datasets,
//!   whose documents are cut. Its loss must be counted, because the place of a cut says a little about the text around
//!   it.
//! - *Held-out text* is finite: its own −log₂ P per byte ([`Grammar::bits`]) differs from the rate by chance, with a
//!   standard deviation of 0.6 % for 50 kB. A loss below the floor by several times that means that data leaked.

mod lexicon;
mod menu;
mod rules;

use std::collections::HashMap;
use std::fmt;

use templar_protocol::hash::{Hasher, Stream};

use crate::grammar::rules::{Rules, State};

/// Sentences per document, except for the last document.
pub const DOCUMENT_SENTENCES: usize = 64;

/// A seeded probabilistic grammar.
#[derive(Clone)]
pub struct Grammar {
    rules: Rules,
    sentence: Expectation,
}

/// Expectations over the rest of a sentence, from some state on.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Expectation {
    bits: f64,
    bytes: f64,
}

/// Why the grammar cannot have produced a text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseError {
    #[error("line {line} has {word:?} where no rule allows it; was the text made with another seed?")]
    Word { line: usize, word: String },
    #[error("line {line} does not end with a full stop after a whole sentence; give whole lines")]
    Unfinished { line: usize },
}

impl Grammar {
    /// The seed decides the probabilities and thus the floor; the rules are always the same.
    pub fn new(seed: u64) -> Self {
        let mut hasher = Hasher::new("templar v1 grammar rules");
        hasher.update(&seed.to_le_bytes());
        let rules = Rules::new(&mut hasher.into_stream());
        let sentence = expect(&rules, State::Start, &mut HashMap::new());
        Self { rules, sentence }
    }

    /// The entropy rate of the text, in bits per byte; exact up to rounding.
    pub fn entropy_bits_per_byte(&self) -> f64 {
        self.sentence.bits / self.sentence.bytes
    }

    /// Expected bytes of a sentence, with its line end.
    pub fn sentence_bytes(&self) -> f64 {
        self.sentence.bytes
    }

    /// Yields documents of [`DOCUMENT_SENTENCES`] sentences until they hold `target_bytes` bytes; the last document
    /// ends with the sentence that reaches this size. The text is the same on every platform, because only integers
    /// decide.
    pub fn documents(&self, seed: u64, target_bytes: u64) -> impl Iterator<Item = String> + use<> {
        let mut hasher = Hasher::new("templar v1 grammar text");
        hasher.update(&seed.to_le_bytes());
        Documents { rules: self.rules.clone(), stream: hasher.into_stream(), left_bytes: target_bytes }
    }

    /// −log₂ of a text's probability, given its number of sentences; the text must consist of whole lines.
    pub fn bits(&self, text: &str) -> Result<f64, ParseError> {
        let lines = text.split_inclusive('\n').enumerate();
        lines.map(|(at, line)| self.sentence_bits(line).map_err(|error| error.at(at + 1))).sum()
    }

    fn sentence_bits(&self, line: &str) -> Result<f64, ParseError> {
        let body = line.strip_suffix(".\n").ok_or(ParseError::Unfinished { line: 0 })?;
        let mut bits = 0.0;
        let mut state = Some(State::Start);
        for word in body.split(' ').chain(["."]) {
            let unexpected = || ParseError::Word { line: 0, word: word.chars().take(40).collect() };
            let now = state.ok_or_else(unexpected)?;
            let menu = self.rules.menu(now);
            let entry = menu.find(word).ok_or_else(unexpected)?;
            bits -= menu.probability(entry).log2();
            state = now.after(entry.pick);
        }
        if state.is_some() { Err(ParseError::Unfinished { line: 0 }) } else { Ok(bits) }
    }
}

impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammar").field("sentence", &self.sentence).finish_non_exhaustive()
    }
}

impl ParseError {
    fn at(self, line: usize) -> Self {
        match self {
            Self::Word { word, .. } => Self::Word { line, word },
            Self::Unfinished { .. } => Self::Unfinished { line },
        }
    }
}

/// The chain rule over the menus; states form no loop, and each is computed once.
fn expect(rules: &Rules, state: State, known: &mut HashMap<State, Expectation>) -> Expectation {
    if let Some(&expectation) = known.get(&state) {
        return expectation;
    }
    let mut sum = Expectation::default();
    for (entry, probability) in rules.menu(state).probabilities() {
        // A word and the space or full stop after it; the choice to stop adds the line end.
        let (bytes, rest) = match state.after(entry.pick) {
            Some(next) => (entry.word.len() as f64 + 1.0, expect(rules, next, known)),
            None => (1.0, Expectation::default()),
        };
        sum.bits += probability * (rest.bits - probability.log2());
        sum.bytes += probability * (rest.bytes + bytes);
    }
    known.insert(state, sum);
    sum
}

struct Documents {
    rules: Rules,
    stream: Stream,
    left_bytes: u64,
}

impl Iterator for Documents {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        let mut document = String::new();
        for _ in 0..DOCUMENT_SENTENCES {
            if self.left_bytes <= document.len() as u64 {
                break;
            }
            write_sentence(&self.rules, &mut self.stream, &mut document);
        }
        self.left_bytes = self.left_bytes.saturating_sub(document.len() as u64);
        Some(document).filter(|document| !document.is_empty())
    }
}

fn write_sentence(rules: &Rules, stream: &mut Stream, text: &mut String) {
    let mut state = State::Start;
    loop {
        let entry = rules.menu(state).draw(stream);
        let Some(next) = state.after(entry.pick) else {
            // The last word's space gives way to the full stop.
            text.pop();
            text.push_str(".\n");
            return;
        };
        text.push_str(&entry.word);
        text.push(' ');
        state = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_converge_to_the_formula() {
        for seed in [0, 1, 7] {
            let grammar = Grammar::new(seed);
            let documents: Vec<String> = grammar.documents(seed + 100, 2_000_000).collect();
            let text = documents.concat();
            let sentences = text.lines().count() as f64;
            let floor = grammar.entropy_bits_per_byte();
            let found = grammar.bits(&text).unwrap() / text.len() as f64;
            assert!((1.0..1.6).contains(&floor), "{floor}");
            // Both are means over some 40 000 sentences.
            assert!((found / floor - 1.0).abs() < 0.002, "{found} {floor}");
            assert!((text.len() as f64 / sentences / grammar.sentence_bytes() - 1.0).abs() < 0.01);
            // What the module's documentation says about a held-out split of 50 kB.
            let parts = documents.chunks_exact(16).map(<[String]>::concat);
            let squares = parts.map(|part| (grammar.bits(&part).unwrap() / part.len() as f64 / floor - 1.0).powi(2));
            let deviation = (squares.sum::<f64>() / (documents.len() / 16) as f64).sqrt();
            println!("seed {seed}: floor {floor:.4}, text {found:.4}, deviation at 50 kB {deviation:.4}");
            assert!((0.001..0.01).contains(&deviation), "{deviation}");
        }
    }

    #[test]
    fn a_sentence_has_one_derivation() {
        let grammar = Grammar::new(3);
        let text: String = grammar.documents(1, 20_000).collect();
        for line in text.split_inclusive('\n') {
            assert_eq!(derivations(&grammar.rules, State::Start, line.strip_suffix('\n').unwrap()), 1, "{line}");
        }
        let sentence = text.lines().next().unwrap();
        assert!(matches!(grammar.bits(sentence), Err(ParseError::Unfinished { line: 1 })));
        let wrong = format!("{sentence}\n{}\n", sentence.replacen(' ', "  ", 1));
        assert!(matches!(grammar.bits(&wrong), Err(ParseError::Word { line: 2, .. })));
    }

    /// Counts the ways to read `rest` by prefix matching alone, without relying on spaces to find words.
    fn derivations(rules: &Rules, state: State, rest: &str) -> usize {
        let choices = rules.menu(state).probabilities();
        choices
            .map(|(entry, _)| match (state.after(entry.pick), rest.strip_prefix(entry.word.as_str())) {
                (None, Some("")) => 1,
                (Some(next), Some(rest)) => derivations(rules, next, rest.strip_prefix(' ').unwrap_or(rest)),
                _ => 0,
            })
            .sum()
    }

    #[test]
    fn text_is_the_same_on_every_platform() {
        let text: String = Grammar::new(1).documents(2, 10_000).collect();
        assert!(text.len() >= 10_000 && text.len() < 10_300);
        assert_eq!(
            templar_protocol::hash::Hash32::of(text.as_bytes()).to_string(),
            "a248e894ebbb1f636cd0266ac6c0cfa0f463432d5c141499eaed59750a5760d9"
        );
    }
}
