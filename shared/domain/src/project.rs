//! A project and the settings of its stages: what a person declared, not what runs.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    Aggregate, FieldError, Key, Slug,
    env::{self, Env, SecretVersion},
    settings::{RouteSettings, StageSettings},
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
    /// Whether stages take what their source runs by themselves, as soon as the gates let it pass.
    #[serde(rename = "auto_promotion.switched.v1")]
    AutoPromotionSwitched { on: bool },
    /// Variables of all its stages.
    #[serde(rename = "env.changed.v1")]
    EnvChanged { env: Env },
    #[serde(rename = "secret.set.v1")]
    SecretSet {
        name: String,
        /// 1, 2, 3, ...
        version: u64,
        /// Where in the vault the value lies.
        vault: String,
    },
    #[serde(rename = "secret.removed.v1")]
    SecretRemoved { name: String },
    #[serde(rename = "stage.added.v1")]
    StageAdded { stage: Slug, settings: Box<StageSettings> },
    #[serde(rename = "stage.changed.v1")]
    StageChanged { stage: Slug, settings: Box<StageSettings> },
    #[serde(rename = "stage.archived.v1")]
    StageArchived { stage: Slug },
}

/// Without a name the project was never created.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Project {
    pub name: Option<String>,
    pub archived: bool,
    pub auto_promote: bool,
    pub env: Env,
    /// The newest value of each.
    pub secrets: BTreeMap<String, SecretVersion>,
    pub stages: BTreeMap<Slug, StageSettings>,
}

/// A project as declared: what `sluice project apply` sends. Stages that are left out stay as they are.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Declaration {
    /// For people; the project's slug where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Whether stages that name `promote_from` take what runs there by themselves, as soon as their gates let it pass;
    /// as it was where it is left out, and off in a new project.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_promote: Option<bool>,
    /// Variables of all its stages, which may set them otherwise; as they were where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<BTreeMap<String, crate::env::EnvValue>>)]
    pub env: Option<Env>,
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
        /// Archives the stages that are left out.
        prune: bool,
    },
    /// Creates one stage, or changes it.
    ApplyStage {
        stage: Slug,
        settings: Box<StageSettings>,
    },
    ArchiveStage {
        stage: Slug,
    },
    /// A value for a secret; it lies at `vault` already.
    SetSecret {
        name: String,
        vault: String,
    },
    RemoveSecret {
        name: String,
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
    #[error("names of secrets are 1 to 60 letters, digits, _ and -")]
    BadSecretName,
    #[error("this project has no such secret: `sluice secret list` shows them")]
    UnknownSecret,
    #[error("{} still refers to it: change that first", .by)]
    SecretInUse { by: String },
    #[error("no value is known for {}: `sluice secret set` takes it", .0.iter().map(|name| format!("the secret `{name}`")).collect::<Vec<_>>().join(", "))]
    SecretsMissing(Vec<String>),
    #[error("this stage promotes from no other: name one in its `promote_from`")]
    NoSource,
    #[error("stage {taker} promotes from this one: change its `promote_from` first")]
    StillPromotedFrom { taker: Slug },
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

    /// Where a stage promotes from.
    pub fn source(&self, stage: &Slug) -> Result<&Slug, Rejection> {
        self.stage(stage)?.promote_from.as_ref().ok_or(Rejection::NoSource)
    }

    /// What a release on this stage runs with from now on: the project's variables under the stage's own, each secret in
    /// its newest value.
    pub fn release(&self, stage: &Slug) -> Result<StageSettings, Rejection> {
        let mut settings = self.stage(stage)?.clone();
        let mut env = self.env.clone();
        env.append(&mut settings.env);
        settings.env = env::bind(env, &self.secrets).map_err(Rejection::SecretsMissing)?;
        Ok(settings)
    }

    /// Who refers to a secret, in words.
    fn user_of(&self, secret: &str) -> Option<String> {
        let uses =
            |env: &Env| env.iter().find(|(_, value)| value.secret() == Some(secret)).map(|(name, _)| name.clone());
        let of_project = uses(&self.env).map(|name| format!("env.{name} of the project"));
        of_project.or_else(|| {
            self.stages.iter().find_map(|(stage, settings)| {
                uses(&settings.env).map(|name| format!("env.{name} of the stage {stage}"))
            })
        })
    }

    /// Host and path of every stage that takes traffic.
    pub fn routes(&self) -> BTreeSet<(RouteSettings, Slug)> {
        // Who brings the requests does not change whose they are.
        let place = |route: &RouteSettings| RouteSettings { proxy: None, ..route.clone() };
        self.stages.iter().filter_map(|(slug, s)| Some((place(s.route.as_ref()?), slug.clone()))).collect()
    }

    fn change_stage(&self, stage: &Slug, settings: &StageSettings) -> Option<Event> {
        match self.stages.get(stage) {
            None => Some(Event::StageAdded { stage: stage.clone(), settings: Box::new(settings.clone()) }),
            Some(known) if known != settings => {
                Some(Event::StageChanged { stage: stage.clone(), settings: Box::new(settings.clone()) })
            }
            Some(_) => None,
        }
    }

    /// The stages as they will be are checked together: two of them on one host and path clash.
    fn check(&self, changes: &BTreeMap<Slug, StageSettings>, ending: &[Slug]) -> Result<(), Rejection> {
        let mut errors: Vec<FieldError> =
            changes.iter().flat_map(|(slug, settings)| settings.check(&format!("stages.{slug}"))).collect();
        let mut stages = self.stages.clone();
        stages.retain(|stage, _| !ending.contains(stage));
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
        errors.extend(check_sources(&stages).into_iter().filter(|error| {
            // What stood here before is not this command's fault.
            changes.keys().any(|slug| error.field == format!("stages.{slug}.promote_from"))
        }));
        if stages.len() > MOST_STAGES {
            errors.push(FieldError {
                field: "stages".into(),
                problem: format!("a project has at most {MOST_STAGES} stages"),
            });
        }
        if errors.is_empty() { Ok(()) } else { Err(Rejection::Invalid(errors)) }
    }
}

