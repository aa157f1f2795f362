//! A project and the settings of its stages: what a person declared, not what runs.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    Aggregate, Key, Slug,
    settings::{FieldError, RouteSettings, StageSettings},
};

/// Names reflect the stored format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", content = "data")]
pub enum Event {
    #[serde(rename = "created.v1")]
    Created { name: String },
    #[serde(rename = "renamed.v1")]
    Renamed { name: String },
    /// Ends the project; its stages were archived before.
    #[serde(rename = "archived.v1")]
    Archived {},
    #[serde(rename = "stage.added.v1")]
    StageAdded { stage: Slug, settings: StageSettings },
    #[serde(rename = "stage.changed.v1")]
    StageChanged { stage: Slug, settings: StageSettings },
    #[serde(rename = "stage.archived.v1")]
    StageArchived { stage: Slug },
}

/// Without a name the project was never created.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Project {
    pub name: Option<String>,
    pub archived: bool,
    pub stages: BTreeMap<Slug, StageSettings>,
}

/// A project as declared: what `sluice project apply` sends. Stages that are left out stay as they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Declaration {
    /// For people; the project's slug where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(default)]
    #[schema(value_type = BTreeMap<String, StageSettings>)]
    pub stages: BTreeMap<Slug, StageSettings>,
}

#[derive(Debug, Clone)]
pub enum Command {
    /// Creates the project, or changes it to what is declared.
    Apply {
        slug: Slug,
        declaration: Declaration,
    },
    /// Creates one stage, or changes it.
    ApplyStage {
        stage: Slug,
        settings: StageSettings,
    },
    ArchiveStage {
        stage: Slug,
    },
    Archive,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    #[error("no such project: create it with `sluice project apply -f sluice.yaml`")]
    Unknown,
    #[error("this project is archived: choose another name for a new one")]
    Archived,
    #[error("no such stage in this project: `sluice status` lists them")]
    UnknownStage,
    #[error("{}", .0.iter().map(|e| format!("{}: {}", e.field, e.problem)).collect::<Vec<_>>().join("; "))]
    Invalid(Vec<FieldError>),
}

const MOST_STAGES: usize = 100;

impl Key<Project> {
    pub fn project(project: &Slug) -> Self {
        Key::new(project.to_string())
    }
}

impl Project {
    /// The project as long as it may be changed and deployed to.
    pub fn open(&self) -> Result<&Self, Rejection> {
        match (&self.name, self.archived) {
            (None, _) => Err(Rejection::Unknown),
            (Some(_), true) => Err(Rejection::Archived),
            (Some(_), false) => Ok(self),
        }
    }

    pub fn stage(&self, stage: &Slug) -> Result<&StageSettings, Rejection> {
        self.open()?.stages.get(stage).ok_or(Rejection::UnknownStage)
    }

    /// Host and path of every stage that takes traffic.
    pub fn routes(&self) -> BTreeSet<(RouteSettings, Slug)> {
        self.stages.iter().filter_map(|(slug, s)| Some((s.route.clone()?, slug.clone()))).collect()
    }

    fn change_stage(&self, stage: &Slug, settings: &StageSettings) -> Option<Event> {
        match self.stages.get(stage) {
            None => Some(Event::StageAdded { stage: stage.clone(), settings: settings.clone() }),
            Some(known) if known != settings => {
                Some(Event::StageChanged { stage: stage.clone(), settings: settings.clone() })
            }
            Some(_) => None,
        }
    }

    /// The stages as they will be are checked together: two of them on one host and path clash.
    fn check(&self, changes: &BTreeMap<Slug, StageSettings>) -> Result<(), Rejection> {
        let mut errors: Vec<FieldError> =
            changes.iter().flat_map(|(slug, settings)| settings.check(&format!("stages.{slug}"))).collect();
        let mut stages = self.stages.clone();
        stages.extend(changes.clone());
        let mut taken = BTreeMap::new();
        for (slug, route) in stages.iter().filter_map(|(slug, s)| Some((slug, s.route.as_ref()?))) {
            if let Some(other) = taken.insert((&route.host, &route.path), slug) {
                errors.push(FieldError {
                    field: format!("stages.{slug}.route"),
                    problem: format!(
                        "{}{} already belongs to stage {other}: choose another host or path",
                        route.host, route.path
                    ),
                });
            }
        }
        if stages.len() > MOST_STAGES {
            errors.push(FieldError {
                field: "stages".into(),
                problem: format!("a project has at most {MOST_STAGES} stages"),
            });
        }
        if errors.is_empty() { Ok(()) } else { Err(Rejection::Invalid(errors)) }
    }
}

