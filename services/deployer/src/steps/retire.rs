//! The end of containers.

use domain::stage::Kind;

use super::traffic;
use crate::{
    failure::StepError,
    job::Job,
    keep::{remove_all, stop_all},
};

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
