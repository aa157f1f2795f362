//! Locks and holds: a locked stage takes no deployment, one on hold none by automation; both with a reason.

use axum::extract::State;
use domain::{Key, project::Project, stage};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use super::{Accepted, IdempotencyKey, NoQuery, StagePath, Taken};
use crate::{
    Api,
    extract::{Asked, Nothing, Path, Query},
    problem::Error,
};

/// Why a stage is locked.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct LockBody {
    /// 1 to 500 characters, shown to whoever wants to deploy.
    reason: String,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct UnlockQuery {
    /// Take the lock from another owner.
    #[serde(default)]
    force: bool,
}

/// Lock a stage.
#[utoipa::path(
    put,
    path = "/projects/{project}/stages/{stage}/lock",
    tag = "stages",
    params(StagePath, IdempotencyKey),
    request_body = LockBody,
    responses((status = 202, body = Accepted))
)]
pub(crate) async fn lock(
    State(api): State<Api>,
    Path(path): Path<StagePath>,
    Query(NoQuery {}): Query<NoQuery>,
    asked: Asked<LockBody>,
) -> Result<Taken<Accepted>, Error> {
    let command = stage::Command::Lock { owner: asked.context.actor.clone(), reason: asked.body.reason };
    command_stage(&api, &path, command, &asked.context).await
}

/// Unlock a stage.
#[utoipa::path(
    delete,
    path = "/projects/{project}/stages/{stage}/lock",
    tag = "stages",
    params(StagePath, UnlockQuery, IdempotencyKey),
    responses((status = 202, body = Accepted))
)]
pub(crate) async fn unlock(
    State(api): State<Api>,
    Path(path): Path<StagePath>,
    Query(query): Query<UnlockQuery>,
    asked: Asked<Nothing>,
) -> Result<Taken<Accepted>, Error> {
    let command = stage::Command::Unlock { owner: asked.context.actor.clone(), force: query.force };
    command_stage(&api, &path, command, &asked.context).await
}

/// Why automation leaves a stage alone.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct HoldBody {
    /// 1 to 500 characters, for whoever wonders later.
    reason: String,
}

/// Keep automation away from a stage.
#[utoipa::path(
    put,
    path = "/projects/{project}/stages/{stage}/hold",
    tag = "stages",
    params(StagePath, IdempotencyKey),
    request_body = HoldBody,
    responses((status = 202, body = Accepted))
)]
pub(crate) async fn hold(
    State(api): State<Api>,
    Path(path): Path<StagePath>,
    Query(NoQuery {}): Query<NoQuery>,
    asked: Asked<HoldBody>,
) -> Result<Taken<Accepted>, Error> {
    let command = stage::Command::Hold { by: asked.context.actor.clone(), reason: asked.body.reason };
    command_stage(&api, &path, command, &asked.context).await
}

/// Let automation deploy to a stage again.
#[utoipa::path(
    delete,
    path = "/projects/{project}/stages/{stage}/hold",
    tag = "stages",
    operation_id = "lift_hold",
    params(StagePath, IdempotencyKey),
    responses((status = 202, body = Accepted))
)]
pub(crate) async fn lift_hold(
    State(api): State<Api>,
    Path(path): Path<StagePath>,
    Query(NoQuery {}): Query<NoQuery>,
    asked: Asked<Nothing>,
) -> Result<Taken<Accepted>, Error> {
    command_stage(&api, &path, stage::Command::LiftHold, &asked.context).await
}

async fn command_stage(
    api: &Api,
    path: &StagePath,
    command: stage::Command,
    context: &domain::Context,
) -> Result<Taken<Accepted>, Error> {
    // A stage's own history does not say whether it was ever declared.
    api.log.load(&Key::<Project>::project(&path.project)).await?.state.stage(&path.stage)?;
    let committed = api.log.execute(&Key::stage(&path.project, &path.stage), command, context).await?;
    Ok(Taken(Accepted { sequence: committed.sequence }))
}
