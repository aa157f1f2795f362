//! Carrying out a command on one aggregate.

use std::{sync::Arc, time::Duration};

use domain::{Aggregate, Context, Key};
use tokio::time::Instant;

use crate::{
    Committed, EventLog, Loaded,
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
        // What is remembered may be old news, but the append would notice: it names the position it was decided on.
        let mut remembered = self.cached::<A>(&key.filter());
        loop {
            let attempt = self.attempt(key, remembered.take(), command.clone(), context);
            let attempt = tokio::time::timeout_at(deadline, attempt).await;
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
        remembered: Option<Arc<Loaded<A>>>,
        command: A::Command,
        context: &Context,
    ) -> Result<Committed, Attempt<A::Rejection>> {
        let current = remembered.is_none();
        let folded = match remembered {
            Some(remembered) => remembered,
            None => self.fold(key).await?,
        };
        match folded.knows(context) {
            Known::New => {}
            Known::Done { sequence } => return Ok(Committed { sequence, events: vec![] }),
            Known::Reused => return Err(Attempt::Refused(ExecuteError::KeyReused)),
        }
        let decided = match folded.state.decide(command) {
            // No append would notice that these were decided on old news.
            Ok(events) if events.is_empty() && !current => return Err(Attempt::Conflict),
            Err(_) if !current => return Err(Attempt::Conflict),
            Ok(events) => events,
            Err(rejection) => return Err(Attempt::Refused(ExecuteError::Rejected(rejection))),
        };
        let staged = stage(key, Some(folded.version), &decided, 0, context)?;
        let events = self.append(&staged).await.map_err(|error| match error {
            AppendError::Conflict => Attempt::Conflict,
            AppendError::Lost(error) => Attempt::Lost(error),
            AppendError::Failed(error) => Attempt::Refused(error.into()),
        })?;
        let sequence = events.last().map_or(folded.version, |event| event.sequence);
        self.appended(key, folded, &decided, sequence, context);
        Ok(Committed { sequence, events })
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
