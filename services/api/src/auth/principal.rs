//! Who asks: found by the guard, read by handlers.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use chrono::{DateTime, Utc};
use domain::{Grant, SessionId, Slug, TokenId, UserId};
use http::request::Parts;

use crate::{Api, problem::Error};

#[derive(Debug, Clone)]
pub(crate) struct Principal {
    /// Of events: `user:<id>`, or the name of a machine's token.
    pub(crate) actor: Arc<str>,
    pub(crate) grant: Grant,
    pub(crate) who: Who,
    /// When what they came with is over.
    pub(crate) until: Option<DateTime<Utc>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    Session {
        user: UserId,
        session: SessionId,
    },
    Token {
        /// Whose personal token it is.
        user: Option<UserId>,
        token: TokenId,
    },
}

pub(crate) fn actor(user: UserId) -> Arc<str> {
    format!("user:{user}").into()
}

impl Principal {
    pub(crate) fn user(&self) -> Option<UserId> {
        match self.who {
            Who::Session { user, .. } => Some(user),
            Who::Token { user, .. } => user,
        }
    }

    /// Whether they may hear of what concerns `project`; without one, of what concerns everything.
    pub(crate) fn sees(&self, project: Option<&str>) -> bool {
        match (&self.grant.projects, project) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(projects), Some(project)) => projects.iter().any(|slug| slug.as_str() == project),
        }
    }

    /// The projects that lists are cut down to.
    pub(crate) fn within(&self) -> Option<Vec<String>> {
        self.grant.projects.as_ref().map(|projects| projects.iter().map(Slug::to_string).collect())
    }
}

impl FromRequestParts<Api> for Principal {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &Api) -> Result<Self, Error> {
        parts.extensions.get().cloned().ok_or(Error::Unauthorized)
    }
}
