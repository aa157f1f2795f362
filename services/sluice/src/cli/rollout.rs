//! A deployment on its way, line by line.

use std::{pin::pin, time::Duration};

use chrono::{DateTime, Utc};
use domain::{
    DeploymentId,
    image::Image,
    stage::{self, Failure as StepFailure, Kind, Outcome, Step, StepDone},
};
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{
    Target,
    exit::{Code, Failure},
    ui::{self, Ui},
};
use crate::client::{self, Client, Following, Message};

const TICK: Duration = Duration::from_millis(100);

/// Prints every event of `deployment` behind `after` until it has ended. Ctrl-C only ends the looking on.
pub(super) async fn follow(
    client: &Client,
    ui: &Ui,
    target: &Target,
    deployment: DeploymentId,
    after: u64,
) -> Result<Code, Failure> {
    let mut interrupt = signal(SignalKind::interrupt())
        .map_err(|error| Failure::new(Code::Failed, "signal", format!("cannot listen for Ctrl-C: {error}")))?;
    let subject = format!("sluice.events.stage.{}.{}.deployment.>", target.project, target.stage);
    let mut events = client.follow("/events/stream", &[("subject", subject), ("after", after.to_string())]);
    let mut doing = "waiting for its turn".to_owned();
    let began = runtime::clock::now();
    let mut first = None;
    loop {
        let heard = hear(&mut events, &mut interrupt, ui, || {
            format!("{target}: {doing} ({})", ui::elapsed(since(began, runtime::clock::now())))
        });
        let message = match heard.await {
            Ok(Some(message)) => message,
            Ok(None) => {
                detached(ui, deployment);
                return Ok(Code::Interrupted);
            }
            Err(lost) => {
                detached(ui, deployment);
                return Err(lost);
            }
        };
        let raw = message.document()?;
        let event: client::Event = client::read(raw.clone())?;
        if event.data["deployment"] != json!(deployment) {
            continue;
        }
        let took = since(*first.get_or_insert(event.time), event.time);
        let known = decode(&event);
        if ui.json {
            ui.entry(&json!({ "event": raw }))?;
        } else if let Some(line) = known.as_ref().map_or(Some(event.r#type), |known| line(known, took)) {
            ui.line(format!("{}  {line}", ui::clock(event.time)))?;
        }
        // One of a newer server is shown by its name; its meaning is not needed to go on.
        let Some(known) = known else { continue };
        if let Some(next) = next_work(&known) {
            doing = next;
        }
        if let Some((outcome, failure)) = ended(&known) {
            return conclude(client, ui, target, deployment, &message, outcome, failure).await;
        }
    }
}

async fn hear(
    events: &mut Following<'_>,
    interrupt: &mut Signal,
    ui: &Ui,
    doing: impl Fn() -> String,
) -> Result<Option<Message>, Failure> {
    let mut next = pin!(events.next());
    let mut clock = tokio::time::interval(TICK);
    let mut tick = 0;
    loop {
        tokio::select! {
            message = &mut next => return Ok(Some(message?)),
            _ = interrupt.recv() => return Ok(None),
            _ = clock.tick(), if ui.live() => {
                ui.spin(tick, doing());
                tick += 1;
            }
        }
    }
}

fn detached(ui: &Ui, deployment: DeploymentId) {
    ui.note(format!(
        "detached: the deployment goes on\n  `sluice deployment {deployment} --follow` looks on again\n  `sluice cancel {deployment}` calls it off"
    ));
}

async fn conclude(
    client: &Client,
    ui: &Ui,
    target: &Target,
    deployment: DeploymentId,
    last: &Message,
    outcome: Outcome,
    failure: Option<&StepFailure>,
) -> Result<Code, Failure> {
    // Read even where it is not shown: the next command will see the end.
    let seen = last.id.clone().map(|id| ("at_least", id));
    let document = client.get(&format!("/deployments/{deployment}"), seen.as_slice()).await;
    if ui.json {
        ui.entry(&json!({ "deployment": document? }))?;
    } else if let Some(failure) = failure {
        ui.line("")?;
        report(ui, failure)?;
        ui.line(match outcome {
            Outcome::RolledBack => format!("{target} serves the release before it again"),
            Outcome::Succeeded | Outcome::Failed | Outcome::Cancelled | Outcome::Superseded => {
                format!("{target} is as it was before")
            }
        })?;
    }
    Ok(code(outcome))
}

pub(super) fn code(outcome: Outcome) -> Code {
    match outcome {
        Outcome::Succeeded => Code::Ok,
        Outcome::Failed => Code::Failed,
        Outcome::RolledBack => Code::RolledBack,
        Outcome::Cancelled | Outcome::Superseded => Code::Cancelled,
    }
}

/// Step, reason, what to do, and the container's last words.
pub(super) fn report(ui: &Ui, failure: &StepFailure) -> Result<(), Failure> {
    ui.line(format!("failed at {}: {} ({})", step_name(failure.step), failure.message, failure.code))?;
    if !failure.hint.is_empty() {
        ui.line(format!("hint: {}", failure.hint))?;
    }
    if !failure.log.is_empty() {
        ui.line("last lines of the container:")?;
        for line in &failure.log {
            ui.line(format!("  | {line}"))?;
        }
    }
    Ok(())
}

fn decode(event: &client::Event) -> Option<stage::Event> {
    let name = event.r#type.strip_prefix("dev.sluice.stage.")?;
    serde_json::from_value(json!({ "type": name, "data": event.data })).ok()
}

/// What happened, in one line; `so_far` is the time since the first line. Nothing for what is no part of a rollout.
fn line(event: &stage::Event, so_far: u64) -> Option<String> {
    use stage::Event as E;
    let row = |what: &str, note: &str| Some(format!("{what:<14}{note}").trim_end().to_owned());
    let after = || format!("after {}", ui::elapsed(so_far));
    let done = |what: &str, step: &StepDone| row(what, &took(step.elapsed_ms, step.problem.as_ref()));
    match event {
        E::Superseded { by, .. } => row("superseded", &format!("by {by}")),
        E::Dispatched { node, set: None, .. } => row("dispatched", &format!("to node {node}")),
        E::Dispatched { node, set: Some(set), .. } => {
            row("dispatched", &format!("to node {node}, on the containers kept of {set}"))
        }
        E::Started { worker, .. } => row("started", &format!("by {worker}")),
        E::Pulled(step) => done("pulled", step),
        E::Held(step) => done("held", step),
        E::Created { step, instances } => {
            let containers = match instances.len() {
                1 => "1 container".to_owned(),
                count => format!("{count} containers"),
            };
            row("created", &format!("{}, {containers}", took(step.elapsed_ms, step.problem.as_ref())))
        }
        E::Healthy(step) => done("healthy", step),
        E::Switched(step) => done("switched", step),
        E::Baked(step) => done("baked", step),
        E::Drained(step) => done("drained", step),
        E::Retired(step) => done("retired", step),
        E::Reheld(step) => done("reheld", step),
        E::Discarded(step) => done("discarded", step),
        E::Restored(step) => done("restored", step),
        E::Reverted(step) => done("reverted", step),
        E::StepFailed { elapsed_ms, failure, .. } => row(
            "turning back",
            &format!("{} failed after {}: {}", step_name(failure.step), ui::elapsed(*elapsed_ms), failure.message),
        ),
        E::CancelRequested { reason, .. } => row("cancelling", reason.as_deref().unwrap_or_default()),
        E::Succeeded { .. } => row("succeeded", &after()),
        E::Failed { .. } => row("failed", &after()),
        E::RolledBack { to, .. } => row("rolled back", &format!("{}, to {to}", after())),
        E::Cancelled { .. } => row("cancelled", &after()),
        // The headline above the lines says what was requested.
        E::Requested { .. }
        | E::Locked { .. }
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
        | E::Reopened {} => None,
    }
}

pub(super) fn took(elapsed_ms: u64, problem: Option<&StepFailure>) -> String {
    match problem {
        None => ui::elapsed(elapsed_ms),
        Some(problem) => format!("{}, with trouble: {}", ui::elapsed(elapsed_ms), problem.message),
    }
}

/// What most probably goes on behind `event`: only for the line that runs while one waits.
fn next_work(event: &stage::Event) -> Option<String> {
    use stage::Event as E;
    let work = match event {
        E::Dispatched { .. } => "waiting for a worker",
        E::Started { .. } => "pulling the image",
        E::Pulled(_) => "creating containers",
        E::Created { .. } => "waiting until all are healthy",
        E::Healthy(_) => "switching traffic",
        E::Switched(_) => "watching the new, draining the old",
        E::Held(_) | E::Baked(_) => "draining the old",
        E::Drained(_) => "stopping the old",
        E::Retired(_) => "going on",
        E::StepFailed { .. } | E::CancelRequested { .. } => "turning back",
        E::Reheld(_) | E::Discarded(_) | E::Restored(_) | E::Reverted(_) => "going back",
        E::Requested { .. }
        | E::Superseded { .. }
        | E::Succeeded { .. }
        | E::Failed { .. }
        | E::RolledBack { .. }
        | E::Cancelled { .. }
        | E::Locked { .. }
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
        | E::Reopened {} => return None,
    };
    Some(work.to_owned())
}

fn ended(event: &stage::Event) -> Option<(Outcome, Option<&StepFailure>)> {
    use stage::Event as E;
    match event {
        E::Succeeded { .. } => Some((Outcome::Succeeded, None)),
        E::Failed { failure, .. } => Some((Outcome::Failed, Some(failure))),
        E::RolledBack { failure, .. } => Some((Outcome::RolledBack, Some(failure))),
        E::Cancelled { .. } => Some((Outcome::Cancelled, None)),
        E::Superseded { .. } => Some((Outcome::Superseded, None)),
        E::Requested { .. }
        | E::Dispatched { .. }
        | E::Started { .. }
        | E::Pulled(_)
        | E::Held(_)
        | E::Created { .. }
        | E::Healthy(_)
        | E::Switched(_)
        | E::Baked(_)
        | E::Drained(_)
        | E::Retired(_)
        | E::StepFailed { .. }
        | E::CancelRequested { .. }
        | E::Reheld(_)
        | E::Discarded(_)
        | E::Restored(_)
        | E::Reverted(_)
        | E::Locked { .. }
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
        | E::Reopened {} => None,
    }
}

pub(super) fn step_name(step: Step) -> &'static str {
    match step {
        Step::Pull => "pull",
        Step::Hold => "hold",
        Step::Create => "create",
        Step::AwaitHealthy => "await healthy",
        Step::Switch => "switch",
        Step::Bake => "bake",
        Step::Drain => "drain",
        Step::Retire => "retire",
        Step::Rehold => "rehold",
        Step::Discard => "discard",
        Step::Restore => "restore",
        Step::Revert => "revert",
    }
}

