//! An engine that takes requests and answers none, at every call of a rollout: for a while, and for good.

use std::{path::PathBuf, process::Command, time::Duration};

use domain::{
    Span,
    settings::{Check, HealthCheck, StageSettings, Strategy},
    stage::{self, Outcome, Step},
};
use testkit::{Docker, Flow, SampleImage};

use crate::lab::Lab;

/// Calls that a rollout makes in its steps. None of them is ever delivered at first: each has to be given up and made
/// again.
const CALLS: [&str; 5] = ["/images/", "/containers/create", "/start HTTP", "/update HTTP", "/stop?"];

#[tokio::test]
async fn a_call_that_hangs_is_given_up_and_made_again() {
    let mut lab = Lab::impatient().await;
    let relay = lab.engine_relay().await;
    lab.start_deployer_on(relay.address().to_owned()).await;
    let settings = StageSettings { keep: 0, ..lab.settings() };
    let image = lab.image("v0", SampleImage::new("0")).await;
    assert_eq!(lab.deploy(image, settings.clone()).await.outcome, Outcome::Succeeded);
    for (number, call) in CALLS.into_iter().enumerate() {
        let image = lab.image(&format!("v{}", number + 1), SampleImage::new(&number.to_string())).await;
        relay.stall_at(call);
        let deployment = lab.request(image, settings.clone()).await;
        lab.stalled(&relay, call).await;
        lab.noted(deployment, "trying again").await;
        relay.set_both(Flow::Pass);
        let run = lab.end(deployment).await;
        assert_eq!(run.outcome, Outcome::Succeeded, "{call}: {run:?}");
        lab.stands(call, |standing| standing.len() == 1 && standing.get(&deployment) == Some(&(1, 1))).await;
    }
    lab.close().await;
}

#[tokio::test]
async fn a_daemon_that_is_stopped_and_goes_on_costs_only_time() {
    let mut lab = Lab::on(Docker::start_private().await.expect("a private engine")).await;
    lab.make_impatient().await;
    lab.start_deployer().await;
    let image = lab.image("v1", SampleImage::new("1").env("START_DELAY_MS", 500)).await;
    let mut settings = lab.settings();
    settings.health.start_period = Span::secs(20);
    let deployment = lab.request(image, settings).await;
    lab.saw("created", |event| matches!(event, stage::Event::Created { .. })).await;
    lab.docker.freeze().expect("stopped");
    // It is healthy, but the engine has to be told that it may stay.
    lab.noted(deployment, "trying again").await;
    lab.docker.thaw().expect("goes on");
    let run = lab.end(deployment).await;
    assert_eq!(run.outcome, Outcome::Succeeded, "{run:?}");
    assert_eq!(lab.standing().await[&deployment], (1, 1));
    lab.close().await;
}

/// Deadlines and settings under which a rollout gives up within seconds, undoing included.
fn short(lab: &mut Lab, strategy: Strategy) -> StageSettings {
    lab.deadlines.create = Duration::from_secs(3);
    lab.deadlines.undo = Duration::from_secs(2);
    lab.deadlines.route = Duration::from_secs(2);
    lab.deadlines.spare = Duration::from_secs(1);
    let health = HealthCheck { timeout: Span::millis(500), ..lab.settings().health };
    StageSettings { strategy, health, stop_grace: Span::secs(1), drain: Span::ZERO, keep: 0, ..lab.settings() }
}

#[tokio::test]
async fn one_that_stays_away_ends_the_rollout_and_is_swept_when_it_is_back() {
    let mut lab = Lab::impatient().await;
    let settings = short(&mut lab, Strategy::BlueGreen);
    let relay = lab.engine_relay().await;
    lab.start_deployer_on(relay.address().to_owned()).await;
    let good = lab.deploy(lab.image("v1", SampleImage::new("1")).await, settings.clone()).await;
    assert_eq!(good.outcome, Outcome::Succeeded, "{good:?}");

    // The container is made and the answer never comes: it has to be found again.
    relay.stall_at("/start HTTP");
    let run = lab.deploy(lab.image("v2", SampleImage::new("2")).await, settings).await;
    let failure = run.failure();
    assert_eq!((run.outcome, failure.step), (Outcome::Failed, Step::Create), "{failure:?}");
    assert!(matches!(failure.code.as_str(), "deadline" | "engine_unavailable"), "{failure:?}");
    assert!(failure.message.contains("removing the new containers failed afterwards"), "{failure:?}");
    assert_eq!(lab.standing().await[&run.deployment].1, 1, "what could not be removed");
    assert_eq!(lab.live().await.expect("live").0, good.deployment);

    relay.set_both(Flow::Pass);
    lab.stands("what served, alone", |standing| standing.len() == 1 && standing.get(&good.deployment) == Some(&(1, 1)))
        .await;
    lab.close().await;
}

