//! What a stage does with a command.

use super::{
    Command, Event, Failure, Instance, Kind, Observed, Origin, Outcome, Queued, Rejection, Rollout, Spec, Stage, Step,
    StepDone, follow, next_step, promote,
};
use crate::{DeploymentId, settings::QueuePolicy};

/// The decision that ends them all (an archive, or a request that supersedes) must fit into one batch of a thousand
/// events.
const MOST_WAITING: usize = 900;

pub(super) fn decide(stage: &Stage, command: Command) -> Result<Vec<Event>, Rejection> {
    match command {
        Command::Request { deployment, spec, node, by } => follow::by_hand(stage, deployment, spec, node, by),
        Command::Follow { deployment, spec, node, after, origin } => {
            follow::follow(stage, deployment, spec, node, after, origin)
        }
        Command::Hotfix { deployment, spec, node, by, reason } => {
            promote::hotfix(stage, deployment, spec, node, by, reason)
        }
        Command::Rollback { deployment, to, settings, node, by } => {
            promote::rollback(stage, deployment, to, *settings, node, by)
        }
        Command::Promote { digest, by, wait, attempt } => promote::promote(stage, digest, by, wait, *attempt),
        Command::PromoteAutomatically { by, attempt } => promote::automatically(stage, by, *attempt),
        Command::Approve { by, role, attempt } => promote::approve(stage, by, role, *attempt),
        Command::Reconsider { attempt } => promote::reconsider(stage, *attempt),
        Command::Withdraw { promotion, reason } => promote::withdraw(stage, promotion, reason),
        Command::Hold { by, reason } => promote::hold(stage, by, reason),
        Command::LiftHold => promote::lift_hold(stage),
        Command::Cancel { deployment, reason } => cancel(stage, deployment, reason),
        Command::Lock { owner, reason } => lock(stage, owner, reason),
        Command::Unlock { owner, force } => unlock(stage, owner, force),
        Command::Archive { removal } => Ok(archive(stage, removal)),
        Command::CancelWaiting { leave } => {
            let newest = stage.queue.iter().skip(leave).rev();
            Ok(newest.map(|queued| Event::Cancelled { deployment: queued.deployment }).collect())
        }
        Command::Reopen => Ok(if stage.archived { vec![Event::Reopened {}] } else { vec![] }),
        Command::Start { deployment, worker } => start(stage, deployment, worker),
        Command::Complete { deployment, worker, step, elapsed_ms, instances } => {
            complete(stage, deployment, &worker, step, elapsed_ms, instances)
        }
        Command::Fail { deployment, worker, elapsed_ms, failure } => {
            fail(stage, deployment, &worker, elapsed_ms, failure)
        }
        Command::Observe { set, instance, observed } => Ok(observe(stage, set, instance, observed)),
    }
}

pub(super) fn request(
    stage: &Stage,
    deployment: DeploymentId,
    spec: Spec,
    node: String,
    origin: Origin,
) -> Result<Vec<Event>, Rejection> {
    if stage.knows(deployment) {
        return Ok(vec![]);
    }
    if stage.archived {
        return Err(Rejection::Archived);
    }
    // Bytes that run here already came through the gates: they may be deployed again, under changed settings.
    let here = stage.current.as_ref().is_some_and(|current| current.spec.image.digest == spec.image.digest);
    if let (true, Some(from), false) = (origin.passes_no_gate(), &spec.settings.promote_from, here) {
        return Err(Rejection::PromotionOnly { from: from.clone() });
    }
    if let Some(lock) = &stage.lock {
        return Err(Rejection::Locked { owner: lock.owner.clone(), reason: lock.reason.clone() });
    }
    let superseded: Vec<Event> = match spec.settings.queue {
        QueuePolicy::Supersede => {
            stage.queue.iter().map(|q| Event::Superseded { deployment: q.deployment, by: deployment }).collect()
        }
        QueuePolicy::Keep if stage.queue.len() >= MOST_WAITING => {
            return Err(Rejection::QueueFull { waiting: stage.queue.len() });
        }
        QueuePolicy::Keep => vec![],
    };
    let set = stage.set_of(origin.back_to());
    let mut events =
        vec![Event::Requested { deployment, kind: Kind::Release, node: node.clone(), spec: Box::new(spec), origin }];
    events.extend(superseded);
    if stage.active.is_none() {
        events.push(Event::Dispatched { deployment, node, set });
    }
    Ok(events)
}

fn cancel(stage: &Stage, deployment: DeploymentId, reason: Option<String>) -> Result<Vec<Event>, Rejection> {
    let Some(active) = stage.active.as_ref().filter(|active| active.deployment == deployment) else {
        if stage.queue.iter().any(|queued| queued.deployment == deployment) {
            return Ok(vec![Event::CancelRequested { deployment, reason }, Event::Cancelled { deployment }]);
        }
        return match stage.ended.iter().find(|ended| ended.deployment == deployment) {
            Some(ended) if ended.outcome == Outcome::Cancelled => Ok(vec![]),
            Some(ended) => Err(Rejection::Ended(ended.outcome)),
            None => Err(Rejection::UnknownDeployment),
        };
    };
    if active.backward() {
        return Ok(vec![]);
    }
    if active.past_return() {
        return Err(Rejection::TooLate);
    }
    Ok(stage.and_then_end(vec![Event::CancelRequested { deployment, reason }]))
}

