//! The edge: the reverse proxy between clients and containers.
//!
//! Owns: routing by host and path, balancing, the atomic switch between two sets of containers,
//! holding and draining requests, and the snapshot from which it serves while all else is away.
//!
//! Must never import: bollard, sqlx, or another service. It knows containers by their address
//! only, and what to do with them from the routes bucket only.

mod cut;
mod headers;
mod health;
mod hold;
mod listen;
mod pages;
mod proxy;
mod routes;
mod set;
mod snapshot;
mod table;
mod upgrade;
mod watch;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    pin::pin,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use domain::{Slug, traffic::EdgePresence};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{proxy::Proxy, routes::Routes};

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
    /// How long requests in flight may take to finish once the edge is told to stop.
    pub grace: Duration,
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
            max_waiting: 1000,
        }
    }
}

/// Serves until SIGTERM or SIGINT, on a runtime of its own.
pub fn run(config: Config) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.threads)
        .thread_name("edge")
        .enable_all()
        .build()
        .context("starting the edge's threads")?;
    let outcome = runtime.block_on(async {
        let stop = runtime::shutdown::token(false)?;
        serve(config, stop).await
    });
    // Requests had their grace time; nothing else is worth waiting for.
    runtime.shutdown_background();
    outcome
}

/// Serves until `stop`, then lets requests in flight finish within the grace time.
pub async fn serve(config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    let listener = listen::bind(config.listen).await?;
    serve_on(listener, config, stop).await
}

/// As [`serve`], on a listener that the caller has opened.
pub async fn serve_on(listener: TcpListener, config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    config.id.parse::<Slug>().context("the edge's id")?;
    let address = listener.local_addr().context("asking for the edge's own address")?;
    let routes = Arc::new(Routes::new());
    snapshot::load(&config.snapshot, &routes);

    // Unguessable enough for what it buys: the id of the deployment that answered.
    let probe_token = runtime::clock::new_id().to_string();
    let me = EdgePresence {
        id: config.id,
        version: env!("CARGO_PKG_VERSION").into(),
        address: reachable(address).to_string(),
        probe_token: probe_token.clone(),
    };
    // Dropped, and with it ended, when serving has ended.
    let mut tasks = JoinSet::new();
    tasks.spawn(routes.clone().enforce_deadlines());
    tasks.spawn(health::probe_all(routes.clone()));
    tasks.spawn(snapshot::keep(config.snapshot, routes.clone()));
    tasks.spawn(watch::run(config.log, me, routes.clone()));

    tracing::info!(%address, "edge listens");
    let proxy = Proxy { routes, probe_token, max_waiting: config.max_waiting };
    let stop = stop.child_token();
    let mut serving = pin!(listen::serve(listener, proxy, config.threads, stop.clone(), config.grace));
    tokio::select! {
        () = &mut serving => Ok(()),
        ended = tasks.join_next() => {
            // None of them ends by itself, so it panicked. A new process is better than stale routes.
            stop.cancel();
            serving.await;
            bail!("a task of the edge ended: {ended:?}")
        }
    }
}

/// An address at which a listener on every address can be reached from this machine.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests;
