//! Looks after what nobody asks for at the moment when it can happen: images that were pushed to a registry, promotions
//! that wait for their gates, releases of projects that promote by themselves.
//!
//! Owns: when something is looked at again, and what a registry is asked. What comes of it is decided by the aggregates,
//! from evidence that must still hold at the commit: any number of watchers may look at the same thing, and it happens
//! once.
//!
//! Must never import: another service, async-nats, sqlx, bollard.

mod place;
mod policies;
mod promotions;
mod registry;
mod trouble;

use anyhow::Result;
use eventlog::EventLog;
use runtime::outgoing::Outgoing;
use tokio_util::sync::CancellationToken;

/// The actor of what it does.
const ACTOR: &str = "watcher";

/// Settings of a watcher.
#[derive(Debug, Clone)]
pub struct Config {
    /// `NODE`: where deployments run.
    pub node: String,
    /// `URL_ALLOW_LOCAL`: where registries may send us.
    pub outgoing: Outgoing,
}

/// Watches until `shutdown`. Outlives outages of NATS; fails on an event that this version cannot read.
pub async fn run(config: Config, log: EventLog, shutdown: CancellationToken) -> Result<()> {
    tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        ended = Box::pin(promotions::waiting::run(&config, &log)) => ended,
        ended = Box::pin(promotions::automatic::run(&config, &log)) => ended,
        ended = Box::pin(policies::run(&config, &log)) => ended,
    }
}
