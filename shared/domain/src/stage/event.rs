//! What happens on a stage, as it is stored.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Step;
use crate::{
    DeploymentId, PromotionId, Role, Slug,
    image::Image,
    promotion::{Gate, Proof},
    settings::StageSettings,
};

/// Names reflect the stored format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", content = "data")]
pub enum Event {
    /// Accepted; carries everything that is needed to work on it, or to judge it years later.
    #[serde(rename = "deployment.requested.v1")]
    Requested {
        deployment: DeploymentId,
        kind: Kind,
        node: String,
        spec: Box<Spec>,
        #[serde(default, skip_serializing_if = "Origin::is_direct")]
        origin: Origin,
    },
    /// A newer request took its place before its turn came.
    #[serde(rename = "deployment.superseded.v1")]
    Superseded { deployment: DeploymentId, by: DeploymentId },
    /// Its turn has come. The server copies this event into the node's work queue.
    #[serde(rename = "deployment.dispatched.v1")]
    Dispatched {
        deployment: DeploymentId,
        node: String,
        /// Whose kept containers serve again; none where new ones are made.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        set: Option<DeploymentId>,
    },
    /// A worker took it up: for the first time, or after another was lost.
    #[serde(rename = "deployment.started.v1")]
    Started { deployment: DeploymentId, worker: String },
    #[serde(rename = "deployment.pulled.v1")]
    Pulled(StepDone),
    #[serde(rename = "deployment.held.v1")]
    Held(StepDone),
    #[serde(rename = "deployment.created.v1")]
    Created {
        #[serde(flatten)]
        step: StepDone,
        instances: Vec<Instance>,
    },
    #[serde(rename = "deployment.healthy.v1")]
    Healthy(StepDone),
    #[serde(rename = "deployment.switched.v1")]
    Switched(StepDone),
    #[serde(rename = "deployment.baked.v1")]
    Baked(StepDone),
    #[serde(rename = "deployment.drained.v1")]
    Drained(StepDone),
    #[serde(rename = "deployment.retired.v1")]
    Retired(StepDone),
    /// The rollout turns back; the undoing steps follow.
    #[serde(rename = "deployment.step_failed.v1")]
    StepFailed { deployment: DeploymentId, elapsed_ms: u64, failure: Failure },
    #[serde(rename = "deployment.cancel_requested.v1")]
    CancelRequested { deployment: DeploymentId, reason: Option<String> },
    #[serde(rename = "deployment.reheld.v1")]
    Reheld(StepDone),
    #[serde(rename = "deployment.discarded.v1")]
    Discarded(StepDone),
    #[serde(rename = "deployment.restored.v1")]
    Restored(StepDone),
    #[serde(rename = "deployment.reverted.v1")]
    Reverted(StepDone),
    #[serde(rename = "deployment.succeeded.v1")]
    Succeeded { deployment: DeploymentId },
    /// The new release does not serve; what served before serves on, unless the failure says that it could not be
    /// brought back.
    #[serde(rename = "deployment.failed.v1")]
    Failed { deployment: DeploymentId, failure: Failure },
    /// The new release had taken over, or the old one had stopped; the old one serves again.
    #[serde(rename = "deployment.rolled_back.v1")]
    RolledBack { deployment: DeploymentId, to: DeploymentId, failure: Failure },
    #[serde(rename = "deployment.cancelled.v1")]
    Cancelled { deployment: DeploymentId },
    #[serde(rename = "lock.acquired.v1")]
    Locked { owner: String, reason: String },
    #[serde(rename = "lock.released.v1")]
    Unlocked { owner: String },
    /// Somebody asked for the release of another stage.
    #[serde(rename = "promotion.requested.v1")]
    PromotionRequested {
        promotion: PromotionId,
        from: Slug,
        /// None where the source ran nothing.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        digest: Option<String>,
        by: String,
    },
    #[serde(rename = "promotion.approved.v1")]
    PromotionApproved { promotion: PromotionId, by: String, role: Role },
    /// Every gate has passed; the deployment follows.
    #[serde(rename = "promotion.accepted.v1")]
    PromotionAccepted { promotion: PromotionId, deployment: DeploymentId, proof: Proof },
    #[serde(rename = "promotion.refused.v1")]
    PromotionRefused { promotion: PromotionId, gate: Gate, reason: String },
    /// Called off by a person, or for a newer one.
    #[serde(rename = "promotion.withdrawn.v1")]
    PromotionWithdrawn { promotion: PromotionId, reason: String },
    /// Automation leaves the stage alone until it is lifted.
    #[serde(rename = "hold.set.v1")]
    HoldSet { by: String, reason: String },
    #[serde(rename = "hold.lifted.v1")]
    HoldLifted {},
    #[serde(rename = "instance.started.v1")]
    InstanceStarted { deployment: DeploymentId, instance: String, address: Option<String> },
    #[serde(rename = "instance.exited.v1")]
    InstanceExited { deployment: DeploymentId, instance: String, exit_code: i64 },
    #[serde(rename = "instance.oom_killed.v1")]
    InstanceOomKilled { deployment: DeploymentId, instance: String },
    #[serde(rename = "instance.health_changed.v1")]
    InstanceHealthChanged { deployment: DeploymentId, instance: String, healthy: bool },
    /// No more deployments; what runs is removed.
    #[serde(rename = "archived.v1")]
    Archived {},
    /// Declared again after it was archived.
    #[serde(rename = "reopened.v1")]
    Reopened {},
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Puts a release on the stage.
    Release,
    /// Takes the last release off an archived stage.
    Removal,
}

