//! Who may answer on a host and path: one aggregate per host, so that two stages cannot both win.
//!
//! Claims change in the same atomic batch as the project's settings that ask for them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Aggregate, Key, Slug};

/// Names reflect the stored format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", content = "data")]
pub enum Event {
    #[serde(rename = "claimed.v1")]
    Claimed { path: String, project: Slug, stage: Slug },
    #[serde(rename = "released.v1")]
    Released { path: String, project: Slug, stage: Slug },
}

/// The claims on one host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Host {
    claims: BTreeMap<String, (Slug, Slug)>,
}

#[derive(Debug, Clone)]
pub enum Command {
    Claim { path: String, project: Slug, stage: Slug },
    Release { path: String, project: Slug, stage: Slug },
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    #[error(
        "path {path} on this host already belongs to stage {stage} of project {project}: choose another host or path, or archive that stage"
    )]
    Taken { path: String, project: Slug, stage: Slug },
}

impl Key<Host> {
    /// `host` without port. Dots separate subject tokens; `_` cannot be part of a host name.
    pub fn host(host: &str) -> Self {
        Key::new(host.replace('.', "_"))
    }
}

impl Aggregate for Host {
    const NAME: &'static str = "route";
    type Event = Event;
    type Command = Command;
    type Rejection = Rejection;

    fn decide(&self, command: Command) -> Result<Vec<Event>, Rejection> {
        match command {
            Command::Claim { path, project, stage } => match self.claims.get(&path) {
                Some((p, s)) if (p, s) == (&project, &stage) => Ok(vec![]),
                Some((p, s)) => Err(Rejection::Taken { path, project: p.clone(), stage: s.clone() }),
                None => Ok(vec![Event::Claimed { path, project, stage }]),
            },
            Command::Release { path, project, stage } => match self.claims.get(&path) {
                Some((p, s)) if (p, s) == (&project, &stage) => Ok(vec![Event::Released { path, project, stage }]),
                Some(_) | None => Ok(vec![]),
            },
        }
    }

    fn evolve(&mut self, event: &Event) {
        match event {
            Event::Claimed { path, project, stage } => {
                self.claims.insert(path.clone(), (project.clone(), stage.clone()));
            }
            Event::Released { path, .. } => {
                self.claims.remove(path);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slug(text: &str) -> Slug {
        text.parse().expect("a good name")
    }

    fn claim(stage: &str) -> Command {
        Command::Claim { path: "/".into(), project: slug("shop"), stage: slug(stage) }
    }

    fn run(host: &mut Host, command: Command) -> Result<usize, Rejection> {
        let events = host.decide(command)?;
        events.iter().for_each(|event| host.evolve(event));
        Ok(events.len())
    }

    #[test]
    fn a_path_belongs_to_one_stage_until_it_is_released() {
        let mut host = Host::default();
        assert_eq!(run(&mut host, claim("dev")), Ok(1));
        assert_eq!(run(&mut host, claim("dev")), Ok(0), "the same claim again is no second event");
        assert!(matches!(run(&mut host, claim("prod")), Err(Rejection::Taken { .. })));
        let release = Command::Release { path: "/".into(), project: slug("shop"), stage: slug("dev") };
        assert_eq!(run(&mut host, release.clone()), Ok(1));
        assert_eq!(run(&mut host, release), Ok(0));
        assert_eq!(run(&mut host, claim("prod")), Ok(1));
    }
}
