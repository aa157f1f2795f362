//! What is known about an installation at one moment, and how it got there.

use std::collections::BTreeMap;

use domain::{Aggregate, DeploymentId, Event, Recorded, stage::Stage, traffic::Route};
use readmodel::{Checksum, deployments::Status};

/// `<project>.<stage>`.
pub fn key(project: &str, stage: &str) -> String {
    format!("{project}.{stage}")
}

/// A request that was answered with 202, as its sender noted it.
#[derive(Debug, Clone)]
pub struct Accepted {
    pub idempotency_key: String,
    pub asked: Asked,
    /// The one that it made or was about.
    pub deployment: DeploymentId,
    /// The position in the log that the answer named.
    pub sequence: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    Deploy,
    Cancel,
}

/// A container with the installation's labels.
#[derive(Debug, Clone)]
pub struct Container {
    pub name: String,
    /// As [`key`] has it.
    pub stage: String,
    /// The deployment that made it.
    pub set: Option<DeploymentId>,
    pub replica: u16,
    pub running: bool,
}

/// A container that was seen to exist, now or before.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Made {
    pub set: DeploymentId,
    pub replica: u16,
    /// The engine's id.
    pub container: String,
}

/// A network with the installation's labels.
#[derive(Debug, Clone)]
pub struct Network {
    pub name: String,
    pub project: String,
}

/// A row of the read model of deployments.
#[derive(Debug, Clone)]
pub struct Deployed {
    pub deployment: DeploymentId,
    pub status: Status,
}

/// Everything that a verdict rests on.
#[derive(Debug, Clone, Default)]
pub struct Evidence {
    pub accepted: Vec<Accepted>,
    /// The whole log.
    pub events: Vec<Recorded>,
    pub containers: Vec<Container>,
    pub made: Vec<Made>,
    pub networks: Vec<Network>,
    /// Names of volumes that no container uses, where the engine is nobody else's.
    pub volumes: Vec<String>,
    /// By key in the bucket.
    pub routes: BTreeMap<String, Route>,
    /// Which deployment answers for a stage at the edge, or what else happened to the question; by [`key`].
    pub answers: BTreeMap<String, Result<DeploymentId, String>>,
    /// In the work queue.
    pub commands: u64,
    /// The read model of stages; by [`key`].
    pub stages: BTreeMap<String, readmodel::stages::Stage>,
    pub deployments: Vec<Deployed>,
    /// Before and after the read models were built anew.
    pub live: Vec<Checksum>,
    pub rebuilt: Vec<Checksum>,
}

impl Evidence {
    /// The stages as the events have them, by [`key`].
    pub fn folded(&self) -> BTreeMap<String, Stage> {
        let mut stages = BTreeMap::<String, Stage>::new();
        for recorded in &self.events {
            if let (Event::Stage(event), [project, stage]) = (&recorded.event, recorded.key.as_slice()) {
                stages.entry(key(project, stage)).or_default().evolve(event);
            }
        }
        stages
    }
}
