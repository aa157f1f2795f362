//! Deployments: requested, listed, read, cancelled.

use std::time::Duration;

use axum::{Json, extract::State};
use domain::{
    Context, DeploymentId, Event, Key,
    image::{Image, Reference},
    project::Project,
    stage::{self, Outcome, Spec, Stage},
};
use readmodel::deployments::{self, Deployment, Filter, Page, Status};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use utoipa::{IntoParams, ToSchema};

use super::{Accepted, AtLeast, DeploymentPath, IdempotencyKey, NoQuery, StagePath, Taken, page_size};
use crate::{
    Api,
    auth::Principal,
    extract::{Asked, Nothing, Path, Query},
    idempotency,
    problem::Error,
};

/// After which the log itself is asked instead of the database.
const DATABASE_LIMIT: Duration = Duration::from_millis(500);

/// What to deploy.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DeploymentBody {
    /// `[registry/]repository[:tag][@digest]`; a bare tag where the stage names its repository.
    #[schema(example = "v2")]
    image: String,
}

/// What to deploy past the gates, and why.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct HotfixBody {
    /// As for a deployment.
    #[schema(example = "v2")]
    image: String,
    /// 1 to 500 characters; part of the record.
    reason: String,
}

#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RollbackBody {
    /// The deployment whose release is wanted; without one, the newest earlier release with another image.
    #[serde(default)]
    #[schema(value_type = Option<uuid::Uuid>)]
    to: Option<DeploymentId>,
}

/// A deployment was requested.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Requested {
    /// Position of its last event: `?at_least=<sequence>` reads what it wrote.
    sequence: u64,
    #[schema(value_type = uuid::Uuid)]
    deployment: DeploymentId,
    /// What the reference meant when it was first asked for; this is what runs.
    image: Image,
}

#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CancelBody {
    /// For whoever reads it later; up to 500 characters.
    #[serde(default)]
    reason: Option<String>,
}

const LONGEST_REASON: usize = 500;

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListQuery {
    /// Only of this project.
    project: Option<String>,
    /// Only of stages of this name.
    stage: Option<String>,
    /// Only those that ended so.
    #[param(inline)]
    outcome: Option<Outcome>,
    /// The `next` of the page before.
    before: Option<u64>,
    /// 1 to 500; 50 where it is left out.
    limit: Option<u16>,
    /// Wait until what a mutation answered as `sequence` can be read.
    at_least: Option<u64>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct StageQuery {
    /// The `next` of the page before.
    before: Option<u64>,
    /// 1 to 500; 50 where it is left out.
    limit: Option<u16>,
    /// Wait until what a mutation answered as `sequence` can be read.
    at_least: Option<u64>,
}

/// Deploy an image: at once on an idle stage, else after the deployments that wait already.
#[utoipa::path(
    post,
    path = "/projects/{project}/stages/{stage}/deployments",
    tag = "deployments",
    operation_id = "request_deployment",
    params(StagePath, IdempotencyKey),
    request_body = DeploymentBody,
    responses((status = 202, body = Requested))
)]
pub(crate) async fn request(
    State(api): State<Api>,
    Path(path): Path<StagePath>,
    Query(NoQuery {}): Query<NoQuery>,
    asked: Asked<DeploymentBody>,
) -> Result<Taken<Requested>, Error> {
    let by = asked.context.actor.clone();
    let command = |deployment, spec, node| stage::Command::Request { deployment, spec, node, by };
    deploy(&api, &path, &asked.body.image, &asked.context, command).await
}

/// Deploy an image past the gates of a stage that takes releases only by promotion. It is recorded as such, and keeps
/// automation away until somebody promotes or lifts the hold.
#[utoipa::path(
    post,
    path = "/projects/{project}/stages/{stage}/hotfixes",
    tag = "deployments",
    operation_id = "request_hotfix",
    params(StagePath, IdempotencyKey),
    request_body = HotfixBody,
    responses((status = 202, body = Requested))
)]
pub(crate) async fn hotfix(
    State(api): State<Api>,
    Path(path): Path<StagePath>,
    Query(NoQuery {}): Query<NoQuery>,
    asked: Asked<HotfixBody>,
) -> Result<Taken<Requested>, Error> {
    let HotfixBody { image, reason } = asked.body;
    let by = asked.context.actor.clone();
    let command = |deployment, spec, node| stage::Command::Hotfix { deployment, spec, node, by, reason };
    deploy(&api, &path, &image, &asked.context, command).await
}

