//! Reads what strace wrote: a file for each thread, named by its number.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The files below `folder` that each node used, by the node's name.
pub(crate) fn opened_by_nodes(traces: &Path, folder: &Path) -> BTreeMap<String, BTreeSet<PathBuf>> {
    let mut threads = BTreeMap::new();
    for entry in fs::read_dir(traces).unwrap() {
        let path = entry.unwrap().path();
        let number: u64 = path.extension().unwrap().to_str().unwrap().parse().unwrap();
        threads.insert(number, String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned());
    }
    let mut parents = BTreeMap::new();
    for (number, calls) in &threads {
        let births = calls.lines().filter(|call| call.starts_with("clone") || call.contains("fork("));
        let born = births.filter_map(|call| call.rsplit_once(" = ")?.1.trim().parse::<u64>().ok());
        parents.extend(born.map(|child| (child, *number)));
    }
    let mut opened: BTreeMap<String, BTreeSet<PathBuf>> = BTreeMap::new();
    for (number, calls) in &threads {
        let Some(node) = node_of(*number, &threads, &parents) else { continue };
        let paths =
            calls.lines().filter(|call| !call.contains(" = -1 ")).flat_map(|call| call.split('"').skip(1).step_by(2));
        let inside = paths.map(PathBuf::from).filter(|path| path.starts_with(folder) && path != folder);
        // Before it is the node, its thread is still its parent, which opens its log.
        opened.entry(node).or_default().extend(inside.filter(|path| !path.ends_with("log")));
    }
    opened
}

/// The node to which a thread belongs: the name with which it, or whoever started it, was executed.
fn node_of(number: u64, threads: &BTreeMap<u64, String>, parents: &BTreeMap<u64, u64>) -> Option<String> {
    let mut number = number;
    loop {
        let execution =
            threads.get(&number)?.lines().find(|call| call.starts_with("execve(") && call.contains("\"--name\""));
        if let Some(call) = execution {
            return Some(call.split("\"--name\", \"").nth(1)?.split('"').next()?.to_owned());
        }
        number = *parents.get(&number)?;
    }
}
