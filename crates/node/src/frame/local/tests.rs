//! What the local disk promises.

use std::fs;

use templar_protocol::hash::Hash32;
use templar_protocol::keys::Keypair;
use templar_protocol::standing::Standing;

use super::*;
use crate::frame::floats::to_bytes;
use crate::frame::records::{CheckpointsRecord, HeldRecord};

const VALUES: usize = 400;

fn state(settled: u64, layout: &Layout, theta: &[f32]) -> RunState {
    RunState {
        run: RunId(Hash32::of(b"run")),
        settled,
        previous: Hash32::default(),
        theta_root: layout.state_root(theta),
        cursor: 0,
        outer_steps: 0,
        inputs: Hash32::default(),
        standing: Standing::default(),
    }
}

fn hotkey(name: &str) -> Hotkey {
    Keypair::insecure_dev(0, name).hotkey()
}

fn open(folder: &Path, name: &str) -> Local {
    Local::open(folder, RunId(Hash32::of(b"run")), &hotkey(name), Disk::Durable).unwrap()
}

fn layout() -> Layout {
    Layout::new([("w".to_owned(), vec![VALUES as u64])])
}

/// Differs from its neighbours in one value.
fn theta(settled: u64) -> Arc<Vec<f32>> {
    let mut theta = vec![1.0; VALUES];
    theta[settled as usize] = 2.0;
    Arc::new(theta)
}

fn held(window: u64) -> HeldRecord {
    HeldRecord { contributions: vec![(window, Hash32::default())] }
}

fn files(local: &Local, kind: &str) -> Vec<String> {
    let names = fs::read_dir(local.folder()).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name.ends_with(kind)).collect();
    names.sort();
    names
}

#[test]
fn going_back_to_a_patched_state_damages_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let (layout, run) = (layout(), RunId(Hash32::of(b"run")));
    let mut local = open(folder.path(), "a");
    // The state after two windows is a patch; the node goes back to it, and on from it another way.
    for (settled, values) in [(0, 0), (1, 1), (2, 2), (3, 3), (2, 2), (3, 13), (4, 14)] {
        let theta = theta(values);
        local.save(&state(settled, &layout, &theta), &theta, &[]).unwrap();
        let states = local.states(run).unwrap();
        assert!(states.iter().all(|state| local.theta(state, &layout).is_ok()), "after {settled}");
    }
    drop(local);
    let local = open(folder.path(), "a");
    let states = local.states(run).unwrap();
    assert_eq!(local.theta(&states[0], &layout).unwrap(), *theta(14));
    assert!(states.iter().all(|state| local.theta(state, &layout).is_ok()));
}

#[test]
fn reopened_state_is_the_last_complete_one() {
    let folder = tempfile::tempdir().unwrap();
    let (layout, run) = (layout(), RunId(Hash32::of(b"run")));
    for settled in 0..5u64 {
        let theta = theta(settled);
        let values = [Stored::of(&held(settled))];
        open(folder.path(), "a").save(&state(settled, &layout, &theta), &theta, &values).unwrap();
    }
    let mut local = open(folder.path(), "a");
    let states = local.states(run).unwrap();
    assert_eq!(states.iter().map(|state| state.settled).collect::<Vec<_>>(), [4, 3, 2]);
    assert_eq!(local.theta(&states[0], &layout).unwrap(), *theta(4));
    assert_eq!(local.get::<HeldRecord>().unwrap(), Some(held(4)));
    let other = Local::open(folder.path(), RunId(Hash32::of(b"other")), &hotkey("a"), Disk::Durable).unwrap();
    assert!(other.states(run).unwrap().is_empty());

    let newest = local.folder().join(theta_name(&states[0], "bin"));
    let mut flipped = theta(4).to_vec();
    flipped[9] = 9.0;
    fs::write(&newest, to_bytes(&flipped)).unwrap();
    assert!(local.theta(&states[0], &layout).is_err(), "a flipped bit is not θ");

    // Left behind by a crash between the commit and the removal.
    let orphan = local.folder().join("theta-00000001-01234567.bin");
    fs::write(&orphan, b"old").unwrap();
    let theta = theta(5);
    local.save(&state(5, &layout, &theta), &theta, &[]).unwrap();
    assert!(!orphan.exists() && local.theta(&local.states(run).unwrap()[0], &layout).is_ok());
}

#[test]
fn a_state_is_written_whole_now_and_then_and_else_as_what_changed() {
    let folder = tempfile::tempdir().unwrap();
    let (layout, run) = (layout(), RunId(Hash32::of(b"run")));
    let mut local = open(folder.path(), "a");
    let mut written = 0;
    for settled in 0..40 {
        let theta = theta(settled);
        local.save(&state(settled, &layout, &theta), &theta, &[]).unwrap();
        for (nth, state) in local.states(run).unwrap().iter().enumerate() {
            assert_eq!(local.theta(state, &layout).unwrap(), *self::theta(settled - nth as u64));
        }
        let name = self::theta_name(&state(settled, &layout, &theta), "bin");
        written += u64::from(files(&local, ".bin").contains(&name));
        assert!(files(&local, ".bin").len() <= 2 && files(&local, ".patch").len() <= PATCHES_MAX + 2);
    }
    assert_eq!(written, 40u64.div_ceil(PATCHES_MAX as u64 + 1));
    // A null window writes nothing.
    let before = (files(&local, ".bin"), files(&local, ".patch"));
    local.save(&state(40, &layout, &theta(39)), &theta(39), &[]).unwrap();
    assert_eq!((files(&local, ".bin"), files(&local, ".patch")), before);
    assert_eq!(local.theta(&local.states(run).unwrap()[0], &layout).unwrap(), *theta(39));
}

