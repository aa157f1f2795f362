//! Workers that die, an engine that goes away, and people who change their minds.

use std::time::Duration;

use domain::stage::{self, Command, Outcome};
use testkit::{Flow, SampleImage};

use crate::lab::Lab;

#[tokio::test]
async fn a_rollout_whose_worker_died_is_carried_on_by_the_next() {
    let mut lab = Lab::new().await;
    let image = lab.image("v1", SampleImage::new("1").env("START_DELAY_MS", 4000)).await;
    let mut settings = lab.settings();
    settings.health.start_period = domain::Span::secs(20);
    let deployment = lab.request(image, settings).await;
    lab.saw("created", |event| matches!(event, stage::Event::Created { .. })).await;
    lab.kill_deployer();
    lab.start_deployer().await;
    let run = lab.end(deployment).await;
    assert_eq!(
        run.names,
        [
            "requested",
            "dispatched",
            "started",
            "pulled",
            "created",
            "started",
            "healthy",
            "switched",
            "retired",
            "succeeded"
        ]
    );
    assert_eq!(lab.standing().await[&deployment], (1, 1));
    lab.close().await;
}

#[tokio::test]
async fn a_deployer_that_is_stopped_leaves_its_rollout_to_the_next_at_once() {
    let mut lab = Lab::new().await;
    let image = lab.image("v1", SampleImage::new("1").env("START_DELAY_MS", 2000)).await;
    let mut settings = lab.settings();
    settings.health.start_period = domain::Span::secs(20);
    let deployment = lab.request(image, settings).await;
    lab.saw("created", |event| matches!(event, stage::Event::Created { .. })).await;
    lab.stop_deployer().await;
    assert!(lab.state().await.active.is_some_and(|active| active.failure.is_none()), "nothing was reported");
    lab.start_deployer().await;
    let run = lab.end(deployment).await;
    assert_eq!(run.outcome, Outcome::Succeeded, "{run:?}");
    lab.close().await;
}

#[tokio::test]
async fn a_cancel_interrupts_a_step() {
    let lab = Lab::new().await;
    let image = lab.image("v1", SampleImage::new("1").env("START_DELAY_MS", 60_000)).await;
    let mut settings = lab.settings();
    settings.health.start_period = domain::Span::secs(60);
    settings.stop_grace = domain::Span::ZERO;
    let deployment = lab.request(image, settings).await;
    lab.saw("created", |event| matches!(event, stage::Event::Created { .. })).await;
    lab.execute(Command::Cancel { deployment, reason: None }).await;
    let run = lab.end(deployment).await;
    assert_eq!(run.outcome, Outcome::Cancelled);
    lab.stands("nothing", |standing| standing.is_empty()).await;
    lab.close().await;
}

#[tokio::test]
async fn an_engine_that_goes_away_for_a_while_costs_only_time() {
    let mut lab = Lab::without_edge().await;
    lab.edge = Some(crate::edge::FakeEdge::start(&lab.log).await);
    let relay = lab.engine_relay().await;
    lab.start_deployer_on(relay.address().to_owned()).await;
    let image = lab.image("v1", SampleImage::new("1").env("START_DELAY_MS", 1500)).await;
    let mut settings = lab.settings();
    settings.health.start_period = domain::Span::secs(20);
    settings.health.check = domain::settings::Check::Http;
    let deployment = lab.request(image, settings).await;
    lab.saw("created", |event| matches!(event, stage::Event::Created { .. })).await;
    relay.set_both(Flow::Cut);
    let health = lab.log.request(&domain::node::health_subject("local"), vec![], Duration::from_secs(20)).await;
    let health: domain::node::NodeHealth = serde_json::from_slice(&health.expect("an answer")).expect("readable");
    assert!(health.docker.is_none() && health.error.is_some(), "{health:?}");
    let refused = lab.resolve("shop:v1").await.expect_err("no engine");
    assert_eq!(refused.code, "engine_unavailable", "{refused:?}");
    lab.noted(deployment, "trying again").await;
    relay.set_both(Flow::Pass);
    let run = lab.end(deployment).await;
    assert_eq!(run.outcome, Outcome::Succeeded, "{run:?}");
    assert_eq!(lab.standing().await[&deployment], (1, 1));
    lab.close().await;
}

/// Else an engine that starts again hands the addresses out anew, and the edge sends one stage's requests to another's
/// container until it hears of it.
#[tokio::test]
async fn a_container_keeps_its_address_whichever_is_started_first() {
    let mut lab = Lab::new().await;
    let image = lab.image("v1", SampleImage::new("1")).await;
    let mut settings = lab.settings();
    settings.replicas = 3;
    lab.deploy(image, settings).await;
    lab.stop_deployer().await;
    let before = lab.addresses().await;
    assert_eq!(before.len(), 3);
    let client = lab.docker.client();
    for name in before.keys() {
        client.stop_container(name, None).await.expect("stopped");
    }
    for name in before.keys().rev() {
        client.start_container(name, None).await.expect("started");
    }
    assert_eq!(lab.addresses().await, before);
    lab.close().await;
}
