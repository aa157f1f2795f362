//! One role as a process: its settings from the environment, its connections, its end.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use domain::Span;
use eventlog::{ConnectError, EventLog};
use runtime::{env, outgoing::Outgoing};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::cli::{self, Globals, readmodels};

#[derive(Subcommand)]
pub(crate) enum Role {
    /// Run everything: every role, with a NATS and a PostgreSQL of its own
    Up,
    /// Run the HTTP API only
    Api,
    /// Run the projector only, or work on its read models
    Projector {
        #[command(subcommand)]
        command: Option<Projector>,
    },
    /// Run the deployer of this node only
    Deployer,
    /// Run the watcher only: it looks after what waits for time to pass
    Watcher,
    /// Run the reverse proxy only, or replace the one that runs
    Edge {
        #[command(subcommand)]
        command: Option<cli::edge::Command>,
    },
}

#[derive(Subcommand)]
pub(crate) enum Projector {
    /// Build the read models anew from the event log, beside the live ones, and swap
    Rebuild {
        /// Only this one, e.g. stages; `sluice projector checksum` lists them
        model: Option<String>,
    },
    /// Print a checksum of every read model: equal histories give equal checksums
    Checksum,
}

/// How long a role waits for NATS and PostgreSQL to answer when it starts.
const CONNECT_LIMIT: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(250);
/// For an address that is in use.
const RELEASE_LIMIT: Duration = Duration::from_secs(5);

pub(crate) fn main(role: Role, globals: &Globals) -> ExitCode {
    let ended = match role {
        Role::Edge { command: Some(command) } => return cli::edge::main(command, globals),
        Role::Edge { command: None } => edge(),
        Role::Up | Role::Api | Role::Projector { .. } | Role::Deployer | Role::Watcher => in_runtime(role, globals),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn in_runtime(role: Role, globals: &Globals) -> Result<()> {
    runtime::telemetry::init()?;
    let mut builder = match role {
        // Children are tied to the life of the thread that starts them: there must be only one.
        Role::Up => tokio::runtime::Builder::new_current_thread(),
        Role::Api | Role::Projector { .. } | Role::Deployer | Role::Watcher | Role::Edge { .. } => {
            tokio::runtime::Builder::new_multi_thread()
        }
    };
    let runtime = builder.worker_threads(2).enable_all().build().context("starting the runtime")?;
    let ended = runtime.block_on(async {
        match role {
            Role::Up => crate::up::run().await,
            Role::Api => api().await,
            Role::Projector { command: None } => projector().await,
            Role::Projector { command: Some(command) } => maintain(command, globals).await,
            Role::Deployer => deployer().await,
            Role::Watcher => watcher().await,
            Role::Edge { .. } => Ok(()),
        }
    });
    // Watching standard input blocks a thread that never comes back.
    runtime.shutdown_background();
    ended
}

async fn api() -> Result<()> {
    let shutdown = shutdown()?;
    let config = api::Config {
        listen: api_listen()?,
        node: env::parse("NODE", "local".to_owned())?,
        identity: identity()?,
        oidc: api::oidc::Config::read(env::optional)?,
    };
    let log = connect("api", &shutdown).await?;
    let pool = database(&shutdown).await?;
    api::run(config, log, pool, shutdown).await
}

fn identity() -> Result<api::Identity> {
    let default = api::Identity::new(env::required("JWT_SECRET_KEY")?);
    Ok(api::Identity {
        admin_password: env::optional("ADMIN_PASSWORD"),
        public_url: env::optional("PUBLIC_URL"),
        login_max_failures: env::parse("LOGIN_MAX_FAILURES", default.login_max_failures)?,
        login_window: env::parse("LOGIN_WINDOW_SECONDS", default.login_window)?,
        login_cooldown: env::parse("LOGIN_COOLDOWN_SECONDS", default.login_cooldown)?,
        login_trusted_proxies: env::optional("LOGIN_TRUSTED_PROXY_IPS").unwrap_or_default(),
        rate_limit_requests: env::parse("RATE_LIMIT_REQUESTS", default.rate_limit_requests)?,
        rate_limit_window: env::parse("RATE_LIMIT_WINDOW_SECONDS", default.rate_limit_window)?,
        session_idle: env::parse("SESSION_IDLE_SECONDS", default.session_idle)?,
        session_max: env::parse("SESSION_MAX_SECONDS", default.session_max)?,
        jwt_secret: default.jwt_secret,
    })
}

async fn projector() -> Result<()> {
    let shutdown = shutdown()?;
    let log = connect("projector", &shutdown).await?;
    let pool = database(&shutdown).await?;
    projector::run(log, pool, shutdown).await
}

async fn deployer() -> Result<()> {
    let shutdown = shutdown()?;
    let node: String = env::parse("NODE", "local".to_owned())?;
    let config = deployer::Config {
        worker: format!("{node}/{}", runtime::clock::new_id()),
        node,
        docker: env::optional("DOCKER_HOST"),
        concurrency: env::parse("DEPLOYER_CONCURRENCY", 4)?,
        deadlines: deployer::Deadlines::default(),
        outgoing: env::parse(Outgoing::VARIABLE, Outgoing::default())?,
    };
    let log = connect("deployer", &shutdown).await?;
    deployer::run(config, log, shutdown).await
}

async fn watcher() -> Result<()> {
    let shutdown = shutdown()?;
    let config = watcher::Config {
        node: env::parse("NODE", "local".to_owned())?,
        outgoing: env::parse(Outgoing::VARIABLE, Outgoing::default())?,
    };
    let log = connect("watcher", &shutdown).await?;
    watcher::run(config, log, shutdown).await
}

/// Needs nobody else to start: it serves from its snapshot until the rest is there.
fn edge() -> Result<()> {
    runtime::telemetry::init()?;
    let data = env::data_dir()?;
    let mut config = edge::Config::new(data.join("edge/routes.json"), log_config("edge")?);
    config.listen = edge_listen()?;
    config.id = env::parse("NODE", config.id)?;
    config.grace = edge_drain()?;
    config.control = Some(edge_control(&data));
    config.pid_file = Some(edge_pid(&data));
    edge::run(config)
}

/// Where an edge takes commands.
pub(crate) fn edge_control(data: &Path) -> PathBuf {
    data.join("edge/control")
}

/// Which process is the edge.
pub(crate) fn edge_pid(data: &Path) -> PathBuf {
    data.join("edge.pid")
}

/// How long what is open on an edge may last once it stops or is replaced.
pub(crate) fn edge_drain() -> Result<Duration> {
    Ok(env::parse("EDGE_DRAIN", Span::secs(30))?.duration())
}

/// Rebuild and checksum, from the command line.
async fn maintain(command: Projector, globals: &Globals) -> Result<()> {
    let shutdown = shutdown()?;
    let pool = database(&shutdown).await?;
    match command {
        Projector::Rebuild { model } => {
            let log = connect("projector rebuild", &shutdown).await?;
            let sequence = projector::rebuild(&log, &pool, model.as_deref()).await?;
            readmodels::say_rebuilt(globals, model.as_deref(), sequence)?;
        }
        Projector::Checksum => readmodels::say_checksums(globals, &projector::checksum(&pool).await?)?,
    }
    Ok(())
}

fn shutdown() -> Result<CancellationToken> {
    runtime::shutdown::token(env::optional("SUPERVISED").is_some())
}

fn log_config(name: &str) -> Result<eventlog::Config> {
    let key = env::data_dir()?.join("vault.key");
    Ok(eventlog::Config {
        url: setting("NATS_URL", "nats_url")?,
        name: name.into(),
        master_key: key.exists().then_some(key),
    })
}

/// From the environment, or from what `sluice up` on this machine wrote down.
fn setting(variable: &str, field: &str) -> Result<String> {
    if let Some(value) = env::optional(variable) {
        return Ok(value);
    }
    let path = env::data_dir()?.join("connection.json");
    let missing =
        || format!("{variable} is not set and {} cannot be read: set it, or run `sluice up` first", path.display());
    let connection: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&path).with_context(missing)?).with_context(missing)?;
    connection[field].as_str().map(str::to_owned).with_context(missing)
}