#[test]
fn a_folder_is_one_node_s_at_a_time_and_hotkeys_share_none() {
    let folder = tempfile::tempdir().unwrap();
    let run = RunId(Hash32::of(b"run"));
    let mut first = open(folder.path(), "a");
    first.set(&held(7)).unwrap();
    let again = Local::open(folder.path(), run, &hotkey("a"), Disk::Durable);
    assert!(matches!(again, Err(NodeError::InUse { .. })), "{again:?}");
    assert_eq!(open(folder.path(), "b").get::<HeldRecord>().unwrap(), None);
    let mut similar = run;
    similar.0.0[31] ^= 1;
    let other = Local::open(folder.path(), similar, &hotkey("a"), Disk::Durable).unwrap();
    assert_eq!(other.get::<HeldRecord>().unwrap(), None);
    drop(first);
    assert_eq!(open(folder.path(), "a").get::<HeldRecord>().unwrap(), Some(held(7)));
}

#[test]
fn what_does_not_decode_is_an_error_with_a_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let mut local = open(folder.path(), "a");
    local.set(&CheckpointsRecord { digests: vec![Hash32::of(b"a")] }).unwrap();
    local.database.execute("UPDATE value SET bytes = x'0105'", []).unwrap();
    let error = local.get::<CheckpointsRecord>().unwrap_err();
    assert!(matches!(&error, NodeError::LocalRecord { record, .. } if record == "checkpoints"), "{error}");
    assert!(error.is_fatal() && error.to_string().contains("move the folder away"), "{error}");
    local.database.execute("INSERT INTO state VALUES (3, x'01')", []).unwrap();
    assert!(matches!(local.states(RunId(Hash32::of(b"run"))), Err(NodeError::LocalRecord { .. })));
    // The database of a newer release is not touched.
    local.database.pragma_update(None, "user_version", database::FORMAT + 1).unwrap();
    drop(local);
    let newer = Local::open(folder.path(), RunId(Hash32::of(b"run")), &hotkey("a"), Disk::Durable);
    assert!(matches!(newer, Err(NodeError::LocalRecord { .. })), "{newer:?}");
}

#[test]
fn the_log_is_folded_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut local = open(folder.path(), "a");
    let digests = (0..2000u32).map(|nth| Hash32::of(&nth.to_le_bytes())).collect();
    let record = CheckpointsRecord { digests };
    let path = local.folder().join("node.sqlite-wal");
    let mut sizes = Vec::new();
    for _ in 0..40 {
        local.set(&record).unwrap();
        sizes.push(fs::metadata(&path).map_or(0, |log| log.len()));
    }
    let most = *sizes.iter().max().unwrap();
    assert!(most > 0 && most < 3 * FOLD_BYTES, "{sizes:?}");
    assert!(sizes.iter().skip(2).any(|size| *size == 0), "{sizes:?}");
}

#[test]
fn a_database_that_cannot_grow_says_so_and_keeps_what_it_has() {
    let folder = tempfile::tempdir().unwrap();
    let mut local = open(folder.path(), "a");
    local.set(&held(1)).unwrap();
    let pages: i64 = local.database.query_row("PRAGMA page_count", [], |row| row.get(0)).unwrap();
    local.database.pragma_update(None, "max_page_count", pages).unwrap();
    let many = CheckpointsRecord { digests: vec![Hash32::default(); 2000] };
    let error = local.set(&many).unwrap_err();
    assert!(matches!(error, NodeError::DiskFull { needed_bytes: 64_005, .. }), "{error}");
    drop(local);
    let local = open(folder.path(), "a");
    assert_eq!(local.get::<HeldRecord>().unwrap(), Some(held(1)));
    assert_eq!(local.get::<CheckpointsRecord>().unwrap(), None);
}

#[test]
fn a_volatile_disk_has_the_same_states() {
    let folder = tempfile::tempdir().unwrap();
    let (layout, run, theta) = (layout(), RunId(Hash32::of(b"run")), theta(3));
    let open = |disk| Local::open(folder.path(), run, &hotkey("a"), disk).unwrap();
    open(Disk::Volatile).save(&state(3, &layout, &theta), &theta, &[Stored::of(&held(3))]).unwrap();
    for disk in [Disk::Durable, Disk::Volatile, Disk::Durable] {
        let local = open(disk);
        assert_eq!(local.theta(&local.states(run).unwrap()[0], &layout).unwrap(), *theta);
        assert_eq!(local.get::<HeldRecord>().unwrap(), Some(held(3)));
    }
}
