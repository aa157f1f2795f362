//! Labels on containers: how everything this deployer made is found again, after whatever crash.

use std::collections::HashMap;

use domain::{DeploymentId, Slug};
use uuid::Uuid;

use crate::Place;

const INSTALLATION: &str = "dev.sluice.installation";
const NODE: &str = "dev.sluice.node";
const PROJECT: &str = "dev.sluice.project";
const STAGE: &str = "dev.sluice.stage";
const DEPLOYMENT: &str = "dev.sluice.deployment";
const REPLICA: &str = "dev.sluice.replica";
const CONFIG_HASH: &str = "dev.sluice.config-hash";
const PORT: &str = "dev.sluice.port";

/// Whose containers: several installations, or nodes, may share an engine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owner<'a> {
    pub(crate) installation: Uuid,
    pub(crate) node: &'a str,
}

/// What a container's labels say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Labels {
    pub(crate) place: Place,
    /// The deployment that made it, with the others of its set.
    pub(crate) set: DeploymentId,
    /// From 1.
    pub(crate) replica: u16,
    pub(crate) config_hash: String,
    /// That the container listens on.
    pub(crate) port: Option<u16>,
}

impl Owner<'_> {
    /// Filters for all containers of this owner.
    pub(crate) fn all(&self) -> Vec<String> {
        vec![format!("{INSTALLATION}={}", self.installation), format!("{NODE}={}", self.node)]
    }

    pub(crate) fn of_project(&self, project: &Slug) -> Vec<String> {
        [self.all(), vec![format!("{PROJECT}={project}")]].concat()
    }

    pub(crate) fn of_stage(&self, place: &Place) -> Vec<String> {
        [self.of_project(&place.project), vec![format!("{STAGE}={}", place.stage)]].concat()
    }

    pub(crate) fn of_set(&self, place: &Place, set: DeploymentId) -> Vec<String> {
        [self.of_stage(place), vec![format!("{DEPLOYMENT}={set}")]].concat()
    }

    /// Of a project's network. Another installation's project of the same name has one of its own.
    pub(crate) fn network(&self, project: &Slug) -> String {
        let installation = self.installation.simple().to_string();
        format!("sluice-{project}-{}", &installation[24..])
    }

    pub(crate) fn on_network(&self, project: &Slug) -> HashMap<String, String> {
        self.base([(PROJECT, project.to_string())])
    }

    pub(crate) fn on_container(&self, labels: &Labels) -> HashMap<String, String> {
        let mut map = self.base([
            (PROJECT, labels.place.project.to_string()),
            (STAGE, labels.place.stage.to_string()),
            (DEPLOYMENT, labels.set.to_string()),
            (REPLICA, labels.replica.to_string()),
            (CONFIG_HASH, labels.config_hash.clone()),
        ]);
        if let Some(port) = labels.port {
            map.insert(PORT.into(), port.to_string());
        }
        map
    }

    fn base<const N: usize>(&self, more: [(&str, String); N]) -> HashMap<String, String> {
        [(INSTALLATION, self.installation.to_string()), (NODE, self.node.to_owned())]
            .into_iter()
            .chain(more)
            .map(|(name, value)| (name.to_owned(), value))
            .collect()
    }

    /// `None` for a container that is not this owner's, or whose labels were tampered with.
    pub(crate) fn read(&self, labels: &HashMap<String, String>) -> Option<Labels> {
        let get = |name: &str| labels.get(name).map(String::as_str);
        let ours = get(INSTALLATION)? == self.installation.to_string() && get(NODE)? == self.node;
        ours.then_some(())?;
        Some(Labels {
            place: Place { project: get(PROJECT)?.parse().ok()?, stage: get(STAGE)?.parse().ok()? },
            set: get(DEPLOYMENT)?.parse().ok()?,
            replica: get(REPLICA)?.parse().ok()?,
            config_hash: get(CONFIG_HASH)?.to_owned(),
            port: get(PORT).and_then(|port| port.parse().ok()),
        })
    }
}

/// `<project>-<stage>-<deployment>-<replica>`, where the deployment is told by the first eight
/// characters of its id's random tail: its head is the time, which two deployments may share.
pub(crate) fn container_name(place: &Place, set: DeploymentId, replica: u16) -> String {
    let id = set.to_string();
    let tail = id.rsplit('-').next().unwrap_or(&id);
    format!("{}-{}-{}-{replica}", place.project, place.stage, tail.get(..8).unwrap_or(tail))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels() -> Labels {
        Labels {
            place: Place { project: "shop".parse().expect("good"), stage: "dev".parse().expect("good") },
            set: "0193a1b2-0000-7000-8000-0123456789ab".parse().expect("an id"),
            replica: 2,
            config_hash: "x".into(),
            port: Some(8080),
        }
    }

    #[test]
    fn labels_read_back_and_strangers_are_left_alone() {
        let owner = Owner { installation: Uuid::nil(), node: "local" };
        let written = owner.on_container(&labels());
        assert_eq!(owner.read(&written), Some(labels()));
        assert_eq!(Owner { node: "other", ..owner }.read(&written), None);
        assert_eq!(Owner { installation: Uuid::max(), ..owner }.read(&written), None);
        assert_eq!(owner.read(&HashMap::new()), None);
    }

    #[test]
    fn a_name_tells_project_stage_deployment_and_replica() {
        let Labels { place, set, .. } = labels();
        assert_eq!(container_name(&place, set, 2), "shop-dev-01234567-2");
    }
}