fn lock(stage: &Stage, owner: String, reason: String) -> Result<Vec<Event>, Rejection> {
    let good = |text: &str| (1..=500).contains(&text.trim().chars().count());
    if !good(&owner) || !good(&reason) {
        return Err(Rejection::BadLock);
    }
    match &stage.lock {
        Some(lock) if lock.owner == owner && lock.reason == reason => Ok(vec![]),
        Some(lock) if lock.owner != owner => {
            Err(Rejection::Locked { owner: lock.owner.clone(), reason: lock.reason.clone() })
        }
        Some(_) | None => Ok(vec![Event::Locked { owner, reason }]),
    }
}

fn unlock(stage: &Stage, owner: String, force: bool) -> Result<Vec<Event>, Rejection> {
    match &stage.lock {
        None => Err(Rejection::NotLocked),
        Some(lock) if lock.owner != owner && !force => Err(Rejection::OthersLock { owner: lock.owner.clone() }),
        Some(_) => Ok(vec![Event::Unlocked { owner }]),
    }
}

/// Whatever is on its way is called off; what serves is removed by a deployment of its own.
fn archive(stage: &Stage, removal: DeploymentId) -> Vec<Event> {
    if stage.archived || stage.knows(removal) {
        return vec![];
    }
    let mut events = vec![Event::Archived {}];
    events.extend(
        stage.promotion.as_ref().map(|waiting| Event::PromotionWithdrawn {
            promotion: waiting.id,
            reason: "the stage was archived".into(),
        }),
    );
    events.extend(stage.queue.iter().map(|queued| Event::Cancelled { deployment: queued.deployment }));
    let template = stage.current.as_ref().map(|release| (&release.spec, removal)).or_else(|| {
        // Not yet serving, but about to: removed when it has ended, whichever way.
        stage.active.as_ref().map(|active| (&active.spec, removal))
    });
    if let Some((spec, deployment)) = template {
        let node = stage.node().unwrap_or_default().to_owned();
        events.push(Event::Requested {
            deployment,
            kind: Kind::Removal,
            node: node.clone(),
            spec: Box::new(spec.clone()),
            origin: Origin::Direct,
        });
        if stage.active.is_none() {
            events.push(Event::Dispatched { deployment, node, set: None });
        }
    }
    match &stage.active {
        Some(active) if !active.backward() && !active.past_return() => {
            events.push(Event::CancelRequested {
                deployment: active.deployment,
                reason: Some("the stage was archived".into()),
            });
            stage.and_then_end(events)
        }
        Some(_) | None => events,
    }
}

fn start(stage: &Stage, deployment: DeploymentId, worker: String) -> Result<Vec<Event>, Rejection> {
    let active = stage.working_on(deployment)?;
    if active.worker.as_ref() == Some(&worker) {
        return Ok(vec![]);
    }
    Ok(stage.and_then_end(vec![Event::Started { deployment, worker }]))
}

fn complete(
    stage: &Stage,
    deployment: DeploymentId,
    worker: &str,
    step: Step,
    elapsed_ms: u64,
    instances: Vec<Instance>,
) -> Result<Vec<Event>, Rejection> {
    let active = stage.held_by(deployment, worker)?;
    if active.done.contains(&step) {
        return Ok(vec![]);
    }
    let expected = next_step(active);
    if expected != Some(step) {
        return Err(Rejection::OutOfStep { expected });
    }
    let done = StepDone { deployment, elapsed_ms, problem: None };
    Ok(stage.and_then_end(vec![step_event(step, done, instances)]))
}

fn fail(
    stage: &Stage,
    deployment: DeploymentId,
    worker: &str,
    elapsed_ms: u64,
    failure: Failure,
) -> Result<Vec<Event>, Rejection> {
    let active = stage.held_by(deployment, worker)?;
    let expected = next_step(active);
    if expected != Some(failure.step) {
        return Err(Rejection::OutOfStep { expected });
    }
    let event = if active.reversible(failure.step) {
        Event::StepFailed { deployment, elapsed_ms, failure }
    } else {
        let step = failure.step;
        step_event(step, StepDone { deployment, elapsed_ms, problem: Some(failure) }, vec![])
    };
    Ok(stage.and_then_end(vec![event]))
}

fn observe(stage: &Stage, set: DeploymentId, instance: String, observed: Observed) -> Vec<Event> {
    // Containers of deployments this stage no longer remembers say nothing worth keeping.
    let Some(deployment) = stage.runs_on(set) else { return vec![] };
    vec![match observed {
        Observed::Started { address } => Event::InstanceStarted { deployment, instance, address },
        Observed::Exited { exit_code } => Event::InstanceExited { deployment, instance, exit_code },
        Observed::OomKilled => Event::InstanceOomKilled { deployment, instance },
        Observed::HealthChanged { healthy } => Event::InstanceHealthChanged { deployment, instance, healthy },
    }]
}