impl Aggregate for Project {
    const NAME: &'static str = "project";
    type Event = Event;
    type Command = Command;
    type Rejection = Rejection;

    fn decide(&self, command: Command) -> Result<Vec<Event>, Rejection> {
        match command {
            Command::Apply { slug, declaration: Declaration { name, stages } } => {
                if self.archived {
                    return Err(Rejection::Archived);
                }
                let name = name.unwrap_or_else(|| self.name.clone().unwrap_or_else(|| slug.to_string()));
                if name.is_empty() || name.chars().count() > 120 {
                    let problem = "must be 1 to 120 characters".into();
                    return Err(Rejection::Invalid(vec![FieldError { field: "name".into(), problem }]));
                }
                self.check(&stages)?;
                let named = match &self.name {
                    None => Some(Event::Created { name }),
                    Some(known) if *known != name => Some(Event::Renamed { name }),
                    Some(_) => None,
                };
                Ok(named.into_iter().chain(stages.iter().filter_map(|(slug, s)| self.change_stage(slug, s))).collect())
            }
            Command::ApplyStage { stage, settings } => {
                self.open()?;
                self.check(&BTreeMap::from([(stage.clone(), settings.clone())]))?;
                Ok(self.change_stage(&stage, &settings).into_iter().collect())
            }
            Command::ArchiveStage { stage } => {
                self.stage(&stage)?;
                Ok(vec![Event::StageArchived { stage }])
            }
            Command::Archive => {
                self.open()?;
                let stages = self.stages.keys().cloned().map(|stage| Event::StageArchived { stage });
                Ok(stages.chain([Event::Archived {}]).collect())
            }
        }
    }

    fn evolve(&mut self, event: &Event) {
        match event {
            Event::Created { name } | Event::Renamed { name } => self.name = Some(name.clone()),
            Event::Archived {} => self.archived = true,
            Event::StageAdded { stage, settings } | Event::StageChanged { stage, settings } => {
                self.stages.insert(stage.clone(), settings.clone());
            }
            Event::StageArchived { stage } => {
                self.stages.remove(stage);
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

    fn on(host: &str) -> StageSettings {
        StageSettings { route: Some(RouteSettings { host: host.into(), path: "/".into() }), ..StageSettings::default() }
    }

    fn apply(stages: &[(&str, StageSettings)]) -> Command {
        let stages = stages.iter().map(|(name, s)| (slug(name), s.clone())).collect();
        Command::Apply { slug: slug("shop"), declaration: Declaration { name: None, stages } }
    }

    fn given(commands: Vec<Command>) -> Project {
        let mut project = Project::default();
        for command in commands {
            project.decide(command).expect("given commands are accepted").iter().for_each(|e| project.evolve(e));
        }
        project
    }

    #[test]
    fn applying_twice_changes_nothing_the_second_time() {
        let project = given(vec![apply(&[("dev", on("a.test"))])]);
        assert_eq!(project.decide(apply(&[("dev", on("a.test"))])), Ok(vec![]));
    }

    #[test]
    fn a_changed_stage_is_one_event_with_the_whole_settings() {
        let project = given(vec![apply(&[("dev", on("a.test")), ("prod", on("b.test"))])]);
        let events = project.decide(apply(&[("dev", on("c.test"))])).expect("accepted");
        assert_eq!(events, [Event::StageChanged { stage: slug("dev"), settings: on("c.test") }]);
    }

    #[test]
    fn two_stages_on_one_host_and_path_are_refused_by_field() {
        let project = given(vec![apply(&[("dev", on("a.test"))])]);
        let Err(Rejection::Invalid(errors)) = project.decide(apply(&[("prod", on("a.test"))])) else {
            panic!("accepted");
        };
        assert_eq!(errors[0].field, "stages.prod.route");
        assert!(errors[0].problem.contains("stage dev"), "{errors:?}");
    }

    #[test]
    fn an_archived_project_takes_nothing_more() {
        let project = given(vec![apply(&[("dev", on("a.test"))]), Command::Archive]);
        assert!(project.stages.is_empty());
        assert_eq!(project.decide(Command::Archive), Err(Rejection::Archived));
        assert_eq!(project.decide(apply(&[])), Err(Rejection::Archived));
        assert_eq!(project.stage(&slug("dev")), Err(Rejection::Archived));
    }

    #[test]
    fn what_does_not_exist_is_said_so() {
        assert_eq!(Project::default().decide(Command::Archive), Err(Rejection::Unknown));
        let project = given(vec![apply(&[])]);
        assert_eq!(project.decide(Command::ArchiveStage { stage: slug("dev") }), Err(Rejection::UnknownStage));
    }
}
