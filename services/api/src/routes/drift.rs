//! Drift: what runs on a stage beside what was released, and what was released beside what is declared.

use std::time::Duration;

use axum::{Json, extract::State};
use domain::{
    DeploymentId, Key,
    difference::Difference,
    drift::{self, Found},
    node::{Inspect, Inspected, inspect_subject},
    project::Project,
    stage::Stage,
};
use serde::Serialize;
use utoipa::ToSchema;

use super::{NoQuery, StagePath};
use crate::{
    Api,
    extract::{Path, Query},
    problem::Error,
};

/// The node answers within 25 seconds.
const ANSWER: Duration = Duration::from_secs(30);

/// What of a stage is not as it should be. No value of a secret is part of it.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Drift {
    project: String,
    stage: String,
    /// What serves; none where nothing was deployed yet.
    #[schema(value_type = Option<uuid::Uuid>)]
    deployment: Option<DeploymentId>,
    /// On its way at this moment: what is found may be another in the next.
    #[schema(value_type = Option<uuid::Uuid>)]
    on_its_way: Option<DeploymentId>,
    /// Whether anything differs.
    differs: bool,
    /// Declared since the release was made, for the next deployment to carry out: `from` runs, `to` is declared.
    undeployed: Vec<Difference>,
    /// What is on the node: in each difference `from` is what the release says, `to` is what is there.
    running: Found,
}

/// Compare what is declared, what was released and what runs.
#[utoipa::path(
    get,
    path = "/projects/{project}/stages/{stage}/drift",
    tag = "stages",
    operation_id = "get_drift",
    params(StagePath),
    responses((status = 200, body = Drift))
)]
pub(crate) async fn get(
    State(api): State<Api>,
    Path(StagePath { project, stage }): Path<StagePath>,
    Query(NoQuery {}): Query<NoQuery>,
) -> Result<Json<Drift>, Error> {
    let declared = api.log.fold(&Key::<Project>::project(&project)).await?;
    declared.state.stage(&stage)?;
    let loaded = api.log.fold(&Key::<Stage>::stage(&project, &stage)).await?;
    let current = loaded.state.current.as_ref();
    let undeployed = match current {
        Some(release) => drift::undeployed(&release.spec.settings, &declared.state, &stage)?,
        None => vec![],
    };
    let node = loaded.state.node().unwrap_or(&api.node);
    let question = Inspect { project: project.clone(), stage: stage.clone() };
    let question = serde_json::to_vec(&question).map_err(Error::Encode)?;
    let reply = api.log.request(&inspect_subject(node), question, ANSWER).await.map_err(|error| match error {
        eventlog::Error::NobodyAnswers { .. } => Error::NoDeployer { node: node.to_owned() },
        error => Error::Log(error),
    })?;
    let inspected: Inspected = serde_json::from_slice(&reply).map_err(Error::Reply)?;
    let running = inspected.map_err(Error::Resolve)?;
    Ok(Json(Drift {
        project: project.to_string(),
        stage: stage.to_string(),
        deployment: current.map(|release| release.deployment),
        on_its_way: loaded.state.active.as_ref().map(|active| active.deployment),
        differs: !undeployed.is_empty() || running.differs(),
        undeployed,
        running,
    }))
}
