//! A stage: one release that serves, at most one deployment on its way, a queue behind it, a lock, a hold, and at most
//! one promotion that waits.
//!
//! "One at a time", the queue and what may enter it are decided here and nowhere else.

mod command;
mod decide;
mod event;
mod follow;
mod promote;
pub mod rollout;
#[cfg(test)]
mod tests;

use std::{collections::VecDeque, sync::Arc};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use command::{Command, Observed, Rejection};
pub use event::{Event, Failure, Instance, Kind, Origin, Spec, StepDone};
pub use promote::Attempt;
pub use rollout::{Rollout, Step, next_step};

use crate::{
    Aggregate, DeploymentId, Key, PromotionId, Slug,
    image::Image,
    promotion::{Approval, Promotion},
};

/// A release that serves, or served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    pub deployment: DeploymentId,
    /// The deployment that made its containers, which carry it as a label. An earlier one where a rollback started
    /// them again.
    pub set: DeploymentId,
    pub spec: Spec,
    pub instances: Vec<Instance>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lock {
    pub owner: String,
    pub reason: String,
}

/// Keeps automation from undoing what a person did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    pub by: String,
    pub reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queued {
    pub deployment: DeploymentId,
    pub kind: Kind,
    pub node: String,
    /// The release that it goes back to.
    pub back_to: Option<DeploymentId>,
    /// Shared, for every decision looks at a copy of the stage, and hundreds may wait.
    pub spec: Arc<Spec>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Succeeded,
    Failed,
    RolledBack,
    Cancelled,
    Superseded,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    Accepted,
    Refused,
    Withdrawn,
}

/// How a promotion ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decided {
    pub promotion: PromotionId,
    pub decision: Decision,
}

/// How a deployment ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    pub deployment: DeploymentId,
    pub outcome: Outcome,
}

/// Endings that are remembered, for idempotence and clear answers; older ones are in the log.
const HISTORY: usize = 100;
/// Earlier releases that are remembered: more than any retention policy keeps.
const RELEASES: usize = 60;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stage {
    pub archived: bool,
    pub lock: Option<Lock>,
    /// What serves. During a rollout, still the old release: see [`Rollout::instances`] for the new.
    pub current: Option<Release>,
    pub active: Option<Rollout>,
    /// In order of request.
    pub queue: VecDeque<Queued>,
    /// Releases that served before the current one, newest first.
    pub earlier: VecDeque<Release>,
    /// Newest first.
    pub ended: VecDeque<Ended>,
    pub hold: Option<Hold>,
    /// The one that waits for its gates.
    pub promotion: Option<Promotion>,
    /// Newest first.
    pub decided: VecDeque<Decided>,
    /// What was promoted here last, or was called off: automation does not ask for the same again.
    pub settled: Option<String>,
    /// The release that was requested last, whatever became of it.
    pub newest: Option<Newest>,
    /// The node of the last request.
    node: Option<String>,
}

/// A release that was requested.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Newest {
    pub deployment: DeploymentId,
    pub image: Image,
}

/// What should exist on the node for a deployment's containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    Running,
    /// Stopped, to go back to.
    Stopped,
    /// A rollout is at work on it; whoever runs that decides.
    InProgress,
    Nothing,
}

impl Key<Stage> {
    pub fn stage(project: &Slug, stage: &Slug) -> Self {
        Key::new(format!("{project}.{stage}"))
    }
}

impl Stage {
    /// Releases whose stopped containers and images the retention policy keeps, newest first. Those that share their
    /// containers with the current one or with a newer one count once.
    pub fn kept(&self) -> impl Iterator<Item = &Release> {
        let keep = self.current.as_ref().map_or(0, |current| usize::from(current.spec.settings.keep));
        let mut seen: Vec<DeploymentId> = self.current.iter().map(|current| current.set).collect();
        let of_its_own = move |release: &&Release| {
            let first = !seen.contains(&release.set);
            seen.extend(first.then_some(release.set));
            first
        };
        self.earlier.iter().filter(of_its_own).take(keep)
    }

