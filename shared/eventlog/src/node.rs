//! Questions to the deployer of a node.

use std::time::Duration;

use domain::{
    image::Reference,
    node::{Resolve, Resolved, resolve_subject},
};
use tokio::time::Instant;

use crate::{EventLog, error::Error};

/// The deployer asks a registry, which may be slow.
const RESOLVE_LIMIT: Duration = Duration::from_secs(30);
/// How long a deployer may be missing: it is back sooner after a restart.
const ABSENCE_LIMIT: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(250);

impl EventLog {
    /// Asks the node which bytes `reference` means now. [`Error::NobodyAnswers`] where it has no deployer.
    pub async fn resolve(&self, node: &str, reference: &Reference) -> Result<Resolved, Error> {
        const OPERATION: &str = "resolving an image";
        let unreadable = |error: serde_json::Error| Error::Protocol { operation: OPERATION, detail: error.to_string() };
        let question = serde_json::to_vec(&Resolve { reference: reference.to_string() }).map_err(unreadable)?;
        let subject = resolve_subject(node);
        let started = Instant::now();
        loop {
            let left = RESOLVE_LIMIT.saturating_sub(started.elapsed());
            match self.request(&subject, question.clone(), left).await {
                Ok(reply) => return serde_json::from_slice(&reply).map_err(unreadable),
                Err(Error::NobodyAnswers { .. }) if started.elapsed() < ABSENCE_LIMIT => {
                    // A deployer that restarts cannot announce itself to us; ask again.
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}
