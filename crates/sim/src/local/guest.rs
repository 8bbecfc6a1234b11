//! Nodes of other people that may join a local network.

use std::path::PathBuf;

use templar_protocol::keys::Hotkey;
use templar_record::event::Role;

/// Somebody else's node, on any machine, that may take part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guest {
    /// Name of its bucket and its folder.
    pub name: String,
    pub role: Role,
    pub hotkey: Hotkey,
}

/// What a guest needs to take part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invitation {
    pub guest: Guest,
    /// The folder to copy to the guest's machine: the run, the credentials of its bucket, and `start.sh`.
    pub folder: PathBuf,
    /// What is in `start.sh`: the verb and its options, with paths relative to the folder.
    pub arguments: Vec<String>,
}
