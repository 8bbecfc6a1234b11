//! The hot path outside the model: what a miner learned becomes bytes, and what many sent becomes the next θ.
//!
//! Parameters are one flat `&[f32]` in the canonical order of [`Layout`](templar_protocol::layout::Layout). A
//! *chunk* is a run of `spec.chunk` values of one tensor; of each chunk a miner sends the few largest. What it does
//! not send stays in its *error feedback* and is sent later, so that nothing is lost, only delayed (SparseLoCo, eq. 2).
//!
//! In the order in which a window uses them:
//!
//! | step | who | item |
//! |---|---|---|
//! | e ← β·e + Δ, payload = encode(e), e ← e − decode(payload) | miner | [`Codec::encode`] |
//! | contribution = decode(payload), or a typed error | everybody | [`Codec::decode`] |
//! | e ← e + contribution, if it did not count | miner | [`Contribution::give_back`] |
//! | θ + factor · contribution, to measure its loss | validator | [`Contribution::add_scaled`] |
//! | how much each peer is clipped, tensor by tensor | everybody | [`clip_factors`] |
//! | θ′ from θ and all contributions, to the bit | everybody | [`outer_step`] |
//!
//! With `codec.transform = "dct"`, full chunks are sent, owed and summed as coefficients of a cosine transform, and so is e.
//! Only [`outer_step`] and [`Contribution::add_scaled`] know parameters.
//!
//! The bytes are specified in [`mod@format`]. Decoding is total (any bytes give a contribution or a typed error) and
//! canonical (no contribution has two payloads).
//!
//! **Sign.** Δ is a pseudo-gradient, θ_start − θ_end, and [`outer_step`] subtracts it, as in the paper.
//!
//! ```
//! use std::sync::Arc;
//! use templar_codec::{Codec, outer_step};
//! use templar_protocol::layout::Layout;
//! use templar_protocol::run::{CodecKind, CodecSpec, MeanOver, OuterSpec, Transform};
//!
//! let layout = Arc::new(Layout::new([("w".to_owned(), vec![4, 4])]));
//! let spec = CodecSpec { kind: CodecKind::TopkSign, chunk: 16, k: 2, error_decay: 0.95, max_abs: 1.0, transform: Transform::None };
//! let codec = Codec::new(Arc::clone(&layout), &spec);
//!
//! // A miner learned something; two of its sixteen values are sent, each as a sign and their mean magnitude.
//! let mut e = vec![0.0; 16];
//! let mut delta = vec![0.01; 16];
//! (delta[3], delta[9]) = (0.5, -0.25);
//! let payload = codec.encode(&mut e, &delta).unwrap();
//! assert!(payload.len() as u64 <= codec.max_payload_bytes());
//!
//! // Everybody decodes it and takes the same step.
//! let contribution = codec.decode(payload).unwrap();
//! let outer = OuterSpec { rate: 1.0, mean_over: MeanOver::Peers, min_senders: 1 };
//! let mut theta = [0.0; 16];
//! outer_step(&layout, &mut theta, &[&contribution], &outer);
//! assert_eq!((theta[3], theta[9], theta[0]), (-0.375, 0.375, 0.0));
//!
//! // What was sent has left the error feedback; had it not counted, it would go back.
//! assert_eq!((e[3], e[9], e[0]), (0.125, 0.125, 0.01));
//! ```

#![allow(clippy::inline_always, reason = "code that is not inlined into a kernel is compiled for the oldest processor")]
#![allow(clippy::float_cmp, reason = "bits are the contract here: nearly equal is a different protocol")]

mod aggregate;
mod bits;
mod codec;
mod contribution;
mod dct;
mod feedback;
mod fixed;
pub mod format;
mod frame;
#[cfg(test)]
mod paths;
mod plan;
mod segment;
mod select;

pub use aggregate::{clip_factors, outer_step};
pub use codec::{Codec, EncodeError};
pub use contribution::{Contribution, FACTOR_MAX};
pub use format::{ChunkError, DecodeError};
