//! The codec seen from outside: bytes in [`codec`], the outer step in [`outer_step`], known attacks on both in [`attacks`].

#![allow(clippy::float_cmp, reason = "bits are the contract here")]
#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

mod attacks;
mod codec;
mod dct;
mod golden;
mod outer_step;
mod plain;
mod samples;