/// Go back to an earlier release, by its digest. It keeps automation away until somebody promotes or lifts the hold.
#[utoipa::path(
    post,
    path = "/projects/{project}/stages/{stage}/rollback",
    tag = "deployments",
    operation_id = "roll_back",
    params(StagePath, IdempotencyKey),
    request_body = Option<RollbackBody>,
    responses((status = 202, body = Requested))
)]
pub(crate) async fn roll_back(
    State(api): State<Api>,
    Path(path): Path<StagePath>,
    Query(NoQuery {}): Query<NoQuery>,
    asked: Asked<RollbackBody>,
) -> Result<Taken<Requested>, Error> {
    let deployment = DeploymentId(idempotency::id(&asked.context, "release"));
    let project = api.log.load(&Key::<Project>::project(&path.project)).await?.state;
    let command = stage::Command::Rollback {
        deployment,
        to: asked.body.to,
        settings: Box::new(project.stage(&path.stage)?.clone()),
        node: api.node.to_string(),
        by: asked.context.actor.clone(),
    };
    let committed = api.log.execute(&Key::<Stage>::stage(&path.project, &path.stage), command, &asked.context).await?;
    let sequence = committed.sequence;
    let requested = committed.events.into_iter().find_map(|recorded| match recorded.event {
        Event::Stage(stage::Event::Requested { spec, .. }) => Some(spec.image),
        _ => None,
    });
    let image = match requested {
        Some(image) => image,
        None => recorded(&api, deployment, sequence).await?.image,
    };
    Ok(Taken(Requested { sequence, deployment, image }))
}

/// Deploy what runs again, under the settings, variables and secrets of now.
#[utoipa::path(
    post,
    path = "/projects/{project}/stages/{stage}/redeploy",
    tag = "deployments",
    operation_id = "redeploy",
    params(StagePath, IdempotencyKey),
    responses((status = 202, body = Requested))
)]
pub(crate) async fn redeploy(
    State(api): State<Api>,
    Path(path): Path<StagePath>,
    Query(NoQuery {}): Query<NoQuery>,
    asked: Asked<Nothing>,
) -> Result<Taken<Requested>, Error> {
    let key = Key::<Stage>::stage(&path.project, &path.stage);
    let deployment = DeploymentId(idempotency::id(&asked.context, "release"));
    let settings = api.log.load(&Key::<Project>::project(&path.project)).await?.state.release(&path.stage)?;
    let current = api.log.load(&key).await?.state.current.ok_or(stage::Rejection::NothingRuns)?;
    let image = current.spec.image;
    let spec = Spec { image: image.clone(), settings };
    let (node, by) = (api.node.to_string(), asked.context.actor.clone());
    let command = stage::Command::Request { deployment, spec, node, by };
    let sequence = api.log.execute(&key, command, &asked.context).await?.sequence;
    Ok(Taken(Requested { sequence, deployment, image }))
}

/// Has `command` decided on the image that `reference` means now, or meant when it was first asked for.
async fn deploy(
    api: &Api,
    path: &StagePath,
    reference: &str,
    context: &Context,
    command: impl FnOnce(DeploymentId, Spec, String) -> stage::Command,
) -> Result<Taken<Requested>, Error> {
    let key = Key::<Stage>::stage(&path.project, &path.stage);
    let deployment = DeploymentId(idempotency::id(context, "release"));
    let stage = api.log.load(&key).await?;
    if stage.state.knows(deployment) {
        // Asked for before: the image is what it was then, whatever its tag means by now.
        let known = recorded(api, deployment, stage.version).await?;
        let settings = api.log.load(&Key::<Project>::project(&path.project)).await?.state.stages.remove(&path.stage);
        let spec = Spec { image: known.image.clone(), settings: settings.unwrap_or_default() };
        let sequence = api.log.execute(&key, command(deployment, spec, known.node), context).await?.sequence;
        return Ok(Taken(Requested { sequence, deployment, image: known.image }));
    }
    let project = api.log.load(&Key::<Project>::project(&path.project)).await?.state;
    let settings = project.release(&path.stage)?;
    let reference = Reference::within(settings.image.as_deref(), reference)?;
    let image = resolve(api, &reference).await?;
    let spec = Spec { image: image.clone(), settings };
    let committed = api.log.execute(&key, command(deployment, spec, api.node.to_string()), context).await?;
    let sequence = committed.sequence;
    // Where the same request was faster on another connection, its image counts.
    let image = if committed.events.is_empty() { recorded(api, deployment, sequence).await?.image } else { image };
    Ok(Taken(Requested { sequence, deployment, image }))
}

/// The deployments of a stage, the newest request first.
#[utoipa::path(
    get,
    path = "/projects/{project}/stages/{stage}/deployments",
    tag = "deployments",
    operation_id = "list_stage_deployments",
    params(StagePath, StageQuery),
    responses((status = 200, body = Page))
)]
pub(crate) async fn of_stage(
    State(api): State<Api>,
    Path(path): Path<StagePath>,
    Query(query): Query<StageQuery>,
) -> Result<Json<Page>, Error> {
    api.visible(query.at_least).await?;
    let filter = Filter {
        within: None,
        project: Some(path.project.to_string()),
        stage: Some(path.stage.to_string()),
        status: None,
        before: query.before,
    };
    Ok(Json(deployments::list(&api.pool, &filter, page_size(query.limit)?).await?))
}

