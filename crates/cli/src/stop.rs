//! Ctrl-C and SIGTERM: the first asks nodes to stop, the second ends the process at once. Output that nobody takes any more
//! stops them too.

use tokio::sync::watch;

use crate::output;

/// Becomes true when the user wants an end. Must be called on a runtime.
pub(crate) fn on_signal() -> watch::Receiver<bool> {
    let (sender, receiver) = watch::channel(false);
    tokio::spawn(async move {
        let mut unread = output::failed();
        tokio::select! {
            () = signalled() => eprintln!("\nstopping; press Ctrl-C again to end at once"),
            _ = unread.wait_for(|failed| *failed) => {}
        }
        let _ = sender.send(true);
        signalled().await;
        std::process::exit(130);
    });
    receiver
}

async fn signalled() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
            return;
        }
    }
    let _ = tokio::signal::ctrl_c().await;
}
