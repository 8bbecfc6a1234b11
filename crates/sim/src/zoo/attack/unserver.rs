//! Promises to serve that are not kept.

use templar_record::event::Role;

use crate::zoo::kind::Kind;
use crate::zoo::layers::forge_uploads;

pub const KIND: Kind = Kind {
    name: "unserver",
    role: Role::Validator,
    tries: "It votes for payloads and serves a copy of none.",
    stopped_by: "Redundancy: every other validator that accepted a payload serves it. A payload that none of them serves is withheld from the step, by the next votes.",
    wrap: |setup, _| {
        forge_uploads(setup, |key, bytes| {
            let is_held = key.contains("/held/");
            if is_held { Vec::new() } else { vec![(key.to_owned(), bytes)] }
        })
    },
};
