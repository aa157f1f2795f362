//! What measures of the log and the read models run against: real servers, and Sluice's roles as processes.

use std::{path::Path, process::Stdio, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use async_nats::header::HeaderMap;
use eventlog::EventLog;
use serde::Deserialize;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use testkit::{Nats, Postgres};
use tokio::process::{Child, Command};

use crate::history::Message;

const READY: Duration = Duration::from_secs(60);
/// The key of sessions, and the first password.
const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// A bare connection to `nats`, as a peer uses it.
pub(crate) async fn bare(nats: &Nats) -> Result<async_nats::Client> {
    let address = nats.url().strip_prefix("nats://").context("a NATS URL")?;
    let (credentials, server) = address.split_once('@').context("credentials")?;
    let (user, password) = credentials.split_once(':').context("a password")?;
    let options = async_nats::ConnectOptions::with_user_and_password(user.into(), password.into());
    options.connect(server).await.context("connecting to NATS")
}

pub(crate) async fn event_log(nats: &Nats) -> Result<EventLog> {
    let config = eventlog::Config { url: nats.url().into(), name: "bench".into(), master_key: None };
    EventLog::connect(&config).await.context("opening the event log")
}

/// Writes `messages` as one atomic batch, with the headers of an event.
pub(crate) async fn publish_batch(client: &async_nats::Client, messages: &[Message]) -> Result<()> {
    #[derive(Deserialize)]
    struct Ack {
        count: Option<usize>,
    }
    let Some((last, rest)) = messages.split_last() else { return Ok(()) };
    let batch = last.id.to_string();
    let headers = |message: &Message, number: usize| {
        let mut headers = HeaderMap::new();
        headers.insert("Content-Type", "application/cloudevents+json");
        headers.insert("Nats-Msg-Id", message.id.to_string());
        headers.insert("Nats-Batch-Id", batch.as_str());
        headers.insert("Nats-Batch-Sequence", number.to_string());
        headers
    };
    for (message, number) in rest.iter().zip(1..) {
        let headers = headers(message, number);
        client.publish_with_headers(message.subject.clone(), headers, message.body.clone().into()).await?;
    }
    let mut headers = headers(last, messages.len());
    headers.insert("Nats-Batch-Commit", "1");
    let reply = client.request_with_headers(last.subject.clone(), headers, last.body.clone().into()).await?;
    let ack: Ack = serde_json::from_slice(&reply.payload).context("reading the answer to a batch")?;
    ensure!(ack.count == Some(messages.len()), "the batch was not written: {:?}", reply.payload);
    Ok(())
}

/// An empty database with the schema of the read models, in a cluster with the settings of `sluice up`.
pub(crate) async fn database(cluster: &Postgres, name: &str) -> Result<String> {
    execute(cluster.url(), format!("create database {name}")).await?;
    let base = cluster.url().rsplit_once('/').context("a database URL")?.0;
    let url = format!("{base}/{name}");
    let pool = readmodel::connect(&url).await?;
    readmodel::migrate(&pool).await?;
    pool.close().await;
    Ok(url)
}

pub(crate) async fn execute(url: &str, statement: String) -> Result<()> {
    let mut connection = PgConnection::connect(url).await.context("connecting to PostgreSQL")?;
    sqlx::raw_sql(AssertSqlSafe(statement.clone())).execute(&mut connection).await.context(statement)?;
    Ok(connection.close().await?)
}

/// `sluice` with `arguments`, on these servers. Ends when dropped.
pub(crate) fn sluice(program: &Path, arguments: &[&str], nats: &Nats, database: &str, data: &Path) -> Command {
    // An API without it says so, and ends.
    eventlog::vault::create_key(&data.join("vault.key")).ok();
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .env("DATA_DIR", data)
        .env("NATS_URL", nats.url())
        .env("DATABASE_URL", database)
        .env("JWT_SECRET_KEY", SECRET)
        .env("ADMIN_PASSWORD", SECRET)
        .env("LOG", "warn")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

/// A running `sluice api`.
pub(crate) struct Api {
    pub(crate) url: String,
    /// Signed in as the administrator.
    pub(crate) client: reqwest::Client,
    token: String,
    _process: Child,
}

impl Api {
    pub(crate) async fn start(program: &Path, nats: &Nats, database: &str, data: &Path) -> Result<Api> {
        let listen = format!("127.0.0.1:{}", testkit::free_port());
        let mut process = sluice(program, &["api"], nats, database, data)
            .env("API_LISTEN", &listen)
            .spawn()
            .context("starting sluice api")?;
        let client = reqwest::Client::builder().build()?;
        let url = format!("http://{listen}/api/v1");
        let ready = async {
            while client.get(format!("{url}/health")).send().await.is_err() {
                if let Some(status) = process.try_wait()? {
                    bail!("sluice api ended with {status}");
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Ok(())
        };
        tokio::time::timeout(READY, ready).await.context("sluice api does not start")??;
        let token = sign_in(&client, &url).await.context("signing in")?;
        let mut headers = reqwest::header::HeaderMap::new();
        headers.insert("authorization", format!("Bearer {token}").parse()?);
        let client = reqwest::Client::builder().default_headers(headers).build()?;
        Ok(Api { url, client, token, _process: process })
    }

    /// The command line with `arguments`, signed in to this API.
    pub(crate) fn command(&self, program: &Path, arguments: &[&str], data: &Path) -> Result<Command> {
        let mut command = Command::new(program);
        let url = self.url.strip_suffix("/api/v1").context("an address")?;
        command.args(arguments).env_clear().env("DATA_DIR", data).env("API_URL", url).env("API_TOKEN", &self.token);
        command.stdin(Stdio::null()).kill_on_drop(true);
        Ok(command)
    }
}

async fn sign_in(client: &reqwest::Client, url: &str) -> Result<String> {
    let who = serde_json::json!({ "name": "admin", "password": SECRET, "token_name": "bench" });
    let answer = client.post(format!("{url}/auth/token")).json(&who).send().await?.error_for_status()?;
    let made: serde_json::Value = answer.json().await?;
    Ok(made["token"].as_str().context("the answer holds no token")?.to_owned())
}
