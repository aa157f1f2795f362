//! Projects: declared as a whole, read, archived.

use axum::{Json, extract::State};
use domain::{
    Aggregate, Context, DeploymentId, FieldError, Key, Recorded, Slug,
    configuration::Group,
    project::{self, Declaration, Project},
    proxy::Proxy,
    route::{self, Host},
    stage::{self, Stage},
};
use eventlog::{Committed, ExecuteError, Transaction};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{Accepted, AtLeast, IdempotencyKey, NoQuery, ProjectPath, Taken};
use crate::{
    Api,
    auth::Principal,
    extract::{Asked, Nothing, Path, Query},
    idempotency,
    problem::Error,
};

/// Deployments that one batch calls off, beside everything else that it holds.
const MOST_AT_ONCE: usize = 500;

/// What a declaration changed.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Applied {
    /// Position of its last event: `?at_least=<sequence>` reads what it wrote.
    sequence: u64,
    /// Names of the events that followed, in order; none where everything was as declared.
    #[schema(example = json!(["route.claimed", "project.created", "project.stage.added"]))]
    changes: Vec<String>,
}

impl From<Committed> for Applied {
    fn from(Committed { sequence, events }: Committed) -> Self {
        Self { sequence, changes: events.iter().map(name).collect() }
    }
}

/// `project.stage.added` of `dev.sluice.project.stage.added.v1`.
fn name(event: &Recorded) -> String {
    let name = event.kind.strip_prefix("dev.sluice.").unwrap_or(&event.kind);
    name.rsplit_once(".v").map_or(name, |(name, _)| name).to_owned()
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListQuery {
    /// Archived ones too.
    #[serde(default)]
    archived: bool,
    /// Wait until what a mutation answered as `sequence` can be read.
    at_least: Option<u64>,
}

/// All projects.
#[utoipa::path(
    get,
    path = "/projects",
    tag = "projects",
    operation_id = "list_projects",
    params(ListQuery),
    responses((status = 200, body = [readmodel::projects::Project]))
)]
pub(crate) async fn list(
    State(api): State<Api>,
    caller: Principal,
    Query(query): Query<ListQuery>,
) -> Result<Json<Vec<readmodel::projects::Project>>, Error> {
    api.visible(query.at_least).await?;
    let mut projects = readmodel::projects::list(&api.pool, query.archived).await?;
    projects.retain(|project| caller.sees(Some(&project.slug)));
    Ok(Json(projects))
}

/// A project with its stages' settings.
#[utoipa::path(
    get,
    path = "/projects/{project}",
    tag = "projects",
    operation_id = "get_project",
    params(ProjectPath, AtLeast),
    responses((status = 200, body = readmodel::projects::Project))
)]
pub(crate) async fn get(
    State(api): State<Api>,
    Path(path): Path<ProjectPath>,
    Query(query): Query<AtLeast>,
) -> Result<Json<readmodel::projects::Project>, Error> {
    api.visible(query.at_least).await?;
    let project = readmodel::projects::get(&api.pool, path.project.as_str()).await?;
    project.map(Json).ok_or(Error::Project(project::Rejection::Unknown))
}

/// Create a project, or change it to what is declared. Stages that are left out stay as they are.
#[utoipa::path(
    put,
    path = "/projects/{project}",
    tag = "projects",
    operation_id = "apply_project",
    params(ProjectPath, IdempotencyKey),
    request_body = Declaration,
    responses((status = 202, body = Applied))
)]
pub(crate) async fn apply(
    State(api): State<Api>,
    Path(path): Path<ProjectPath>,
    Query(NoQuery {}): Query<NoQuery>,
    asked: Asked<Declaration>,
) -> Result<Taken<Applied>, Error> {
    let command = project::Command::Apply { slug: path.project.clone(), declaration: asked.body, prune: false };
    Ok(Taken(change(&api, &path.project, command, &asked.context).await?.into()))
}

/// End a project: its stages are archived and what runs on them is removed.
#[utoipa::path(
    post,
    path = "/projects/{project}/archive",
    tag = "projects",
    operation_id = "archive_project",
    params(ProjectPath, IdempotencyKey),
    responses((status = 202, body = Accepted))
)]
pub(crate) async fn archive(
    State(api): State<Api>,
    Path(path): Path<ProjectPath>,
    Query(NoQuery {}): Query<NoQuery>,
    asked: Asked<Nothing>,
) -> Result<Taken<Accepted>, Error> {
    let committed = change(&api, &path.project, project::Command::Archive, &asked.context).await?;
    Ok(Taken(Accepted { sequence: committed.sequence }))
}

/// Carries out `command` on the project `slug`, together with what follows from it for hosts and
/// stages: all of it or nothing.
pub(super) async fn change(
    api: &Api,
    slug: &Slug,
    command: project::Command,
    context: &Context,
) -> Result<Committed, Error> {
    change_together(api, &Group::from([(slug.clone(), command)]), context, |_, error| error).await
}

