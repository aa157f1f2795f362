//! One writer at a time per proxy: its API may take the configuration as a whole, and Nginx Proxy Manager mixes up two
//! changes that come together. Within a process a lock sees to it; among processes a lease in NATS, which ends by itself
//! where its holder died.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use domain::Slug;
use eventlog::EventLog;
use tokio::sync::OwnedMutexGuard;

use crate::failure::{Problem, StepError};

const LEASES: &str = "leases";
/// Whoever waits looks again after this.
const PAUSE: Duration = Duration::from_millis(200);
/// Longer than a change may take; the bucket forgets a lease later than this.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Default)]
pub(super) struct Turns(Mutex<HashMap<Slug, Arc<tokio::sync::Mutex<()>>>>);

/// The right to change a proxy, until it is given back.
pub(super) struct Turn {
    log: EventLog,
    key: String,
    revision: u64,
    _alone: OwnedMutexGuard<()>,
}

impl Turns {
    /// Waits for the turn of the process `holder` at `proxy`.
    pub(super) async fn take(&self, log: &EventLog, holder: &str, proxy: &Slug) -> Result<Turn, StepError> {
        let lock = self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(proxy.clone()).or_default().clone();
        let waiting = async {
            let alone = lock.lock_owned().await;
            let (bucket, key) = (log.bucket(LEASES), format!("proxy.{proxy}"));
            loop {
                let taken = match bucket.get(&key).await? {
                    // Left behind by a change of our own that was given up in the middle.
                    Some(entry) if entry.value == holder.as_bytes() => {
                        bucket.update(&key, holder.to_owned(), entry.revision).await
                    }
                    Some(_) => Err(eventlog::Error::WrongRevision { bucket: LEASES.into(), key: key.clone() }),
                    None => bucket.create(&key, holder.to_owned()).await,
                };
                match taken {
                    Ok(revision) => return Ok(Turn { log: log.clone(), key, revision, _alone: alone }),
                    Err(eventlog::Error::WrongRevision { .. }) => tokio::time::sleep(PAUSE).await,
                    Err(error) => return Err(error.into()),
                }
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| {
            Err(StepError::Transient(Problem::new(
                "proxy_busy",
                format!("another change of the proxy {proxy} is under way"),
                "wait for it; the lease of a process that died ends within two minutes",
            )))
        })
    }
}

impl Turn {
    pub(super) async fn give_back(self) {
        if let Err(error) = self.log.bucket(LEASES).delete(&self.key, Some(self.revision)).await {
            tracing::debug!(%error, lease = self.key, "a lease is left to end by itself");
        }
    }
}