/// Deployments of all stages, the newest request first.
#[utoipa::path(
    get,
    path = "/deployments",
    tag = "deployments",
    operation_id = "list_deployments",
    params(ListQuery),
    responses((status = 200, body = Page))
)]
pub(crate) async fn list(
    State(api): State<Api>,
    caller: Principal,
    Query(query): Query<ListQuery>,
) -> Result<Json<Page>, Error> {
    api.visible(query.at_least).await?;
    let filter = Filter {
        within: caller.within(),
        project: query.project,
        stage: query.stage,
        status: query.outcome.map(ended),
        before: query.before,
    };
    Ok(Json(deployments::list(&api.pool, &filter, page_size(query.limit)?).await?))
}

/// A deployment with its steps and containers.
#[utoipa::path(
    get,
    path = "/deployments/{id}",
    tag = "deployments",
    operation_id = "get_deployment",
    params(DeploymentPath, AtLeast),
    responses((status = 200, body = Deployment))
)]
pub(crate) async fn get(
    State(api): State<Api>,
    Path(path): Path<DeploymentPath>,
    Query(query): Query<AtLeast>,
) -> Result<Json<Deployment>, Error> {
    api.visible(query.at_least).await?;
    let deployment = deployments::get(&api.pool, path.id.0).await?;
    Ok(Json(deployment.ok_or(stage::Rejection::UnknownDeployment)?))
}

/// Cancel a deployment. What served before serves on.
#[utoipa::path(
    post,
    path = "/deployments/{id}/cancel",
    tag = "deployments",
    operation_id = "cancel_deployment",
    params(DeploymentPath, IdempotencyKey),
    request_body = Option<CancelBody>,
    responses((status = 202, body = Accepted))
)]
pub(crate) async fn cancel(
    State(api): State<Api>,
    Path(path): Path<DeploymentPath>,
    Query(NoQuery {}): Query<NoQuery>,
    asked: Asked<CancelBody>,
) -> Result<Taken<Accepted>, Error> {
    let reason = asked.body.reason;
    if reason.as_ref().is_some_and(|reason| reason.chars().count() > LONGEST_REASON) {
        return Err(Error::invalid("reason", format!("must be at most {LONGEST_REASON} characters")));
    }
    let key = stage_of(&api, path.id).await?;
    let command = stage::Command::Cancel { deployment: path.id, reason };
    let committed = api.log.execute(&key, command, &asked.context).await?;
    Ok(Taken(Accepted { sequence: committed.sequence }))
}

/// The deployment as the read models have it once they have seen `sequence`.
async fn recorded(api: &Api, deployment: DeploymentId, sequence: u64) -> Result<Deployment, Error> {
    api.visible(Some(sequence)).await?;
    let known = deployments::get(&api.pool, deployment.0).await?;
    Ok(known.ok_or(stage::Rejection::UnknownDeployment)?)
}

/// The stage that `deployment` was requested on: a cancel waits neither for the projector nor for the database.
async fn stage_of(api: &Api, deployment: DeploymentId) -> Result<Key<Stage>, Error> {
    let found = timeout(DATABASE_LIMIT, async {
        // In this order: what the read models do not have at this position was requested behind it.
        let seen = readmodel::state(&api.pool).await?.sequence;
        Ok::<_, readmodel::Error>((seen, deployments::get(&api.pool, deployment.0).await?))
    });
    let seen = match found.await {
        Ok(Ok((_, Some(known)))) => {
            // Both were slugs when they were written.
            let slug = |name: String| name.parse().map_err(|_| Error::from(stage::Rejection::UnknownDeployment));
            return Ok(Key::stage(&slug(known.project)?, &slug(known.stage)?));
        }
        Ok(Ok((seen, None))) => seen,
        Ok(Err(_)) | Err(_) => 0,
    };
    let mut key = None;
    let requests = "sluice.events.stage.*.*.deployment.requested";
    api.log
        .each(requests, seen, |recorded| {
            if let Event::Stage(stage::Event::Requested { deployment: requested, .. }) = &recorded.event
                && *requested == deployment
                && let (Some(Ok(project)), Some(Ok(stage))) =
                    (recorded.project().map(str::parse), recorded.stage().map(str::parse))
            {
                key = Some(Key::stage(&project, &stage));
            }
        })
        .await?;
    Ok(key.ok_or(stage::Rejection::UnknownDeployment)?)
}

/// Asks the node which bytes `reference` means now.
async fn resolve(api: &Api, reference: &Reference) -> Result<Image, Error> {
    match api.log.resolve(&api.node, reference).await {
        Ok(resolved) => resolved.map_err(Error::Resolve),
        Err(eventlog::Error::NobodyAnswers { .. } | eventlog::Error::Unavailable { .. }) => {
            Err(Error::NoDeployer { node: api.node.to_string() })
        }
        Err(error) => Err(error.into()),
    }
}

fn ended(outcome: Outcome) -> Status {
    match outcome {
        Outcome::Succeeded => Status::Succeeded,
        Outcome::Failed => Status::Failed,
        Outcome::RolledBack => Status::RolledBack,
        Outcome::Cancelled => Status::Cancelled,
        Outcome::Superseded => Status::Superseded,
    }
}
