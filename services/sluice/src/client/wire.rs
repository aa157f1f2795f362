//! Of the API's answers, the parts that are shown. Additions are ignored, so that an older command
//! line reads a newer server.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use domain::{
    DeploymentId, Grant, PromotionId, Role, SessionId, Slug, TokenId, UserId,
    hook::HookSettings,
    image::Image,
    policy::TagPolicy,
    promotion::{Answer, Approval, Check, Gate, Proof},
    push::{Look, Poll},
    registry::RegistrySettings,
    stage::{Failure, Kind, Origin, Step},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use super::Error;

/// Reads what is shown out of an answer.
pub(crate) fn read<T: DeserializeOwned>(answer: Value) -> Result<T, Error> {
    serde_json::from_value(answer).map_err(|error| Error::Misunderstood(error.to_string()))
}

pub(crate) fn parse<T: DeserializeOwned>(text: &str) -> Result<T, Error> {
    serde_json::from_str(text).map_err(|error| Error::Misunderstood(error.to_string()))
}

/// What a read asks for to see what a mutation, answered by `answer`, wrote.
pub(crate) fn seen(answer: &Value) -> [(&'static str, String); 1] {
    [("at_least", answer["sequence"].to_string())]
}

/// A mutation was written down.
#[derive(Debug, Deserialize)]
pub(crate) struct Accepted {
    /// Position in the event log; reads with `at_least` of it see the effect.
    pub(crate) sequence: u64,
}

impl Accepted {
    pub(crate) fn seen(&self) -> [(&'static str, String); 1] {
        [("at_least", self.sequence.to_string())]
    }
}

#[derive(Debug, Deserialize)]
pub(crate) struct DeploymentAccepted {
    pub(crate) sequence: u64,
    pub(crate) deployment: DeploymentId,
    pub(crate) image: Image,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Deployment {
    pub(crate) id: DeploymentId,
    pub(crate) project: String,
    pub(crate) stage: String,
    pub(crate) kind: Kind,
    #[serde(default)]
    pub(crate) origin: Origin,
    pub(crate) image: Image,
    pub(crate) status: Status,
    pub(crate) requested_by: String,
    pub(crate) requested_at: DateTime<Utc>,
    pub(crate) started_at: Option<DateTime<Utc>>,
    pub(crate) ended_at: Option<DateTime<Utc>>,
    pub(crate) failure: Option<Failure>,
    pub(crate) cancel_reason: Option<String>,
    pub(crate) superseded_by: Option<DeploymentId>,
    pub(crate) rolled_back_to: Option<DeploymentId>,
    pub(crate) steps: Vec<StepRecord>,
    pub(crate) instances: Vec<Instance>,
    pub(crate) requested_sequence: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Status {
    Queued,
    Dispatched,
    Running,
    Cancelling,
    Succeeded,
    Failed,
    RolledBack,
    Cancelled,
    Superseded,
}

impl Status {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Dispatched => "dispatched",
            Self::Running => "running",
            Self::Cancelling => "cancelling",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::RolledBack => "rolled_back",
            Self::Cancelled => "cancelled",
            Self::Superseded => "superseded",
        }
    }
}

#[derive(Debug, Deserialize)]
pub(crate) struct StepRecord {
    pub(crate) step: Step,
    /// `done`, `failed`, or `problem` where the rollout could only go on.
    pub(crate) status: String,
    pub(crate) at: DateTime<Utc>,
    pub(crate) elapsed_ms: u64,
    pub(crate) failure: Option<Failure>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Instance {
    pub(crate) name: String,
    pub(crate) address: Option<String>,
    pub(crate) state: String,
    pub(crate) healthy: Option<bool>,
    pub(crate) exit_code: Option<i64>,
    pub(crate) changed_at: DateTime<Utc>,
    pub(crate) deployment: DeploymentId,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Stage {
    pub(crate) project: String,
    pub(crate) stage: String,
    pub(crate) settings: Routed,
    pub(crate) archived: bool,
    pub(crate) current: Option<Release>,
    pub(crate) active: Option<Active>,
    pub(crate) queue: Vec<Queued>,
    pub(crate) lock: Option<Lock>,
    #[serde(default)]
    pub(crate) hold: Option<Hold>,
    #[serde(default)]
    pub(crate) promotion: Option<PromotionId>,
    pub(crate) instances: Vec<Instance>,
}

/// Of a stage's settings, where its requests come from.
#[derive(Debug, Deserialize)]
pub(crate) struct Routed {
    pub(crate) route: Option<Route>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Route {
    pub(crate) host: String,
    pub(crate) path: String,
    /// Of the user's own, in front of it.
    #[serde(default)]
    pub(crate) proxy: Option<Slug>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Release {
    pub(crate) deployment: DeploymentId,
    pub(crate) image: Image,
    pub(crate) since: DateTime<Utc>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Active {
    pub(crate) deployment: DeploymentId,
    pub(crate) kind: Kind,
    pub(crate) image: Image,
    pub(crate) requested_by: String,
    pub(crate) status: Status,
    /// The last step that was carried out.
    pub(crate) step: Option<Step>,
    pub(crate) since: DateTime<Utc>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Queued {
    pub(crate) deployment: DeploymentId,
    pub(crate) kind: Kind,
    pub(crate) image: Image,
    pub(crate) requested_by: String,
    pub(crate) requested_at: DateTime<Utc>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Lock {
    pub(crate) owner: String,
    pub(crate) reason: String,
    pub(crate) since: DateTime<Utc>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Hold {
    pub(crate) by: String,
    pub(crate) reason: String,
    pub(crate) since: DateTime<Utc>,
}

/// What would come of a promotion asked for now.
#[derive(Debug, Deserialize)]
pub(crate) struct Preview {
    pub(crate) source: String,
    pub(crate) digest: Option<String>,
    pub(crate) image: Option<String>,
    pub(crate) answer: Answer,
    pub(crate) checks: Vec<Check>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct PromotionAsked {
    pub(crate) sequence: u64,
    pub(crate) promotion: PromotionId,
    pub(crate) status: PromotionStatus,
    pub(crate) deployment: Option<DeploymentId>,
    pub(crate) gate: Option<Gate>,
    pub(crate) reason: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Promotion {
    pub(crate) id: PromotionId,
    pub(crate) project: String,
    pub(crate) stage: String,
    pub(crate) source: String,
    pub(crate) digest: Option<String>,
    pub(crate) status: PromotionStatus,
    pub(crate) requested_by: String,
    pub(crate) requested_at: DateTime<Utc>,
    pub(crate) approvals: Vec<Approval>,
    pub(crate) deployment: Option<DeploymentId>,
    pub(crate) gate: Option<Gate>,
    pub(crate) reason: Option<String>,
    pub(crate) proof: Option<Proof>,
    pub(crate) decided_at: Option<DateTime<Utc>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PromotionStatus {
    Waiting,
    Accepted,
    Refused,
    Withdrawn,
}

impl PromotionStatus {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Accepted => "accepted",
            Self::Refused => "refused",
            Self::Withdrawn => "withdrawn",
        }
    }
}

#[derive(Debug, Deserialize)]
pub(crate) struct Project {
    pub(crate) slug: String,
    pub(crate) name: String,
    pub(crate) archived: bool,
    #[serde(default)]
    pub(crate) auto_promote: bool,
    #[serde(default)]
    pub(crate) env: BTreeMap<String, Value>,
    #[serde(default)]
    pub(crate) secrets: BTreeMap<String, Secret>,
    /// As declared, defaults filled in.
    pub(crate) stages: BTreeMap<String, Value>,
    pub(crate) changed_at: DateTime<Utc>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Secret {
    pub(crate) version: u64,
    pub(crate) set_by: String,
    pub(crate) set_at: DateTime<Utc>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Registry {
    pub(crate) host: String,
    pub(crate) settings: Option<RegistrySettings>,
    pub(crate) signed_in: bool,
    pub(crate) last_poll: Option<Poll>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Hook {
    pub(crate) name: String,
    pub(crate) settings: Option<HookSettings>,
    pub(crate) has_secret: bool,
    pub(crate) changed_at: DateTime<Utc>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct StagePolicy {
    pub(crate) policy: Option<TagPolicy>,
    pub(crate) last: Option<Look>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Proxy {
    pub(crate) name: String,
    pub(crate) settings: domain::proxy::Settings,
    pub(crate) username: Option<String>,
    pub(crate) changed_by: String,
    pub(crate) changed_at: DateTime<Utc>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Token {
    pub(crate) id: TokenId,
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) projects: Option<BTreeSet<Slug>>,
    pub(crate) owner: Option<UserId>,
    pub(crate) expires_at: Option<DateTime<Utc>>,
    pub(crate) last_used_at: Option<DateTime<Utc>>,
    pub(crate) created_by: String,
    pub(crate) created_at: DateTime<Utc>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Me {
    pub(crate) actor: String,
    pub(crate) name: Option<String>,
    pub(crate) grant: Grant,
    pub(crate) until: Option<DateTime<Utc>>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Methods {
    pub(crate) provider: Option<SignInButton>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct SignInButton {
    pub(crate) label: String,
    pub(crate) start: String,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Provider {
    pub(crate) managed_by: String,
    pub(crate) settings: domain::sso::Settings,
    pub(crate) has_secret: bool,
    pub(crate) redirect_uri: String,
}

#[derive(Debug, Deserialize)]
pub(crate) struct ProviderReport {
    pub(crate) good: bool,
    pub(crate) checks: Vec<ProviderCheck>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct ProviderCheck {
    pub(crate) name: String,
    pub(crate) outcome: String,
    pub(crate) detail: String,
}

#[derive(Debug, Deserialize)]
pub(crate) struct User {
    pub(crate) id: UserId,
    /// None of whom was erased.
    pub(crate) name: Option<String>,
    pub(crate) display_name: Option<String>,
    pub(crate) grant: Grant,
    pub(crate) standing: String,
    pub(crate) signed_in_at: Option<DateTime<Utc>>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Session {
    pub(crate) id: SessionId,
    pub(crate) user_id: UserId,
    pub(crate) method: String,
    pub(crate) opened_at: DateTime<Utc>,
    pub(crate) expires_at: DateTime<Utc>,
}

/// An event, from the index or from the stream.
#[derive(Debug, Deserialize)]
pub(crate) struct Event {
    pub(crate) time: DateTime<Utc>,
    /// The CloudEvents type, e.g. `dev.sluice.stage.deployment.requested.v1`.
    pub(crate) r#type: String,
    pub(crate) actor: String,
    #[serde(default)]
    pub(crate) data: Value,
}

#[derive(Debug, Deserialize)]
pub(crate) struct LogEntry {
    pub(crate) time: DateTime<Utc>,
    /// `step`, or the container's name.
    pub(crate) source: String,
    pub(crate) text: String,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Health {
    pub(crate) status: String,
    pub(crate) version: String,
    pub(crate) postgres: Part,
    pub(crate) nats: Part,
    pub(crate) docker: Part,
    pub(crate) projector: Part,
    pub(crate) watcher: Part,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Part {
    pub(crate) ok: bool,
    pub(crate) version: Option<String>,
    pub(crate) error: Option<String>,
    /// Events not yet seen.
    pub(crate) lag: Option<u64>,
    /// That live.
    pub(crate) watchers: Option<u64>,
}
