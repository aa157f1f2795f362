//! The edge: the reverse proxy between clients and containers.
//!
//! Owns: routing by host and path, balancing, the atomic switch between two sets of containers,
//! holding and draining requests, and the snapshot from which it serves while all else is away.
//!
//! Must never import: bollard, sqlx, or another service. It knows containers by their address
//! only, and what to do with them from the routes bucket only.

mod body;
mod connection;
mod control;
mod handover;
mod headers;
mod health;
mod hold;
mod listen;
mod pages;
mod pool;
mod proxy;
mod routes;
mod serving;
mod set;
mod snapshot;
mod table;
mod upgrade;
mod watch;
mod workers;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use anyhow::Context;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use crate::control::{Answer, UpgradeError, Upgraded, upgrade};
use crate::{handover::Predecessor, serving::Edge};

#[derive(Clone)]
pub struct Config {
    pub listen: SocketAddr,
    /// Where the routes are kept for a start without NATS.
    pub snapshot: PathBuf,
    pub log: eventlog::Config,
    /// Names this edge among others; written like a project's name.
    pub id: String,
    /// Threads that serve requests.
    pub threads: usize,
    /// How long requests in flight may take to finish once the edge is told to stop, or another has taken over.
    pub grace: Duration,
    /// The unix socket for [`upgrade`]; its directory is made private.
    pub control: Option<PathBuf>,
    /// File that names the process that accepts connections.
    pub pid_file: Option<PathBuf>,
    /// Most requests that wait on one held route.
    pub max_waiting: u64,
}

impl Config {
    /// With the defaults that suit one machine.
    pub fn new(snapshot: PathBuf, log: eventlog::Config) -> Self {
        Self {
            listen: (Ipv4Addr::LOCALHOST, 8080).into(),
            snapshot,
            log,
            id: "local".into(),
            threads: 2,
            grace: Duration::from_secs(30),
            control: None,
            pid_file: None,
            // Twenty seconds of a recreate at 500 requests/s; a request that waits holds one connection and no upstream.
            max_waiting: 10_000,
        }
    }
}

/// Serves until SIGTERM or SIGINT, or until another process has taken over, on a runtime of its own.
pub fn run(config: Config) -> anyhow::Result<()> {
    raise_open_files();
    // For what the edge does beside serving: requests have threads of their own.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the edge's runtime")?;
    let outcome = runtime.block_on(async {
        let stop = runtime::shutdown::token(false)?;
        match Predecessor::find().await? {
            Some((predecessor, listener, estate)) => Edge::take_over(predecessor, listener, estate, config, stop).await,
            None => serve(config, stop).await,
        }
    });
    // Requests had their grace time; nothing else is worth waiting for.
    runtime.shutdown_background();
    outcome
}

/// A login shell allows 1,024 open files, which a few hundred clients use up; the machine allows far more to who asks.
fn raise_open_files() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!(%error, "the limit of open files stays as it was");
    }
}

/// Serves until `stop`, then lets requests in flight finish within the grace time.
pub async fn serve(config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    let listener = listen::bind(config.listen).await?;
    serve_on(listener, config, stop).await
}

/// As [`serve`], on a listener that the caller has opened.
pub async fn serve_on(listener: TcpListener, config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    Edge::begin(listener, config, stop).await
}

#[cfg(test)]
mod tests;
