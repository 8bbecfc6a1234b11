//! What a miner's contributions were worth to the model, and the weights that a validator sets for them.
//!
//! Pure: observations in, weights out. There is no I/O, no clock and no device here, so anybody who has a validator's
//! record can compute its weights again.
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
