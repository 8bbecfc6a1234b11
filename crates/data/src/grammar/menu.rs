//! A menu: the words that may come next, each with its weight and with what choosing it means.

use templar_protocol::hash::Stream;

/// What a choice means, as far as later choices depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pick {
    Opener,
    Determiner {
        plural: bool,
    },
    Quality {
        kind: usize,
    },
    Noun {
        index: usize,
    },
    Who,
    Verb {
        kind: usize,
    },
    Relation,
    ActorAgain,
    ThingAgain,
    /// A word without alternatives, or one on which nothing depends.
    Plain,
    /// The end of the sentence.
    Stop,
}

/// The choices in one state. Their words all differ, so a word identifies its choice.
#[derive(Debug, Clone)]
pub(super) struct Menu {
    entries: Vec<Entry>,
    total: u64,
}

#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) word: String,
    pub(super) pick: Pick,
    weight: u32,
}

impl Menu {
    pub(super) fn new(entries: impl IntoIterator<Item = (String, u32, Pick)>) -> Self {
        let entries: Vec<_> = entries.into_iter().map(|(word, weight, pick)| Entry { word, pick, weight }).collect();
        let total = entries.iter().map(|entry| u64::from(entry.weight)).sum();
        let distinct: std::collections::HashSet<_> = entries.iter().map(|entry| &entry.word).collect();
        assert!(distinct.len() == entries.len() && total > 0, "the choices of a menu must have different words");
        Self { entries, total }
    }

    pub(super) fn one(word: impl Into<String>, pick: Pick) -> Self {
        Self::new([(word.into(), 1, pick)])
    }

    /// The choices of both menus, where `others` are drawn in `percent` of 100 cases, up to the rounding of weights.
    pub(super) fn or(self, percent: u32, others: Self) -> Self {
        let scale = |menu: Self, percent: u32| {
            menu.entries.into_iter().map(move |entry| {
                let weight = u64::from(entry.weight) * u64::from(percent) * 1_000_000 / menu.total;
                (entry.word, (weight as u32).max(1), entry.pick)
            })
        };
        Self::new(scale(self, 100 - percent).chain(scale(others, percent)))
    }

    pub(super) fn draw(&self, stream: &mut Stream) -> &Entry {
        let mut left = stream.below(self.total);
        let drawn = self.entries.iter().find(|entry| match left.checked_sub(u64::from(entry.weight)) {
            Some(rest) => {
                left = rest;
                false
            }
            None => true,
        });
        drawn.expect("the draw is below the sum of the weights")
    }

    pub(super) fn find(&self, word: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.word == word)
    }

    /// Each choice and its probability.
    pub(super) fn probabilities(&self) -> impl Iterator<Item = (&Entry, f64)> {
        self.entries.iter().map(|entry| (entry, self.probability(entry)))
    }

    pub(super) fn probability(&self, entry: &Entry) -> f64 {
        f64::from(entry.weight) / self.total as f64
    }
}
