//! The event log against a real nats-server, one for each test.

mod append;
mod boot;
mod buckets;
mod commands;
mod follow;
mod logs;
mod power_loss;
mod promotion;
mod rpc;
mod transaction;
mod vault;

use std::{future::Future, path::Path, time::Duration};

use async_nats::ConnectOptions;
use chrono::DateTime;
use domain::{Context, Key, Slug, route};
use eventlog::{Config, EventLog};
use testkit::Nats;
use uuid::Uuid;

/// A server of its own and a log on it. The server ends with the test.
async fn start() -> (Nats, EventLog) {
    let nats = Nats::start().await.expect("nats-server starts");
    let log = connect(&nats).await;
    (nats, log)
}

async fn connect(nats: &Nats) -> EventLog {
    EventLog::connect(&config(nats)).await.expect("the log opens")
}

fn config(nats: &Nats) -> Config {
    Config { url: nats.url().to_owned(), name: "test".into(), master_key: None }
}

async fn connect_with(url: &str, master_key: Option<&Path>) -> EventLog {
    let config = Config { url: url.to_owned(), name: "test".into(), master_key: master_key.map(Path::to_owned) };
    EventLog::connect(&config).await.expect("the log opens")
}

/// A bare connection, for what the log itself does not let through.
async fn bare(nats: &Nats) -> async_nats::Client {
    let (credentials, server) = nats.url().trim_start_matches("nats://").split_once('@').expect("credentials");
    let (user, password) = credentials.split_once(':').expect("a password");
    let options = ConnectOptions::with_user_and_password(user.into(), password.into());
    options.connect(server).await.expect("connects")
}

/// What nothing here may take longer than.
async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), what).await.expect("in time")
}

fn id() -> Uuid {
    Uuid::from_u128(rand::random())
}

fn context() -> Context {
    Context {
        time: DateTime::from_timestamp_millis(1_700_000_000_000).expect("a time"),
        actor: "test".into(),
        correlation_id: id(),
        causation_id: None,
        command_id: id(),
        command_hash: None,
        request_id: None,
        traceparent: None,
    }
}

fn slug(text: &str) -> Slug {
    text.parse().expect("a good name")
}

fn host(name: &str) -> Key<route::Host> {
    Key::host(name)
}

fn claim(path: impl Into<String>, stage: &str) -> route::Command {
    route::Command::Claim { path: path.into(), project: slug("shop"), stage: slug(stage) }
}

fn release(path: impl Into<String>, stage: &str) -> route::Command {
    route::Command::Release { path: path.into(), project: slug("shop"), stage: slug(stage) }
}
