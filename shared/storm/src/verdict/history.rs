//! What the log itself says: nothing accepted was lost, and nothing happened twice.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use domain::{
    DeploymentId, Event, Recorded,
    stage::{self, Kind, Outcome, Step},
};
use readmodel::deployments::Status;
use uuid::Uuid;

use super::{
    Fault::{Diverged, Doubled, Lost},
    Verdict,
    evidence::{Asked, Evidence},
};

/// What the log says about one deployment.
#[derive(Default)]
struct Story {
    at: String,
    requests: u64,
    dispatches: u64,
    cancels: u64,
    turned: bool,
    steps: Vec<Step>,
    workers: Vec<String>,
    outcomes: Vec<Outcome>,
}

pub(super) fn judge(evidence: &Evidence, verdict: &mut Verdict) {
    let stories = stories(&evidence.events);
    for (deployment, story) in &stories {
        once(*deployment, story, verdict);
    }
    commands_once(&evidence.events, verdict);
    promises(evidence, &stories, verdict);
    rows(evidence, &stories, verdict);
}

fn stories(events: &[Recorded]) -> BTreeMap<DeploymentId, Story> {
    use stage::Event as E;
    let mut stories = BTreeMap::<DeploymentId, Story>::new();
    for recorded in events {
        let Event::Stage(event) = &recorded.event else { continue };
        let mut of = |deployment: &DeploymentId, tell: &dyn Fn(&mut Story)| {
            let story = stories.entry(*deployment).or_default();
            story.at = recorded.key.join("/");
            tell(story);
        };
        match event {
            E::Requested { deployment, .. } => of(deployment, &|story| story.requests += 1),
            E::Dispatched { deployment, .. } => of(deployment, &|story| story.dispatches += 1),
            E::Started { deployment, worker } => of(deployment, &|story| story.workers.push(worker.clone())),
            E::CancelRequested { deployment, .. } => of(deployment, &|story| story.cancels += 1),
            E::StepFailed { deployment, .. } => of(deployment, &|story| story.turned = true),
            E::Superseded { deployment, .. } => of(deployment, &|story| story.outcomes.push(Outcome::Superseded)),
            E::Succeeded { deployment } => of(deployment, &|story| story.outcomes.push(Outcome::Succeeded)),
            E::Failed { deployment, .. } => of(deployment, &|story| story.outcomes.push(Outcome::Failed)),
            E::RolledBack { deployment, .. } => of(deployment, &|story| story.outcomes.push(Outcome::RolledBack)),
            E::Cancelled { deployment } => of(deployment, &|story| story.outcomes.push(Outcome::Cancelled)),
            E::Pulled(_)
            | E::Held(_)
            | E::Created { .. }
            | E::Healthy(_)
            | E::Switched(_)
            | E::Baked(_)
            | E::Drained(_)
            | E::Retired(_)
            | E::Reheld(_)
            | E::Discarded(_)
            | E::Restored(_)
            | E::Reverted(_) => {
                if let Some((step, done)) = event.step_done() {
                    of(&done.deployment, &|story| story.steps.push(step));
                }
            }
            E::Locked { .. }
            | E::Unlocked { .. }
            | E::PromotionRequested { .. }
            | E::PromotionApproved { .. }
            | E::PromotionAccepted { .. }
            | E::PromotionRefused { .. }
            | E::PromotionWithdrawn { .. }
            | E::HoldSet { .. }
            | E::HoldLifted {}
            | E::InstanceStarted { .. }
            | E::InstanceExited { .. }
            | E::InstanceOomKilled { .. }
            | E::InstanceHealthChanged { .. }
            | E::Archived {}
            | E::Reopened {} => {}
        }
    }
    stories
}

fn once(deployment: DeploymentId, story: &Story, verdict: &mut Verdict) {
    let at = &story.at;
    if story.requests != 1 {
        verdict.found(
            Doubled,
            format!("{at}: deployment {deployment} was to be requested once, the log says {} times", story.requests),
        );
    }
    if story.dispatches > 1 {
        verdict.found(
            Doubled,
            format!("{at}: deployment {deployment} was to be dispatched once, the log says {} times", story.dispatches),
        );
    }
    match story.outcomes.as_slice() {
        [_] => {}
        [] => verdict.found(Lost, format!("{at}: deployment {deployment} was to have an outcome, the log has none")),
        several => {
            verdict.found(
                Doubled,
                format!("{at}: deployment {deployment} was to have one outcome, the log has {several:?}"),
            );
        }
    }
    if let Some(step) = repeated(&story.steps) {
        verdict.found(
            Doubled,
            format!(
                "{at}: each step was to be reported once, {step:?} of deployment {deployment} is there again: {:?}",
                story.steps
            ),
        );
    }
    if let Some(worker) = repeated(&story.workers) {
        verdict.found(
            Doubled,
            format!("{at}: each attempt was to have a name of its own, {worker} started deployment {deployment} twice"),
        );
    }
}

