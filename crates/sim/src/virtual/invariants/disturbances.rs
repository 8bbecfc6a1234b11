//! What is known to go wrong with nodes that mean well.

use std::collections::BTreeMap;

/// Windows that a node needs to be itself again, after the one in which its failure ended.
const RECOVERY_WINDOWS: u64 = 2;

/// The windows in which failures were injected into nodes.
#[derive(Clone, Debug, Default)]
pub struct Disturbances(BTreeMap<String, Vec<(u64, u64)>>);

impl Disturbances {
    /// `node` suffers from window `first` to window `last`.
    pub fn add(&mut self, node: &str, first: u64, last: u64) {
        self.0.entry(node.to_owned()).or_default().push((first, last));
    }

    /// Whether nothing was injected into `node` in `window`, and nothing before from which it may still recover.
    pub fn is_calm(&self, node: &str, window: u64) -> bool {
        let spans = self.0.get(node).into_iter().flatten();
        spans.into_iter().all(|(first, last)| window < *first || window > last + RECOVERY_WINDOWS)
    }
}
