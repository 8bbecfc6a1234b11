//! Distributes segments to the two splits: each is drawn into one of them, encoded, and appended to it.
//!
//! Segments are encoded on all cores, one batch at a time, and appended in order, so the result does not depend on the
//! number of threads.

use std::path::Path;

use rayon::prelude::*;

use crate::manifest::Split;
use crate::prepare::error::PrepareError;
use crate::prepare::options::Progress;
use crate::segment::{Lottery, SEGMENT_BYTES_MAX, SEGMENTS, Segmenter, segment_bytes};
use crate::shard::SplitWriter;
use crate::source::{Piece, SourceError};
use crate::tokenizer::{Tokenizer, TokenizerError};

/// Segments of maximum length per thread in a batch: enough for the threads to finish at about the same time.
const BATCH_SEGMENTS: usize = 16;

/// Writes a text into the splits.
pub(crate) struct Splits<'a> {
    dir: &'a Path,
    tokenizer: &'a Tokenizer,
    lottery: Lottery,
    train: SplitWriter,
    held_out: SplitWriter,
    /// Where the document's last segment went.
    last: Option<Split>,
    batch: Batch,
    state: Progress,
    progress: &'a mut dyn FnMut(Progress),
}

/// Segments that wait to be encoded together, and what comes between them.
struct Batch {
    steps: Vec<Step>,
    bytes: usize,
    bytes_max: usize,
}

enum Step {
    Segment { split: Split, text: String },
    EndOfText { split: Split },
}

impl<'a> Splits<'a> {
    pub(crate) fn new(
        dir: &'a Path,
        tokenizer: &'a Tokenizer,
        lottery: Lottery,
        train: SplitWriter,
        held_out: SplitWriter,
        source_bytes: Option<u64>,
        progress: &'a mut dyn FnMut(Progress),
    ) -> Self {
        let bytes_max = rayon::current_num_threads() * BATCH_SEGMENTS * SEGMENT_BYTES_MAX;
        let batch = Batch { steps: Vec::new(), bytes: 0, bytes_max };
        let state = Progress { text_bytes: 0, read_bytes: 0, source_bytes, tokens: 0 };
        Self { dir, tokenizer, lottery, train, held_out, last: None, batch, state, progress }
    }

    pub(crate) fn read(
        &mut self,
        pieces: impl Iterator<Item = Result<Piece, SourceError>>,
    ) -> Result<(), PrepareError> {
        let mut pieces = pieces.fuse();
        // The cuts in a small text depend on its length.
        let mut ahead = Vec::new();
        let mut ahead_bytes = 0;
        while ahead_bytes < SEGMENTS * SEGMENT_BYTES_MAX {
            let Some(piece) = pieces.next().transpose()? else { break };
            // A piece counts as at least one byte, so that empty documents cannot fill the memory.
            ahead_bytes += piece.text.len().max(1);
            ahead.push(piece);
        }
        let mut segmenter = Segmenter::new(segment_bytes(ahead_bytes));
        for piece in ahead.into_iter().map(Ok).chain(pieces) {
            let piece = piece?;
            self.state.read_bytes += piece.source_bytes;
            segmenter.push(&piece.text, |segment| self.segment(segment))?;
            if piece.ends_document {
                if let Some(segment) = segmenter.finish() {
                    self.segment(&segment)?;
                }
                self.end_text()?;
            }
        }
        self.flush()
    }

    /// The splits as written so far, after everything has been read.
    pub(crate) fn into_writers(self) -> (SplitWriter, SplitWriter) {
        (self.train, self.held_out)
    }

    fn segment(&mut self, text: &str) -> Result<(), PrepareError> {
        let split = self.lottery.next_split();
        if self.last != Some(split) {
            // What follows in the other split does not continue this text.
            self.end_text()?;
            self.last = Some(split);
        }
        self.step(Step::Segment { split, text: text.to_owned() }, text.len())
    }

    /// Ends the text of the split that got the last segment, if there was one.
    fn end_text(&mut self) -> Result<(), PrepareError> {
        match self.last.take() {
            Some(split) => self.step(Step::EndOfText { split }, 0),
            None => Ok(()),
        }
    }

    fn step(&mut self, step: Step, text_bytes: usize) -> Result<(), PrepareError> {
        // The step itself counts as well as its text, because there may be many short ones.
        self.batch.bytes += text_bytes + size_of::<Step>();
        self.batch.steps.push(step);
        if self.batch.bytes < self.batch.bytes_max { Ok(()) } else { self.flush() }
    }

    fn flush(&mut self) -> Result<(), PrepareError> {
        self.batch.bytes = 0;
        let steps = std::mem::take(&mut self.batch.steps);
        if matches!(self.tokenizer, Tokenizer::Bytes) {
            // This is cheaper than handing segments to threads and back, and one buffer serves them all.
            let mut tokens = Vec::new();
            for step in &steps {
                if let Step::Segment { text, .. } = step {
                    tokens.clear();
                    tokens.extend(text.bytes().map(u32::from));
                }
                self.push(step, &tokens)?;
            }
            return Ok(());
        }
        let tokens: Vec<Vec<u32>> =
            steps.par_iter().map(|step| step.encode(self.tokenizer)).collect::<Result<_, TokenizerError>>()?;
        steps.iter().zip(&tokens).try_for_each(|(step, tokens)| self.push(step, tokens))
    }

    fn push(&mut self, step: &Step, tokens: &[u32]) -> Result<(), PrepareError> {
        let end = [self.tokenizer.end_of_text()];
        let (split, tokens, text_bytes) = match step {
            Step::Segment { split, text } => (*split, tokens, text.len() as u64),
            Step::EndOfText { split } => (*split, &end[..], 0),
        };
        let writer = match split {
            Split::Train => &mut self.train,
            Split::HeldOut => &mut self.held_out,
        };
        writer.push(tokens, text_bytes).map_err(PrepareError::write(self.dir))?;
        self.state.text_bytes += text_bytes;
        self.state.tokens += tokens.len() as u64;
        if text_bytes > 0 {
            (self.progress)(self.state);
        }
        Ok(())
    }
}

impl Step {
    fn encode(&self, tokenizer: &Tokenizer) -> Result<Vec<u32>, TokenizerError> {
        match self {
            Self::Segment { text, .. } => tokenizer.encode(text),
            Self::EndOfText { .. } => Ok(Vec::new()),
        }
    }
}
