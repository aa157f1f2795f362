//! An orderly end: one token, cancelled by SIGINT, SIGTERM or the death of the supervisor.

use anyhow::{Context, Result};
use tokio::{
    io::AsyncReadExt,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;

/// Cancelled when this process should end. With `supervised`, also when standard input closes: a
/// supervisor holds the other end, so its death is noticed however it died.
///
/// A second signal ends the process at once.
pub fn token(supervised: bool) -> Result<CancellationToken> {
    let token = CancellationToken::new();
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let stopping = token.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            () = orphaned(), if supervised => tracing::warn!("the supervisor is gone; stopping"),
        }
        stopping.cancel();
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        tracing::warn!("second signal: ending at once");
        std::process::exit(130);
    });
    Ok(token)
}

async fn orphaned() {
    let mut stdin = tokio::io::stdin();
    let mut rest = [0; 64];
    while matches!(stdin.read(&mut rest).await, Ok(read) if read > 0) {}
}
