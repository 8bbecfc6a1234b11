//! Headers' records that are not what the protocol writes.

use templar_record::event::Role;

use crate::zoo::kind::Kind;
use crate::zoo::layers::{rewrite_commitments, window_of};

pub const KIND: Kind = Kind {
    name: "malformed-word",
    role: Role::Miner,
    tries: "It commits its header's hash in a record that is too long, too short or of no known kind, each window in another way.",
    stopped_by: "Reading is total: the fault WordMalformed, alike at every node.",
    wrap: |setup, _| {
        rewrite_commitments(setup, |fields| {
            let Some(word) = fields.get_mut(1) else { return };
            match window_of(word).map(|window| window % 3) {
                Some(0) => word.push(0),
                Some(1) => drop(word.pop()),
                // The window stays readable, so that the record is about it.
                Some(_) => word[0] = 9,
                None => {}
            }
        })
    },
};
