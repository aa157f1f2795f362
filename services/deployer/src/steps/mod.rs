//! The steps of a rollout. Each may be interrupted anywhere and run again: what it made before is
//! found by labels, what it wrote is compared before it is written.

mod create;
mod pull;
mod retire;
mod traffic;

use std::sync::Arc;

use domain::{
    DeploymentId, Span,
    stage::{Instance, Keep, Kind, Release, Rollout, Spec, Step},
};

pub(crate) use traffic::refresh_route;

use crate::{Node, Place, failure::StepError, health, job::Job, keep};

/// Runs `step`. The instances are those it created, none for other steps.
pub(crate) async fn run(step: Step, job: &Job) -> Result<Vec<Instance>, StepError> {
    let done = |()| vec![];
    match step {
        Step::Pull => pull::pull(job).await.map(done),
        Step::Hold | Step::Rehold => traffic::hold(job).await.map(done),
        Step::Create => create::create(job, job.rollout.set, &job.rollout.spec).await,
        Step::AwaitHealthy => {
            let Rollout { set, spec, .. } = &job.rollout;
            await_healthy(job, *set, spec).await?;
            if spec.settings.bake == Span::ZERO {
                keep_running(job, *set).await?;
            }
            Ok(vec![])
        }
        Step::Switch => traffic::switch(job).await.map(done),
        Step::Bake => bake(job).await.map(done),
        Step::Drain => traffic::drain(job).await.map(done),
        Step::Retire => retire::retire(job).await.map(done),
        Step::Discard => retire::discard(job).await.map(done),
        Step::Restore => restore(job).await.map(done),
        Step::Revert => traffic::revert(job).await.map(done),
    }
}

/// Waits until every container of the set is healthy.
async fn await_healthy(job: &Job, set: DeploymentId, spec: &Spec) -> Result<(), StepError> {
    if job.again {
        // Whatever stopped them was not their own doing.
        create::create(job, set, spec).await?;
    }
    let containers = job.containers(set).await?;
    health::await_all(job, &containers, spec).await
}

/// From now on the engine starts them again whenever they end: before they have proven themselves, one that ends must
/// stay down to be seen.
async fn keep_running(job: &Job, set: DeploymentId) -> Result<(), StepError> {
    for container in job.containers(set).await? {
        job.engine.set_restart(&container.id, true).await?;
    }
    Ok(())
}

async fn bake(job: &Job) -> Result<(), StepError> {
    let Rollout { set, spec, .. } = &job.rollout;
    if job.again {
        create::create(job, *set, spec).await?;
    }
    let containers = job.containers(*set).await?;
    health::watch_all(job, &containers, spec).await?;
    keep_running(job, *set).await
}

/// Brings the previous release back: the containers that were stopped, or new ones where they are gone.
async fn restore(job: &Job) -> Result<(), StepError> {
    let Some(previous) = job.previous() else { return Ok(()) };
    pull::have_image(job, &previous.spec.image).await?;
    create::create(job, previous.set, &previous.spec).await?;
    await_healthy(job, previous.set, &previous.spec).await?;
    keep_running(job, previous.set).await
}

/// Makes the containers of what serves again where someone removed them, if nothing else is under way.
pub(crate) async fn complete(node: &Arc<Node>, place: &Place) -> Result<(), StepError> {
    let loaded = node.log.fold(&place.key()).await?;
    let stage = &loaded.state;
    let (None, Some(Release { deployment, set, spec, .. })) = (&stage.active, &stage.current) else { return Ok(()) };
    if stage.node() != Some(&node.name) {
        return Ok(());
    }
    let rollout = Rollout::new(*deployment, Kind::Release, spec.clone(), None);
    let engine = keep::while_kept(node, place, *set, Keep::Running);
    let job = Job { node: node.clone(), engine, place: place.clone(), rollout, fence: loaded.version, again: true };
    let standing = job.containers(*set).await?;
    if (1..=spec.settings.replicas).all(|number| standing.iter().any(|c| c.labels.replica == number)) {
        return Ok(());
    }
    tracing::warn!(%place, %deployment, "containers of what serves are gone; they are made again");
    job.note("containers are gone without a deployment having removed them; they are made again");
    create::create(&job, *set, spec).await?;
    keep_running(&job, *set).await
}
