//! What an attack is.

use std::fmt;

use serde::{Serialize, Serializer};
use templar_node::pretrain::setup::Setup;
use templar_record::event::Role;

/// A kind of attack. Its name is what people type and what reports say.
#[derive(Clone, Copy)]
pub struct Kind {
    pub name: &'static str,
    /// Of whom it is an attack.
    pub role: Role,
    /// What it tries, in sentences about the node.
    pub tries: &'static str,
    /// What stops it, in sentences. What nothing stops yet is called open.
    pub stopped_by: &'static str,
    /// The parts of a node that plays this part, made from honest ones. Whose parts they are is in there as well: name,
    /// hotkey and run.
    pub wrap: fn(Setup, Part) -> Setup,
}

impl PartialEq for Kind {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Kind {}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl Serialize for Kind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name)
    }
}

/// Which one of all nodes of its kind a node is, for attacks that share out their work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Counted from 0.
    pub nth: usize,
    pub of: usize,
}

/// A node that misbehaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Adversary {
    pub kind: Kind,
    pub part: Part,
}

impl Adversary {
    /// The parts of this node, made from honest ones.
    pub fn wrap(self, setup: Setup) -> Setup {
        (self.kind.wrap)(setup, self.part)
    }

    /// What follows `templar adversary` to start this node, before the options of every node.
    pub fn arguments(self) -> [String; 5] {
        let Part { nth, of } = self.part;
        [self.kind.name.to_owned(), "--nth".to_owned(), nth.to_string(), "--of".to_owned(), of.to_string()]
    }

    /// A node for each of `kinds`, with the part that it plays among its like.
    pub fn all(kinds: &[Kind]) -> Vec<Self> {
        let alike = |kind: Kind, among: &[Kind]| among.iter().filter(|other| **other == kind).count();
        let nodes = kinds.iter().enumerate().map(|(at, &kind)| {
            let part = Part { nth: alike(kind, &kinds[..at]), of: alike(kind, kinds) };
            Self { kind, part }
        });
        nodes.collect()
    }
}
