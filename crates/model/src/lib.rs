//! The model that a run trains: a Llama-family decoder on Burn.
//!
//! | what | module |
//! |---|---|
//! | where tensors live | [`device`] |
//! | the decoder: logits, losses, gradients | [`llama`] |
//! | named shapes with inner settings, from a laptop to 72 B | [`presets`] |
//! | the Hugging Face folder layout, out and in | [`hf`] |
//! | sampling text from a model | [`generate`](mod@generate) |
//!
//! Parameters cross every boundary as one flat slice of f32 in the order of
//! [`Layout::llama`](templar_protocol::layout::Layout::llama): Hugging Face's names and `[out, in]` shapes. Nothing
//! here knows how the model is trained, only what its loss and the gradient of its loss are.
//!
//! ```
//! use templar_model::{Device, Llama, presets};
//! use templar_protocol::layout::Layout;
//!
//! let model = presets::preset("nano").unwrap().model;
//! let theta = Layout::llama(&model).theta0(&model, 7);
//! let logits = Llama::new(&model, &theta, &Device::Cpu).logits(&[1, 2, 3], 1);
//! assert_eq!(logits.len(), 3 * model.vocab_size as usize);
//! ```

pub mod device;
pub mod generate;
pub mod hf;
pub mod llama;
pub mod presets;
mod rope;

pub use device::{Device, ParseDeviceError};
pub use generate::{GenerateError, Sampling, generate};
pub use llama::{Llama, LossGradient};