/// What a deployment puts on its stage.
pub(super) fn version(kind: Kind, image: &Image) -> String {
    match kind {
        Kind::Release => image.version().to_owned(),
        Kind::Removal => "(removal)".to_owned(),
    }
}

/// Milliseconds; none before `from`.
pub(super) fn since(from: DateTime<Utc>, to: DateTime<Utc>) -> u64 {
    u64::try_from((to - from).num_milliseconds()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    const ID: &str = "0193a1b2-0000-7000-8000-000000000001";

    fn event(kind: &str, mut data: Value) -> client::Event {
        data["deployment"] = ID.into();
        client::Event {
            time: DateTime::UNIX_EPOCH,
            r#type: format!("dev.sluice.stage.{kind}.v1"),
            actor: "deployer/local".into(),
            data,
        }
    }

    fn said(kind: &str, data: Value) -> String {
        line(&decode(&event(kind, data)).expect("a known event"), 4500).expect("a line")
    }

    #[test]
    fn every_step_is_a_line_with_its_time() {
        assert_eq!(said("deployment.pulled", json!({"elapsed_ms": 1234})), "pulled        1.2 s");
        let instances = json!([{"name": "a", "container": "b"}]);
        assert_eq!(
            said("deployment.created", json!({"elapsed_ms": 12, "instances": instances})),
            "created       12 ms, 1 container"
        );
        assert_eq!(said("deployment.succeeded", json!({})), "succeeded     after 4.5 s");
        let failure = json!({"step": "await_healthy", "code": "exited", "message": "it exited with 1", "hint": "look"});
        assert_eq!(
            said("deployment.step_failed", json!({"elapsed_ms": 3000, "failure": failure})),
            "turning back  await healthy failed after 3.0 s: it exited with 1"
        );
        assert_eq!(
            said("deployment.retired", json!({"elapsed_ms": 5, "problem": failure})),
            "retired       5 ms, with trouble: it exited with 1"
        );
    }

    #[test]
    fn an_event_of_a_newer_server_is_no_end() {
        assert_eq!(decode(&event("deployment.teleported", json!({}))), None);
    }

    #[test]
    fn every_ending_has_its_exit_code() {
        let failure = json!({"step": "bake", "code": "exited", "message": "m", "hint": "h"});
        let code_of = |kind: &str, data: Value| {
            let event = decode(&event(kind, data)).expect("known");
            ended(&event).map(|(outcome, _)| code(outcome) as u8)
        };
        assert_eq!(code_of("deployment.succeeded", json!({})), Some(0));
        assert_eq!(code_of("deployment.failed", json!({"failure": failure})), Some(1));
        assert_eq!(code_of("deployment.rolled_back", json!({"failure": failure, "to": ID})), Some(6));
        assert_eq!(code_of("deployment.cancelled", json!({})), Some(7));
        assert_eq!(code_of("deployment.superseded", json!({"by": ID})), Some(7));
        assert_eq!(code_of("deployment.switched", json!({"elapsed_ms": 1})), None);
    }
}
