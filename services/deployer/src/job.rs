//! A rollout under work, as its steps see it.

use std::sync::Arc;

use domain::{
    DeploymentId,
    stage::{Release, Rollout},
};
use eventlog::{LogLine, LogRef, LogStream};

use crate::{
    Node, Place,
    docker::{Container, Engine},
    failure::StepError,
};

/// Everything a step may look at.
pub(crate) struct Job {
    pub(crate) node: Arc<Node>,
    /// Counts this rollout's own changes, and refuses them once another has taken over.
    pub(crate) engine: Engine,
    pub(crate) place: Place,
    pub(crate) rollout: Rollout,
    /// Entitles to write the route: grows with every worker that takes the rollout up.
    pub(crate) fence: u64,
    /// The step was begun before, by a worker that was lost or before the engine went away: what it
    /// had started may have been stopped without fault of its own.
    pub(crate) again: bool,
}

/// Tells the followers of `deployment` what becomes of it.
pub(crate) fn note(node: &Node, place: &Place, deployment: DeploymentId, text: impl Into<String>) {
    let (project, stage) = (place.project.clone(), place.stage.clone());
    let from = LogRef { project, stage, deployment, source: "step".into() };
    let line = LogLine { time: runtime::clock::now(), stream: LogStream::Step, text: text.into() };
    node.log.logs().append(&from, vec![line]);
}

impl Job {
    /// Tells the followers of the deployment what the step does.
    pub(crate) fn note(&self, text: impl Into<String>) {
        note(&self.node, &self.place, self.rollout.deployment, text);
    }

    /// The containers of `set`, by replica.
    pub(crate) async fn containers(&self, set: DeploymentId) -> Result<Vec<Container>, StepError> {
        let owner = self.node.labels();
        Ok(self.engine.containers(owner, owner.of_set(&self.place, set)).await?)
    }

    /// Where this rollout's removal or replacement has to look for what served before.
    pub(crate) fn previous(&self) -> Option<&Release> {
        self.rollout.previous.as_ref()
    }
}
