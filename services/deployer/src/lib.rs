//! The deployer: carries out rollouts on one node's Docker engine.
//!
//! Owns: everything that talks to Docker (pulling, containers, their health, output and end), the
//! worker that runs a rollout's steps and reports them, the routes that the edges follow, the drivers
//! of other proxies, and the answers to questions about the node.
//!
//! Must never import: another service, SQL, or the HTTP API. What comes next in a rollout is decided
//! in `domain`, never here.

mod container;
mod deadlines;
mod docker;
mod drift;
mod edges;
mod failure;
mod health;
mod job;
mod keep;
mod labels;
mod logs;
mod monitor;
mod proxy;
mod resolve;
mod steps;
mod sweep;
mod worker;

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use domain::{Context, Key, Slug, stage::Stage};
use eventlog::EventLog;
use runtime::outgoing::{Outgoing, http::Filtered};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub use deadlines::Deadlines;
pub use failure::{Problem, StepError};
pub use proxy::{Permit, Proxies};

use crate::docker::Engine;

/// What one deployer needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// The node whose commands it carries out; part of subjects and labels.
    pub node: String,
    /// Address of the engine, as `DOCKER_HOST` has it; the local socket where there is none.
    pub docker: Option<String>,
    /// Rollouts that are worked on at the same time.
    pub concurrency: usize,
    /// Names this process among all that ever worked on this node.
    pub worker: String,
    pub deadlines: Deadlines,
    /// `URL_ALLOW_LOCAL`: where admin APIs of proxies may be, beside this machine and private networks.
    pub outgoing: Outgoing,
}

/// What every part of the deployer shares.
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) worker: String,
    pub(crate) installation: Uuid,
    pub(crate) engine: Engine,
    pub(crate) log: EventLog,
    pub(crate) proxies: Proxies,
    /// For health probes: follows no redirect, uses no proxy.
    pub(crate) http: reqwest::Client,
    pub(crate) deadlines: Deadlines,
}

impl Node {
    /// The context of a command of the deployer's own.
    pub(crate) fn context(&self) -> Context {
        runtime::clock::context(format!("deployer/{}", self.name))
    }

    pub(crate) fn labels(&self) -> labels::Owner<'_> {
        labels::Owner { installation: self.installation, node: &self.name }
    }
}

/// A stage's place in the log and on the node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Place {
    pub(crate) project: Slug,
    pub(crate) stage: Slug,
}

impl Place {
    pub(crate) fn key(&self) -> Key<Stage> {
        Key::stage(&self.project, &self.stage)
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.project, self.stage)
    }
}

/// Runs until `shutdown`. Rollouts that are under way then are left to whoever comes next; nothing is
/// reported of them. An engine or a NATS that is away is waited for.
pub async fn run(config: Config, log: EventLog, shutdown: CancellationToken) -> anyhow::Result<()> {
    // Proxies and edges commonly stand on this machine.
    let outgoing = Arc::new(config.outgoing.with_this_machine());
    let http = reqwest::Client::builder()
        .dns_resolver(Arc::new(Filtered(outgoing.clone())))
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        // Containers come and go: a connection is never worth keeping.
        .pool_max_idle_per_host(0)
        .connect_timeout(Duration::from_secs(5))
        .user_agent("sluice")
        .build()
        .context("preparing the client of health probes")?;
    let (proxies, watching) = Proxies::new(log.clone(), config.worker.clone(), http.clone(), outgoing);
    let node = Arc::new(Node {
        installation: log.installation(),
        engine: Engine::new(config.docker, config.deadlines.clone()),
        deadlines: config.deadlines,
        name: config.node,
        worker: config.worker,
        log,
        proxies,
        http,
    });

    let mut parts = JoinSet::new();
    parts.spawn(part("watching edges", shutdown.clone(), watching));
    parts.spawn(part("answering for the node", shutdown.clone(), resolve::serve(node.clone())));
    parts.spawn(part("comparing what runs", shutdown.clone(), drift::serve(node.clone())));
    parts.spawn(part("watching containers", shutdown.clone(), monitor::run(node.clone())));
    parts.spawn(worker::run(node, config.concurrency.max(1), shutdown.clone()));
    let mut result = Ok(());
    while let Some(ended) = parts.join_next().await {
        let ended = ended.context("a part of the deployer panicked").flatten();
        // One that ends of itself takes the others along: half a deployer helps nobody.
        shutdown.cancel();
        result = result.and(ended);
    }
    result
}

/// Runs `work`, which ends only by an error, until `shutdown`.
async fn part(
    name: &'static str,
    shutdown: CancellationToken,
    work: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    shutdown.run_until_cancelled(work).await.unwrap_or(Ok(())).context(name)
}
