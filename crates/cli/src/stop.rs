//! Ctrl-C and SIGTERM: the first asks nodes to stop, the second ends the process at once.

use tokio::sync::watch;

/// Becomes true when the user wants an end. Must be called on a runtime.
pub(crate) fn on_signal() -> watch::Receiver<bool> {
    let (sender, receiver) = watch::channel(false);
    tokio::spawn(async move {
        signalled().await;
        eprintln!("\nstopping; press Ctrl-C again to end at once");
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
