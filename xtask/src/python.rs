//! Tools that come as Python packages, each installed in its own environment below ~/.cache/templar/python.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::steps::finish;
use crate::{Failure, root};

pub(crate) fn install() -> Result<(), Failure> {
    tools()?;
    reader().map(drop)
}

/// A ready-made binary of tools/requirements.txt.
pub(crate) fn tool(name: &str) -> Result<PathBuf, Failure> {
    Ok(tools()?.join("bin").join(name))
}

/// The interpreter of the second reader, which needs numpy.
pub(crate) fn reader() -> Result<PathBuf, Failure> {
    Ok(environment("reader", &["numpy"], "numpy")?.join("bin/python"))
}

fn tools() -> Result<PathBuf, Failure> {
    let path = root().join("tools/requirements.txt");
    let wanted = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    environment("tools", &["-r", &path.to_string_lossy()], &wanted)
}

/// The environment of this name with these packages. It is rebuilt when `wanted` differs from what it was made from.
fn environment(name: &str, packages: &[&str], wanted: &str) -> Result<PathBuf, Failure> {
    let home = std::env::var_os("HOME").ok_or("HOME is not set: it says where tools are kept")?;
    let folder = Path::new(&home).join(".cache/templar/python").join(name);
    let stamp = folder.join("made-from");
    if fs::read_to_string(&stamp).is_ok_and(|made_from| made_from == wanted) {
        return Ok(folder);
    }
    finish(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))?;
    finish(Command::new(folder.join("bin/pip")).args(["install", "--quiet"]).args(packages))?;
    fs::write(&stamp, wanted).map_err(|error| format!("{}: {error}", stamp.display()))?;
    Ok(folder)
}
