//! The end of containers.

use std::time::Duration;

use domain::{
    image::Source,
    stage::{Kind, Stage},
};
use futures::future::join_all;

use super::{Job, traffic};
use crate::{
    Node, Place,
    docker::{Container, Engine, EngineError},
    failure::StepError,
    sweep,
};

/// For containers of releases that nobody remembers.
pub(crate) const ORPHAN_GRACE: Duration = Duration::from_secs(10);

/// Stops what served before; of a stage that is no more, removes everything.
pub(super) async fn retire(job: &Job) -> Result<(), StepError> {
    let owner = job.node.labels();
    match job.rollout.kind {
        Kind::Release => {
            let Some(previous) = job.previous() else { return Ok(()) };
            let containers = job.containers(previous.set).await?;
            stop_all(|_| job.engine.clone(), &containers, previous.spec.settings.stop_grace.duration()).await?;
        }
        Kind::Removal => {
            let containers = job.engine.containers(owner, owner.of_stage(&job.place)).await?;
            stop_all(|_| job.engine.clone(), &containers, job.rollout.spec.settings.stop_grace.duration()).await?;
            remove_all(|_| job.engine.clone(), &containers).await?;
            let others = job.engine.containers(owner, owner.of_project(&job.place.project)).await?;
            if others.is_empty() {
                job.engine.remove_network(&owner.network(&job.place.project)).await?;
            }
        }
    }
    Ok(())
}

/// Takes the new release away.
pub(super) async fn discard(job: &Job) -> Result<(), StepError> {
    traffic::drain_discarded(job).await?;
    let rollout = &job.rollout;
    let containers = job.containers(rollout.set).await?;
    stop_all(|_| job.engine.clone(), &containers, rollout.spec.settings.stop_grace.duration()).await?;
    // Those of an earlier release are kept, unless it was they that failed: then the next try makes new ones.
    if rollout.flips() && rollout.failure.is_none() {
        return Ok(());
    }
    remove_all(|_| job.engine.clone(), &containers).await
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

/// Brings a stage's containers to what its events say, and removes the images that no release needs
/// any more: those of containers that were removed, and `image`, the last rollout's.
pub(crate) async fn tidy(node: &Node, place: &Place, image: Option<String>) -> Result<(), StepError> {
    let owner = node.labels();
    // First the containers, then the stage: one that was made in between is not seen as an orphan.
    let containers = node.engine.containers(owner, owner.of_stage(place)).await?;
    let loaded = node.log.fold(&place.key()).await?;
    let stage = &loaded.state;
    let removed = sweep::settle(node, place, stage, containers).await?;
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
pub(crate) fn needed_images(stage: &Stage) -> Vec<String> {
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