/// Stages that promote from one that is not there, or in a circle.
fn check_sources(stages: &BTreeMap<Slug, StageSettings>) -> Vec<FieldError> {
    let from = |stage: &Slug| stages.get(stage).and_then(|settings| settings.promote_from.as_ref());
    let problem = |stage: &Slug| {
        let source = from(stage)?;
        if !stages.contains_key(source) {
            return Some(format!("{source} is not a stage of this project: name one that is"));
        }
        let mut road = vec![stage];
        while let Some(next) = from(road.last()?) {
            if next == stage {
                let road: Vec<&str> = road.iter().chain([&stage]).map(|stage| stage.as_str()).collect();
                return Some(format!("promotes in a circle: {}", road.join(" from ")));
            }
            // Into the circle of others, who are told themselves.
            if road.contains(&next) {
                return None;
            }
            road.push(next);
        }
        None
    };
    let of =
        |stage: &Slug| Some(FieldError { field: format!("stages.{stage}.promote_from"), problem: problem(stage)? });
    stages.keys().filter_map(of).collect()
}

impl Aggregate for Project {
    const NAME: &'static str = "project";
    type Event = Event;
    type Command = Command;
    type Rejection = Rejection;

    fn decide(&self, command: Command) -> Result<Vec<Event>, Rejection> {
        match command {
            Command::Apply { slug, declaration: Declaration { name, auto_promote, env, stages }, prune } => {
                if self.archived {
                    return Err(Rejection::Archived);
                }
                let name = name.unwrap_or_else(|| self.name.clone().unwrap_or_else(|| slug.to_string()));
                if name.is_empty() || name.chars().count() > 120 {
                    let problem = "must be 1 to 120 characters".into();
                    return Err(Rejection::Invalid(vec![FieldError { field: "name".into(), problem }]));
                }
                let problems = env.as_ref().map(|env| env::check(env, "env")).unwrap_or_default();
                if !problems.is_empty() {
                    return Err(Rejection::Invalid(problems));
                }
                let left_out = self.stages.keys().filter(|stage| prune && !stages.contains_key(*stage));
                let ending: Vec<Slug> = left_out.cloned().collect();
                self.check(&stages, &ending)?;
                let named = match &self.name {
                    None => Some(Event::Created { name }),
                    Some(known) if *known != name => Some(Event::Renamed { name }),
                    Some(_) => None,
                };
                let switched = auto_promote.filter(|on| *on != self.auto_promote);
                let switched = switched.map(|on| Event::AutoPromotionSwitched { on });
                let changed = env.filter(|env| *env != self.env).map(|env| Event::EnvChanged { env });
                let named = named.into_iter().chain(switched).chain(changed);
                let named = named.chain(ending.into_iter().map(|stage| Event::StageArchived { stage }));
                Ok(named.chain(stages.iter().filter_map(|(slug, s)| self.change_stage(slug, s))).collect())
            }
            Command::ApplyStage { stage, settings } => {
                self.open()?;
                self.check(&BTreeMap::from([(stage.clone(), StageSettings::clone(&settings))]), &[])?;
                Ok(self.change_stage(&stage, &settings).into_iter().collect())
            }
            Command::ArchiveStage { stage } => {
                self.stage(&stage)?;
                let promotes_from = |settings: &StageSettings| settings.promote_from.as_ref() == Some(&stage);
                if let Some((taker, _)) = self.stages.iter().find(|(_, settings)| promotes_from(settings)) {
                    return Err(Rejection::StillPromotedFrom { taker: taker.clone() });
                }
                Ok(vec![Event::StageArchived { stage }])
            }
            Command::SetSecret { name, vault } => {
                self.open()?;
                if !env::is_secret_name(&name) {
                    return Err(Rejection::BadSecretName);
                }
                let newest = self.secrets.get(&name);
                if newest.is_some_and(|newest| newest.vault == vault) {
                    return Ok(vec![]);
                }
                let version = newest.map_or(0, |newest| newest.version) + 1;
                Ok(vec![Event::SecretSet { name, version, vault }])
            }
            Command::RemoveSecret { name } => {
                self.open()?.secrets.get(&name).ok_or(Rejection::UnknownSecret)?;
                match self.user_of(&name) {
                    Some(by) => Err(Rejection::SecretInUse { by }),
                    None => Ok(vec![Event::SecretRemoved { name }]),
                }
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
            Event::AutoPromotionSwitched { on } => self.auto_promote = *on,
            Event::EnvChanged { env } => self.env = env.clone(),
            Event::SecretSet { name, version, vault } => {
                self.secrets.insert(name.clone(), SecretVersion { version: *version, vault: vault.clone() });
            }
            Event::SecretRemoved { name } => {
                self.secrets.remove(name);
            }
            Event::StageAdded { stage, settings } | Event::StageChanged { stage, settings } => {
                self.stages.insert(stage.clone(), StageSettings::clone(settings));
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
    use crate::env::{EnvValue, SecretRef};

    fn slug(text: &str) -> Slug {
        text.parse().expect("a good name")
    }

    fn on(host: &str) -> StageSettings {
        StageSettings {
            route: Some(RouteSettings { host: host.into(), path: "/".into(), proxy: None }),
            ..StageSettings::default()
        }
    }

    fn apply(stages: &[(&str, StageSettings)]) -> Command {
        let stages = stages.iter().map(|(name, s)| (slug(name), s.clone())).collect();
        Command::Apply {
            slug: slug("shop"),
            declaration: Declaration { stages, ..Declaration::default() },
            prune: false,
        }
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
        assert_eq!(events, [Event::StageChanged { stage: slug("dev"), settings: Box::new(on("c.test")) }]);
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

    fn from(source: &str) -> StageSettings {
        StageSettings { promote_from: Some(slug(source)), ..StageSettings::default() }
    }

    #[test]
    fn sources_that_are_not_there_and_circles_are_refused_by_field() {
        let fields = |project: &Project, stages: &[(&str, StageSettings)]| match project.decide(apply(stages)) {
            Err(Rejection::Invalid(errors)) => errors.into_iter().map(|error| error.field).collect(),
            Ok(_) => vec![],
            Err(error) => panic!("{error}"),
        };
        let none = Project::default();
        let dev = ("dev", StageSettings::default());
        assert_eq!(fields(&none, &[("prod", from("dev"))]), ["stages.prod.promote_from"]);
        assert_eq!(fields(&none, &[dev.clone(), ("prod", from("dev"))]), [""; 0]);
        assert_eq!(fields(&none, &[("prod", from("prod"))]), ["stages.prod.promote_from"]);
        let circle = [("a", from("b")), ("b", from("c")), ("c", from("a")), ("d", from("a"))];
        assert_eq!(fields(&none, &circle), ["stages.a.promote_from", "stages.b.promote_from", "stages.c.promote_from"]);
        let project = given(vec![apply(&[dev, ("prod", from("dev"))])]);
        assert_eq!(fields(&project, &[("dev", from("prod"))]), ["stages.dev.promote_from"]);
    }

    #[test]
    fn auto_promotion_stays_as_it_is_where_nothing_is_said() {
        let apply = |auto_promote| Command::Apply {
            slug: slug("shop"),
            declaration: Declaration { auto_promote, ..Declaration::default() },
            prune: false,
        };
        let project = given(vec![apply(Some(true))]);
        assert!(project.auto_promote);
        assert_eq!(project.decide(apply(None)), Ok(vec![]));
        assert_eq!(project.decide(apply(Some(true))), Ok(vec![]));
        assert_eq!(project.decide(apply(Some(false))), Ok(vec![Event::AutoPromotionSwitched { on: false }]));
    }

    #[test]
    fn a_release_runs_with_the_projects_variables_under_the_stages_own_and_the_newest_secrets() {
        let secret = |name: &str| EnvValue::Secret(SecretRef { secret: name.into(), version: None, vault: None });
        let env = Some(Env::from([("A".into(), "project".into()), ("B".into(), "project".into())]));
        let dev = StageSettings {
            env: Env::from([("B".into(), "stage".into()), ("C".into(), secret("db"))]),
            ..StageSettings::default()
        };
        let declaration = Declaration { env, stages: [(slug("dev"), dev)].into(), ..Declaration::default() };
        let declare = Command::Apply { slug: slug("shop"), declaration, prune: false };
        let set = |vault: &str| Command::SetSecret { name: "db".into(), vault: vault.into() };
        let project = given(vec![declare.clone()]);
        assert_eq!(project.release(&slug("dev")), Err(Rejection::SecretsMissing(vec!["db".into()])));
        let project = given(vec![declare.clone(), set("one"), set("two")]);
        assert_eq!(project.decide(set("two")), Ok(vec![]), "it is the newest already");
        let env = project.release(&slug("dev")).expect("known").env;
        assert_eq!((&env["A"], &env["B"]), (&"project".into(), &"stage".into()));
        let newest = SecretRef { secret: "db".into(), version: Some(2), vault: Some("two".into()) };
        assert_eq!(env["C"], EnvValue::Secret(newest));

        let remove = Command::RemoveSecret { name: "db".into() };
        assert_eq!(project.decide(remove.clone()), Err(Rejection::SecretInUse { by: "env.C of the stage dev".into() }));
        let unused = Command::Apply {
            slug: slug("shop"),
            declaration: Declaration {
                stages: [(slug("dev"), StageSettings::default())].into(),
                ..Declaration::default()
            },
            prune: false,
        };
        let project = given(vec![declare, set("one"), unused, remove.clone()]);
        assert_eq!(project.decide(remove), Err(Rejection::UnknownSecret));
        for bad in ["", "a b", "a/b", "a.b", &"a".repeat(61)] {
            let set = Command::SetSecret { name: bad.into(), vault: "v".into() };
            assert_eq!(project.decide(set), Err(Rejection::BadSecretName), "{bad:?}");
        }
    }

    #[test]
    fn a_stage_that_another_promotes_from_is_not_archived() {
        let mut project = given(vec![apply(&[("dev", StageSettings::default()), ("prod", from("dev"))])]);
        let archive = Command::ArchiveStage { stage: slug("dev") };
        assert_eq!(project.decide(archive.clone()), Err(Rejection::StillPromotedFrom { taker: slug("prod") }));
        let changed = project.decide(apply(&[("prod", StageSettings::default())])).expect("accepted");
        changed.iter().for_each(|event| project.evolve(event));
        assert_eq!(project.decide(archive).map(|events| events.len()), Ok(1));
    }

    #[test]
    fn what_does_not_exist_is_said_so() {
        assert_eq!(Project::default().decide(Command::Archive), Err(Rejection::Unknown));
        let project = given(vec![apply(&[])]);
        assert_eq!(project.decide(Command::ArchiveStage { stage: slug("dev") }), Err(Rejection::UnknownStage));
    }
}
