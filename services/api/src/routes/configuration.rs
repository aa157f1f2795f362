//! The whole configuration as one document: exported, compared, applied.
//!
//! A further kind of thing is a field of the document (in `domain`), a line in [`standing`], and a part of [`works`].

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use axum::{Json, extract::State};
use domain::{
    Context, FieldError, Slug,
    configuration::{self, Change, Configuration, DeclaredProject, Group, Named, Plan},
    hook, proxy,
    registry::{self, RegistrySettings},
};
use eventlog::Committed;
use futures::{FutureExt, StreamExt, future::BoxFuture, stream};
use readmodel::projects::Project;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{AtLeast, IdempotencyKey, Taken, hooks, projects::change_together, proxies, registries};
use crate::{
    Api,
    extract::{Asked, Query},
    idempotency,
    problem::Error,
};

/// Largest document: some twenty thousand stages.
const LARGEST: usize = 16 << 20;
/// Changes that are carried out at the same time. The server takes 50 open batches, of all callers together.
const AT_ONCE: usize = 8;

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Pruning {
    /// Remove what the document leaves out; without it, that stays as it is.
    #[serde(default)]
    prune: bool,
}

/// What applying a document would change.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Planned {
    changes: Vec<Change>,
    /// Is there, is not in the document, and stays as it is: only pruning removes it.
    left_alone: Vec<Named>,
    /// Secrets that the document refers to and that have no value: deployments wait for `sluice secret set`.
    secrets_missing: Vec<MissingSecret>,
    /// Registries that name a user and for which no password is kept.
    passwords_missing: Vec<String>,
    /// Hooks that take nothing before they have a secret.
    hooks_without_secret: Vec<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct MissingSecret {
    project: String,
    secret: String,
}

/// What was changed.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ConfigurationApplied {
    /// Position of the last event: `?at_least=<sequence>` reads what was written.
    sequence: u64,
    /// How many events followed; none where everything was as declared.
    events: usize,
    #[serde(flatten)]
    planned: Planned,
}

/// Everything that is declared, as a document that can be applied. Defaults are left out; secrets are references.
#[utoipa::path(
    get,
    path = "/configuration",
    tag = "configuration",
    operation_id = "export_configuration",
    params(AtLeast),
    responses((status = 200, body = Configuration))
)]
pub(crate) async fn export(State(api): State<Api>, Query(query): Query<AtLeast>) -> Result<Json<Configuration>, Error> {
    api.visible(query.at_least).await?;
    Ok(Json(standing(&api).await?.configuration))
}

/// What applying a document would change, field by field. Changes nothing.
#[utoipa::path(
    post,
    path = "/configuration/plan",
    tag = "configuration",
    operation_id = "plan_configuration",
    params(Pruning),
    request_body = Configuration,
    responses((status = 200, body = Planned))
)]
pub(crate) async fn plan(
    State(api): State<Api>,
    Query(Pruning { prune }): Query<Pruning>,
    asked: Asked<Configuration, LARGEST>,
) -> Result<Json<Planned>, Error> {
    let (_, current) = newest(&api).await?;
    let needed = proxies_needed(&api, &current.configuration, &asked.body, prune).await?;
    Ok(Json(current.plan(&asked.body, prune, needed)?))
}

/// Make everything as a document declares it. What it leaves out of a project or a stage gets its default.
///
/// Each project changes as a whole or not at all, and so do projects that pass a route on to one another. Applying is
/// idempotent: what was interrupted is completed by the same request.
#[utoipa::path(
    put,
    path = "/configuration",
    tag = "configuration",
    operation_id = "apply_configuration",
    params(Pruning, IdempotencyKey),
    request_body = Configuration,
    responses((status = 202, body = ConfigurationApplied))
)]
pub(crate) async fn apply(
    State(api): State<Api>,
    Query(Pruning { prune }): Query<Pruning>,
    asked: Asked<Configuration, LARGEST>,
) -> Result<Taken<ConfigurationApplied>, Error> {
    let (last, current) = newest(&api).await?;
    let needed = proxies_needed(&api, &current.configuration, &asked.body, prune).await?;
    let planned = current.plan(&asked.body, prune, needed)?;
    let (sequence, events) = carry_out(&api, &current.configuration, &asked.body, prune, &asked.context).await?;
    Ok(Taken(ConfigurationApplied { sequence: sequence.unwrap_or(last), events, planned }))
}

/// What is declared, as it stands.
struct Standing {
    configuration: Configuration,
    /// Archived ones too.
    projects: BTreeMap<Slug, Project>,
    /// Hosts, each with the user whose password is kept.
    signed_in: BTreeMap<String, String>,
    /// Hooks that have a secret.
    with_secret: BTreeSet<Slug>,
}

/// At the end of the log, whose position comes with it.
async fn newest(api: &Api) -> Result<(u64, Standing), Error> {
    let last = api.log.last_sequence().await?;
    api.visible(Some(last)).await?;
    Ok((last, standing(api).await?))
}

