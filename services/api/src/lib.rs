//! The HTTP API under `/api/v1`: commands in, queries out, and the live stream of events.
//!
//! Owns: addresses, permissions, the form of requests, answers and problems, `Idempotency-Key`,
//! read-your-writes and server-sent events. Decides nothing: commands go to the aggregates through
//! the event log, queries to the read models.
//!
//! Must never import: another service, async-nats, sqlx, bollard.

mod auth;
mod extract;
mod hooks;
mod idempotency;
mod leftovers;
mod live;
pub mod oidc;
mod pattern;
mod problem;
mod rim;
mod routes;
mod sealed;

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use axum::middleware;
use eventlog::EventLog;
use readmodel::{PgPool, Progress};
use tokio::{net::TcpListener, sync::Semaphore, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{auth::Auth, live::Live, problem::Error};

pub use auth::Identity;

/// Settings of the API.
#[derive(Clone)]
pub struct Config {
    /// `API_LISTEN`; beyond loopback only where `PUBLIC_URL` says that people come over TLS.
    pub listen: SocketAddr,
    /// `NODE`: where deployments run.
    pub node: String,
    pub identity: Identity,
    pub oidc: oidc::Config,
}

/// How long requests may take to finish after the end was asked for.
const GRACE: Duration = Duration::from_secs(10);
/// How long a reader waits for its own write.
const PATIENCE: Duration = Duration::from_secs(5);

/// Refuses to have passwords cross the network in clear.
fn check_exposure(listen: SocketAddr, public_url: Option<&str>) -> Result<()> {
    let over_tls = public_url.is_some_and(|url| url.starts_with("https://"));
    if !listen.ip().is_loopback() && !over_tls {
        bail!(
            "API_LISTEN: {listen} is not a loopback address, and passwords would cross the network in clear: let a \
             proxy that speaks TLS stand in front and set PUBLIC_URL to its https:// address, or use 127.0.0.1:{} and \
             reach it from elsewhere through an SSH tunnel",
            listen.port()
        );
    }
    Ok(())
}

/// What handlers work with.
#[derive(Clone)]
struct Api {
    log: EventLog,
    pool: PgPool,
    progress: Progress,
    live: Live,
    auth: Arc<Auth>,
    /// Signs people in at the provider, if there is one.
    flow: oidc::Flow,
    node: Arc<str>,
    /// Webhooks that are worked on.
    hooks: Arc<Semaphore>,
    /// Webhooks that arrive.
    arriving: Arc<Semaphore>,
    shutdown: CancellationToken,
}

impl Api {
    /// Waits until `sequence`, where one is asked for, can be read.
    async fn visible(&self, sequence: Option<u64>) -> Result<(), Error> {
        let Some(sequence) = sequence else { return Ok(()) };
        if self.progress.reached(sequence, Duration::ZERO).await.is_ok() {
            return Ok(());
        }
        // What was never written is not worth waiting for. Queries work without NATS, so an
        // unanswered question is no reason to refuse one.
        if self.log.last_sequence().await.is_ok_and(|last| last < sequence) {
            return Err(Error::invalid("at_least", "lies beyond the end of the log"));
        }
        Ok(self.progress.reached(sequence, PATIENCE).await?)
    }
}

/// Serves the API until `shutdown`; then finishes what was begun and ends the streams.
pub async fn run(config: Config, log: EventLog, pool: PgPool, shutdown: CancellationToken) -> Result<()> {
    check_exposure(config.listen, config.identity.public_url.as_deref())?;
    let listener = TcpListener::bind(config.listen).await.with_context(|| {
        format!("API_LISTEN: cannot listen on {}; stop what holds it, or set another address", config.listen)
    })?;
    let auth = Auth::open(&log, config.identity).await?;
    let auth = Arc::new(auth);
    let public_url = auth.public_url().map_or_else(|| format!("http://{}", config.listen), str::to_owned);
    let flow = oidc::Flow::new(log.clone(), oidc::Limits::default(), config.oidc, &public_url)?;
    let last = log.last_sequence().await.context("reading the end of the event log")?;
    let live = Live::new(last);
    let (progress, hear_progress) = Progress::follow(pool.clone());
    let mut tasks = JoinSet::new();
    tasks.spawn(hear_progress);
    tasks.spawn(live.clone().feed(log.clone(), last));
    tasks.spawn(leftovers::sweep(log.clone()));

    tasks.spawn(auth.clone().keep());
    let node = config.node.into();
    let [hooks, arriving] = [hooks::AT_ONCE, hooks::ARRIVING].map(|most| Arc::new(Semaphore::new(most)));
    let api = Api { log, pool, progress, live, auth, flow, node, hooks, arriving, shutdown: shutdown.clone() };
    let app = routes::all().router(api).layer(middleware::from_fn(rim::rim));
    tracing::info!(listen = %config.listen, "API ready");

    let app = app.into_make_service_with_connect_info::<SocketAddr>();
    let serving = axum::serve(listener, app).with_graceful_shutdown(shutdown.clone().cancelled_owned());
    tokio::select! {
        served = serving => served.context("serving the API")?,
        () = overdue(&shutdown) => tracing::warn!("requests did not finish in time and are cut off"),
    }
    tasks.shutdown().await;
    Ok(())
}

async fn overdue(shutdown: &CancellationToken) {
    shutdown.cancelled().await;
    tokio::time::sleep(GRACE).await;
}

/// The description of the API (OpenAPI 3.1) as JSON, made from the code.
pub fn openapi() -> &'static str {
    routes::document()
}

/// What every operation asks of its caller, by method and path: `public`, `signed`, or a role and where it must hold, as
/// in `in_project operator`.
pub fn permissions() -> BTreeMap<String, String> {
    routes::all().table().into_iter().map(|(operation, access)| (operation, access.to_string())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_loopback_the_api_listens_only_behind_tls() {
        for (listen, public_url, good) in [
            ("127.0.0.1:7070", None, true),
            ("127.8.8.8:7070", Some("http://localhost:7070"), true),
            ("[::1]:7070", None, true),
            ("0.0.0.0:7070", Some("https://sluice.example.com"), true),
            ("[::]:7070", Some("https://sluice.example.com"), true),
            ("10.0.0.7:7070", Some("https://sluice.example.com"), true),
            ("10.0.0.7:7070", Some("http://sluice.example.com"), false),
            ("0.0.0.0:7070", None, false),
            ("[::]:7070", None, false),
            ("[::ffff:10.0.0.7]:7070", None, false),
        ] {
            let checked = check_exposure(listen.parse().expect("an address"), public_url);
            assert_eq!(checked.is_ok(), good, "{listen} {public_url:?}: {checked:?}");
        }
    }
}
