//! The property tests once more, with more cases than a plain `cargo test` takes.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use std::{fs, thread};

use crate::{Failure, root};

/// Test binaries and their cases: about four minutes in all on two cores, two binaries at a time.
const SEARCHES: [(&str, u32); 4] =
    [("templar_codec", 9_000), ("templar_protocol", 45_000), ("contributions", 150_000), ("templar_data", 80_000)];
const AT_ONCE: usize = 2;
/// A search that has found nothing by then has passed. Shrinking what it found takes a part of that time only.
const TIME_MAX: Duration = Duration::from_secs(150);
const SHRINKING_MS_MAX: u32 = 20_000;

pub(crate) fn properties() -> Result<(), Failure> {
    let built = built()?;
    let mut searches = Vec::new();
    for (name, cases) in SEARCHES {
        let found: Vec<_> = built.iter().filter(|path| is_of(path, name)).collect();
        if found.is_empty() {
            return Err(format!("no test binary is named {name}: does xtask/src/search.rs name what there is?"));
        }
        searches.extend(found.into_iter().map(|path| (path.clone(), cases)));
    }
    let (queue, failures) = (Mutex::new(searches.into_iter()), Mutex::new(Vec::new()));
    let next = || queue.lock().ok()?.next();
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some((path, cases)) = next() {
                    if let Err(failure) = search(&path, cases)
                        && let Ok(mut failures) = failures.lock()
                    {
                        failures.push(failure);
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().map_err(|_| "a search panicked".to_owned())?;
    if failures.is_empty() { Ok(()) } else { Err(failures.join("\n")) }
}

/// The test binaries of the workspace, as cargo names them.
fn built() -> Result<Vec<PathBuf>, Failure> {
    let mut cargo = Command::new("cargo");
    cargo.args(["test", "--workspace", "--release", "--no-run"]).current_dir(root());
    let output = cargo.output().map_err(|error| format!("cargo cannot be started: {error}"))?;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() {
        return Err(format!("{told}\nthe tests cannot be built"));
    }
    let binary = |line: &str| Some(PathBuf::from(line.rsplit_once('(')?.1.strip_suffix(')')?));
    let lines = told.lines().filter(|line| line.trim_start().starts_with("Executable"));
    Ok(lines.filter_map(binary).map(|path| root().join(path)).collect())
}

/// Whether a binary is `name`, a hyphen and a hash.
fn is_of(path: &std::path::Path, name: &str) -> bool {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    file.rsplit_once('-').is_some_and(|(stem, _)| stem == name)
}

fn search(path: &std::path::Path, cases: u32) -> Result<(), Failure> {
    let log = std::env::temp_dir().join(format!(
        "templar-search-{}-{}",
        std::process::id(),
        path.file_name().unwrap_or_default().to_string_lossy()
    ));
    let result = logged(path, cases, &log);
    let told = fs::read_to_string(&log).unwrap_or_default();
    let _ = fs::remove_file(&log);
    let passed = match result? {
        Some(passed) => passed,
        None => !told.contains("FAILED") && !told.contains("panicked at"),
    };
    if passed { Ok(()) } else { Err(format!("{}:\n{told}", path.display())) }
}

/// Whether the search passed; `None` if its time was up.
fn logged(path: &std::path::Path, cases: u32, log: &std::path::Path) -> Result<Option<bool>, Failure> {
    let told = |error| format!("{}: {error}", path.display());
    let output = fs::File::create(log).map_err(told)?;
    let mut child = Command::new(path)
        .current_dir(root())
        .env("PROPTEST_CASES", cases.to_string())
        .env("PROPTEST_MAX_SHRINK_TIME", SHRINKING_MS_MAX.to_string())
        .stdin(Stdio::null())
        .stdout(output.try_clone().map_err(told)?)
        .stderr(output)
        .spawn()
        .map_err(told)?;
    wait(&mut child).map_err(told)
}

fn wait(child: &mut Child) -> std::io::Result<Option<bool>> {
    let begin = Instant::now();
    while begin.elapsed() < TIME_MAX {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status.success()));
        }
        thread::sleep(Duration::from_millis(100));
    }
    child.kill()?;
    child.wait()?;
    Ok(None)
}
