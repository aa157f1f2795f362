//! One look at a stage that may take a release from another.

use std::fmt;

use domain::{
    DeploymentId, Key, PromotionId, Recorded, Slug, project,
    stage::{self, Attempt, Command, Stage},
};
use eventlog::{CommitError, Committed, EventLog, ExecuteError, Transaction};

use crate::{ACTOR, Config};

/// A stage of a project.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) project: Slug,
    pub(crate) stage: Slug,
}

impl Place {
    /// The stage that an event is about.
    pub(crate) fn of(recorded: &Recorded) -> Option<Self> {
        // Both were slugs when they were written.
        Some(Self { project: recorded.project()?.parse().ok()?, stage: recorded.stage()?.parse().ok()? })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.project, self.stage)
    }
}

/// Why a look came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    #[error(transparent)]
    Project(ExecuteError<project::Rejection>),
    #[error(transparent)]
    Stage(ExecuteError<stage::Rejection>),
    #[error(transparent)]
    Commit(#[from] CommitError),
}

impl Trouble {
    pub(crate) fn tell(self, place: &Place) {
        match self {
            // Somebody else was faster, or the queue is full: the next look tells.
            Self::Project(ExecuteError::Rejected(_))
            | Self::Stage(ExecuteError::Rejected(_))
            | Self::Commit(CommitError::Conflict) => {}
            trouble => {
                let error = format!("{:#}", anyhow::Error::new(trouble));
                tracing::warn!(%place, error, "a promotion could not be looked at; trying again");
            }
        }
    }
}

/// Decides what `command` makes of the evidence of now.
pub(crate) async fn look(
    config: &Config,
    log: &EventLog,
    promotion: PromotionId,
    place: &Place,
    command: impl Fn(Box<Attempt>) -> Command,
) -> Result<Committed, Trouble> {
    let context = runtime::clock::context(ACTOR);
    let key = &Key::<Stage>::stage(&place.project, &place.stage);
    let deployment = DeploymentId(runtime::clock::new_id());
    let command = &command;
    let decide = |mut transaction: Transaction| async move {
        let stage = (&place.project, &place.stage);
        let attempt = transaction.attempt(stage, promotion, deployment, &config.node).await;
        let attempt = Box::new(attempt.map_err(Trouble::Project)?);
        transaction.decide(key, command(attempt)).await.map_err(Trouble::Stage)?;
        Ok::<_, Trouble>(transaction)
    };
    let committed = log.transact(&context, decide).await?;
    if !committed.events.is_empty() {
        tracing::info!(%promotion, %place, "a promotion was moved on");
    }
    Ok(committed)
}
