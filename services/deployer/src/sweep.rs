//! Setting right what an outage left behind: containers that should run and do not, that run and
//! should not, and that nobody knows any more.

use std::collections::HashMap;

use domain::stage::{Keep, Stage};

use crate::{
    Node, Place,
    docker::{Container, Engine},
    failure::StepError,
    steps::{self, ORPHAN_GRACE, remove_all, stop_all},
};

/// What to do about a stage's containers.
#[derive(Debug, Default)]
struct Plan {
    start: Vec<Container>,
    stop: Vec<Container>,
    remove: Vec<Container>,
}

/// Goes over every stage that has a container on this node.
pub(crate) async fn node(node: &Node) -> Result<(), StepError> {
    let owner = node.labels();
    let mut stages: HashMap<Place, usize> = HashMap::new();
    for container in node.engine.containers(owner, owner.all()).await? {
        *stages.entry(container.labels.place).or_default() += 1;
    }
    for (place, containers) in stages {
        tracing::debug!(%place, containers, "looking after a stage's containers");
        steps::tidy(node, &place, None).await?;
        steps::refresh_route(node, &place).await?;
    }
    Ok(())
}

/// Brings `containers` to what `stage` wants of them; returns the images of those it removed.
pub(crate) async fn settle(
    engine: &Engine,
    stage: &Stage,
    containers: Vec<Container>,
) -> Result<Vec<String>, StepError> {
    let Plan { start, stop, remove } = plan(stage, containers);
    for container in &start {
        tracing::info!(container = container.name, "starting a container of the current release");
        engine.start(&container.id).await?;
        engine.set_restart(&container.id, true).await?;
    }
    let grace = stage.current.as_ref().map_or(ORPHAN_GRACE, |current| current.spec.settings.stop_grace.duration());
    stop_all(engine, &stop, grace).await?;
    for container in &remove {
        tracing::info!(container = container.name, "removing a container that no kept release needs");
    }
    stop_all(engine, &remove, ORPHAN_GRACE).await?;
    remove_all(engine, &remove).await?;
    Ok(remove.into_iter().map(|container| container.image).collect())
}

fn plan(stage: &Stage, containers: Vec<Container>) -> Plan {
    let mut plan = Plan::default();
    for container in containers {
        match (stage.keeps(container.labels.deployment), container.running) {
            (Keep::Running, false) => plan.start.push(container),
            (Keep::Stopped, true) => plan.stop.push(container),
            (Keep::Nothing, _) => plan.remove.push(container),
            (Keep::Running, true) | (Keep::Stopped, false) | (Keep::InProgress, _) => {}
        }
    }
    plan
}
