//! Standard output, as text for people or as JSON. If the reader goes away or the disk is full, the verb ends without a
//! panic.
//!
//! A failed write is noted once: long verbs are asked to stop as by Ctrl-C, all later output is dropped, and
//! the process ends with the right code.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, OnceLock};

use tokio::sync::watch;

/// Writes a line to standard output.
macro_rules! say {
    ($($arg:tt)*) => { $crate::output::line(format_args!($($arg)*)) };
}
pub(crate) use say;

static JSON: OnceLock<bool> = OnceLock::new();
static FAILURE: OnceLock<io::Error> = OnceLock::new();
/// Set and read under standard output's lock.
static IS_CLOSED: AtomicBool = AtomicBool::new(false);
static FAILED: LazyLock<watch::Sender<bool>> = LazyLock::new(|| watch::Sender::new(false));

/// Chooses JSON or text, once, before anything is written.
pub(crate) fn choose(json: bool) {
    let _ = JSON.set(json);
}

/// Whether the reader is a program.
pub(crate) fn is_json() -> bool {
    JSON.get().copied().unwrap_or(false)
}

/// Writes a line, in which a terminal finds nothing to obey.
pub(crate) fn line(text: fmt::Arguments<'_>) {
    if is_json() {
        return write(format_args!("{text}\n"));
    }
    write(format_args!("{}\n", plain(&text.to_string())));
}

/// A text with its control characters as escapes, but for line ends and tabs: names and causes may be a stranger's, and
/// could move the cursor or rewrite what stands above.
pub(crate) fn plain(text: &str) -> Cow<'_, str> {
    let obeyed = |letter: char| letter.is_control() && !"\n\t".contains(letter);
    if !text.contains(obeyed) {
        return Cow::Borrowed(text);
    }
    let escaped = |letter: char| if obeyed(letter) { letter.escape_default().to_string() } else { letter.to_string() };
    Cow::Owned(text.chars().map(escaped).collect())
}

/// Writes to standard output at once, unless an earlier write failed.
pub(crate) fn write(text: fmt::Arguments<'_>) {
    if FAILURE.get().is_some() {
        return;
    }
    let mut stdout = io::stdout().lock();
    if IS_CLOSED.load(Ordering::Relaxed) {
        return;
    }
    if let Err(error) = stdout.write_fmt(text).and_then(|()| stdout.flush()) {
        let _ = FAILURE.set(error);
        FAILED.send_replace(true);
    }
}

/// Writes a last line: all later output is dropped, whichever thread it comes from.
pub(crate) fn write_last(text: fmt::Arguments<'_>) {
    // The same thread may take the lock again.
    let _stdout = io::stdout().lock();
    write(format_args!("{text}\n"));
    IS_CLOSED.store(true, Ordering::Relaxed);
}

/// Why standard output accepts nothing more, if that is so.
pub(crate) fn failure() -> Option<&'static io::Error> {
    FAILURE.get()
}

/// Becomes true when standard output accepts nothing more.
pub(crate) fn failed() -> watch::Receiver<bool> {
    FAILED.subscribe()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_finds_nothing_to_obey() {
        assert_eq!(plain("θ:\n\ta"), "θ:\n\ta");
        assert_eq!(plain("a\u{1b}[2Jb\rc\u{9b}d\u{7}"), "a\\u{1b}[2Jb\\rc\\u{9b}d\\u{7}");
    }
}
