//! A contribution that nobody can open.

use templar_record::event::Role;

use crate::zoo::kind::Kind;
use crate::zoo::layers::{forge_uploads, published};

pub const KIND: Kind = Kind {
    name: "withhold",
    role: Role::Miner,
    tries: "It commits, and never publishes the key: it takes a seat and shows nothing.",
    stopped_by: "The fault NotOpened: what is not opened does not count, and ranks below a bad contribution.",
    wrap: |setup, _| {
        forge_uploads(setup, |key, bytes| {
            let is_key = published(key).is_some_and(|(_, object)| object == "key");
            if is_key { Vec::new() } else { vec![(key.to_owned(), bytes)] }
        })
    },
};
