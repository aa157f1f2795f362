//! `sluice up`: every role, with a NATS and a PostgreSQL of its own where none is named.

mod data;
mod nats;
mod postgres;
mod supervise;
mod tools;

use std::{ffi::OsString, io::Write as _, path::Path, time::Duration};

use anyhow::{Context, Result, bail};
use data::{Connection, DataDir};
use rustix::process::Signal;
use supervise::{Spec, Supervised, supervise};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::roles;

/// From the first child to a healthy API.
const START_LIMIT: Duration = Duration::from_secs(90);
/// For a role, beyond the time that it gives its own work.
const STOP_MARGIN: Duration = Duration::from_secs(15);
/// Where the password lies that the first administrator was given.
const PASSWORD_FILE: &str = "admin-password";
const LOOK: Duration = Duration::from_millis(50);

/// Runs until a signal; `Ok` when everything has been stopped in order.
pub(crate) async fn run() -> Result<()> {
    let shutdown = runtime::shutdown::token(false)?;
    let listen = roles::api_listen()?;
    let edge = roles::edge_listen()?;
    let data = DataDir::open(runtime::env::data_dir()?)?;
    let generated = data.generated()?;
    let mut children = Vec::new();
    let started = start(&data, &generated, &mut children, &shutdown).await;
    if started.is_ok() && !shutdown.is_cancelled() {
        announce(&data, &format!("http://{listen}"), &format!("http://{edge}"))?;
        shutdown.cancelled().await;
        tracing::info!("stopping");
    }
    // The last started stops first: roles before the stores they write to.
    while let Some(child) = children.pop() {
        child.stop().await;
    }
    started
}

async fn start(
    data: &DataDir,
    generated: &data::Generated,
    children: &mut Vec<Supervised>,
    shutdown: &CancellationToken,
) -> Result<()> {
    roles::require_free("API_LISTEN", roles::api_listen()?, shutdown).await?;
    let program = std::env::current_exe().context("finding the sluice binary")?;
    if !supervise::survived(&role_spec("edge", &program, &[], data)?) {
        roles::require_free("EDGE_LISTEN", roles::edge_listen()?, shutdown).await?;
    }
    let nats_url = match runtime::env::optional("NATS_URL") {
        Some(url) => url,
        None => {
            let (spec, url) = nats::embedded(data, generated)?;
            children.push(supervise(spec)?);
            url
        }
    };
    let database_url = match runtime::env::optional("DATABASE_URL") {
        Some(url) => url,
        None => {
            let (spec, url) = postgres::embedded(data, generated).await?;
            children.push(supervise(spec)?);
            url
        }
    };
    eventlog::vault::create_key(&data.path("vault.key")).context("creating the vault's master key")?;
    if runtime::env::optional("ADMIN_PASSWORD").is_none() {
        data.write_private(PASSWORD_FILE, generated.admin_password.as_bytes())?;
    }
    let api = format!("http://{}", roles::api_listen()?);
    let edge = format!("http://{}", roles::edge_listen()?);
    let connection = Connection { api: &api, edge: &edge, nats_url: &nats_url, database_url: &database_url };
    data.write_private("connection.json", &serde_json::to_vec_pretty(&connection)?)?;
    data.create_dir("edge")?;

    // Each role is told what it needs and no more.
    let nats = ("NATS_URL", OsString::from(nats_url));
    let database = ("DATABASE_URL", OsString::from(database_url));
    // What the environment sets is handed on as it is.
    let or_generated = |name: &'static str, generated: &str| {
        (name, runtime::env::optional(name).map_or_else(|| generated.into(), OsString::from))
    };
    let jwt = or_generated("JWT_SECRET_KEY", &generated.jwt_secret);
    let password = or_generated("ADMIN_PASSWORD", &generated.admin_password);
    let roles: [(&'static str, Vec<(&'static str, OsString)>); 5] = [
        ("edge", vec![nats.clone()]),
        ("projector", vec![nats.clone(), database.clone()]),
        ("deployer", vec![nats.clone()]),
        ("watcher", vec![nats.clone()]),
        ("api", vec![nats, database, jwt, password]),
    ];
    for (role, env) in roles {
        children.push(supervise(role_spec(role, &program, &env, data)?)?);
    }
    healthy(&api, shutdown).await
}

fn role_spec(role: &'static str, program: &Path, env: &[(&'static str, OsString)], data: &DataDir) -> Result<Spec> {
    let survives = role == "edge";
    let mut env = env.to_vec();
    env.push(("DATA_DIR", data.root().into()));
    if !survives {
        env.push(("SUPERVISED", "1".into()));
    }
    Ok(Spec {
        name: role,
        program: program.into(),
        args: vec![role.into()],
        env,
        // The edge writes to a file of its own: our terminal may be gone before it is.
        output: survives.then(|| data.path("edge.log")),
        stop: Signal::TERM,
        grace: STOP_MARGIN + if survives { roles::edge_drain()? } else { Duration::from_secs(30) },
        tied: !survives,
        pid_file: survives.then(|| roles::edge_pid(data.root())),
    })
}

/// Waits until the API answers and finds NATS, PostgreSQL, the projector and the watcher well. Docker may be
/// missing: everything but deploying works without it.
async fn healthy(api: &str, shutdown: &CancellationToken) -> Result<()> {
    let limit = Instant::now() + START_LIMIT;
    let client = reqwest::Client::builder().timeout(Duration::from_secs(5)).build()?;
    let mut last = "no answer yet".to_owned();
    while Instant::now() < limit && !shutdown.is_cancelled() {
        match client.get(format!("{api}/api/v1/health")).send().await {
            Ok(response) => {
                let health: serde_json::Value = response.json().await.context("reading the API's health")?;
                let ok = |part: &str| health[part]["ok"] == true;
                if ["postgres", "nats", "projector", "watcher"].into_iter().all(ok) {
                    if !ok("docker") {
                        tracing::warn!(error = %health["docker"]["error"], "no Docker engine answers: nothing can be deployed until one does");
                    }
                    return Ok(());
                }
                last = health.to_string();
            }
            Err(error) => last = format!("{error:#}"),
        }
        tokio::select! {
            () = sleep(LOOK) => {}
            () = shutdown.cancelled() => {}
        }
    }
    if shutdown.is_cancelled() {
        return Ok(());
    }
    bail!("Sluice did not become ready in {} s (the lines above say why): {last}", START_LIMIT.as_secs())
}

fn announce(data: &DataDir, api: &str, edge: &str) -> Result<()> {
    let dir = data.root().display();
    let generated = data.path(PASSWORD_FILE);
    let sign_in = if generated.exists() {
        format!("sluice login admin < {}  (until they change it)", generated.display())
    } else {
        "sluice login NAME".to_owned()
    };
    let text = format!(
        "\nSluice is running. Ctrl-C stops it.\n\n  API      {api}\n  traffic  {edge}\n  data     {dir}\n  sign in  \
         {sign_in}\n\n"
    );
    let mut out = std::io::stdout();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("writing to the terminal")
}
