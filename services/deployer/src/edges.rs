//! The edges that live, as they say themselves.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use domain::traffic::{self, EdgePresence, EdgeStatus};
use eventlog::{Change, EventLog};
use futures::{StreamExt, future::join_all};
use tokio::net::TcpStream;

/// An edge answers from memory; one that takes longer is asked again.
const ANSWER: Duration = Duration::from_secs(2);

/// A picture of the `edges` bucket that is kept current.
#[derive(Clone, Default)]
pub(crate) struct Edges {
    present: Arc<Mutex<BTreeMap<String, EdgePresence>>>,
}

/// An edge and what it says of itself; none where it did not answer.
pub(crate) struct Seen {
    pub(crate) edge: EdgePresence,
    pub(crate) status: Option<EdgeStatus>,
}

/// The picture, and the work of keeping it, which ends only with the log.
pub(crate) fn watch(log: EventLog) -> (Edges, impl Future<Output = anyhow::Result<()>> + Send) {
    let edges = Edges::default();
    let keeping = edges.clone();
    let work = async move {
        let mut changes = std::pin::pin!(log.bucket(traffic::EDGES).watch());
        while let Some(change) = changes.next().await {
            keeping.apply(change?);
        }
        Ok(())
    };
    (edges, work)
}

impl Edges {
    fn apply(&self, change: Change) {
        let mut present = self.present.lock().unwrap_or_else(PoisonError::into_inner);
        match change {
            Change::Put { key, value, .. } => match serde_json::from_slice(&value) {
                Ok(edge) => {
                    present.insert(key, edge);
                }
                Err(error) => {
                    tracing::warn!(%error, edge = key, "an edge describes itself in a way this version cannot read")
                }
            },
            Change::Deleted { key, .. } => {
                present.remove(&key);
            }
            Change::Ready => {}
        }
    }

    pub(crate) fn present(&self) -> Vec<EdgePresence> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Every edge that counts, with its answer. One that is provably gone does not count, even before
    /// its entry has expired.
    pub(crate) async fn ask(&self, log: &EventLog) -> Vec<Seen> {
        let asked = join_all(self.present().into_iter().map(|edge| async {
            let reply = log.request(&traffic::status_subject(&edge.id), vec![], ANSWER).await;
            match reply {
                Ok(reply) => Some(Seen { status: serde_json::from_slice(&reply).ok(), edge }),
                // It may be cut off from NATS and still serve: then its port answers.
                Err(eventlog::Error::NobodyAnswers { .. }) if !listens(&edge.address).await => None,
                Err(_) => Some(Seen { edge, status: None }),
            }
        }));
        asked.await.into_iter().flatten().collect()
    }
}

async fn listens(address: &str) -> bool {
    let connected = tokio::time::timeout(ANSWER, TcpStream::connect(address)).await;
    // No answer at all is no proof of anything.
    !matches!(connected, Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused)
}
