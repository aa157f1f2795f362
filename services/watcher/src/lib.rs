//! Looks after what nobody asks for at the moment when it can happen: promotions that wait for their gates, and releases
//! of projects that promote by themselves.
//!
//! Owns: when something is looked at again. What comes of it is decided by the aggregates, from evidence that must still
//! hold at the commit: any number of watchers may look at the same thing, and it happens once.
//!
//! Must never import: another service, async-nats, sqlx, bollard.

mod automatic;
mod look;
mod promotions;

use anyhow::Result;
use eventlog::EventLog;
use tokio_util::sync::CancellationToken;

/// The actor of what it does.
const ACTOR: &str = "watcher";

/// Settings of a watcher.
#[derive(Debug, Clone)]
pub struct Config {
    /// `NODE`: where deployments run.
    pub node: String,
}

/// Watches until `shutdown`. Outlives outages of NATS; fails on an event that this version cannot read.
pub async fn run(config: Config, log: EventLog, shutdown: CancellationToken) -> Result<()> {
    tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        ended = Box::pin(promotions::run(&config, &log)) => ended,
        ended = Box::pin(automatic::run(&config, &log)) => ended,
    }
}
