//! A secret in the vault and the event that points to it: both come to be, or neither.

use domain::{Aggregate, Context, Key};
use eventlog::{Committed, EventLog, ExecuteError, Secret};

use crate::problem::Error;

/// Seals `secret` at `place`, and has `command` decided, which takes the revision that it got there. `place` must be a
/// new one each time: the same request may come twice at once. Where no event points there, the secret goes again.
pub(crate) async fn keep<A: Aggregate>(
    log: &EventLog,
    place: &str,
    secret: impl Into<Vec<u8>>,
    key: &Key<A>,
    command: impl FnOnce(u64) -> A::Command,
    context: &Context,
) -> Result<Committed, Error>
where
    Error: From<ExecuteError<A::Rejection>>,
{
    let write = |version| {
        let command = command(version);
        async { Ok(log.execute(key, command, context).await?) }
    };
    keep_by(log, place, secret, write).await
}

/// The same where `write` does more than have one command decided.
pub(crate) async fn keep_by<F: Future<Output = Result<Committed, Error>>>(
    log: &EventLog,
    place: &str,
    secret: impl Into<Vec<u8>>,
    write: impl FnOnce(u64) -> F,
) -> Result<Committed, Error> {
    let version = log.vault().put(place, &Secret::new(secret)).await?;
    let done = write(version).await;
    let useless = match &done {
        Ok(committed) => committed.events.is_empty(),
        // Whether the event was written is unknown, and it would point here.
        Err(Error::Log(_)) => false,
        Err(_) => true,
    };
    if useless {
        log.vault().delete(place).await?;
    }
    done
}

/// Has `command` decided. A secret that it ends, wherever `place` finds it in the aggregate, goes from the vault.
pub(crate) async fn end<A: Aggregate>(
    log: &EventLog,
    key: &Key<A>,
    command: A::Command,
    context: &Context,
    place: impl Fn(A) -> Option<String>,
) -> Result<Committed, Error>
where
    Error: From<ExecuteError<A::Rejection>>,
{
    let before = place(log.load(key).await?.state);
    let committed = log.execute(key, command, context).await?;
    let after = place(log.load(key).await?.state);
    if let Some(ended) = before.filter(|before| after.as_ref() != Some(before)) {
        log.vault().delete(&ended).await?;
    }
    Ok(committed)
}
