//! Which containers were there, at one look after the other.

use std::collections::{BTreeMap, BTreeSet};

use bollard::models::ContainerSummary;
use domain::DeploymentId;

use super::{
    evidence::Made,
    gather::{DEPLOYMENT, REPLICA},
};

/// What all looks together have seen.
#[derive(Debug, Default)]
pub struct Sightings {
    ever: BTreeSet<Made>,
    /// Those of one replica that were there at the same time.
    together: BTreeSet<Made>,
}

impl Sightings {
    /// All containers that are there now.
    pub fn note(&mut self, containers: Vec<ContainerSummary>) {
        let mut now = BTreeMap::<(DeploymentId, u16), Vec<Made>>::new();
        for container in containers {
            let labels = container.labels.unwrap_or_default();
            let label = |name: &str| labels.get(name).map(String::as_str).unwrap_or_default();
            if let (Ok(deployment), Ok(replica)) = (label(DEPLOYMENT).parse(), label(REPLICA).parse()) {
                let container = container.id.unwrap_or_default();
                now.entry((deployment, replica)).or_default().push(Made { deployment, replica, container });
            }
        }
        for made in now.into_values() {
            if made.len() > 1 {
                self.together.extend(made.clone());
            }
            self.ever.extend(made);
        }
    }

    /// What should be one container a replica. Where the engine was killed, it may have lost one that has to be made
    /// anew: then only two at the same time are too many.
    pub fn made(&self, engine_killed: bool) -> Vec<Made> {
        let made = if engine_killed { &self.together } else { &self.ever };
        made.iter().cloned().collect()
    }
}