/// Why a deployment was requested.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Origin {
    /// Somebody asked for this image.
    #[default]
    Direct,
    Promotion {
        #[schema(value_type = uuid::Uuid)]
        promotion: PromotionId,
    },
    /// Past the stage's gates, by somebody who may do that.
    Hotfix { reason: String },
    /// The stage's policy takes what this tag means.
    Policy { tag: String },
    /// A program asked for it by a webhook.
    Hook { hook: String },
    /// Back to what an earlier deployment had put there.
    Rollback {
        #[schema(value_type = uuid::Uuid)]
        to: DeploymentId,
    },
}

impl Origin {
    fn is_direct(&self) -> bool {
        *self == Self::Direct
    }

    /// The release that it goes back to.
    pub(super) fn back_to(&self) -> Option<DeploymentId> {
        match self {
            Self::Rollback { to } => Some(*to),
            Self::Direct | Self::Promotion { .. } | Self::Hotfix { .. } | Self::Policy { .. } | Self::Hook { .. } => {
                None
            }
        }
    }

    /// Whether it brings bytes that have not been through the gates of a stage that promotes.
    pub(super) fn passes_no_gate(&self) -> bool {
        match self {
            Self::Direct | Self::Policy { .. } | Self::Hook { .. } => true,
            Self::Promotion { .. } | Self::Hotfix { .. } | Self::Rollback { .. } => false,
        }
    }
}

/// What runs: the image by digest, under the settings of the moment of the request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Spec {
    pub image: Image,
    pub settings: StageSettings,
}

/// A container of a deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Instance {
    /// Container name, unique on its node.
    pub name: String,
    /// The engine's id.
    pub container: String,
    /// `ip:port` at which the edge reaches it; none where the stage has no port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}

/// A step was carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepDone {
    pub deployment: DeploymentId,
    pub elapsed_ms: u64,
    /// Trouble that could not stop a step which has no way back, e.g. an old container that would
    /// not be removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Failure>,
}

/// Why a step did not succeed, in words for the person who has to act.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Failure {
    pub step: Step,
    /// Stable, for scripts: `image_not_found`, `unhealthy`, `exited`, `deadline`, ...
    pub code: String,
    /// What happened.
    pub message: String,
    /// What to do next.
    pub hint: String,
    /// The container's last lines, where there was one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub log: Vec<String>,
}

impl Event {
    /// The step that it reports as done: what the decision made it from.
    pub fn step_done(&self) -> Option<(Step, &StepDone)> {
        match self {
            Event::Pulled(done) => Some((Step::Pull, done)),
            Event::Held(done) => Some((Step::Hold, done)),
            Event::Created { step: done, .. } => Some((Step::Create, done)),
            Event::Healthy(done) => Some((Step::AwaitHealthy, done)),
            Event::Switched(done) => Some((Step::Switch, done)),
            Event::Baked(done) => Some((Step::Bake, done)),
            Event::Drained(done) => Some((Step::Drain, done)),
            Event::Retired(done) => Some((Step::Retire, done)),
            Event::Reheld(done) => Some((Step::Rehold, done)),
            Event::Discarded(done) => Some((Step::Discard, done)),
            Event::Restored(done) => Some((Step::Restore, done)),
            Event::Reverted(done) => Some((Step::Revert, done)),
            Event::Requested { .. }
            | Event::Superseded { .. }
            | Event::Dispatched { .. }
            | Event::Started { .. }
            | Event::StepFailed { .. }
            | Event::CancelRequested { .. }
            | Event::Succeeded { .. }
            | Event::Failed { .. }
            | Event::RolledBack { .. }
            | Event::Cancelled { .. }
            | Event::Locked { .. }
            | Event::Unlocked { .. }
            | Event::PromotionRequested { .. }
            | Event::PromotionApproved { .. }
            | Event::PromotionAccepted { .. }
            | Event::PromotionRefused { .. }
            | Event::PromotionWithdrawn { .. }
            | Event::HoldSet { .. }
            | Event::HoldLifted {}
            | Event::InstanceStarted { .. }
            | Event::InstanceExited { .. }
            | Event::InstanceOomKilled { .. }
            | Event::InstanceHealthChanged { .. }
            | Event::Archived {}
            | Event::Reopened {} => None,
        }
    }
}