/// Waits for a server that is still starting; a server that is wrong is an error at once.
async fn connect(name: &str, shutdown: &CancellationToken) -> Result<EventLog> {
    let config = log_config(name)?;
    let limit = Instant::now() + CONNECT_LIMIT;
    loop {
        match EventLog::connect(&config).await {
            Ok(log) => return Ok(log),
            Err(error @ ConnectError::Unreachable { .. }) if Instant::now() < limit => {
                tracing::debug!(error = format!("{:#}", anyhow::Error::new(error)), "waiting for NATS");
            }
            Err(error) => return Err(error.into()),
        }
        pause(shutdown).await?;
    }
}

async fn database(shutdown: &CancellationToken) -> Result<readmodel::PgPool> {
    let url = setting("DATABASE_URL", "database_url")?;
    let limit = Instant::now() + CONNECT_LIMIT;
    loop {
        match readmodel::connect(&url).await {
            Ok(pool) => {
                readmodel::migrate(&pool).await?;
                return Ok(pool);
            }
            Err(error @ readmodel::ConnectError::Unreachable { .. }) if Instant::now() < limit => {
                tracing::debug!(error = format!("{:#}", anyhow::Error::new(error)), "waiting for PostgreSQL");
            }
            Err(error) => return Err(error.into()),
        }
        pause(shutdown).await?;
    }
}

async fn pause(shutdown: &CancellationToken) -> Result<()> {
    tokio::select! {
        () = sleep(PAUSE) => Ok(()),
        () = shutdown.cancelled() => bail!("told to stop before everything was connected"),
    }
}

pub(crate) fn api_listen() -> Result<SocketAddr> {
    env::parse("API_LISTEN", SocketAddr::from(([127, 0, 0, 1], 7070)))
}

pub(crate) fn edge_listen() -> Result<SocketAddr> {
    env::parse("EDGE_LISTEN", SocketAddr::from(([127, 0, 0, 1], 8080)))
}

/// An error that names the variable, before anything is started for nothing. What a crashed `sluice up` left behind may
/// still be ending: it is given a moment.
pub(crate) async fn require_free(variable: &str, address: SocketAddr, shutdown: &CancellationToken) -> Result<()> {
    let limit = Instant::now() + RELEASE_LIMIT;
    let mut told = false;
    loop {
        match TcpListener::bind(address) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < limit => {
                if !told {
                    tracing::info!(%address, "in use; waiting up to {}s for it to be let go", RELEASE_LIMIT.as_secs());
                }
                told = true;
            }
            Err(error) => bail!(
                "{variable}: cannot listen on {address}: {error}. Stop what holds it, or set {variable} to another address"
            ),
        }
        pause(shutdown).await?;
    }
}
