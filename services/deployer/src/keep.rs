//! What a stage wants of its containers and images, done: what should run runs, what is kept stands still, and the
//! rest goes.

use std::{sync::Arc, time::Duration};

use domain::{
    DeploymentId,
    image::Source,
    stage::{Keep, Stage},
};
use futures::{FutureExt, future::join_all};

use crate::{
    Node, Place,
    docker::{Container, Engine, EngineError, Hindrance},
    failure::StepError,
};

/// For containers of releases that nobody remembers.
const ORPHAN_GRACE: Duration = Duration::from_secs(10);

/// What to do about a stage's containers.
#[derive(Debug, Default)]
struct Plan {
    start: Vec<Container>,
    stop: Vec<Container>,
    remove: Vec<Container>,
}

/// Brings a stage's containers to what its events say, and removes the images that no release needs
/// any more: those of containers that were removed, and `image`, the last rollout's.
pub(crate) async fn tidy(node: &Node, place: &Place, image: Option<String>) -> Result<(), StepError> {
    let owner = node.labels();
    // First the containers, then the stage: one that was made in between is not seen as an orphan.
    let containers = node.engine.containers(owner, owner.of_stage(place)).await?;
    let loaded = node.log.fold(&place.key()).await?;
    let stage = &loaded.state;
    let removed = settle(node, place, stage, containers).await?;
    let needed = needed_images(stage);
    let mut unneeded: Vec<String> = removed.into_iter().chain(image).filter(|image| !needed.contains(image)).collect();
    unneeded.sort();
    unneeded.dedup();
    for image in unneeded {
        // One that came from no registry could not be had again.
        if image.contains('@') {
            node.engine.remove_image(&image).await?;
        }
    }
    Ok(())
}

/// Images that a release may still be started from.
fn needed_images(stage: &Stage) -> Vec<String> {
    let releases = stage.current.iter().chain(stage.kept());
    let rollout = stage
        .active
        .iter()
        .flat_map(|active| active.previous.iter().map(|previous| &previous.spec).chain([&active.spec]));
    let queued = stage.queue.iter().map(|queued| &*queued.spec);
    releases
        .map(|release| &release.spec)
        .chain(rollout)
        .chain(queued)
        .filter(|spec| spec.image.source == Source::Registry)
        .map(|spec| spec.image.pinned())
        .collect()
}

/// An engine whose changes are made only as long as the stage wants `keep` of `set`: what a sweep was about to
/// do may be wrong by the time it does it.
pub(crate) fn while_kept(node: &Node, place: &Place, set: DeploymentId, keep: Keep) -> Engine {
    let (log, key) = (node.log.clone(), place.key());
    node.engine.guarded(Arc::new(move || {
        let (log, key) = (log.clone(), key.clone());
        async move { Ok(log.fold(&key).await?.state.keeps(set) == keep) }.boxed()
    }))
}

/// Brings `containers` to what `stage` wants of them; returns the images of those it removed.
async fn settle(
    node: &Node,
    place: &Place,
    stage: &Stage,
    containers: Vec<Container>,
) -> Result<Vec<String>, StepError> {
    let Plan { start, stop, remove } = plan(stage, containers);
    for container in &start {
        tracing::info!(container = container.name, "starting a container of the current release");
        let engine = while_kept(node, place, container.labels.set, Keep::Running);
        if let Err(error) = engine.start(&container.id).await {
            let EngineError::Refused { message, .. } = &error else { return Err(error.into()) };
            let Some(hindrance) = Hindrance::of(message) else { return Err(error.into()) };
            tracing::warn!(container = container.name, message, "it cannot be started; making it anew");
            // The release is completed again behind this.
            engine.give_up(&container.id, hindrance).await?;
            continue;
        }
        engine.set_restart(&container.id, true).await?;
    }
    let grace = stage.current.as_ref().map_or(ORPHAN_GRACE, |current| current.spec.settings.stop_grace.duration());
    let stopping = |container: &Container| while_kept(node, place, container.labels.set, Keep::Stopped);
    stop_all(stopping, &stop, grace).await?;
    for container in &remove {
        tracing::info!(container = container.name, "removing a container that no kept release needs");
    }
    let removing = |container: &Container| while_kept(node, place, container.labels.set, Keep::Nothing);
    stop_all(removing, &remove, ORPHAN_GRACE).await?;
    remove_all(removing, &remove).await?;
    Ok(remove.into_iter().map(|container| container.image).collect())
}

