//! The whole configuration as one document: what an export writes and `sluice apply` reads.
//!
//! In it, what is left out of a project or a stage has its default. A project, a stage or a registry that is left out
//! altogether stays as it is, unless the document is applied with `prune`.
//!
//! A further kind of thing is a field of [`Configuration`], a variant of [`Kind`] and a line in [`Plan::of`].

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
};

use serde::{Deserialize, Serialize, Serializer, ser::Error as _};
use serde_json::Value;
use utoipa::ToSchema;

use crate::{
    Aggregate, FieldError, Key, Slug,
    difference::{Difference, differences},
    env::{Env, EnvValue},
    hook::HookSettings,
    project::{self, Declaration, Project},
    proxy,
    registry::{Registry, RegistrySettings},
    settings::StageSettings,
};

#[cfg(test)]
mod tests;

/// Everything that is declared, by kind and name. Defaults are left out of its JSON form.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Configuration {
    /// By slug.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<String, DeclaredProject>)]
    pub projects: BTreeMap<Slug, DeclaredProject>,
    /// By `host[:port]`. Passwords are never part of the document: `sluice registry login` keeps them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", serialize_with = "short")]
    #[schema(value_type = BTreeMap<String, RegistrySettings>)]
    pub registries: BTreeMap<String, RegistrySettings>,
    /// Webhooks, by name. Their secrets are never part of the document: `sluice hook secret` makes them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<String, HookSettings>)]
    pub hooks: BTreeMap<Slug, HookSettings>,
    /// Reverse proxies of your own, by name. Their passwords are never part of the document.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<String, proxy::Settings>)]
    pub proxies: BTreeMap<Slug, proxy::Settings>,
}

/// A project with its stages.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeclaredProject {
    /// For people; the project's slug where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Whether stages that name `promote_from` take what runs there by themselves, as soon as their gates let it pass.
    #[serde(default, skip_serializing_if = "is_false")]
    pub auto_promote: bool,
    /// Variables of all its stages, which may set them otherwise: plain text, or the name of a secret.
    #[serde(default, skip_serializing_if = "Env::is_empty")]
    #[schema(value_type = BTreeMap<String, crate::env::EnvValue>)]
    pub env: Env,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", serialize_with = "short")]
    #[schema(value_type = BTreeMap<String, StageSettings>)]
    pub stages: BTreeMap<Slug, StageSettings>,
}

/// What applying a document would do.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct Plan {
    pub changes: Vec<Change>,
    /// Is there, is not in the document, and stays as it is: only pruning removes it.
    pub left_alone: Vec<Named>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Change {
    pub action: Action,
    pub kind: Kind,
    /// `shop`, `shop/prod`, `registry.example.com`.
    pub name: String,
    /// By path. Of something new, what it declares besides defaults; of something removed, nothing.
    pub fields: Vec<Difference>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Named {
    pub kind: Kind,
    pub name: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    Create,
    Change,
    Remove,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = ConfigurationKind)]
pub enum Kind {
    Registry,
    Hook,
    Proxy,
    Project,
    Stage,
}

/// Stages of projects that change together: one decision holds a thousand events, and each stage may need five.
const MOST_TOGETHER: usize = 200;

/// Commands that are carried out together or not at all: projects that pass routes on to one another.
pub type Group = BTreeMap<Slug, project::Command>;

impl Configuration {
    /// What stands after `wanted` was applied to this.
    #[must_use]
    pub fn with(&self, wanted: &Self, prune: bool) -> Self {
        if prune {
            return wanted.clone();
        }
        let mut all = self.clone();
        for (slug, project) in &wanted.projects {
            let mut stages = self.projects.get(slug).map(|known| known.stages.clone()).unwrap_or_default();
            stages.extend(project.stages.clone());
            all.projects.insert(slug.clone(), DeclaredProject { stages, ..project.clone() });
        }
        all.registries.extend(wanted.registries.clone());
        all.hooks.extend(wanted.hooks.clone());
        all.proxies.extend(wanted.proxies.clone());
        all
    }

