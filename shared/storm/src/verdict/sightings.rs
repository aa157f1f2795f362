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
            if let (Ok(set), Ok(replica)) = (label(DEPLOYMENT).parse(), label(REPLICA).parse()) {
                let container = container.id.unwrap_or_default();
                now.entry((set, replica)).or_default().push(Made { set, replica, container });
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

#[cfg(test)]
mod tests {
    use super::*;

    const DEPLOYED: &str = "0190b5a0-0000-7000-8000-000000000001";

    fn container(id: &str, replica: u16) -> ContainerSummary {
        let labels = [(DEPLOYMENT, DEPLOYED.to_owned()), (REPLICA, replica.to_string())];
        ContainerSummary {
            id: Some(id.to_owned()),
            labels: Some(labels.map(|(name, value)| (name.to_owned(), value)).into()),
            ..ContainerSummary::default()
        }
    }

    fn ids(made: Vec<Made>) -> Vec<String> {
        made.into_iter().map(|made| made.container).collect()
    }

    #[test]
    fn one_after_another_is_too_many_only_where_the_engine_was_not_killed() {
        let mut seen = Sightings::default();
        seen.note(vec![container("first", 0), container("other", 1)]);
        seen.note(vec![container("second", 0), container("other", 1)]);
        assert_eq!(ids(seen.made(false)), ["first", "second", "other"]);
        assert_eq!(ids(seen.made(true)), [""; 0]);
    }

    #[test]
    fn two_at_the_same_time_are_always_too_many() {
        let mut seen = Sightings::default();
        seen.note(vec![container("first", 0), container("second", 0), container("other", 1)]);
        seen.note(vec![container("second", 0)]);
        assert_eq!(ids(seen.made(true)), ["first", "second"]);
    }

    #[test]
    fn containers_of_others_are_not_counted() {
        let mut seen = Sightings::default();
        seen.note(vec![ContainerSummary { id: Some("foreign".into()), ..ContainerSummary::default() }]);
        assert_eq!(ids(seen.made(false)), [""; 0]);
    }
}
