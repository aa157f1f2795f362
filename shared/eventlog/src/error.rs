//! What can go wrong.

use async_nats::client::{RequestError, RequestErrorKind};
use domain::DecodeError;

pub(crate) type Source = Box<dyn std::error::Error + Send + Sync>;

/// An operation on the log failed. Says which; never holds a payload, a secret or a URL.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Whether a write took place is unknown: repeat the command with the same id.
    #[error("{operation}: NATS is not reachable or did not answer in time")]
    Unavailable { operation: &'static str, source: Source },
    #[error("{operation}: NATS refused it: {description} (error {code})")]
    Refused { operation: &'static str, code: u64, description: String },
    #[error("{operation}: unexpected answer from NATS: {detail}")]
    Protocol { operation: &'static str, detail: String },
    #[error("nobody answers on {subject}")]
    NobodyAnswers { subject: String },
    #[error("reading an event")]
    Decode(#[from] DecodeError),
    #[error("writing an event")]
    Encode(#[source] serde_json::Error),
    #[error("events {} to {} are missing from the log: it was damaged or replaced; restore it from a backup", .after + 1, .found - 1)]
    Gap { after: u64, found: u64 },
    #[error("position {after} lies beyond the end of the log ({last}): it was replaced or restored from a backup")]
    Ahead { after: u64, last: u64 },
    #[error("`{key}` in bucket {bucket} was changed by another")]
    WrongRevision { bucket: String, key: String },
    #[error("`{key}` is not a valid key: use letters, digits and - / _ = ., not at the edges a dot")]
    BadKey { key: String },
    #[error("vault: {0}")]
    Vault(#[from] crate::vault::Problem),
    #[error("the event log was closed")]
    Closed,
}

impl Error {
    /// NATS is there, and nothing on it takes what was sent.
    pub(crate) fn nobody_there(&self) -> bool {
        let Self::Unavailable { source, .. } = self else { return false };
        source.downcast_ref::<RequestError>().is_some_and(|error| error.kind() == RequestErrorKind::NoResponders)
    }
}

/// A command was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum ExecuteError<R: std::error::Error + 'static> {
    #[error(transparent)]
    Rejected(R),
    #[error("this Idempotency-Key was used before for a different request: choose a new one")]
    KeyReused,
    /// Others kept changing the same aggregate until the deadline.
    #[error("too many changes at once: try again")]
    Conflict,
    #[error(transparent)]
    Log(#[from] Error),
}

/// A transaction was not committed.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// Another changed one of its aggregates: decide everything again.
    #[error("too many changes at once: try again")]
    Conflict,
    #[error(transparent)]
    Log(#[from] Error),
}
