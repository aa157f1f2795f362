//! What can be wrong with a look.

use domain::{project, stage};
use eventlog::{CommitError, ExecuteError};

use crate::place::Place;

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
                tracing::warn!(%place, error, "a stage could not be looked at; trying again");
            }
        }
    }
}
