//! A folder that the first release wrote, whose records had no versions, opens with all that is in it.
//!
//! The fixtures are what `miner-1` and `validator-0` had on disk when they were killed in window 5 of a rehearsal with a
//! delay of one window and a model of 1260 parameters.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use tempfile::TempDir;
use templar_node::frame::error::NodeError;
use templar_node::frame::files::Disk;
use templar_node::frame::local::Local;
use templar_node::frame::records::{
    CheckpointsRecord, ErrorFeedbackRecord, FloatFormat, HeldRecord, OptimiserRecord, OutcomesRecord, ScoresRecord,
    VoteRecord,
};
use templar_node::pretrain::pending::{Pending, Stage};
use templar_protocol::hash::Hash32;
use templar_protocol::keys::Keypair;
use templar_protocol::layout::Layout;
use templar_protocol::run::{RunId, RunSpec};
use templar_protocol::state::RunState;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/first-release")
}

fn spec() -> RunSpec {
    RunSpec::from_toml(&fs::read_to_string(fixtures().join("run.toml")).unwrap()).unwrap()
}

/// A copy of what `node` had.
fn copy(node: &str) -> TempDir {
    let target = tempfile::tempdir().unwrap();
    for folder in fs::read_dir(fixtures().join(node)).unwrap() {
        let folder = folder.unwrap();
        let copy = target.path().join(folder.file_name());
        fs::create_dir(&copy).unwrap();
        for file in fs::read_dir(folder.path()).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), copy.join(file.file_name())).unwrap();
        }
    }
    target
}

fn open(folder: &TempDir, name: &str) -> Local {
    let hotkey = Keypair::insecure_dev(77, name).hotkey();
    Local::open(folder.path(), spec().id(), &hotkey, Disk::Durable).unwrap()
}

fn assert_states(local: &Local) {
    let spec = spec();
    let states = local.states(spec.id()).unwrap();
    assert_eq!(states.iter().map(|state| state.settled).collect::<Vec<_>>(), [4, 3, 2]);
    let roots = ["f88274f4bcdb7917", "08656b95e598960d", "73457b11739ba1f9"];
    for (state, root) in states.iter().zip(roots) {
        assert!(state.theta_root.to_string().starts_with(root), "{}", state.theta_root);
        local.theta(state, &spec.layout()).unwrap();
    }
}

#[test]
fn a_miner_s_folder_of_the_first_release() {
    let folder = copy("miner");
    // The second time it is one of this release.
    for _ in 0..2 {
        let local = open(&folder, "miner-1");
        assert_states(&local);
        let error = local.get::<ErrorFeedbackRecord>().unwrap().unwrap();
        assert_eq!(error.format, FloatFormat::F32);
        assert_eq!(local.file(&error.file).unwrap().len(), 4 * spec().layout().len());
        let optimiser = local.get::<OptimiserRecord>().unwrap().unwrap();
        assert!(!local.file(&optimiser.file).unwrap().is_empty());
        let restored = Pending::load(&local).unwrap();
        assert!(restored.damaged.is_empty(), "{:?}", restored.damaged);
        let stages: Vec<_> = restored.whole.iter().map(|pending| (pending.window, pending.stage().clone())).collect();
        assert_eq!(stages, [(4, Stage::Opened)]);
        assert_eq!(local.get::<OutcomesRecord>().unwrap(), None);
    }
}

#[test]
fn a_validator_s_folder_of_the_first_release() {
    let folder = copy("validator");
    for _ in 0..2 {
        let local = open(&folder, "validator-0");
        assert_states(&local);
        let vote = local.get::<VoteRecord>().unwrap().unwrap();
        assert_eq!((vote.window, vote.accept, vote.exclude), (4, vec![true; 2], vec![false; 2]));
        assert_eq!(local.get::<CheckpointsRecord>().unwrap().unwrap().digests.len(), 1);
        let held = local.get::<HeldRecord>().unwrap().unwrap().contributions;
        assert!(held.iter().any(|(window, _)| *window == 4), "{held:?}");
        let book = local.get::<ScoresRecord>().unwrap().unwrap().book;
        assert_ne!(book, templar_incentive::score::ScoreBook::default());
    }
}

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
        let (previous, exclusions) = (Hash32::default(), Vec::new());
        let state = RunState { run, settled, previous, theta_root, cursor: 0, outer_steps: 0, exclusions };
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
