//! What a node may keep: bounds on its bucket, its folder and what it tells, all from the run alone.

use std::fs;
use std::path::Path;

use templar_protocol::run::RunSpec;
use templar_record::event::Role;

/// Retries of failed steps, half a second apart, each with its event, from a few steps at once.
const EVENTS_PER_BLOCK_MAX: u64 = 100;
/// Files of a node's folder, whatever happens: database, states, error feedback, sealed payloads.
const FILES_MAX: usize = 48;

/// Objects that the bucket of a node with this role may hold. A validator's holds what it voted for until a checkpoint
/// contains it is certified, and three checkpoints; a miner's the windows that are not settled, and two more.
pub(super) fn objects_max(spec: &RunSpec, role: Role) -> usize {
    let seats = (spec.roster.gather + spec.roster.reserve) as usize;
    let period = spec.windows.checkpoint_every_windows as usize;
    match role {
        Role::Miner => 3 * 8,
        // Two objects each: what was sealed, and its key.
        Role::Validator => 3 * (3 * period + 4) * seats + 4 * 8,
    }
}

/// Events that one node may tell in one window, among `nodes`.
pub(super) fn events_max(spec: &RunSpec, nodes: usize) -> u64 {
    EVENTS_PER_BLOCK_MAX * spec.windows.blocks + 8 * nodes as u64
}

/// What is too much in a node's folder, if something is.
pub(super) fn too_many_files(folder: &Path) -> Option<String> {
    let files = count(folder);
    (files > FILES_MAX).then(|| format!("{files} files in its folder, where {FILES_MAX} are enough"))
}

fn count(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| if entry.path().is_dir() { count(&entry.path()) } else { 1 }).sum()
}
