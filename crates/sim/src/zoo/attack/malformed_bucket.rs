//! A bucket that nobody can read about.

use templar_record::event::Role;

use crate::zoo::kind::Kind;
use crate::zoo::layers::rewrite_commitments;

pub const KIND: Kind = Kind {
    name: "malformed-bucket",
    role: Role::Miner,
    tries: "It publishes the location of its bucket in a version that does not exist, and commits as if all were well.",
    stopped_by: "Reading the roster: the entry is malformed, is counted as that, and takes no part.",
    wrap: |setup, _| {
        rewrite_commitments(setup, |fields| {
            if let Some(version) = fields.first_mut().and_then(|bucket| bucket.first_mut()) {
                *version = 9;
            }
        })
    },
};
