//! Measurements that settle defaults. `templar bench` prints what they return.
//!
//! | what | module |
//! |---|---|
//! | the codec: parameters per second against the machine's copy bandwidth, bytes on real pseudo-gradients | [`codec`] |
//! | what a format and an outer rule cost in loss: one small training run each | [`quality`] |
//! | ways of training on several machines, each at its best rates | [`strategies`] |
//! | datasets: text to tokens per second, against the `tokenizers` crate's own speed | [`data`] |
//! | training and evaluation: tokens per second of the built-in engine, and where the time goes | [`train`] |
//! | how evenly the sent positions are spread: what a better coder could save | [`positions`] |
//!
//! Times are medians of several runs; compare only figures from one call.
//!
//! ```
//! use templar_bench::peers::Text;
//! use templar_bench::quality::{Format, Options, format_arms, measure, pico};
//!
//! // What does each format cost in loss? Two peers train for one window of one inner step, which is far too little to tell.
//! let mut preset = pico();
//! (preset.inner.steps, preset.inner.batch_sequences, preset.inner.micro_batch_sequences) = (1, 1, 1);
//! let options = Options { preset, peers: 2, windows: 1, seeds: vec![1] };
//! let arms = format_arms(&Format::ALL);
//! let rows = measure(&arms, &Text::built_in(20_000), &options, &|| ());
//!
//! assert_eq!(rows.len(), arms.len());
//! assert!(rows.iter().all(|row| row.figures.as_ref().is_some_and(|figures| figures.loss.is_finite())));
//! ```

pub mod codec;
pub mod data;
pub mod peers;
pub mod positions;
pub mod quality;
pub mod strategies;
mod timing;
pub mod train;
