//! What is known to go wrong with nodes that mean well.

use std::collections::BTreeMap;

/// Windows that a node needs to be itself again, after the one in which its failure ended.
const RECOVERY_WINDOWS: u64 = 2;

/// The windows in which failures were injected into nodes.
#[derive(Clone, Debug, Default)]
pub struct Disturbances {
    spans: BTreeMap<String, Vec<(u64, u64)>>,
    /// Those in which a node's link serves some requests and others not, or too late.
    poor_links: BTreeMap<String, Vec<(u64, u64)>>,
}

impl Disturbances {
    /// `node` suffers from window `first` to window `last`.
    pub fn add(&mut self, node: &str, first: u64, last: u64) {
        self.spans.entry(node.to_owned()).or_default().push((first, last));
    }

    /// The link of `node` is poor from window `first` to window `last`, besides what [`Disturbances::add`] says.
    pub fn add_poor_link(&mut self, node: &str, first: u64, last: u64) {
        self.poor_links.entry(node.to_owned()).or_default().push((first, last));
    }

    /// Whether `node` may see one bucket silent in `window` and others not, for no fault of that bucket's.
    pub fn has_poor_link(&self, node: &str, window: u64) -> bool {
        self.poor_links.get(node).into_iter().flatten().any(|(first, last)| (*first..=*last).contains(&window))
    }

    /// Whether nothing was injected into `node` in `window`, and nothing before from which it may still recover.
    pub fn is_calm(&self, node: &str, window: u64) -> bool {
        let spans = self.spans.get(node).into_iter().flatten();
        spans.into_iter().all(|(first, last)| window < *first || window > last + RECOVERY_WINDOWS)
    }
}