    /// Everything that is wrong with applying `wanted` to this, by its path in the document.
    pub fn check(&self, wanted: &Self, prune: bool) -> Vec<FieldError> {
        let mut errors = Vec::new();
        for (host, registry) in &wanted.registries {
            let path = format!("registries.{host}");
            if let Err(problem) = Key::<Registry>::registry(host) {
                errors.push(error(path, problem.to_string()));
            } else if *host != host.to_ascii_lowercase() {
                errors.push(error(path, "write it in lower case, as it is kept".to_owned()));
            } else {
                errors.extend(registry.check().into_iter().map(|wrong| wrong.under(&path)));
            }
        }
        for (name, hook) in &wanted.hooks {
            errors.extend(hook.check().into_iter().map(|wrong| wrong.under(&format!("hooks.{name}"))));
        }
        for (name, proxy) in &wanted.proxies {
            errors.extend(proxy.check().into_iter().map(|wrong| wrong.under(&format!("proxies.{name}"))));
        }
        for (slug, project) in &wanted.projects {
            let known = self.projects.get(slug).map_or_else(Project::default, |known| known.state(slug));
            if let Err(rejection) = known.decide(project.replace(slug, prune)) {
                errors.extend(in_project(slug, rejection));
            }
        }
        let after = self.with(wanted, prune);
        errors.extend(after.behind_proxies());
        errors.extend(after.shared_routes(wanted));
        errors.extend(self.too_many_together(wanted, prune));
        errors
    }

    fn too_many_together(&self, wanted: &Self, prune: bool) -> Vec<FieldError> {
        let after = self.with(wanted, prune);
        let stages = |slug: &Slug| {
            let known = [self.projects.get(slug), after.projects.get(slug)].into_iter().flatten();
            known.flat_map(|project| project.stages.keys()).collect::<BTreeSet<_>>().len()
        };
        let groups = self.groups(wanted, prune).into_iter().filter(|group| group.len() > 1);
        let large = groups.filter(|group| group.keys().map(stages).sum::<usize>() > MOST_TOGETHER);
        let problem = |group: Group| {
            let names: Vec<&str> = group.keys().map(Slug::as_str).collect();
            let names = names.join(", ");
            let problem = format!(
                "{names} pass routes on to one another and have more than {MOST_TOGETHER} stages together: move some of \
                 the routes first"
            );
            error("projects".into(), problem)
        };
        large.map(problem).collect()
    }

    /// Stages that do not go with the proxy that they lie behind, or that lie behind none that is declared.
    fn behind_proxies(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        for (project, stage, settings) in self.stages() {
            let Some(name) = settings.route.as_ref().and_then(|route| route.proxy.as_ref()) else { continue };
            let path = format!("projects.{project}.stages.{stage}");
            match self.proxies.get(name) {
                Some(proxy) => errors.extend(proxy.check_stage(settings, &path)),
                None => {
                    let problem = format!("no proxy {name} is declared: declare it in `proxies`");
                    errors.push(error(format!("{path}.route.proxy"), problem));
                }
            }
        }
        errors
    }

    /// Two projects on one host and path; two stages of one project are told by the project itself.
    fn shared_routes(&self, wanted: &Self) -> Vec<FieldError> {
        let mut taken: BTreeMap<(&str, &str), Vec<(&Slug, &Slug)>> = BTreeMap::new();
        for (route, project, stage) in self.routes() {
            taken.entry(route).or_default().push((project, stage));
        }
        let mut errors = Vec::new();
        for ((host, path), holders) in taken {
            for (project, stage) in &holders {
                let declared = wanted.projects.get(*project).is_some_and(|known| known.stages.contains_key(*stage));
                let other = holders.iter().find(|(other, _)| other != project);
                if let Some((other, of)) = other.filter(|_| declared) {
                    errors.push(error(
                        format!("projects.{project}.stages.{stage}.route"),
                        format!(
                            "{host}{path} belongs to stage {of} of project {other} as well: choose another host or path"
                        ),
                    ));
                }
            }
        }
        errors
    }

    /// Project, stage and its settings.
    pub fn stages(&self) -> impl Iterator<Item = (&Slug, &Slug, &StageSettings)> {
        self.projects.iter().flat_map(|(project, declared)| {
            declared.stages.iter().map(move |(stage, settings)| (project, stage, settings))
        })
    }

    fn routes(&self) -> impl Iterator<Item = ((&str, &str), &Slug, &Slug)> {
        self.stages().filter_map(|(project, stage, settings)| Some((settings.route.as_ref()?.place(), project, stage)))
    }

