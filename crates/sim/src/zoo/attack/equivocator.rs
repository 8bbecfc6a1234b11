//! Two votes in one window.

use templar_record::event::Role;

use crate::zoo::ballots::{When, rewrite_votes};
use crate::zoo::kind::Kind;

pub const KIND: Kind = Kind {
    name: "equivocator",
    role: Role::Validator,
    tries: "It votes to exclude everybody, on a state of its own, and votes honestly some blocks later, so that nodes may count different votes.",
    stopped_by: "Votes are read as of the vote block, from the finalised chain: everybody counts the same one.",
    wrap: |setup, _| {
        let mut voted = None;
        rewrite_votes(setup, When::Now, move |vote, view| {
            if voted.replace(view.window) != Some(view.window) {
                vote.root.0[0] ^= 1;
                vote.accept.fill(false);
            }
        })
    },
};
