//! Setting right what an outage left behind: containers that should run and do not, that run and
//! should not, and that nobody knows any more.

use std::{collections::BTreeSet, sync::Arc};

use domain::traffic::ROUTES;

use crate::{
    Node, Place,
    failure::{self, Problem, StepError},
    keep, steps,
};

/// Goes over every stage that has a container or a route. Fails where engine or event log went away: then it has to
/// be done again.
pub(crate) async fn node(node: &Arc<Node>) -> Result<(), Problem> {
    let owner = node.labels();
    let containers = match node.engine.containers(owner, owner.all()).await {
        Ok(containers) => containers,
        Err(error) => return Err(failure::engine(&error)),
    };
    let mut stages: BTreeSet<Place> = containers.into_iter().map(|container| container.labels.place).collect();
    match node.log.bucket(ROUTES).keys().await {
        Ok(keys) => stages.extend(keys.iter().filter_map(|key| {
            let (project, stage) = key.split_once('.')?;
            Some(Place { project: project.parse().ok()?, stage: stage.parse().ok()? })
        })),
        Err(error) => return Err(failure::log(error)),
    }
    for place in stages {
        let limit = node.deadlines.pull;
        match tokio::time::timeout(limit, stage(node, &place)).await {
            Ok(Ok(()) | Err(StepError::Fenced)) => {}
            Ok(Err(StepError::Transient(problem))) => return Err(problem),
            // One stage's trouble is not the others'.
            Ok(Err(StepError::Failed(problem))) => {
                tracing::warn!(%place, problem = problem.message, "looking after a stage's containers failed");
            }
            Err(_) => tracing::warn!(%place, "looking after a stage's containers took too long"),
        }
    }
    match node.proxies.look_after().await {
        Ok(()) | Err(StepError::Fenced) => Ok(()),
        Err(StepError::Transient(problem) | StepError::Failed(problem)) => Err(problem),
    }
}

async fn stage(node: &Arc<Node>, place: &Place) -> Result<(), StepError> {
    keep::tidy(node, place, None).await?;
    steps::complete(node, place).await?;
    steps::refresh_route(node, place).await
}