    /// The commands that make of this what `wanted` says, for the projects that are not so yet.
    ///
    /// A route that passes from one project to another puts both into one group, for in whatever order they came
    /// one by one, the route would be nobody's for a while, or refused. Groups can be carried out in any order.
    pub fn groups(&self, wanted: &Self, prune: bool) -> Vec<Group> {
        let mut groups: Vec<(Group, BTreeSet<(&str, &str)>)> = Vec::new();
        let after = self.with(wanted, prune);
        for slug in self.projects.keys().chain(wanted.projects.keys()).collect::<BTreeSet<_>>() {
            let (old, new) = (self.projects.get(slug), after.projects.get(slug));
            if old.is_some_and(|old| new.is_some_and(|new| old.same(new, slug))) {
                continue;
            }
            let command = match wanted.projects.get(slug) {
                Some(project) => project.replace(slug, prune),
                None => project::Command::Archive,
            };
            let mut group = (Group::from([(slug.clone(), command)]), BTreeSet::new());
            group.1.extend([old, new].into_iter().flatten().flat_map(DeclaredProject::routes));
            // Whoever is told of the same route is in the same group.
            let (linked, apart): (Vec<_>, Vec<_>) =
                groups.into_iter().partition(|(_, routes)| !routes.is_disjoint(&group.1));
            for (commands, routes) in linked {
                group.0.extend(commands);
                group.1.extend(routes);
            }
            groups = apart;
            groups.push(group);
        }
        groups.into_iter().map(|(group, _)| group).collect()
    }
}

impl DeclaredProject {
    /// Of a project as it stands.
    pub fn new(slug: &str, name: &str, auto_promote: bool, env: Env, stages: BTreeMap<Slug, StageSettings>) -> Self {
        Self { name: (name != slug).then(|| name.to_owned()), auto_promote, env, stages }
    }

    /// Names of the secrets that it refers to.
    pub fn secrets(&self) -> BTreeSet<&str> {
        let envs = self.stages.values().map(|settings| &settings.env).chain([&self.env]);
        envs.flat_map(Env::values).filter_map(EnvValue::secret).collect()
    }

    fn name(&self, slug: &Slug) -> String {
        self.name.clone().unwrap_or_else(|| slug.to_string())
    }

    fn same(&self, other: &Self, slug: &Slug) -> bool {
        let Self { name: _, auto_promote, env, stages } = self;
        self.name(slug) == other.name(slug)
            && (auto_promote, env, stages) == (&other.auto_promote, &other.env, &other.stages)
    }

    fn routes(&self) -> BTreeSet<(&str, &str)> {
        self.stages.values().filter_map(|settings| Some(settings.route.as_ref()?.place())).collect()
    }

    fn replace(&self, slug: &Slug, prune: bool) -> project::Command {
        let declaration = Declaration {
            name: Some(self.name(slug)),
            auto_promote: Some(self.auto_promote),
            env: Some(self.env.clone()),
            stages: self.stages.clone(),
        };
        project::Command::Apply { slug: slug.clone(), declaration, prune }
    }

    /// The project as decisions see it, without its secrets.
    fn state(&self, slug: &Slug) -> Project {
        Project {
            name: Some(self.name(slug)),
            auto_promote: self.auto_promote,
            env: self.env.clone(),
            stages: self.stages.clone(),
            ..Project::default()
        }
    }

    /// What of it is not its stages.
    fn own(&self, slug: &Slug) -> Self {
        Self { name: Some(self.name(slug)), stages: BTreeMap::new(), ..self.clone() }
    }
}

impl Plan {
    /// What makes of `current` what `wanted` says.
    pub fn of(current: &Configuration, wanted: &Configuration, prune: bool) -> Result<Self, serde_json::Error> {
        let mut plan = Self::default();
        plan.compare(Kind::Registry, &current.registries, &wanted.registries, prune)?;
        plan.compare(Kind::Hook, &current.hooks, &wanted.hooks, prune)?;
        plan.compare(Kind::Proxy, &current.proxies, &wanted.proxies, prune)?;
        plan.compare(Kind::Project, &owns(current), &owns(wanted), prune)?;
        plan.compare(Kind::Stage, &stages(current, wanted, prune), &stages(wanted, wanted, prune), prune)?;
        Ok(plan)
    }

