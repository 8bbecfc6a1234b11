//! Ctrl-C and SIGTERM: the first asks whatever runs to stop, the second ends the process at once. Output that nobody
//! reads any more stops it too.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::{failure, output};

/// Becomes true when the user asks for an end. Signals are caught once this function has returned, so call it before
/// all work that takes long. Must be called on a runtime.
pub(crate) fn on_signal() -> watch::Receiver<bool> {
    on_signal_leaving(None)
}

/// [`on_signal`] for work whose files are in a folder, which stays behind if the process ends at once.
pub(crate) fn on_signal_leaving(folder: Option<PathBuf>) -> watch::Receiver<bool> {
    let (sender, receiver) = watch::channel(false);
    let mut signals = Signals::install();
    tokio::spawn(async move {
        let mut unread = output::failed();
        tokio::select! {
            () = signals.next() => eprintln!("\nstopping; press Ctrl-C again to end at once"),
            _ = unread.wait_for(|failed| *failed) => {}
        }
        let _ = sender.send(true);
        signals.next().await;
        if let Some(folder) = folder.filter(|folder| folder.exists()) {
            eprintln!(
                "ended at once: files are left in {}; remove them when you no longer need them",
                folder.display()
            );
        }
        std::process::exit(130);
    });
    receiver
}

/// Whether a signal is ending the process.
static IS_ENDING: AtomicBool = AtomicBool::new(false);
/// A temporary folder of a verb that [`end_at_once`] ends.
static TEMPORARY: Mutex<Option<PathBuf>> = Mutex::new(None);
/// Attempts to remove it.
const REMOVALS_MAX: u32 = 50;
/// How long the last document may take: whoever should read it may not.
const LAST_WORD: Duration = Duration::from_secs(1);

/// For verbs that have nothing to bring to an end: from now on the first signal ends the process, with code 130.
pub(crate) fn end_at_once() {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
    let mut signals = {
        let _entered = runtime.enter();
        Signals::install()
    };
    std::thread::spawn(move || {
        runtime.block_on(signals.next());
        IS_ENDING.store(true, Ordering::Relaxed);
        std::thread::spawn(|| {
            std::thread::sleep(LAST_WORD);
            std::process::exit(130);
        });
        // Before the verb can fail because its folder is gone.
        failure::tell_stopped();
        if let Some(folder) = TEMPORARY.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // The verb is still at work there, and may add a file meanwhile. Whatever cannot be removed stays, as after a SIGKILL.
            for _ in 0..REMOVALS_MAX {
                if std::fs::remove_dir_all(&folder).is_ok() || !folder.exists() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        std::process::exit(130);
    });
}

/// Lets a verb that ends while a signal ends the process leave the exit code to that.
pub(crate) fn yield_to_signal() {
    while IS_ENDING.load(Ordering::Relaxed) {
        std::thread::park();
    }
}

/// Has [`end_at_once`] remove this folder when it ends the process.
pub(crate) fn remove_if_ended(folder: &Path) {
    *TEMPORARY.lock().unwrap_or_else(PoisonError::into_inner) = Some(folder.to_owned());
}

/// The signals that ask the process to end.
#[cfg(unix)]
struct Signals {
    interrupt: Option<tokio::signal::unix::Signal>,
    terminate: Option<tokio::signal::unix::Signal>,
}

#[cfg(unix)]
impl Signals {
    /// From now on signals are caught, and no longer end the process by themselves.
    fn install() -> Self {
        use tokio::signal::unix::{SignalKind, signal};
        Self { interrupt: signal(SignalKind::interrupt()).ok(), terminate: signal(SignalKind::terminate()).ok() }
    }

    async fn next(&mut self) {
        let (interrupt, terminate) = (&mut self.interrupt, &mut self.terminate);
        tokio::select! {
            Some(()) = recv(interrupt) => {}
            Some(()) = recv(terminate) => {}
            else => std::future::pending().await,
        }
    }
}

#[cfg(unix)]
async fn recv(signal: &mut Option<tokio::signal::unix::Signal>) -> Option<()> {
    signal.as_mut()?.recv().await
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn install() -> Self {
        Self
    }

    async fn next(&mut self) {
        let _ = tokio::signal::ctrl_c().await;
    }
}
