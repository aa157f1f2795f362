//! The one place where time and ids enter.

use chrono::{DateTime, SubsecRound, Utc};
use domain::Context;
use uuid::Uuid;

/// The time now, to the microsecond: what PostgreSQL keeps, so that a value reads back equal.
#[expect(clippy::disallowed_methods, reason = "this is the one place")]
pub fn now() -> DateTime<Utc> {
    Utc::now().trunc_subsecs(6)
}

/// A new id, ordered by time.
#[expect(clippy::disallowed_methods, reason = "this is the one place")]
pub fn new_id() -> Uuid {
    Uuid::now_v7()
}

/// The context of a command that begins a chain of its own.
pub fn context(actor: impl Into<String>) -> Context {
    let command_id = new_id();
    Context {
        time: now(),
        actor: actor.into(),
        correlation_id: command_id,
        causation_id: None,
        command_id,
        command_hash: None,
        request_id: None,
        traceparent: None,
    }
}
