//! The rollout plan: which step comes next, from nothing but what has happened.
//!
//! A plan is a list. Going forward, the next step is the first one not done. After a failure or a
//! cancel the list is what undoes the steps that may have had an effect. Recovery after a crash is
//! the same question asked again.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Failure, Instance, Kind, Release, Spec};
use crate::{DeploymentId, Span, settings::Strategy};

/// One thing for the deployer to do. Each may be interrupted anywhere and run again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Have the image on the node, by digest.
    Pull,
    /// Let the edges hold the stage's requests.
    Hold,
    /// Create and start the new containers.
    Create,
    /// Wait until all new containers are healthy.
    AwaitHealthy,
    /// Point the route at the new containers and confirm it through the edge.
    Switch,
    /// Watch the new containers' health under real traffic.
    Bake,
    /// Wait until the old containers have no request in flight.
    Drain,
    /// Stop the old containers; remove what lies beyond the retention policy.
    Retire,
    /// Undo: hold requests again, since the new containers are about to stop.
    Rehold,
    /// Undo: stop and remove the new containers.
    Discard,
    /// Undo: start the old containers again.
    Restore,
    /// Undo: point the route back.
    Revert,
}

/// A deployment on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rollout {
    pub deployment: DeploymentId,
    /// Whose containers it brings to serve: its own, or those of an earlier release, see [`Release::set`].
    pub set: DeploymentId,
    pub kind: Kind,
    pub spec: Spec,
    /// What served when this deployment was dispatched, and serves on if it fails.
    pub previous: Option<Release>,
    /// Who works on it; none before a deployer has taken the command.
    pub worker: Option<String>,
    pub done: Vec<Step>,
    pub instances: Vec<Instance>,
    pub failure: Option<Failure>,
    /// Undoing steps that could not be carried out; the node's sweep has to finish them.
    pub troubles: Vec<Failure>,
    pub cancelled: bool,
}

/// The step to run now; `None` when the rollout has come to its end.
pub fn next_step(rollout: &Rollout) -> Option<Step> {
    let plan = if rollout.backward() { undo_plan(rollout) } else { forward_plan(rollout) };
    plan.into_iter().find(|step| !rollout.done.contains(step))
}

impl Rollout {
    /// Of which nothing is done yet.
    pub fn new(deployment: DeploymentId, kind: Kind, spec: Spec, previous: Option<Release>) -> Self {
        Self {
            deployment,
            set: deployment,
            kind,
            spec,
            previous,
            worker: None,
            done: vec![],
            instances: vec![],
            failure: None,
            troubles: vec![],
            cancelled: false,
        }
    }

    /// Whether it starts the containers of an earlier release again.
    pub fn flips(&self) -> bool {
        self.set != self.deployment
    }

    pub fn backward(&self) -> bool {
        self.failure.is_some() || self.cancelled
    }

    /// Undoing is over once only the old set's end is left: the new set serves and has proven itself.
    pub fn past_return(&self) -> bool {
        match forward_plan(self).into_iter().find(|step| !self.done.contains(step)) {
            Some(step) => !self.reversible(step),
            None => true,
        }
    }

    /// Whether `step`'s failure can still be answered by undoing. Where it cannot, the rollout goes
    /// on and the trouble is noted with the step.
    pub fn reversible(&self, step: Step) -> bool {
        match step {
            Step::Pull | Step::Hold | Step::Create | Step::AwaitHealthy | Step::Switch | Step::Bake => true,
            Step::Drain | Step::Retire => match self.kind {
                Kind::Release => self.spec.settings.strategy == Strategy::Recreate,
                Kind::Removal => false,
            },
            Step::Rehold | Step::Discard | Step::Restore | Step::Revert => false,
        }
    }

    fn routed(&self) -> bool {
        let before = self.previous.as_ref().is_some_and(|p| p.spec.settings.route.is_some());
        match self.kind {
            Kind::Release => before || self.spec.settings.route.is_some(),
            Kind::Removal => before,
        }
    }
}

fn forward_plan(rollout: &Rollout) -> Vec<Step> {
    let replaces = rollout.previous.is_some();
    let drains = rollout.previous.as_ref().is_some_and(|p| p.spec.settings.route.is_some());
    let switches = rollout.routed();
    let bakes = rollout.spec.settings.bake > Span::ZERO;
    let steps: &[(Step, bool)] = match (rollout.kind, rollout.spec.settings.strategy) {
        (Kind::Release, Strategy::BlueGreen) => &[
            (Step::Pull, true),
            (Step::Create, true),
            (Step::AwaitHealthy, true),
            (Step::Switch, switches),
            (Step::Bake, bakes),
            (Step::Drain, drains),
            (Step::Retire, true),
        ],
        (Kind::Release, Strategy::Recreate) => &[
            (Step::Pull, true),
            (Step::Hold, drains),
            (Step::Drain, drains),
            (Step::Retire, replaces),
            (Step::Create, true),
            (Step::AwaitHealthy, true),
            (Step::Switch, switches),
            (Step::Bake, bakes),
        ],
        (Kind::Removal, _) => &[(Step::Switch, switches), (Step::Drain, drains), (Step::Retire, true)],
    };
    steps.iter().filter(|(_, needed)| *needed).map(|(step, _)| *step).collect()
}

/// A step that was interrupted may have had its effect, so it is undone like one that was done.
fn undo_plan(rollout: &Rollout) -> Vec<Step> {
    let forward = forward_plan(rollout);
    let first_open = forward.iter().position(|step| !rollout.done.contains(step));
    let touched = &forward[..first_open.map_or(forward.len(), |at| at + 1)];
    let did = |step| touched.contains(&step);
    let steps: &[(Step, bool)] = match (rollout.kind, rollout.spec.settings.strategy) {
        (Kind::Release, Strategy::BlueGreen) => {
            &[(Step::Revert, did(Step::Switch)), (Step::Discard, did(Step::Create))]
        }
        (Kind::Release, Strategy::Recreate) => &[
            (Step::Rehold, did(Step::Hold) && did(Step::Switch)),
            (Step::Discard, did(Step::Create)),
            (Step::Restore, did(Step::Retire)),
            (Step::Revert, did(Step::Hold) || did(Step::Switch)),
        ],
        (Kind::Removal, _) => &[],
    };
    steps.iter().filter(|(_, needed)| *needed).map(|(step, _)| *step).collect()
}
