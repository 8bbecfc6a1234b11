//! Votes for whatever was committed.

use templar_node::pretrain::setup::Setup;
use templar_protocol::commitment::Commitment;
use templar_protocol::word::{self, Vote};

use crate::zoo::layers::rewrite_commitments;

/// A validator that accepts every one of `candidates` in a window, whatever it found. Only where most of the stake does
/// so is anything certified that nobody can decode, and then nobody downloads what is too large: the window's step is
/// withheld.
///
/// A rehearsal does not offer it by name, because the numbers of candidates and validators have to be known beforehand.
pub fn wrap(setup: Setup, window: u32, candidates: usize, validators: usize) -> Setup {
    rewrite_commitments(setup, move |fields| {
        let commitment = Commitment { block: 0, fields: fields.to_vec() };
        if let Ok(vote) = Vote::read(&commitment, window, candidates, validators) {
            let vote = Vote { accept: vec![true; candidates], exclude: vec![false; candidates], ..vote };
            fields.swap_with_slice(&mut word::fields(&commitment.fields[0], None, Some(&vote)));
        }
    })
}