async fn standing(api: &Api) -> Result<Standing, Error> {
    let projects = readmodel::projects::list(&api.pool, true).await?;
    // They were slugs when they were written.
    let projects: BTreeMap<Slug, Project> =
        projects.into_iter().filter_map(|project| Some((project.slug.parse().ok()?, project))).collect();
    let open = projects.iter().filter(|(_, project)| !project.archived);
    let declared = open.map(|(slug, project)| {
        let stages =
            project.stages.iter().filter_map(|(stage, settings)| Some((stage.parse().ok()?, settings.clone())));
        let stages = stages.collect();
        let Project { name, auto_promote, env, .. } = project;
        (slug.clone(), DeclaredProject::new(slug.as_str(), name, *auto_promote, env.clone(), stages))
    });
    let registries = readmodel::registries::list(&api.pool).await?;
    let signed_in = registries.iter().filter(|registry| registry.signed_in);
    let signed_in = signed_in.filter_map(|known| Some((known.host.clone(), known.settings.clone()?.username?)));
    let signed_in = signed_in.collect();
    let registries = registries.into_iter().filter_map(|registry| Some((registry.host, registry.settings?)));
    let hooks = readmodel::hooks::list(&api.pool).await?;
    let with_secret = hooks.iter().filter(|hook| hook.has_secret).filter_map(|hook| hook.name.parse().ok()).collect();
    let hooks = hooks.into_iter().filter_map(|hook| Some((hook.name.parse().ok()?, hook.settings?)));
    let proxies = readmodel::proxies::list(&api.pool).await?;
    let proxies = proxies.into_iter().filter_map(|proxy| Some((proxy.name.parse().ok()?, proxy.settings?)));
    let configuration = Configuration {
        projects: declared.collect(),
        registries: registries.collect(),
        hooks: hooks.collect(),
        proxies: proxies.collect(),
    };
    Ok(Standing { configuration, projects, signed_in, with_secret })
}

impl Standing {
    /// What `wanted` changes, where nothing is wrong with it beside the `errors` that are known already.
    fn plan(&self, wanted: &Configuration, prune: bool, mut errors: Vec<FieldError>) -> Result<Planned, Error> {
        errors.extend(self.configuration.check(wanted, prune));
        for slug in wanted.projects.keys() {
            if self.projects.get(slug).is_some_and(|project| project.archived) {
                errors.extend(configuration::in_project(slug, domain::project::Rejection::Archived));
            }
        }
        if !errors.is_empty() {
            return Err(Error::Invalid(errors));
        }
        let Plan { changes, left_alone } = Plan::of(&self.configuration, wanted, prune).map_err(Error::Encode)?;
        Ok(Planned {
            changes,
            left_alone,
            secrets_missing: self.secrets_missing(wanted),
            passwords_missing: self.passwords_missing(wanted),
            hooks_without_secret: self.hooks_without_secret(wanted),
        })
    }

    fn passwords_missing(&self, wanted: &Configuration) -> Vec<String> {
        // A password ends with the URL that it was for.
        let url = |host: &str| self.configuration.registries.get(host).and_then(|known| known.url.as_ref());
        let kept = |host: &str, wanted: &RegistrySettings| {
            self.signed_in.get(host) == wanted.username.as_ref() && url(host) == wanted.url.as_ref()
        };
        let named = wanted.registries.iter().filter(|(_, registry)| registry.username.is_some());
        named.filter(|(host, registry)| !kept(host, registry)).map(|(host, _)| host.clone()).collect()
    }

    fn hooks_without_secret(&self, wanted: &Configuration) -> Vec<String> {
        wanted.hooks.keys().filter(|name| !self.with_secret.contains(*name)).map(ToString::to_string).collect()
    }

    fn secrets_missing(&self, wanted: &Configuration) -> Vec<MissingSecret> {
        let of_project = |(slug, declared): (&Slug, &DeclaredProject)| -> Vec<MissingSecret> {
            let known = self.projects.get(slug).map(|project| &project.secrets);
            let missing = declared.secrets().into_iter().filter(|name| !known.is_some_and(|k| k.contains_key(*name)));
            missing.map(|name| MissingSecret { project: slug.to_string(), secret: name.to_owned() }).collect()
        };
        wanted.projects.iter().flat_map(of_project).collect()
    }
}

/// Proxies that are to go while stages still answer by them: their routes follow only with a deployment.
async fn proxies_needed(
    api: &Api,
    current: &Configuration,
    wanted: &Configuration,
    prune: bool,
) -> Result<Vec<FieldError>, Error> {
    let going: Vec<&Slug> = left_out(&current.proxies, &wanted.proxies, prune).collect();
    if going.is_empty() {
        return Ok(vec![]);
    }
    let mut needed: BTreeMap<Slug, Vec<String>> = BTreeMap::new();
    for (place, proxy) in proxies::in_use(api).await? {
        if going.contains(&&proxy) {
            needed.entry(proxy).or_default().push(place);
        }
    }
    let error = |(proxy, places): (Slug, Vec<String>)| FieldError {
        field: format!("proxies.{proxy}"),
        problem: format!(
            "still leads to {}: keep it in the document, apply that, deploy there (or wait until it is removed), and \
             leave it out then",
            places.join(", ")
        ),
    };
    Ok(needed.into_iter().map(error).collect())
}

