//! Contributions of which a part is missing.

use templar_node::pretrain::setup::Setup;
use templar_record::event::Role;

use crate::zoo::kind::Kind;
use crate::zoo::layers::{forge_uploads, published};

pub const KIND: Kind = Kind {
    name: "withhold",
    role: Role::Miner,
    tries: "It commits, and never publishes the key: it takes a seat and shows nothing.",
    stopped_by: "The fault NotOpened: what is not opened does not count, and is a value of 0, so that who hides again and again loses all pay.",
    wrap: |setup, _| wrap(setup, "key"),
};

pub const PAYLOAD: Kind = Kind {
    name: "withhold-payload",
    tries: "It commits and opens, and never uploads the payload.",
    stopped_by: "The fault PayloadUnavailable: what nobody can fetch does not count.",
    wrap: |setup, _| wrap(setup, "payload"),
    ..KIND
};

/// A miner that never uploads `kept`.
fn wrap(setup: Setup, kept: &'static str) -> Setup {
    forge_uploads(setup, move |key, bytes| {
        let is_kept = published(key).is_some_and(|(_, object)| object == kept);
        if is_kept { Vec::new() } else { vec![(key.to_owned(), bytes)] }
    })
}