    /// What the node should hold of `set`; anything else that carries its label is an orphan.
    pub fn keeps(&self, set: DeploymentId) -> Keep {
        if self.active.as_ref().is_some_and(|active| active.set == set) {
            return Keep::InProgress;
        }
        if self.current.as_ref().is_some_and(|current| current.set == set) {
            // A rollout may be stopping or restoring the current release at this moment.
            return if self.active.is_some() { Keep::InProgress } else { Keep::Running };
        }
        if self.kept().any(|release| release.set == set) { Keep::Stopped } else { Keep::Nothing }
    }

    /// Whose containers those of `set` are now: the deployment that runs on them, or did last.
    pub fn runs_on(&self, set: DeploymentId) -> Option<DeploymentId> {
        let active = self.active.iter().map(|active| (active.set, active.deployment));
        let releases = self.current.iter().chain(&self.earlier).map(|release| (release.set, release.deployment));
        let found = active.chain(releases).find(|(of, _)| *of == set).map(|(_, deployment)| deployment);
        found.or_else(|| self.knows(set).then_some(set))
    }

    /// Where the stage's deployments run: the node of the last request.
    pub fn node(&self) -> Option<&str> {
        self.node.as_deref()
    }

    fn end(&mut self, deployment: DeploymentId, outcome: Outcome) {
        self.queue.retain(|queued| queued.deployment != deployment);
        self.ended.push_front(Ended { deployment, outcome });
        self.ended.truncate(HISTORY);
    }

    fn decided(&mut self, promotion: PromotionId, decision: Decision) {
        self.promotion.take_if(|pending| pending.id == promotion);
        self.decided.push_front(Decided { promotion, decision });
        self.decided.truncate(HISTORY);
    }

    fn take_active(&mut self, deployment: DeploymentId) -> Option<Rollout> {
        self.active.take_if(|active| active.deployment == deployment)
    }

    fn active(&mut self, deployment: DeploymentId) -> Option<&mut Rollout> {
        self.active.as_mut().filter(|active| active.deployment == deployment)
    }

    fn done(&mut self, step: Step, done: &StepDone) {
        if let Some(active) = self.active(done.deployment) {
            active.done.push(step);
            active.troubles.extend(done.problem.clone().filter(|_| active.backward()));
        }
    }

    fn succeed(&mut self, deployment: DeploymentId) {
        let Some(rollout) = self.take_active(deployment) else { return };
        if let Some(previous) = self.current.take() {
            self.earlier.push_front(previous);
            self.earlier.truncate(RELEASES);
        }
        match rollout.kind {
            Kind::Release => {
                let Rollout { set, spec, instances, .. } = rollout;
                self.current = Some(Release { deployment, set, spec, instances });
            }
            // Nothing of an archived stage is kept.
            Kind::Removal => self.earlier.clear(),
        }
    }
}

impl Aggregate for Stage {
    const NAME: &'static str = "stage";
    type Event = Event;
    type Command = Command;
    type Rejection = Rejection;

    fn decide(&self, command: Command) -> Result<Vec<Event>, Rejection> {
        decide::decide(self, command)
    }

    fn subject_suffix(event: &Event) -> Option<&str> {
        // Only a dispatch names its node: the server's routing depends on it.
        if let Event::Dispatched { node, .. } = event { Some(node) } else { None }
    }