/// Carries out a command on each project of `group`: all of them or nothing. `place` says of an error which project it
/// is about.
pub(super) async fn change_together(
    api: &Api,
    group: &Group,
    context: &Context,
    place: fn(&Slug, Error) -> Error,
) -> Result<Committed, Error> {
    for (slug, command) in group {
        make_room(api, slug, command, context).await?;
    }
    let decide = |mut transaction: Transaction| async move {
        let mut changes = Vec::with_capacity(group.len());
        for (slug, command) in group {
            let before = transaction.load(&Key::project(slug)).await?.state;
            // A command that is refused now may have been carried out before: which of the two it is, the log tells.
            if let Ok(events) = before.decide(command.clone()) {
                let mut after = before.clone();
                events.iter().for_each(|event| after.evolve(event));
                check_proxies(&mut transaction, &before, &after).await.map_err(|error| place(slug, error))?;
                changes.push((slug, before, after));
            }
        }
        // Releases come first: two stages may exchange their routes.
        for (slug, before, after) in &changes {
            release_routes(&mut transaction, slug, before, after).await?;
        }
        for (slug, before, after) in &changes {
            claim_routes(&mut transaction, slug, before, after).await.map_err(|error| place(slug, error))?;
            open_and_archive(&mut transaction, slug, before, after, context).await?;
        }
        // The projects' own events come last in the batch, so that a repetition, which finds only those, answers with
        // the same sequence.
        for (slug, command) in group {
            let decided = transaction.decide(&Key::project(slug), command.clone()).await;
            decided.map_err(|error| place(slug, error.into()))?;
        }
        Ok::<_, Error>(transaction)
    };
    api.log.transact(context, decide).await
}

/// One batch ends every stage that goes, and with it all that wait there; it holds a thousand events. Where more wait,
/// they are called off first, stage by stage: whoever is interrupted in between asks again and ends the rest.
async fn make_room(api: &Api, slug: &Slug, command: &project::Command, context: &Context) -> Result<(), Error> {
    let before = api.log.fold(&Key::project(slug)).await?;
    let Ok(events) = before.state.decide(command.clone()) else { return Ok(()) };
    let mut after = before.state.clone();
    events.iter().for_each(|event| after.evolve(event));
    let ending = before.state.stages.keys().filter(|stage| !after.stages.contains_key(*stage));
    let mut waiting = Vec::new();
    for stage in ending {
        let key = Key::<Stage>::stage(slug, stage);
        let count = api.log.fold(&key).await?.state.queue.len();
        waiting.push((key, count));
    }
    if waiting.iter().map(|(_, count)| count).sum::<usize>() <= MOST_AT_ONCE {
        return Ok(());
    }
    for (key, _) in waiting.iter().filter(|(_, count)| *count > 0) {
        // A command of its own: the archive itself is yet to come.
        let context = Context { command_id: runtime::clock::new_id(), command_hash: None, ..context.clone() };
        api.log.execute(key, stage::Command::CancelWaiting { leave: 0 }, &context).await?;
    }
    Ok(())
}

/// A stage that changes must go with the proxy that it lies behind.
async fn check_proxies(transaction: &mut Transaction, before: &Project, after: &Project) -> Result<(), Error> {
    let mut errors = Vec::new();
    for (stage, settings) in
        after.stages.iter().filter(|(stage, settings)| before.stages.get(*stage) != Some(*settings))
    {
        let Some(name) = settings.route.as_ref().and_then(|route| route.proxy.as_ref()) else { continue };
        match &transaction.load(&Key::<Proxy>::proxy(name)).await?.state.settings {
            Some(proxy) => errors.extend(proxy.check_stage(settings, &format!("stages.{stage}"))),
            None => errors.push(FieldError {
                field: format!("stages.{stage}.route.proxy"),
                problem: format!("no proxy {name} is declared: `sluice proxy set {name}` declares it"),
            }),
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(Error::Invalid(errors)) }
}

async fn release_routes(
    transaction: &mut Transaction,
    project: &Slug,
    before: &Project,
    after: &Project,
) -> Result<(), Error> {
    for (route, stage) in before.routes().difference(&after.routes()).cloned() {
        let release = route::Command::Release { path: route.path, project: project.clone(), stage: stage.clone() };
        decide_route(transaction, stage, route.host, release).await?;
    }
    Ok(())
}

async fn claim_routes(
    transaction: &mut Transaction,
    project: &Slug,
    before: &Project,
    after: &Project,
) -> Result<(), Error> {
    for (route, stage) in after.routes().difference(&before.routes()).cloned() {
        let claim = route::Command::Claim { path: route.path, project: project.clone(), stage: stage.clone() };
        decide_route(transaction, stage, route.host, claim).await?;
    }
    Ok(())
}

async fn decide_route(
    transaction: &mut Transaction,
    stage: Slug,
    host: String,
    command: route::Command,
) -> Result<(), Error> {
    let key = Key::<Host>::host(&host);
    transaction.decide(&key, command).await.map_err(|error| match error {
        ExecuteError::Rejected(rejection) => Error::Route { field: format!("stages.{stage}.route"), host, rejection },
        ExecuteError::KeyReused => Error::KeyReused,
        ExecuteError::Conflict => Error::Conflict,
        ExecuteError::Log(error) => Error::Log(error),
    })
}

async fn open_and_archive(
    transaction: &mut Transaction,
    project: &Slug,
    before: &Project,
    after: &Project,
    context: &Context,
) -> Result<(), Error> {
    for stage in after.stages.keys().filter(|stage| !before.stages.contains_key(*stage)) {
        transaction.decide(&Key::<Stage>::stage(project, stage), stage::Command::Reopen).await?;
    }
    for stage in before.stages.keys().filter(|stage| !after.stages.contains_key(*stage)) {
        // Stages of two projects may end by one command.
        let removal = DeploymentId(idempotency::id(context, &format!("{project}/{stage}")));
        transaction.decide(&Key::<Stage>::stage(project, stage), stage::Command::Archive { removal }).await?;
    }
    Ok(())
}
