//! A node's disk as its user finds it: small, and full at last.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use std::process::Command;
use std::sync::Arc;

use tempfile::TempDir;
use templar_node::frame::error::NodeError;
use templar_node::frame::files::Disk;
use templar_node::frame::local::Local;
use templar_protocol::hash::Hash32;
use templar_protocol::keys::Keypair;
use templar_protocol::layout::Layout;
use templar_protocol::run::RunId;
use templar_protocol::standing::Standing;
use templar_protocol::state::RunState;

/// A file system of so many bytes; none where this user may not mount one.
struct Small(TempDir);

impl Small {
    fn mount(bytes: usize) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"]).arg(folder.path());
        mount.output().is_ok_and(|output| output.status.success()).then_some(Self(folder))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_costs_nothing_of_what_is_on_it() {
    const VALUES: u64 = 100_000;
    // Where nothing can be mounted, the tests of `frame::files` and `frame::local` have errors injected.
    let Some(disk) = Small::mount(1 << 20) else { return };
    let (run, layout) = (RunId(Hash32::of(b"run")), Layout::new([("w".to_owned(), vec![VALUES])]));
    let hotkey = Keypair::insecure_dev(0, "a").hotkey();
    let open = || Local::open(disk.0.path(), run, &hotkey, Disk::Durable);
    let mut local = open().unwrap();
    let save = |local: &mut Local, settled: u64| {
        let theta = Arc::new(vec![settled as f32 + 0.5; VALUES as usize]);
        let theta_root = layout.state_root(&theta);
        let (previous, inputs, standing) = (Hash32::default(), Hash32::default(), Standing::default());
        let state = RunState { run, settled, previous, inputs, theta_root, cursor: 0, outer_steps: 0, standing };
        local.save(&state, &theta, &[])
    };
    let (saved, error) =
        (0..).find_map(|settled| save(&mut local, settled).err().map(|error| (settled, error))).unwrap();
    assert!(matches!(error, NodeError::DiskFull { needed_bytes: 400_000, .. }), "{error}");
    assert!(saved >= 1 && error.is_fatal());
    drop(local);
    let local = open().unwrap();
    let newest = &local.states(run).unwrap()[0];
    assert_eq!(newest.settled, saved - 1);
    // Which has passed the check of its root.
    assert_eq!(local.theta(newest, &layout).unwrap().len() as u64, VALUES);
}