    fn evolve(&mut self, event: &Event) {
        match event {
            Event::Requested { deployment, kind, node, spec, origin } => {
                self.node = Some(node.clone());
                if *kind == Kind::Release {
                    self.newest = Some(Newest { deployment: *deployment, image: spec.image.clone() });
                }
                self.queue.push_back(Queued {
                    deployment: *deployment,
                    kind: *kind,
                    node: node.clone(),
                    back_to: origin.back_to(),
                    spec: Arc::new(Spec::clone(spec)),
                });
            }
            Event::Superseded { deployment, .. } => self.end(*deployment, Outcome::Superseded),
            Event::Dispatched { deployment, set, node: _ } => {
                if let Some(at) = self.queue.iter().position(|queued| queued.deployment == *deployment)
                    && let Some(queued) = self.queue.remove(at)
                {
                    let spec = Arc::unwrap_or_clone(queued.spec);
                    let rollout = Rollout::new(*deployment, queued.kind, spec, self.current.clone());
                    self.active = Some(Rollout { set: set.unwrap_or(*deployment), ..rollout });
                }
            }
            Event::Started { deployment, worker } => {
                if let Some(active) = self.active(*deployment) {
                    active.worker = Some(worker.clone());
                }
            }
            Event::Pulled(done) => self.done(Step::Pull, done),
            Event::Held(done) => self.done(Step::Hold, done),
            Event::Created { step, instances } => {
                self.done(Step::Create, step);
                if let Some(active) = self.active(step.deployment) {
                    active.instances.clone_from(instances);
                }
            }
            Event::Healthy(done) => self.done(Step::AwaitHealthy, done),
            Event::Switched(done) => self.done(Step::Switch, done),
            Event::Baked(done) => self.done(Step::Bake, done),
            Event::Drained(done) => self.done(Step::Drain, done),
            Event::Retired(done) => self.done(Step::Retire, done),
            Event::Reheld(done) => self.done(Step::Rehold, done),
            Event::Discarded(done) => self.done(Step::Discard, done),
            Event::Restored(done) => self.done(Step::Restore, done),
            Event::Reverted(done) => self.done(Step::Revert, done),
            Event::StepFailed { deployment, failure, .. } => {
                if let Some(active) = self.active(*deployment) {
                    active.failure = Some(failure.clone());
                }
            }
            Event::CancelRequested { deployment, .. } => {
                if let Some(active) = self.active(*deployment) {
                    active.cancelled = true;
                }
            }
            Event::Succeeded { deployment } => {
                self.succeed(*deployment);
                self.end(*deployment, Outcome::Succeeded);
            }
            Event::Failed { deployment, .. } => {
                self.take_active(*deployment);
                self.end(*deployment, Outcome::Failed);
            }
            Event::RolledBack { deployment, .. } => {
                self.take_active(*deployment);
                self.end(*deployment, Outcome::RolledBack);
            }
            Event::Cancelled { deployment } => {
                self.take_active(*deployment);
                self.end(*deployment, Outcome::Cancelled);
            }
            Event::Locked { owner, reason } => {
                self.lock = Some(Lock { owner: owner.clone(), reason: reason.clone() });
            }
            Event::Unlocked { .. } => self.lock = None,
            Event::PromotionRequested { promotion, from, digest, by } => {
                self.promotion = Some(Promotion {
                    id: *promotion,
                    from: from.clone(),
                    digest: digest.clone(),
                    by: by.clone(),
                    approvals: vec![],
                });
            }
            Event::PromotionApproved { promotion, by, role } => {
                if let Some(pending) = self.promotion.as_mut().filter(|pending| pending.id == *promotion) {
                    pending.approvals.push(Approval { by: by.clone(), role: *role });
                }
            }
            Event::PromotionAccepted { promotion, proof, .. } => {
                self.settled = Some(proof.digest.clone());
                self.decided(*promotion, Decision::Accepted);
            }
            Event::PromotionRefused { promotion, .. } => self.decided(*promotion, Decision::Refused),
            Event::PromotionWithdrawn { promotion, .. } => {
                if let Some(pending) = self.promotion.as_ref().filter(|pending| pending.id == *promotion) {
                    self.settled.clone_from(&pending.digest);
                }
                self.decided(*promotion, Decision::Withdrawn);
            }
            Event::HoldSet { by, reason } => self.hold = Some(Hold { by: by.clone(), reason: reason.clone() }),
            Event::HoldLifted {} => self.hold = None,
            Event::InstanceStarted { instance, address, .. } => {
                let known = self.current.iter_mut().flat_map(|release| &mut release.instances);
                // A rollout's own picture of the old release must not go stale either.
                let previous = self.active.iter_mut().flat_map(|active| {
                    active.previous.iter_mut().flat_map(|release| &mut release.instances).chain(&mut active.instances)
                });
                for known in known.chain(previous).filter(|known| known.name == *instance) {
                    known.address.clone_from(address);
                }
            }
            Event::InstanceExited { .. } | Event::InstanceOomKilled { .. } | Event::InstanceHealthChanged { .. } => {}
            Event::Archived {} => self.archived = true,
            Event::Reopened {} => self.archived = false,
        }
    }
}