#[tokio::test]
async fn what_could_not_be_brought_back_is_when_the_engine_is_back() {
    let mut lab = Lab::impatient().await;
    let settings = short(&mut lab, Strategy::Recreate);
    let relay = lab.engine_relay().await;
    lab.start_deployer_on(relay.address().to_owned()).await;
    let good = lab.deploy(lab.image("v1", SampleImage::new("1")).await, settings.clone()).await;
    assert_eq!(good.outcome, Outcome::Succeeded, "{good:?}");

    relay.stall_at("/containers/create");
    let run = lab.deploy(lab.image("v2", SampleImage::new("2")).await, settings).await;
    // The old one does not serve: nobody may call that rolled back.
    let failure = run.failure();
    assert_eq!((run.outcome, failure.step), (Outcome::Failed, Step::Create), "{failure:?}");
    assert!(failure.message.contains("starting the earlier release again failed afterwards"), "{failure:?}");

    relay.set_both(Flow::Pass);
    lab.stands("what served, alone", |standing| standing.len() == 1 && standing.get(&good.deployment) == Some(&(1, 1)))
        .await;
    lab.live_is(good.deployment).await;
    lab.close().await;
}

#[tokio::test]
async fn a_health_check_that_hangs_is_a_failure_and_an_engine_that_hangs_in_it_is_none() {
    let mut lab = Lab::impatient().await;
    let relay = lab.engine_relay().await;
    lab.start_deployer_on(relay.address().to_owned()).await;
    let check = |check, timeout| HealthCheck { check, timeout, path: None, ..lab.settings().health };
    for (kind, said) in [(Check::Http, "no answer within 300ms"), (Check::Image, "was not done within 300ms")] {
        let sample = SampleImage::new("1").with_healthcheck().env("HEALTH_DELAY_MS", 60_000);
        let image = lab.image("hangs", sample).await;
        let mut health = check(kind, Span::millis(300));
        health.path = (kind == Check::Http).then(|| "/healthz".into());
        let run = lab.deploy(image, StageSettings { health, ..lab.settings() }).await;
        let failure = run.failure();
        assert_eq!((run.outcome, failure.code.as_str()), (Outcome::Failed, "unhealthy"), "{failure:?}");
        assert!(failure.message.contains(said), "{failure:?}");
    }

    let image = lab.image("good", SampleImage::new("1").with_healthcheck()).await;
    let health = check(Check::Image, Span::millis(900));
    relay.stall_at("/exec HTTP");
    let deployment = lab.request(image, StageSettings { health, ..lab.settings() }).await;
    lab.stalled(&relay, "/exec").await;
    lab.noted(deployment, "trying again").await;
    relay.set_both(Flow::Pass);
    let run = lab.end(deployment).await;
    assert_eq!(run.outcome, Outcome::Succeeded, "{run:?}");
    lab.close().await;
}

/// A file in a container's own layer that nobody can delete, until it is dropped.
struct Stuck(PathBuf);

impl Stuck {
    async fn in_container(lab: &Lab, id: &str) -> Stuck {
        let found = lab.docker.client().inspect_container(id, None).await.expect("there");
        let layer = found.graph_driver.expect("a layer").data;
        let file = PathBuf::from(&layer["UpperDir"]).join("stuck");
        std::fs::write(&file, "").expect("written");
        let stuck = Stuck(file);
        assert!(stuck.chattr("+i"), "the engine's file system has no immutable files");
        stuck
    }

    fn chattr(&self, change: &str) -> bool {
        Command::new("chattr").arg(change).arg(&self.0).status().expect("chattr runs").success()
    }
}

impl Drop for Stuck {
    fn drop(&mut self) {
        self.chattr("-i");
    }
}

#[tokio::test]
async fn a_container_that_is_stuck_in_its_removal_is_named_and_goes_later() {
    let mut lab = Lab::impatient().await;
    lab.start_deployer().await;
    let good = lab.deploy(lab.image("v1", SampleImage::new("1")).await, lab.settings()).await;
    assert_eq!(good.outcome, Outcome::Succeeded, "{good:?}");
    let image = lab.image("v2", SampleImage::new("2").broken()).await;
    let mut settings = StageSettings { stop_grace: Span::ZERO, ..lab.settings() };
    settings.health.start_period = Span::secs(2);
    let deployment = lab.request(image, settings).await;
    lab.saw_of(deployment, "created", |event| matches!(event, stage::Event::Created { .. })).await;
    let containers = lab.containers().await;
    let (_, container) = containers.into_iter().find(|(of, _)| *of == deployment).expect("it stands");
    let stuck = Stuck::in_container(&lab, container.id.as_deref().expect("an id")).await;

    let run = lab.end(deployment).await;
    let failure = run.failure();
    assert_eq!((run.outcome, failure.code.as_str()), (Outcome::Failed, "unhealthy"), "{failure:?}");
    assert!(failure.message.contains("removing the new containers failed afterwards"), "{failure:?}");
    assert_eq!(lab.live().await.expect("live").0, good.deployment);
    drop(stuck);
    lab.stands("what served, alone", |standing| standing.len() == 1 && standing.get(&good.deployment) == Some(&(1, 1)))
        .await;
    lab.close().await;
}
