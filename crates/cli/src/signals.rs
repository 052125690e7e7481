//! Ctrl-C and SIGTERM: once ends in order, twice at once.

use std::io;

use tokio_util::sync::CancellationToken;

/// Status of a process that was interrupted (128 + SIGINT).
const INTERRUPTED: i32 = 130;

/// Cancels `shutdown` at the first signal and ends the process at the second.
pub(crate) fn watch(shutdown: CancellationToken) -> io::Result<()> {
    #[cfg(unix)]
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::spawn(async move {
        loop {
            #[cfg(unix)]
            let signal = async {
                tokio::select! {
                    outcome = tokio::signal::ctrl_c() => outcome,
                    _ = terminate.recv() => Ok(()),
                }
            };
            #[cfg(not(unix))]
            let signal = tokio::signal::ctrl_c();
            if let Err(error) = signal.await {
                tracing::warn!("Ctrl-C can't be watched for: {error}");
                return;
            }
            if shutdown.is_cancelled() {
                std::process::exit(INTERRUPTED);
            }
            shutdown.cancel();
        }
    });
    Ok(())
}
