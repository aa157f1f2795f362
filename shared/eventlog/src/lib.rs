//! The event log: everything that happened, and what hangs on it (commands, routes, secrets, output).
//!
//! Owns: the connection to NATS, the streams of `nats/streams.json` and the check that the server
//! keeps them safe, optimistic appends, folding aggregates, following and replaying events, the
//! work queue, the buckets, the vault and the log stream.
//!
//! Must never import: SQL, HTTP or Docker. No other crate may import `async-nats`.

mod aggregate;
mod append;
mod bucket;
mod commands;
mod connect;
mod error;
mod fold;
mod follow;
mod logs;
mod nats;
mod node;
mod promotion;
mod pull;
mod rpc;
mod server;
mod streams;
mod transaction;
pub mod vault;

use std::sync::{Arc, Mutex};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub use bucket::{Bucket, Change, Entry};
pub use commands::{Commands, Delivery};
pub use connect::{Config, ConnectError};
pub use error::{CommitError, Error, ExecuteError};
pub use fold::Loaded;
pub use logs::{LogEntry, LogFilter, LogLine, LogRef, LogStream, Logs};
pub use rpc::Request;
pub use server::{ServerConfig, server_config};
pub use streams::Drift;
pub use transaction::Transaction;
pub use vault::{Secret, Vault};

/// A connection to the log. Clones share it.
#[derive(Clone)]
pub struct EventLog {
    inner: Arc<Inner>,
}

/// The outcome of a decision.
#[derive(Debug, Clone)]
pub struct Committed {
    /// Position in EVENTS of the decision's last event: what a reader must have seen to see it. When nothing was
    /// left to do, that of the earlier event that did it.
    pub sequence: u64,
    /// Empty when the command had been carried out before, or changed nothing.
    pub events: Vec<domain::Recorded>,
}

struct Inner {
    client: async_nats::Client,
    jetstream: async_nats::jetstream::Context,
    /// Counts connections: whoever waits for messages asks anew after each.
    connections: watch::Receiver<u64>,
    closed: CancellationToken,
    installation: Uuid,
    cipher: Option<vault::Cipher>,
    cache: Mutex<fold::Cache>,
    logs: logs::Writer,
}

impl EventLog {
    /// Identifies this installation for as long as its log lives.
    pub fn installation(&self) -> Uuid {
        self.inner.installation
    }

    /// Writes out what is buffered and ends the connection, for all clones.
    pub async fn close(self) {
        self.inner.closed.cancel();
        self.inner.logs.finish().await;
        // Where NATS is away there is nothing to drain to, and closing must not wait for it.
        let flush = tokio::time::timeout(nats::FAREWELL, self.inner.client.flush()).await;
        if !matches!(flush, Ok(Ok(()))) {
            tracing::warn!("closing the event log: NATS did not take what was buffered");
        }
        if self.inner.client.drain().await.is_err() {
            tracing::debug!("closing the event log: the connection had ended before");
        }
    }
}