fn step_event(step: Step, done: StepDone, instances: Vec<Instance>) -> Event {
    match step {
        Step::Pull => Event::Pulled(done),
        Step::Hold => Event::Held(done),
        Step::Create => Event::Created { step: done, instances },
        Step::AwaitHealthy => Event::Healthy(done),
        Step::Switch => Event::Switched(done),
        Step::Bake => Event::Baked(done),
        Step::Drain => Event::Drained(done),
        Step::Retire => Event::Retired(done),
        Step::Rehold => Event::Reheld(done),
        Step::Discard => Event::Discarded(done),
        Step::Restore => Event::Restored(done),
        Step::Revert => Event::Reverted(done),
    }
}

impl Stage {
    /// Whether this deployment was requested here, as far back as the stage remembers.
    pub fn knows(&self, deployment: DeploymentId) -> bool {
        self.active.iter().map(|active| active.deployment).any(|id| id == deployment)
            || self.queue.iter().any(|queued| queued.deployment == deployment)
            || self.current.as_ref().is_some_and(|current| current.deployment == deployment)
            || self.ended.iter().any(|ended| ended.deployment == deployment)
    }

    /// The containers of the release `back_to`, as long as they are kept. Those that serve are not: a set cannot take
    /// over from itself.
    fn set_of(&self, back_to: Option<DeploymentId>) -> Option<DeploymentId> {
        let back_to = back_to?;
        let release = self.earlier.iter().find(|release| release.deployment == back_to)?;
        self.kept().any(|kept| kept.set == release.set).then_some(release.set)
    }

    fn working_on(&self, deployment: DeploymentId) -> Result<&Rollout, Rejection> {
        match &self.active {
            Some(active) if active.deployment == deployment => Ok(active),
            Some(_) | None => match self.ended.iter().find(|ended| ended.deployment == deployment) {
                Some(ended) => Err(Rejection::Ended(ended.outcome)),
                None => Err(Rejection::UnknownDeployment),
            },
        }
    }

    fn held_by(&self, deployment: DeploymentId, worker: &str) -> Result<&Rollout, Rejection> {
        let active = self.working_on(deployment)?;
        match &active.worker {
            Some(holder) if holder == worker => Ok(active),
            Some(holder) => Err(Rejection::Fenced { worker: holder.clone() }),
            None => Err(Rejection::Fenced { worker: "none yet".into() }),
        }
    }

    /// Adds to `events`, which are about to happen, what follows from them at once: the outcome of a
    /// rollout that has come to its end, and the dispatch of whoever waits behind it.
    fn and_then_end(&self, mut events: Vec<Event>) -> Vec<Event> {
        use crate::Aggregate as _;
        let mut after = self.clone();
        events.iter().for_each(|event| after.evolve(event));
        let Some(active) = &after.active else { return events };
        // A deployment that no worker has begun has had no effect: there is nothing to undo.
        let over = if active.worker.is_none() { active.backward() } else { next_step(active).is_none() };
        if over {
            let outcome = outcome(active);
            after.evolve(&outcome);
            events.push(outcome);
            if let Some(Queued { deployment, node, back_to, .. }) = after.queue.front() {
                let set = after.set_of(*back_to);
                events.push(Event::Dispatched { deployment: *deployment, node: node.clone(), set });
            }
        }
        events
    }
}

fn outcome(rollout: &Rollout) -> Event {
    let deployment = rollout.deployment;
    match (&rollout.failure, rollout.cancelled, &rollout.previous) {
        (None, false, _) => Event::Succeeded { deployment },
        (_, true, _) => Event::Cancelled { deployment },
        // What was not undone keeps the old release from serving: then nobody may say that it does.
        (Some(failure), false, Some(previous)) if rollout.done.contains(&Step::Revert) && restored(rollout) => {
            Event::RolledBack { deployment, to: previous.deployment, failure: with_troubles(failure, rollout) }
        }
        (Some(failure), false, _) => Event::Failed { deployment, failure: with_troubles(failure, rollout) },
    }
}

/// Whether what served before has what it needs to serve.
fn restored(rollout: &Rollout) -> bool {
    !rollout.troubles.iter().any(|trouble| matches!(trouble.step, Step::Restore | Step::Revert))
}

/// The failure, and what of its consequences could not be undone.
fn with_troubles(failure: &Failure, rollout: &Rollout) -> Failure {
    let mut failure = failure.clone();
    for trouble in &rollout.troubles {
        let step = step_name(trouble.step);
        failure.message = format!("{}; and {step} failed afterwards: {}", failure.message, trouble.message);
    }
    failure
}

fn step_name(step: Step) -> &'static str {
    match step {
        Step::Pull => "pulling",
        Step::Hold | Step::Rehold => "holding requests",
        Step::Create => "creating the containers",
        Step::AwaitHealthy => "waiting for health",
        Step::Switch => "switching the route",
        Step::Bake => "watching the release",
        Step::Drain => "draining",
        Step::Retire => "stopping the earlier containers",
        Step::Discard => "removing the new containers",
        Step::Restore => "starting the earlier release again",
        Step::Revert => "pointing the route back",
    }
}
