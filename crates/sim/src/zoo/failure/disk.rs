//! What happens to the disk of a node that is not running, given as the folder of its local state.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use templar_node::frame::files::Disk;
use templar_node::frame::local::Local;
use templar_protocol::keys::Hotkey;
use templar_protocol::run::RunSpec;
use templar_protocol::state::RunState;

/// It is another, empty disk. The node starts from a certified checkpoint.
pub fn wipe(folder: &Path, _: &RunSpec, _: &Hotkey) {
    fs::remove_dir_all(folder).expect("the node has a folder");
}

/// Flips the first byte of every file whose name begins with `kind`, of which there must be one. Digests show it: the node
/// says once what it lost, and goes on with what it can get.
pub fn spoil(folder: &Path, kind: &str) {
    let files = |folder: &Path| fs::read_dir(folder).expect("the node has a folder").flatten().map(|file| file.path());
    let is_of_kind =
        |file: &Path| file.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(kind));
    let mut spoiled = 0;
    for file in files(folder).flat_map(|run| files(&run)).filter(|file| is_of_kind(file)) {
        let mut bytes = fs::read(&file).expect("it was just listed");
        bytes[0] ^= 1;
        fs::write(&file, bytes).expect("it belongs to the rehearsal");
        spoiled += 1;
    }
    assert!(spoiled > 0, "there is no {kind}");
}

/// Moves the newest state to another θ, root and all: what a node with a broken memory would have. The others' votes show
/// it: the node goes back to the last certified state.
pub fn diverge(folder: &Path, spec: &RunSpec, hotkey: &Hotkey) {
    let mut local = Local::open(folder, spec.id(), hotkey, Disk::Volatile).expect("the node kept a state");
    let layout = spec.layout();
    let state = local.states(spec.id()).expect("the node kept a state").remove(0);
    let mut theta = local.theta(&state, &layout).expect("the node kept θ");
    theta[7] += 1.0;
    let wrong = RunState { theta_root: layout.state_root(&theta), ..state };
    local.save(&wrong, &Arc::new(theta), &[]).expect("it belongs to the rehearsal");
}
