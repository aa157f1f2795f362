//! What may be asked of a stage, and why it may say no.

use super::{Attempt, Decision, Failure, Instance, Origin, Outcome, Spec, Step};
use crate::{DeploymentId, PromotionId, Role, Slug, settings::StageSettings};

#[derive(Debug, Clone)]
pub enum Command {
    Request {
        deployment: DeploymentId,
        spec: Spec,
        node: String,
        by: String,
    },
    /// What a policy or a webhook wants, where no person's choice stands against it.
    Follow {
        deployment: DeploymentId,
        spec: Spec,
        node: String,
        /// What was requested last when the registry was asked: what came since is newer than the answer.
        after: Option<DeploymentId>,
        origin: Origin,
    },
    /// Like `Request`, past the stage's gates.
    Hotfix {
        deployment: DeploymentId,
        spec: Spec,
        node: String,
        by: String,
        reason: String,
    },
    /// Back to an earlier release: to the newest with other bytes, unless one is named.
    Rollback {
        deployment: DeploymentId,
        to: Option<DeploymentId>,
        /// As declared now: see [`StageSettings::again`].
        settings: Box<StageSettings>,
        node: String,
        by: String,
    },
    /// Asks for the release of the stage that this one promotes from.
    Promote {
        /// Only if it is this one.
        digest: Option<String>,
        by: String,
        /// Waits for gates that may pass later, instead of being refused by them. It always waits for approvals.
        wait: bool,
        attempt: Box<Attempt>,
    },
    /// Takes what the source runs where no person has asked: only if nothing but approvals is missing, and not twice the
    /// same bytes. No events where it is too soon.
    PromoteAutomatically {
        by: String,
        attempt: Box<Attempt>,
    },
    /// Agrees to a promotion that waits.
    Approve {
        by: String,
        role: Role,
        attempt: Box<Attempt>,
    },
    /// Looks at a promotion that waits again.
    Reconsider {
        attempt: Box<Attempt>,
    },
    Withdraw {
        promotion: PromotionId,
        reason: String,
    },
    Hold {
        by: String,
        reason: String,
    },
    LiftHold,
    Cancel {
        deployment: DeploymentId,
        reason: Option<String>,
    },
    Lock {
        owner: String,
        reason: String,
    },
    /// `force` takes the lock from another owner.
    Unlock {
        owner: String,
        force: bool,
    },
    /// Takes no more deployments; what runs is removed by the deployment `removal`.
    Archive {
        removal: DeploymentId,
    },
    /// Calls off the newest that wait, until no more than `leave` do.
    CancelWaiting {
        leave: usize,
    },
    /// The stage was declared again.
    Reopen,
    /// A worker takes up the active deployment; from now on only its reports count.
    Start {
        deployment: DeploymentId,
        worker: String,
    },
    Complete {
        deployment: DeploymentId,
        worker: String,
        step: Step,
        elapsed_ms: u64,
        instances: Vec<Instance>,
    },
    Fail {
        deployment: DeploymentId,
        worker: String,
        elapsed_ms: u64,
        failure: Failure,
    },
    Observe {
        /// What the container's label says: see [`super::Release::set`].
        set: DeploymentId,
        instance: String,
        observed: Observed,
    },
}

/// What the engine said about a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Observed {
    Started { address: Option<String> },
    Exited { exit_code: i64 },
    OomKilled,
    HealthChanged { healthy: bool },
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    #[error("this stage is archived: declare it again with `sluice project apply` to deploy to it")]
    Archived,
    #[error("this stage is locked by {owner}: {reason} (`sluice unlock` lifts the lock)")]
    Locked { owner: String, reason: String },
    #[error(
        "{waiting} deployments wait here already, the most there can be: cancel some, or let `queue: supersede` replace them"
    )]
    QueueFull { waiting: usize },
    #[error("this stage has no such deployment: `sluice status` lists them")]
    UnknownDeployment,
    #[error("this deployment has already ended ({})", outcome_name(*.0))]
    Ended(Outcome),
    #[error(
        "too late to cancel: the new release has taken over and only the old one's end is left; deploy the earlier image to go back"
    )]
    TooLate,
    #[error("this stage is not locked")]
    NotLocked,
    #[error("the lock belongs to {owner}: add --force to take it from them")]
    OthersLock { owner: String },
    #[error("a lock needs an owner and a reason of 1 to 500 characters")]
    BadLock,
    #[error(
        "this stage takes releases only by promotion from {from}: `sluice promote`, or deploy with --hotfix and a reason to go past its gates"
    )]
    PromotionOnly { from: Slug },
    #[error("{} waits for a decision already: approve or withdraw it first", .0)]
    PromotionWaits(PromotionId),
    #[error("this stage has no such promotion: `sluice promotion list` shows them")]
    UnknownPromotion,
    #[error("this promotion has been {} already", decision_name(*.0))]
    Decided(Decision),
    #[error("you asked for this promotion: somebody else has to approve it")]
    OwnPromotion,
    #[error("your approval does not count here: the role {needed} or a higher one is needed")]
    ApprovalDoesNotCount { needed: Role },
    #[error("a reason of 1 to 500 characters is needed")]
    NoReason,
    #[error("this stage is on hold by {by}: {reason} (`sluice unhold` lifts it)")]
    OnHold { by: String, reason: String },
    #[error("these bytes are what was requested here last")]
    NothingNew,
    #[error("another deployment was requested while the registry was asked: ask again")]
    Overtaken,
    #[error("this project does not promote by itself: its `auto_promote` is off")]
    NotAutomatic,
    #[error("the source has nothing that this stage does not have, or had")]
    NothingToPromote,
    #[error("this stage is not on hold")]
    NotOnHold,
    #[error("nothing runs here yet: deploy or promote something first")]
    NothingRuns,
    #[error("there is no earlier release to go back to")]
    NoEarlierRelease,
    #[error("this deployment is what the stage runs already")]
    AlreadyCurrent,
    #[error(
        "this deployment is not among the earlier releases that the stage remembers: deploy or promote its image instead"
    )]
    ReleaseForgotten,
    #[error("another worker ({worker}) has taken over this deployment")]
    Fenced { worker: String },
    #[error("the rollout is not at this step (it is at {})", .expected.map_or("its end".to_owned(), |step| format!("{step:?}")))]
    OutOfStep { expected: Option<Step> },
}

fn outcome_name(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Succeeded => "succeeded",
        Outcome::Failed => "failed",
        Outcome::RolledBack => "rolled back",
        Outcome::Cancelled => "cancelled",
        Outcome::Superseded => "superseded",
    }
}

fn decision_name(decision: Decision) -> &'static str {
    match decision {
        Decision::Accepted => "accepted",
        Decision::Refused => "refused",
        Decision::Withdrawn => "withdrawn",
    }
}
