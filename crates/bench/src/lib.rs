//! Measurements that settle defaults. `templar bench` prints what they return.
//!
//! | what | module |
//! |---|---|
//! | the codec: parameters per second against the machine's copy bandwidth, bytes on real pseudo-gradients | [`codec`] |
//! | what a format and an outer rule cost in loss: one small training run each | [`quality`] |
//! | datasets: text to tokens per second, against the `tokenizers` crate's own speed | [`data`] |
//! | training and evaluation: tokens per second of the built-in engine, and where the time goes | [`train`] |
//! | how evenly the sent positions are spread: what a better coder could save | [`positions`] |
//!
//! Times are medians of several runs; compare only figures from one call.

pub mod codec;
pub mod data;
pub mod peers;
pub mod positions;
pub mod quality;
mod timing;
pub mod train;
