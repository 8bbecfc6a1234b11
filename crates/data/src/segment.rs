//! Cuts documents into segments and draws the ones that are held out.
//!
//! The unit of the held-out split is the *segment*: a document of up to 16 KiB, or a piece of a longer one, cut after
//! the last line end within 16 KiB (after the last whole character, where there is no line end). If there is less than
//! 1 MiB of text in all, it is cut into about 64 segments instead, so that a small text has both splits too.
//! Neighbouring segments of a document may fall into different splits: held-out text is never trained on, but its
//! neighbour may be. Duplicate texts are not detected, so remove them first.
//!
//! One segment is drawn from each stratum of 1 ÷ fraction segments, keyed by (seed, number of the stratum): the split
//! has the requested fraction, even in small texts, and no period that a text could share.

use templar_protocol::hash::Hash32;

use crate::manifest::Split;

/// Longest segment, in bytes of UTF-8.
pub const SEGMENT_BYTES_MAX: usize = 16 << 10;
/// Shortest length at which a small text's documents are cut.
pub const SEGMENT_BYTES_MIN: usize = 64;
/// A text shorter than this many of the longest segments is cut into about this many.
pub const SEGMENTS: usize = 64;

/// The length at which documents are cut, if `text_bytes` is all the text there is.
pub(crate) fn segment_bytes(text_bytes: usize) -> usize {
    (text_bytes / SEGMENTS).clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX)
}

/// Cuts documents into segments. It holds one segment and one piece of text in memory.
#[derive(Debug)]
pub(crate) struct Segmenter {
    segment_bytes: usize,
    pending: String,
}

impl Segmenter {
    pub(crate) fn new(segment_bytes: usize) -> Self {
        Self { segment_bytes, pending: String::new() }
    }

    /// Takes more text of the document. The cuts do not depend on how a document is divided into pieces.
    pub(crate) fn push<E>(&mut self, text: &str, mut sink: impl FnMut(&str) -> Result<(), E>) -> Result<(), E> {
        self.pending.push_str(text);
        let mut rest = self.pending.as_str();
        // A segment is complete only when more text follows, so a document never ends with an empty segment.
        while rest.len() > self.segment_bytes {
            let (segment, after) = rest.split_at(cut(rest, self.segment_bytes));
            sink(segment)?;
            rest = after;
        }
        let done = self.pending.len() - rest.len();
        self.pending.drain(..done);
        Ok(())
    }

    /// The document's last segment, if there is one.
    pub(crate) fn finish(&mut self) -> Option<String> {
        Some(std::mem::take(&mut self.pending)).filter(|segment| !segment.is_empty())
    }
}

/// Bytes of the first segment of a text longer than `limit` bytes.
fn cut(text: &str, limit: usize) -> usize {
    let limit = text.floor_char_boundary(limit);
    text[..limit].rfind('\n').map_or(limit, |line_end| line_end + 1)
}

/// Draws the split of each segment in turn.
#[derive(Debug)]
pub(crate) struct Lottery {
    seed: u64,
    held_out_ppm: u32,
    segment: u64,
    stratum: u64,
}

impl Lottery {
    /// `held_out_ppm`: millionths of the segments to hold out, not 0.
    pub(crate) fn new(seed: u64, held_out_ppm: u32) -> Self {
        Self { seed, held_out_ppm, segment: 0, stratum: 0 }
    }

    pub(crate) fn next_split(&mut self) -> Split {
        let segment = u128::from(self.segment);
        self.segment += 1;
        while self.drawn() < segment {
            self.stratum += 1;
        }
        if self.drawn() == segment { Split::HeldOut } else { Split::Train }
    }

    /// The held-out segment of the current stratum: (stratum + u) ÷ fraction for a u in 0..1, rounded down. It does not
    /// decrease from one stratum to the next.
    fn drawn(&self) -> u128 {
        let lot = Hash32::of_value("templar v1 held-out segment", &(self.seed, self.stratum));
        let [a, b, c, d, ..] = *lot.as_bytes();
        let u = u128::from(u32::from_le_bytes([a, b, c, d]));
        ((u128::from(self.stratum) << 32) + u) * 1_000_000 / (u128::from(self.held_out_ppm) << 32)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn segments(pieces: &[&str], segment_bytes: usize) -> Vec<String> {
        let mut segmenter = Segmenter::new(segment_bytes);
        let mut found = Vec::new();
        for piece in pieces {
            let mut sink = |segment: &str| -> Result<(), std::convert::Infallible> {
                found.push(segment.to_owned());
                Ok(())
            };
            segmenter.push(piece, &mut sink).unwrap();
        }
        found.extend(segmenter.finish());
        found
    }

    #[test]
    fn documents_are_cut_after_lines() {
        assert_eq!(segments(&["one\ntwo\nthree"], 9), ["one\ntwo\n", "three"]);
        assert_eq!(segments(&["日本日本"], 4), ["日", "本", "日", "本"]);
        assert_eq!(segments(&["12345678"], 4), ["1234", "5678"]);
    }

    proptest! {
        #[test]
        fn no_text_is_lost_and_pieces_do_not_matter(text in "[a\\n日]{0,300}", at in 0usize..300, limit in 4usize..60) {
            let whole = segments(&[&text], limit);
            prop_assert_eq!(&whole.concat(), &text);
            prop_assert!(whole.iter().all(|segment| (1..=limit).contains(&segment.len())));
            let at = text.floor_char_boundary(at);
            prop_assert_eq!(segments(&[&text[..at], &text[at..]], limit), whole);
        }

        #[test]
        fn the_fraction_holds_at_every_length(seed: u64, ppm in 1_000u32..300_000, segments in 1u64..5_000) {
            let mut lottery = Lottery::new(seed, ppm);
            let held = (0..segments).filter(|_| lottery.next_split() == Split::HeldOut).count() as f64;
            let expected = segments as f64 * f64::from(ppm) / 1e6;
            // Two strata may draw the same segment, but rarely at such fractions.
            prop_assert!(held < expected + 1.0 && held > expected * 0.8 - 3.0, "{} of {}", held, expected);
        }
    }
}
