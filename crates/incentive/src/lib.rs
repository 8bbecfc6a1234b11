//! Computes what a miner's contributions were worth to the model, and the weights that a validator sets for them.
//!
//! The crate is pure: records in, weights out. It has no I/O, clock or device, so anybody with a validator's record can
//! recompute its weights. `docs/spec/incentive.md` states every rule, with its reason.
//!
//! | what | module |
//! |---|---|
//! | whom a validator evaluates | [`draw`] |
//! | a fault → what it costs, and whom | [`charge`] |
//! | what one miner did, as moving averages | [`rating`] |
//! | the record → shares → weights | [`pay`] |
//! | an event log → the same weights again | [`replay`] |
//! | one miner's pay, factor by factor | [`explain`] |
//!
//! ```
//! use templar_incentive::pay::PayBook;
//! use templar_protocol::testing::spec;
//!
//! // Nobody has earned anything yet, so all of the emission goes to the burn uid.
//! let scoring = spec().scoring;
//! let weights = PayBook::default().weights(&scoring);
//! assert_eq!(weights.iter().map(|(uid, weight)| (uid.0, *weight)).collect::<Vec<_>>(), [(scoring.burn_uid, 65535)]);
//! ```

pub mod charge;
pub mod draw;
pub mod explain;
pub mod pay;
pub mod rating;
pub mod replay;