/// What is to be done, in order: a proxy is there before the stages behind it, and goes after them. The names make a
/// command of each.
fn works(current: &Configuration, wanted: &Configuration, prune: bool) -> [Vec<(String, Work)>; 3] {
    let (mut first, mut last) = (vec![], vec![]);
    for (host, settings) in changed(&current.registries, &wanted.registries) {
        let (host, settings) = (host.clone(), settings.clone());
        first.push((format!("registry {host}"), Work::Registry(registry::Command::Configure { host, settings })));
    }
    for host in left_out(&current.registries, &wanted.registries, prune).cloned() {
        last.push((format!("registry {host}"), Work::Registry(registry::Command::Remove { host })));
    }
    for (name, settings) in changed(&current.hooks, &wanted.hooks) {
        let command = hook::Command::Configure { settings: settings.clone() };
        first.push((format!("hook {name}"), Work::Hook(name.clone(), command)));
    }
    for name in left_out(&current.hooks, &wanted.hooks, prune).cloned() {
        last.push((format!("hook {name}"), Work::Hook(name, hook::Command::Remove)));
    }
    for (name, settings) in changed(&current.proxies, &wanted.proxies) {
        let command = proxy::Command::Configure(settings.clone());
        first.push((format!("proxy {name}"), Work::Proxy(name.clone(), command)));
    }
    for name in left_out(&current.proxies, &wanted.proxies, prune).cloned() {
        last.push((format!("proxy {name}"), Work::Proxy(name, proxy::Command::Remove)));
    }
    let groups = current.groups(wanted, prune).into_iter().map(|group| {
        let name = group.keys().map(Slug::as_str).collect::<Vec<_>>().join(",");
        (format!("projects {name}"), Work::Projects(group))
    });
    [first, groups.collect(), last]
}

fn changed<'a, K: Ord, V: PartialEq>(
    current: &'a BTreeMap<K, V>,
    wanted: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, &'a V)> {
    wanted.iter().filter(|(key, value)| current.get(*key) != Some(value))
}

fn left_out<'a, K: Ord, V>(
    current: &'a BTreeMap<K, V>,
    wanted: &'a BTreeMap<K, V>,
    prune: bool,
) -> impl Iterator<Item = &'a K> {
    current.keys().filter(move |key| prune && !wanted.contains_key(key))
}

/// Carries out everything that differs. The position of the last event, and how many there are.
async fn carry_out(
    api: &Api,
    current: &Configuration,
    wanted: &Configuration,
    prune: bool,
    context: &Context,
) -> Result<(Option<u64>, usize), Error> {
    let phases = works(current, wanted, prune);
    let all = phases.iter().map(Vec::len).sum();
    // What was begun is brought to its end; after a failure nothing more is begun.
    let failed = &AtomicBool::new(false);
    let (mut sequence, mut events, mut applied, mut failure) = (None, 0, 0, None);
    for works in phases {
        let mut done = stream::iter(works)
            .take_while(|_| std::future::ready(!failed.load(Relaxed)))
            .map(|(name, work)| async move {
                // A command of its own, the same one however often the request comes.
                let context = Context { command_id: idempotency::id(context, &name), ..context.clone() };
                let done = work.carry_out(api, &context).await;
                failed.fetch_or(done.is_err(), Relaxed);
                done
            })
            .buffer_unordered(AT_ONCE);
        while let Some(done) = done.next().await {
            match done {
                Ok(committed) => {
                    sequence = sequence.max(Some(committed.sequence));
                    events += committed.events.len();
                    applied += 1;
                }
                Err(error) => failure = failure.or(Some(error)),
            }
        }
    }
    match failure {
        None => Ok((sequence, events)),
        Some(source) => Err(Error::Partly { applied, all, source: Box::new(source) }),
    }
}

/// What changes as a whole or not at all.
enum Work {
    Registry(registry::Command),
    Hook(Slug, hook::Command),
    Proxy(Slug, proxy::Command),
    Projects(Group),
}

impl Work {
    fn carry_out<'a>(self, api: &'a Api, context: &'a Context) -> BoxFuture<'a, Result<Committed, Error>> {
        async move {
            match self {
                Self::Registry(command) => registries::carry_out(api, command, context).await,
                Self::Hook(name, command) => hooks::carry_out(api, &name, command, context).await,
                Self::Proxy(name, command) => proxies::carry_out(api, &name, command, context).await,
                Self::Projects(group) => change_together(api, &group, context, in_document).await,
            }
        }
        .boxed()
    }
}

/// The same error with its fields' paths in the whole document.
fn in_document(project: &Slug, error: Error) -> Error {
    match error {
        Error::Project(rejection) => Error::Invalid(configuration::in_project(project, rejection)),
        Error::Invalid(errors) => {
            let path = format!("projects.{project}");
            Error::Invalid(errors.into_iter().map(|wrong| wrong.under(&path)).collect())
        }
        Error::Route { field, host, rejection } => {
            Error::Route { field: format!("projects.{project}.{field}"), host, rejection }
        }
        other => other,
    }
}
