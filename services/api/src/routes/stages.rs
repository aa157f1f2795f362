//! Stages: what is declared for them, what runs on them.

use axum::{Json, extract::State};
use domain::{
    Key,
    policy::TagPolicy,
    project::{self, Project},
    push::{LOOKS, Look, stage_key},
    settings::StageSettings,
};
use readmodel::stages::{self, Stage};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Accepted, AtLeast, IdempotencyKey, NoQuery, ProjectPath, StagePath, Taken,
    projects::{Applied, change},
};
use crate::{
    Api,
    auth::Principal,
    extract::{Asked, Nothing, Path, Query},
    problem::Error,
};

/// Every stage of every project: what serves, what is on its way, what waits.
#[utoipa::path(
    get,
    path = "/stages",
    tag = "stages",
    operation_id = "overview",
    params(AtLeast),
    responses((status = 200, body = [Stage]))
)]
pub(crate) async fn overview(
    State(api): State<Api>,
    caller: Principal,
    Query(query): Query<AtLeast>,
) -> Result<Json<Vec<Stage>>, Error> {
    api.visible(query.at_least).await?;
    let mut all = stages::list(&api.pool, None).await?;
    all.retain(|stage| caller.sees(Some(&stage.project)));
    Ok(Json(all))
}

/// The stages of a project.
#[utoipa::path(
    get,
    path = "/projects/{project}/stages",
    tag = "stages",
    operation_id = "list_stages",
    params(ProjectPath, AtLeast),
    responses((status = 200, body = [Stage]))
)]
pub(crate) async fn list(
    State(api): State<Api>,
    Path(path): Path<ProjectPath>,
    Query(query): Query<AtLeast>,
) -> Result<Json<Vec<Stage>>, Error> {
    api.visible(query.at_least).await?;
    let project = path.project.as_str();
    readmodel::projects::get(&api.pool, project).await?.ok_or(project::Rejection::Unknown)?;
    Ok(Json(stages::list(&api.pool, Some(project)).await?))
}

/// A stage: its settings and what runs on it.
#[utoipa::path(
    get,
    path = "/projects/{project}/stages/{stage}",
    tag = "stages",
    operation_id = "get_stage",
    params(StagePath, AtLeast),
    responses((status = 200, body = Stage))
)]
pub(crate) async fn get(
    State(api): State<Api>,
    Path(path): Path<StagePath>,
    Query(query): Query<AtLeast>,
) -> Result<Json<Stage>, Error> {
    api.visible(query.at_least).await?;
    let stage = stages::get(&api.pool, path.project.as_str(), path.stage.as_str()).await?;
    Ok(Json(stage.ok_or(project::Rejection::UnknownStage)?))
}

/// Create a stage of a project, or change it to what is declared.
#[utoipa::path(
    put,
    path = "/projects/{project}/stages/{stage}",
    tag = "stages",
    operation_id = "apply_stage",
    params(StagePath, IdempotencyKey),
    request_body = StageSettings,
    responses((status = 202, body = Applied))
)]
pub(crate) async fn apply(
    State(api): State<Api>,
    Path(path): Path<StagePath>,
    Query(NoQuery {}): Query<NoQuery>,
    asked: Asked<StageSettings>,
) -> Result<Taken<Applied>, Error> {
    let command = project::Command::ApplyStage { stage: path.stage, settings: Box::new(asked.body) };
    Ok(Taken(change(&api, &path.project, command, &asked.context).await?.into()))
}

/// What a stage takes by itself, and what was found when it was last looked for.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Policy {
    /// None where it takes nothing by itself.
    #[schema(value_type = Option<TagPolicy>)]
    policy: Option<Box<TagPolicy>>,
    /// None where nobody has looked yet.
    last: Option<Look>,
}

/// The stage's tag policy, and what the last look for new images found.
#[utoipa::path(
    get,
    path = "/projects/{project}/stages/{stage}/policy",
    tag = "stages",
    operation_id = "get_policy",
    params(StagePath),
    responses((status = 200, body = Policy))
)]
pub(crate) async fn policy(
    State(api): State<Api>,
    Path(path): Path<StagePath>,
    Query(NoQuery {}): Query<NoQuery>,
) -> Result<Json<Policy>, Error> {
    let project = api.log.load(&Key::<Project>::project(&path.project)).await?.state;
    let policy = project.stage(&path.stage)?.policy.clone();
    let found = api.log.bucket(LOOKS).get(&stage_key(&path.project, &path.stage)).await?;
    let last = found.filter(|_| policy.is_some()).and_then(|found| serde_json::from_slice(&found.value).ok());
    Ok(Json(Policy { policy, last }))
}

/// End a stage: it takes no more deployments, and what runs on it is removed.
#[utoipa::path(
    post,
    path = "/projects/{project}/stages/{stage}/archive",
    tag = "stages",
    operation_id = "archive_stage",
    params(StagePath, IdempotencyKey),
    responses((status = 202, body = Accepted))
)]
pub(crate) async fn archive(
    State(api): State<Api>,
    Path(path): Path<StagePath>,
    Query(NoQuery {}): Query<NoQuery>,
    asked: Asked<Nothing>,
) -> Result<Taken<Accepted>, Error> {
    let command = project::Command::ArchiveStage { stage: path.stage };
    let committed = change(&api, &path.project, command, &asked.context).await?;
    Ok(Taken(Accepted { sequence: committed.sequence }))
}
