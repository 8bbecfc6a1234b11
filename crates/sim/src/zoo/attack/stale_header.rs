//! The same contribution again.

use templar_node::pretrain::setup::Setup;
use templar_record::event::Role;

use crate::zoo::kind::Kind;
use crate::zoo::layers::{forge_uploads, published, rewrite_commitments, window_of};

pub const KIND: Kind = Kind {
    name: "stale-header",
    role: Role::Miner,
    tries: "It commits the header of its first window again in every later one, to be paid for it more than once.",
    stopped_by: "The fault WrongWindow: a header names its window, whatever the chain says.",
    wrap: |setup, _| wrap(setup, 0, |_| true),
};

/// A miner that commits its header of the window `old` again in those later windows for which `again` is true.
pub fn wrap(setup: Setup, old: u64, again: impl Fn(u64) -> bool + Clone + Send + 'static) -> Setup {
    let (mut old_header, mut old_word) = (None, None);
    let is_due = again.clone();
    let setup = forge_uploads(setup, move |key, bytes| {
        let stale = match published(key) {
            Some((window, "header")) if window == old => {
                old_header = Some(bytes.clone());
                None
            }
            Some((window, "header")) if window > old && is_due(window) => old_header.clone(),
            _ => None,
        };
        vec![(key.to_owned(), stale.unwrap_or(bytes))]
    });
    rewrite_commitments(setup, move |fields| {
        let Some(word) = fields.get_mut(1) else { return };
        let window = window_of(word);
        // Tag and window, and then the header's hash.
        match &old_word {
            _ if window == Some(old) => old_word = Some(word[5..].to_vec()),
            Some(hash) if window.is_some_and(|window| window > old && again(window)) => word[5..].copy_from_slice(hash),
            _ => {}
        }
    })
}