fn repeated<T: PartialEq>(list: &[T]) -> Option<&T> {
    list.iter().enumerate().find(|(at, item)| list[..*at].contains(item)).map(|(_, item)| item)
}

/// All events of one decision stand side by side in their aggregate, and no two of them say the same.
fn commands_once(events: &[Recorded], verdict: &mut Verdict) {
    let mut aggregates = HashMap::<(&str, &[String]), Vec<&Recorded>>::new();
    for recorded in events {
        aggregates.entry((kind_of(&recorded.event), &recorded.key)).or_default().push(recorded);
    }
    for ((kind, key), events) in aggregates {
        let mut decided = HashSet::<Uuid>::new();
        for decision in events.chunk_by(|a, b| a.context.command_id == b.context.command_id) {
            let command = decision[0].context.command_id;
            let happened: Vec<&Event> = decision.iter().map(|recorded| &recorded.event).collect();
            if !decided.insert(command) || repeated(&happened).is_some() {
                let kinds: Vec<&str> = decision.iter().map(|recorded| recorded.kind.as_str()).collect();
                verdict.found(
                    Doubled,
                    format!(
                        "{kind} {}: command {command} was to be decided once, and did so again at {}: {kinds:?}",
                        key.join("/"),
                        decision[0].sequence
                    ),
                );
            }
        }
    }
}

fn kind_of(event: &Event) -> &'static str {
    match event {
        Event::Project(_) => "project",
        Event::Stage(_) => "stage",
        Event::Route(_) => "route",
        Event::Registry(_) => "registry",
        Event::Proxy(_) => "proxy",
        Event::Token(_) => "token",
        Event::Hook(_) => "hook",
        Event::User(_) => "user",
        Event::Handle(_) => "handle",
        Event::Administrators(_) => "administrators",
        Event::Session(_) => "session",
        Event::Login(_) | Event::Sso(_) => "login",
    }
}

/// Whoever was told 202 was told the truth.
fn promises(evidence: &Evidence, stories: &BTreeMap<DeploymentId, Story>, verdict: &mut Verdict) {
    let mut keys = BTreeMap::<&str, BTreeSet<DeploymentId>>::new();
    let last = evidence.events.last().map_or(0, |recorded| recorded.sequence);
    for accepted in &evidence.accepted {
        let (key, deployment) = (accepted.idempotency_key.as_str(), accepted.deployment);
        let first = !keys.contains_key(key);
        keys.entry(key).or_default().insert(deployment);
        if !first {
            continue;
        }
        verdict.accepted += 1;
        if accepted.sequence > last {
            verdict.found(
                Lost,
                format!("request {key} was answered with position {}, the log ends at {last}", accepted.sequence),
            );
        }
        let story = stories.get(&deployment);
        let kept = match accepted.asked {
            Asked::Deploy => story.is_some_and(|story| story.requests > 0),
            // Where the rollout had turned back already, there was nothing to add.
            Asked::Cancel => story.is_some_and(|story| story.cancels > 0 || story.turned),
        };
        if !kept {
            verdict.found(
                Lost,
                format!("request {key} ({:?} of {deployment}) was accepted, the log does not have it", accepted.asked),
            );
        }
    }
    for (key, deployments) in keys.iter().filter(|(_, deployments)| deployments.len() > 1) {
        verdict.found(Doubled, format!("request {key} was to make one deployment, its answers named {deployments:?}"));
    }
    // The same, for answers that nobody received.
    let mut made = HashMap::<Uuid, BTreeSet<DeploymentId>>::new();
    for recorded in &evidence.events {
        if let Event::Stage(stage::Event::Requested { deployment, kind: Kind::Release, .. }) = &recorded.event {
            made.entry(recorded.context.command_id).or_default().insert(*deployment);
        }
    }
    for (command, deployments) in made.iter().filter(|(_, deployments)| deployments.len() > 1) {
        verdict.found(Doubled, format!("command {command} was to make one deployment, the log has {deployments:?}"));
    }
}

/// The read model tells the same stories.
fn rows(evidence: &Evidence, stories: &BTreeMap<DeploymentId, Story>, verdict: &mut Verdict) {
    let mut rows: HashMap<DeploymentId, Status> = HashMap::new();
    for row in &evidence.deployments {
        rows.insert(row.deployment, row.status);
    }
    for (deployment, story) in stories {
        let expected = story.outcomes.first().map(|outcome| match outcome {
            Outcome::Succeeded => Status::Succeeded,
            Outcome::Failed => Status::Failed,
            Outcome::RolledBack => Status::RolledBack,
            Outcome::Cancelled => Status::Cancelled,
            Outcome::Superseded => Status::Superseded,
        });
        let found = rows.remove(deployment);
        if expected.is_some() && expected != found {
            verdict.found(
                Diverged,
                format!("{}: deployment {deployment} ended as {expected:?}, its read model says {found:?}", story.at),
            );
        }
    }
    for deployment in rows.keys() {
        verdict.found(Diverged, format!("the read model has deployment {deployment}, of which the log knows nothing"));
    }
}
