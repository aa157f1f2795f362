//! Takes commands from the node's queue and carries each rollout to its end, step by step.
//!
//! Whose a rollout is, the log says: the last `started` names the worker, and the reports of any other are refused. A
//! worker lets go of its rollout when the queue has not confirmed for [`Delivery::LEASE`] that it still has it, for
//! from then on another may. And since a worker that slept may wake in the middle of a step, every change it makes (of
//! a container, a network, a route) first asks the log whether the rollout is still its own. What can slip through is
//! a call that was already under way to the engine when it fell asleep: its effect carries the deployment's label and
//! name, so that it is either the same as the other worker's, or found and undone by the next sweep.

use std::{
    collections::HashMap,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use domain::{
    Context, DeploymentId, Event,
    stage::{self, Command, Instance, Rejection, Rollout, Step, next_step},
};
use eventlog::{Committed, Delivery, ExecuteError};
use futures::{FutureExt, StreamExt};
use tokio::{
    sync::{Notify, Semaphore},
    task::JoinSet,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use crate::{
    Node, Place,
    docker::{Engine, Guard},
    failure::{Problem, StepError, chain},
    job::{self, Job},
    keep, steps,
};

/// Between two words to the queue that the work goes on, of which one in [`Delivery::LEASE`] has to be heard.
const ALIVE: Duration = Duration::from_secs(1);
/// How long to wait for the queue to have heard it, before it is told again.
const HEARD: Duration = Duration::from_secs(2);
/// Between two tries of what NATS or the engine did not take.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// A rollout that cannot go on is taken up again after this.
const LATER: Duration = Duration::from_secs(10);
/// How long to wait for changes of the engine that a step left behind.
const SETTLE: Duration = Duration::from_secs(30);

/// How work on a command ended.
enum End {
    /// Nothing is left to do about it.
    Done,
    /// Someone else has it now.
    Lost,
    /// To be delivered again after this long.
    Again(Duration),
}

/// The way to reach the task that works on a rollout.
#[derive(Default)]
struct Hand {
    /// Something happened that may change what comes next.
    look: Notify,
    /// The command was delivered again: the task has lost its lease.
    replaced: CancellationToken,
    ended: CancellationToken,
}

/// The rollouts that are worked on here.
#[derive(Default)]
struct Running(Mutex<HashMap<DeploymentId, Arc<Hand>>>);

impl Running {
    /// The caller's hand on `deployment`, and that of whoever works on it here until now.
    fn enter(&self, deployment: DeploymentId) -> (Arc<Hand>, Option<Arc<Hand>>) {
        let hand = Arc::new(Hand::default());
        let before = self.lock().insert(deployment, hand.clone());
        (hand, before)
    }

    fn leave(&self, deployment: DeploymentId, hand: &Arc<Hand>) {
        let mut running = self.lock();
        if running.get(&deployment).is_some_and(|held| Arc::ptr_eq(held, hand)) {
            running.remove(&deployment);
        }
    }

    fn look(&self, deployment: DeploymentId) {
        if let Some(hand) = self.lock().get(&deployment) {
            hand.look.notify_one();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<DeploymentId, Arc<Hand>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Works on at most `concurrency` rollouts at a time, until `shutdown`.
pub(crate) async fn run(node: Arc<Node>, concurrency: usize, shutdown: CancellationToken) -> anyhow::Result<()> {
    let running = Arc::new(Running::default());
    // Before the first command, so that no cancel falls between.
    let after = node.log.last_sequence().await?;
    let mut commands = node.log.commands(&node.name).await?;
    let mut cancels = pin!(watch_cancels(&node, &running, after));
    let slots = Arc::new(Semaphore::new(concurrency));
    let mut tasks = JoinSet::new();
    let mut taken = 0_u64;
    let ended = loop {
        let next = async {
            let slot = slots.clone().acquire_owned().await;
            (slot, commands.next().await)
        };
        tokio::select! {
            () = shutdown.cancelled() => break Ok(()),
            ended = &mut cancels => break ended,
            Some(ended) = tasks.join_next(), if !tasks.is_empty() => report_panic(ended),
            (slot, delivery) = next => match delivery {
                Ok(delivery) => {
                    taken += 1;
                    let worker = format!("{}/{taken}", node.worker);
                    let work = work(node.clone(), running.clone(), worker, delivery, shutdown.clone());
                    tasks.spawn(async move {
                        work.await;
                        drop(slot);
                    });
                }
                Err(eventlog::Error::Closed) => break Ok(()),
                Err(error) => tracing::error!(error = chain(&error), "a command cannot be read; it stays in the queue"),
            },
        }
    };
    shutdown.cancel();
    while let Some(ended) = tasks.join_next().await {
        report_panic(ended);
    }
    ended
}

/// The command of a task that panicked is delivered again; the others must not suffer.
fn report_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "work on a rollout ended unexpectedly");
    }
}

async fn watch_cancels(node: &Node, running: &Running, after: u64) -> anyhow::Result<()> {
    let mut cancels = pin!(node.log.follow("sluice.events.stage.*.*.deployment.cancel_requested", after));
    while let Some(event) = cancels.next().await {
        if let Event::Stage(stage::Event::CancelRequested { deployment, .. }) = event?.event {
            running.look(deployment);
        }
    }
    Ok(())
}

async fn work(node: Arc<Node>, running: Arc<Running>, worker: String, delivery: Delivery, shutdown: CancellationToken) {
    let place = Place { project: delivery.project.clone(), stage: delivery.stage.clone() };
    let Event::Stage(stage::Event::Dispatched { deployment, .. }) = delivery.recorded.event else {
        tracing::error!(%place, kind = delivery.recorded.kind, "a command that is no dispatch; dropped");
        return finish(End::Done, delivery, &place).await;
    };
    let (hand, before) = running.enter(deployment);
    // However this ends: whoever takes over waits for it.
    let _ended = hand.ended.clone().drop_guard();
    let carrier = Carrier {
        engine: node.engine.guarded(ownership(&node, &place, deployment, &worker)),
        node,
        place,
        deployment,
        worker,
        cause: delivery.recorded.context.clone(),
        cause_id: delivery.recorded.id,
    };
    let make_way = async {
        if let Some(before) = &before {
            before.replaced.cancel();
            before.ended.cancelled().await;
        }
    };
    let carrying = async {
        make_way.await;
        carrier.carry_out(&hand).await
    };
    let end = tokio::select! {
        biased;
        () = hand.replaced.cancelled() => End::Lost,
        () = shutdown.cancelled() => End::Again(Duration::ZERO),
        end = keep_alive(&delivery) => end,
        end = Box::pin(carrying) => end,
    };
    if matches!(end, End::Lost) {
        carrier.settle().await;
        if let Some(before) = &before {
            before.ended.cancelled().await;
        }
    }
    running.leave(deployment, &hand);
    finish(end, delivery, &carrier.place).await;
}

/// Whether `worker` still holds `deployment`, by the log. A worker that slept (its process was stopped, its machine
/// was) wakes in the middle of a step and does not know it: it must ask before it changes anything.
fn ownership(node: &Node, place: &Place, deployment: DeploymentId, worker: &str) -> Guard {
    let (log, key, worker) = (node.log.clone(), place.key(), worker.to_owned());
    Arc::new(move || {
        let (log, key, worker) = (log.clone(), key.clone(), worker.clone());
        let held = async move {
            let loaded = log.fold(&key).await?;
            let active = loaded.state.active.as_ref().filter(|active| active.deployment == deployment);
            Ok(active.is_some_and(|active| active.worker.as_ref() == Some(&worker)))
        };
        held.boxed()
    })
}

/// Ends when the queue has not confirmed for so long that the work goes on that it gives the command to another.
async fn keep_alive(delivery: &Delivery) -> End {
    let mut tick = tokio::time::interval(ALIVE);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut heard = Instant::now();
    loop {
        let telling = async {
            tick.tick().await;
            let told = Instant::now();
            let answer = tokio::time::timeout(HEARD, delivery.progress()).await;
            (told, matches!(answer, Ok(Ok(()))))
        };
        match tokio::time::timeout_at(heard + Delivery::LEASE, telling).await {
            // The queue counts from when it heard of it, which was later.
            Ok((told, true)) => heard = told,
            Ok((_, false)) => tracing::debug!("a command could not be kept alive; trying again"),
            Err(_) => {
                tracing::warn!("NATS has not confirmed for too long that a command is still ours; letting go of it");
                return End::Lost;
            }
        }
    }
}

async fn finish(end: End, delivery: Delivery, place: &Place) {
    let told = match end {
        End::Done => delivery.done().await,
        End::Again(delay) => delivery.retry(delay).await,
        // The answer belongs to whoever has it now.
        End::Lost => Ok(()),
    };
    if let Err(error) = told {
        tracing::warn!(error = chain(&error), %place, "a command will be delivered once more");
    }
}

/// Carries one rollout to its end.
struct Carrier {
    node: Arc<Node>,
    engine: Engine,
    place: Place,
    deployment: DeploymentId,
    /// Names this attempt: another, even here, fences it off.
    worker: String,
    cause: Context,
    cause_id: uuid::Uuid,
}

impl Carrier {
    async fn carry_out(&self, hand: &Hand) -> End {
        Box::pin(self.steps(hand)).await.unwrap_or_else(|end| end)
    }

    async fn steps(&self, hand: &Hand) -> Result<End, End> {
        let Some(rollout) = self.load().await? else {
            self.tidy(None).await;
            return Ok(End::Done);
        };
        let image = rollout.spec.image.pinned();
        let mut again = rollout.worker.is_some();
        let start = Command::Start { deployment: self.deployment, worker: self.worker.clone() };
        let fence = self.report(start).await?.map_or(0, |started| started.sequence);
        while let Some(rollout) = self.load().await? {
            if rollout.worker.as_ref() != Some(&self.worker) {
                return Err(End::Lost);
            }
            let Some(step) = next_step(&rollout) else {
                tracing::error!(place = %self.place, "a rollout has no next step and no end");
                return Err(End::Again(LATER));
            };
            let job = Job {
                node: self.node.clone(),
                engine: self.engine.clone(),
                place: self.place.clone(),
                rollout,
                fence,
                again: std::mem::take(&mut again),
            };
            let began = Instant::now();
            let outcome = tokio::select! {
                outcome = run_step(job, step) => outcome,
                () = self.turned(hand, step) => {
                    let given_up = format!("{step:?} is given up: the deployment has something else to do now");
                    job::note(&self.node, &self.place, self.deployment, given_up);
                    continue;
                }
            };
            let command = self.command(step, began.elapsed(), outcome).await?;
            self.report(command).await?;
        }
        self.tidy(Some(image)).await;
        Ok(End::Done)
    }

    async fn command(&self, step: Step, elapsed: Duration, outcome: Outcome) -> Result<Command, End> {
        let (deployment, worker) = (self.deployment, self.worker.clone());
        let elapsed_ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        match outcome {
            Ok(instances) => Ok(Command::Complete { deployment, worker, step, elapsed_ms, instances }),
            Err(Some(problem)) => {
                tracing::warn!(place = %self.place, ?step, code = problem.code, problem.message, "a step failed");
                Ok(Command::Fail { deployment, worker, elapsed_ms, failure: problem.at(step) })
            }
            // Nobody took over, so what stands there is not of this log's making.
            Err(None) if self.load().await?.is_some_and(|rollout| rollout.worker.as_ref() == Some(&self.worker)) => {
                let failure = Problem::new(
                    "route_fenced",
                    "the stage's route was written on behalf of a later event than this log holds",
                    "the log was restored from an older backup: remove the `routes` bucket, and the edges get fresh routes",
                );
                Ok(Command::Fail { deployment, worker, elapsed_ms, failure: failure.at(step) })
            }
            Err(None) => Err(End::Lost),
        }
    }

    /// The stage's rollout; none when that is not this deployment's (any more).
    async fn load(&self) -> Result<Option<Rollout>, End> {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.node.log.load(&self.place.key()).await {
                Ok(loaded) => {
                    return Ok(loaded.state.active.filter(|active| active.deployment == self.deployment));
                }
                Err(eventlog::Error::Unavailable { .. }) => wait(&mut pause).await,
                Err(error) => return Err(self.stuck(&error)),
            }
        }
    }

    /// Tells the log. `None` when the rollout ended otherwise, or went on without this report.
    async fn report(&self, command: Command) -> Result<Option<Committed>, End> {
        let context = Context {
            correlation_id: self.cause.correlation_id,
            causation_id: Some(self.cause_id),
            traceparent: self.cause.traceparent.clone(),
            ..self.node.context()
        };
        let mut pause = FIRST_PAUSE;
        loop {
            match self.node.log.execute(&self.place.key(), command.clone(), &context).await {
                Ok(committed) => return Ok(Some(committed)),
                Err(ExecuteError::Conflict | ExecuteError::Log(eventlog::Error::Unavailable { .. })) => {
                    wait(&mut pause).await;
                }
                Err(ExecuteError::Rejected(Rejection::Fenced { .. })) => return Err(End::Lost),
                // The next look at the stage says what is to be done instead.
                Err(ExecuteError::Rejected(
                    Rejection::Ended(_) | Rejection::UnknownDeployment | Rejection::OutOfStep { .. },
                )) => return Ok(None),
                Err(error) => return Err(self.stuck(&error)),
            }
        }
    }

    /// Returns when the rollout has something else to do than `step`.
    async fn turned(&self, hand: &Hand, step: Step) {
        loop {
            hand.look.notified().await;
            match self.load().await {
                Ok(Some(rollout)) if next_step(&rollout) == Some(step) => {}
                Ok(_) | Err(_) => return,
            }
        }
    }

    /// What was left may have changes of the engine under way; whoever takes over must see their outcome.
    async fn settle(&self) {
        if tokio::time::timeout(SETTLE, self.engine.settled()).await.is_err() {
            tracing::warn!(place = %self.place, "the engine is still busy with a step that was left");
        }
    }

    /// What this leaves undone is done by the next sweep.
    async fn tidy(&self, image: Option<String>) {
        match keep::tidy(&self.node, &self.place, image).await {
            Ok(()) | Err(StepError::Fenced) => {}
            Err(StepError::Transient(problem) | StepError::Failed(problem)) => {
                tracing::warn!(place = %self.place, problem.message, "tidying up after a rollout failed");
            }
        }
    }

    fn stuck(&self, error: &dyn std::error::Error) -> End {
        tracing::error!(error = chain(error), place = %self.place, "a rollout cannot go on; it is tried again later");
        End::Again(LATER)
    }
}

/// What a step made, or why it failed; nothing where another worker has taken over.
type Outcome = Result<Vec<Instance>, Option<Problem>>;

/// Runs `step` until it has an outcome: as often as the engine or NATS is away, but not beyond its limit.
async fn run_step(mut job: Job, step: Step) -> Outcome {
    let limit = job.node.deadlines.of(step, &job.rollout);
    let end = Instant::now() + limit;
    let mut pause = FIRST_PAUSE;
    let mut last: Option<Problem> = None;
    loop {
        let work = async {
            // A step that was given up may have changes under way in the engine: this one must see their outcome.
            job.engine.settled().await;
            steps::run(step, &job).await
        };
        match tokio::time::timeout_at(end, work).await {
            Ok(Ok(instances)) => return Ok(instances),
            Ok(Err(StepError::Failed(problem))) => return Err(Some(problem)),
            Ok(Err(StepError::Fenced)) => return Err(None),
            Ok(Err(StepError::Transient(problem))) => {
                if last.is_none() {
                    job.note(format!("{}; trying again", problem.message));
                }
                if Instant::now() + pause >= end {
                    return Err(Some(problem));
                }
                last = Some(problem);
                job.again = true;
                wait(&mut pause).await;
            }
            Err(_) => return Err(Some(Problem::deadline(step, limit, last.as_ref()))),
        }
    }
}

async fn wait(pause: &mut Duration) {
    tokio::time::sleep(*pause).await;
    *pause = (*pause * 2).min(LONGEST_PAUSE);
}