fn plan(stage: &Stage, containers: Vec<Container>) -> Plan {
    let mut plan = Plan::default();
    for container in containers {
        match (stage.keeps(container.labels.set), container.running) {
            (Keep::Running, false) => plan.start.push(container),
            (Keep::Stopped, true) => plan.stop.push(container),
            (Keep::Nothing, _) => plan.remove.push(container),
            (Keep::Running, true) | (Keep::Stopped, false) | (Keep::InProgress, _) => {}
        }
    }
    plan
}

/// All at once: a set's end takes as long as its slowest member's. `engine` gives the handle for each.
pub(crate) async fn stop_all(
    engine: impl Fn(&Container) -> Engine,
    containers: &[Container],
    grace: Duration,
) -> Result<(), StepError> {
    each(containers, |container| {
        let engine = engine(container);
        async move {
            // Else the engine would bring it back after its own restart.
            engine.set_restart(&container.id, false).await?;
            engine.stop(&container.id, grace).await
        }
    })
    .await
}

pub(crate) async fn remove_all(
    engine: impl Fn(&Container) -> Engine,
    containers: &[Container],
) -> Result<(), StepError> {
    each(containers, |container| {
        let engine = engine(container);
        async move { engine.remove(&container.id).await }
    })
    .await
}

/// Tries all, whatever becomes of the others; the first error counts.
async fn each<'a, F>(containers: &'a [Container], act: impl Fn(&'a Container) -> F) -> Result<(), StepError>
where
    F: Future<Output = Result<(), EngineError>>,
{
    let results = join_all(containers.iter().map(act)).await;
    Ok(results.into_iter().collect::<Result<(), _>>()?)
}

#[cfg(test)]
mod tests {
    use domain::{
        Aggregate,
        image::{Image, Source},
        settings::StageSettings,
        stage::{Command, Spec, Step, next_step},
    };
    use uuid::Uuid;

    use super::*;

    fn id(number: u128) -> DeploymentId {
        DeploymentId(Uuid::from_u128(number))
    }

    fn run(stage: &mut Stage, command: Command) {
        let events = stage.decide(command).expect("accepted");
        events.iter().for_each(|event| stage.evolve(event));
    }

    fn request(stage: &mut Stage, number: u128) {
        let image = Image {
            requested: "r:5000/shop:v1".into(),
            digest: format!("sha256:{number:064}"),
            source: Source::Registry,
        };
        let settings = StageSettings { keep: 1, ..StageSettings::default() };
        run(
            stage,
            Command::Request {
                deployment: id(number),
                spec: Spec { image, settings },
                node: "local".into(),
                by: "ana".into(),
            },
        );
        run(stage, Command::Start { deployment: id(number), worker: "w".into() });
    }

    /// A stage on which releases 1 to 3 succeeded, one after another.
    fn three_releases() -> Stage {
        let mut stage = Stage::default();
        for number in 1..=3 {
            request(&mut stage, number);
            while let Some(step) = stage.active.as_ref().and_then(next_step) {
                let (deployment, worker) = (id(number), "w".into());
                run(&mut stage, Command::Complete { deployment, worker, step, elapsed_ms: 1, instances: vec![] });
            }
        }
        stage
    }

    fn names(containers: &[Container]) -> Vec<(DeploymentId, bool)> {
        containers.iter().map(|container| (container.labels.set, container.running)).collect()
    }

    #[test]
    fn the_current_runs_the_kept_stands_still_and_the_rest_goes() {
        let containers = [(3, false), (2, true), (1, false), (9, true)];
        let containers = containers.map(|(number, running)| Container::sample(id(number), running));
        let plan = plan(&three_releases(), containers.to_vec());
        assert_eq!(names(&plan.start), [(id(3), false)]);
        assert_eq!(names(&plan.stop), [(id(2), true)]);
        assert_eq!(names(&plan.remove), [(id(1), false), (id(9), true)]);
    }

    #[test]
    fn what_a_rollout_is_at_work_on_is_left_to_it() {
        let mut stage = three_releases();
        request(&mut stage, 4);
        assert_eq!(stage.active.as_ref().and_then(next_step), Some(Step::Pull));
        let containers = [(4, false), (3, false)].map(|(number, running)| Container::sample(id(number), running));
        let plan = plan(&stage, containers.to_vec());
        assert!(plan.start.is_empty() && plan.stop.is_empty() && plan.remove.is_empty(), "{plan:?}");
    }

    #[test]
    fn images_stay_as_long_as_a_release_may_be_started_from_them() {
        let mut stage = three_releases();
        let digest = |number: u128| format!("r:5000/shop@sha256:{number:064}");
        assert_eq!(needed_images(&stage), [digest(3), digest(2)]);
        request(&mut stage, 4);
        assert!(needed_images(&stage).contains(&digest(4)));
    }
}
