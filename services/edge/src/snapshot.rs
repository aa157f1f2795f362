//! The routes on disk, so that the edge serves from the start while all else is away.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio_util::sync::CancellationToken;

use crate::routes::{Routes, Saved};

/// Puts the snapshot's routes in force. A missing one is a first start; a broken one is given up,
/// since the routes bucket holds the same.
pub(crate) fn load(path: &Path, routes: &Routes) {
    match read(path) {
        Ok(saved) => {
            let count = saved.len();
            restore(saved, routes);
            tracing::info!(routes = count, path = %path.display(), "routes restored from the snapshot");
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            tracing::warn!(%error, path = %path.display(), "the snapshot cannot be read, beginning without routes");
        }
    }
}

pub(crate) fn restore(saved: Vec<Saved>, routes: &Routes) {
    for Saved { key, revision, route } in saved {
        routes.put(&key, revision, route);
    }
}

/// Writes every change of `routes` to `path`, until `stop`; what is being written then is finished.
pub(crate) async fn keep(path: PathBuf, routes: Arc<Routes>, stop: CancellationToken) {
    let mut changes = routes.changes();
    // Whatever changed before this task began.
    changes.mark_changed();
    while let Some(Ok(())) = stop.run_until_cancelled(changes.changed()).await {
        let (path, saved) = (path.clone(), routes.saved());
        let written = tokio::task::spawn_blocking(move || write(&path, &saved)).await;
        if let Ok(Err(error)) = written {
            tracing::error!(%error, "the routes snapshot cannot be written: a restart without NATS would serve old routes");
        }
    }
}

fn read(path: &Path) -> io::Result<Vec<Saved>> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

fn write(path: &Path, saved: &[Saved]) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        runtime::files::create_dir(folder)?;
    }
    runtime::files::replace(path, &serde_json::to_vec(saved)?, 0o600)
}
