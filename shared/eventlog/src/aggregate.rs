//! Carrying out a command on one aggregate.

use std::time::Duration;

use domain::{Aggregate, Context, Key};
use tokio::time::Instant;

use crate::{
    Committed, EventLog,
    append::{AppendError, stage},
    error::{Error, ExecuteError},
    fold::Known,
};

/// How long a command is tried again while others win, or while NATS is away.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

impl EventLog {
    /// Decides `command` on the aggregate as it stands and appends what follows from it. Decides anew whenever
    /// another was faster; a command whose id is already in the log is not carried out again.
    pub async fn execute<A: Aggregate>(
        &self,
        key: &Key<A>,
        command: A::Command,
        context: &Context,
    ) -> Result<Committed, ExecuteError<A::Rejection>> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let attempt = tokio::time::timeout_at(deadline, self.attempt(key, command.clone(), context)).await;
            let lost = match attempt {
                Ok(Ok(committed)) => return Ok(committed),
                Ok(Err(Attempt::Refused(refused))) => return Err(refused),
                Ok(Err(Attempt::Conflict)) => None,
                Ok(Err(Attempt::Lost(error))) => Some(error),
                Err(late) => Some(Error::Unavailable { operation: "carrying out a command", source: Box::new(late) }),
            };
            if Instant::now() >= deadline || self.inner.closed.is_cancelled() {
                return Err(lost.map_or(ExecuteError::Conflict, ExecuteError::Log));
            }
            if lost.is_some() {
                self.inner.breathe().await;
            }
        }
    }

    async fn attempt<A: Aggregate>(
        &self,
        key: &Key<A>,
        command: A::Command,
        context: &Context,
    ) -> Result<Committed, Attempt<A::Rejection>> {
        let folded = self.fold(key).await?;
        match folded.knows(context) {
            Known::New => {}
            Known::Done { sequence } => return Ok(Committed { sequence, events: vec![] }),
            Known::Reused => return Err(Attempt::Refused(ExecuteError::KeyReused)),
        }
        let decided = folded.state.decide(command).map_err(|r| Attempt::Refused(ExecuteError::Rejected(r)))?;
        let staged = stage(key, Some(folded.version), &decided, 0, context)?;
        let events = self.append(&staged).await.map_err(|error| match error {
            AppendError::Conflict => Attempt::Conflict,
            AppendError::Lost(error) => Attempt::Lost(error),
            AppendError::Failed(error) => Attempt::Refused(error.into()),
        })?;
        Ok(Committed { sequence: events.last().map_or(folded.version, |event| event.sequence), events })
    }
}

enum Attempt<R: std::error::Error + 'static> {
    Conflict,
    /// NATS did not answer: try again, and look first whether it had been done.
    Lost(Error),
    Refused(ExecuteError<R>),
}

impl<R: std::error::Error + 'static> From<Error> for Attempt<R> {
    fn from(error: Error) -> Self {
        match error {
            Error::Unavailable { .. } => Self::Lost(error),
            other => Self::Refused(other.into()),
        }
    }
}