    fn compare<K: Ord + Display, V: Serialize + PartialEq + Declares>(
        &mut self,
        kind: Kind,
        current: &BTreeMap<K, V>,
        wanted: &BTreeMap<K, V>,
        prune: bool,
    ) -> Result<(), serde_json::Error> {
        for key in current.keys().chain(wanted.keys()).collect::<BTreeSet<_>>() {
            let name = key.to_string();
            let (action, fields) = match (current.get(key), wanted.get(key)) {
                (Some(old), Some(new)) if old == new => continue,
                (Some(old), Some(new)) => (Action::Change, differences(&to_json(old)?, &to_json(new)?)),
                (None, Some(new)) => (Action::Create, differences(&Value::Null, &new.declares()?)),
                (Some(_), None) if prune => (Action::Remove, vec![]),
                (Some(_), None) => {
                    self.left_alone.push(Named { kind, name });
                    continue;
                }
                (None, None) => continue,
            };
            self.changes.push(Change { action, kind, name, fields });
        }
        Ok(())
    }
}

/// What something new says, without defaults.
trait Declares {
    fn declares(&self) -> Result<Value, serde_json::Error>;
}

impl Declares for RegistrySettings {
    fn declares(&self) -> Result<Value, serde_json::Error> {
        Ok(without(to_json(self)?, &to_json(&Self::default())?))
    }
}

impl Declares for HookSettings {
    fn declares(&self) -> Result<Value, serde_json::Error> {
        to_json(self)
    }
}

impl Declares for proxy::Settings {
    fn declares(&self) -> Result<Value, serde_json::Error> {
        to_json(self)
    }
}

impl Declares for DeclaredProject {
    fn declares(&self) -> Result<Value, serde_json::Error> {
        to_json(self)
    }
}

impl Declares for StageSettings {
    fn declares(&self) -> Result<Value, serde_json::Error> {
        Ok(without(to_json(self)?, &to_json(&Self::default())?))
    }
}

fn to_json(value: &impl Serialize) -> Result<Value, serde_json::Error> {
    serde_json::to_value(value)
}

fn owns(of: &Configuration) -> BTreeMap<Slug, DeclaredProject> {
    of.projects.iter().map(|(slug, project)| (slug.clone(), project.own(slug))).collect()
}

/// By `project/stage`. A project that is left alone is said to be, not each of its stages as well.
fn stages(of: &Configuration, wanted: &Configuration, prune: bool) -> BTreeMap<String, StageSettings> {
    let told = of.projects.iter().filter(|(slug, _)| prune || wanted.projects.contains_key(*slug));
    told.flat_map(|(slug, project)| {
        project.stages.iter().map(move |(stage, settings)| (format!("{slug}/{stage}"), settings.clone()))
    })
    .collect()
}

/// A project's refusal, by its path in the whole document.
pub fn in_project(project: &Slug, rejection: project::Rejection) -> Vec<FieldError> {
    match rejection {
        project::Rejection::Invalid(errors) => errors
            .into_iter()
            .map(|FieldError { field, problem }| error(format!("projects.{project}.{field}"), problem))
            .collect(),
        other => vec![error(format!("projects.{project}"), other.to_string())],
    }
}

fn error(field: String, problem: String) -> FieldError {
    FieldError { field, problem }
}

fn is_false(on: &bool) -> bool {
    !on
}

/// Without defaults.
fn short<K: Ord + Serialize, V: Declares, S: Serializer>(all: &BTreeMap<K, V>, to: S) -> Result<S::Ok, S::Error> {
    let all: Result<BTreeMap<_, _>, _> = all.iter().map(|(name, one)| Ok((name, one.declares()?))).collect();
    all.map_err(|error: serde_json::Error| S::Error::custom(error))?.serialize(to)
}

/// `value` without the fields that are as in `default`.
fn without(value: Value, default: &Value) -> Value {
    let (Value::Object(fields), Value::Object(defaults)) = (&value, default) else { return value };
    let kept = fields.iter().filter(|(name, value)| defaults.get(*name) != Some(value));
    kept.map(|(name, value)| (name.clone(), without(value.clone(), defaults.get(name).unwrap_or(&Value::Null))))
        .collect()
}
