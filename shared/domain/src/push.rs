//! What the API tells the watcher of images that were pushed, and what comes of them.
//!
//! A message about a push is a hint and nothing more: which bytes a tag means is asked of the registry. Told twice, late
//! or by somebody who repeats an old message, it changes nothing.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{Context, DeploymentId, Key, Slug, registry::Registry};

/// Subject of a [`Told`] request, answered by one of the watchers; the reply is an [`Answer`].
pub const SUBJECT: &str = "sluice.watcher.told";

/// Bucket in which every living watcher keeps an entry under its id; entries expire.
pub const WATCHERS: &str = "watchers";
/// Bucket of what was found last: a [`Look`] per stage with a policy under `stage.<project>.<stage>`, a [`Poll`] per
/// registry under `registry.<host>`. That is for people: nothing is decided from it. A [`Quiet`] per registry under
/// `quiet.<host>` is for the watchers.
pub const LOOKS: &str = "looks";

pub fn stage_key(project: &Slug, stage: &Slug) -> String {
    format!("stage.{project}.{stage}")
}

pub fn registry_key(registry: &Key<Registry>) -> String {
    format!("registry.{}", registry.as_bucket_key())
}

pub fn quiet_key(registry: &Key<Registry>) -> String {
    format!("quiet.{}", registry.as_bucket_key())
}

/// A registry wants to be left alone, by all watchers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quiet {
    /// What said so: scheme, host and port. Another server under the same name has not.
    pub origin: String,
    pub until: DateTime<Utc>,
}

/// What a webhook brought.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Told {
    /// Of whatever is decided because of it.
    pub context: Context,
    pub what: What,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// Images came to be, or tags moved.
    Pushed(Vec<Pushed>),
    /// A program wants this image on this stage.
    Deploy {
        project: Slug,
        stage: Slug,
        /// As a person would give it: a bare tag is enough.
        image: String,
        hook: Slug,
        /// What is to be requested is called so: a repetition is no second one.
        deployment: DeploymentId,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Pushed {
    /// In full, with its registry.
    pub repository: String,
    pub tag: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// For every stage that it concerns.
    Heard(Vec<Heard>),
    /// Too much is told at once: tell it again.
    Busy,
}

/// What came of it for one stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Heard {
    #[schema(value_type = String)]
    pub project: Slug,
    #[schema(value_type = String)]
    pub stage: Slug,
    #[serde(flatten)]
    pub finding: Finding,
}

/// A look for something new to deploy to a stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Look {
    pub at: DateTime<Utc>,
    #[serde(flatten)]
    pub finding: Finding,
}

/// A registry was asked for everything that stages follow there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Poll {
    pub at: DateTime<Utc>,
    /// When it is asked again.
    pub next: DateTime<Utc>,
    pub repositories: usize,
    /// What was wrong with the registry as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// What a look found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "finding", rename_all = "snake_case")]
pub enum Finding {
    /// It is on its way.
    Requested {
        #[schema(value_type = uuid::Uuid)]
        deployment: DeploymentId,
        image: String,
    },
    /// What the policy wants was requested here last.
    NothingNew,
    /// No tag of the repository is one that the policy takes.
    NoMatch,
    /// The image is too young, or nobody knows how old it is.
    CoolingDown {
        image: String,
        /// None where its age is not known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        until: Option<DateTime<Utc>>,
    },
    /// A person's choice stands.
    OnHold { reason: String },
    /// It cannot be taken now.
    Refused {
        /// Stable, for scripts.
        code: String,
        reason: String,
    },
    /// The look itself failed, and is repeated.
    Failed {
        /// Stable, for scripts.
        code: String,
        reason: String,
    },
}
