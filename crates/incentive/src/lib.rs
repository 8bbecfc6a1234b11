//! Computes what a miner's contributions were worth to the model, and the weights that a validator sets for them.
//!
//! The crate is pure: observations in, weights out. It has no I/O, clock or device, so anybody with a validator's
//! record can recompute its weights.
//!
//! | what | module |
//! |---|---|
//! | observations → ratings → weights | [`score`] |
//!
//! ```
//! use templar_incentive::score::ScoreBook;
//! use templar_protocol::roster::Roster;
//!
//! // Nobody has been observed yet, so nobody has a weight.
//! let roster = Roster { miners: vec![], validators: vec![], malformed: vec![] };
//! assert!(ScoreBook::default().weights(&roster).is_empty());
//! ```

pub mod score;
