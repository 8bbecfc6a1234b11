//! The models that runs train: named shapes, files that other software reads, and generated text.
//!
//! | what | module |
//! |---|---|
//! | named shapes with inner settings, from a laptop to 72 B | [`presets`] |
//! | the Hugging Face folder layout, out and in | [`hf`] |
//! | sampling tokens from a model | [`generate`](mod@generate) |
//! | the text of tokens as they arrive | [`TextStream`] |
//!
//! Parameters cross every boundary as one flat slice of f32 in the order of
//! [`Layout::llama`](templar_protocol::layout::Layout::llama): Hugging Face's names and `[out, in]` shapes.
//! [`templar_cpu`] defines what the decoder computes.
//!
//! ```
//! use templar_model::{Sampling, generate, presets};
//! use templar_protocol::layout::Layout;
//!
//! let model = presets::preset("nano").unwrap().model;
//! let theta = Layout::llama(&model).theta0(&model, 7);
//! let text = generate(&model, &theta, &[1, 2, 3], 4, None, Sampling { temperature: 0.0, seed: 0 }).unwrap();
//! assert_eq!(text.len(), 4);
//! ```

pub mod generate;
pub mod hf;
pub mod presets;
mod text_stream;

pub use generate::{GenerateError, Generator, Sampling, generate};
pub use text_stream::TextStream;
