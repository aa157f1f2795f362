//! A cancel is obeyed at once, whatever hangs. Each test says how long it took.
#![expect(clippy::print_stdout, reason = "measured, and not asserted: a busy machine proves nothing")]

use domain::{
    DeploymentId, Span,
    settings::{Check, StageSettings, Strategy},
    stage::{self, Outcome},
};
use testkit::{Direction, Flow, Registry, Relay, SampleImage};
use tokio::time::Instant;

use crate::lab::Lab;

/// Cancels `deployment` and waits for its end.
async fn cancelled(lab: &Lab, deployment: DeploymentId, what: &str) {
    let accepted = lab.cancel(deployment).await;
    let run = lab.end(deployment).await;
    println!("{what}: cancelled after {} ms", accepted.elapsed().as_millis());
    assert_eq!(run.outcome, Outcome::Cancelled, "{what}: {run:?}");
}

#[tokio::test]
async fn while_a_registry_hangs() {
    let mut lab = Lab::without_edge().await;
    lab.start_deployer().await;
    let registry = Registry::start().await.expect("a registry");
    let relay = Relay::tcp(registry.address()).await.expect("a relay");
    let local = lab.image("v1", SampleImage::new("1").ballast(8)).await;
    let pushed = registry.push(&lab.docker, &local.requested, "shop:v1").await.expect("pushed");
    let image = lab.resolve(&format!("{}/shop:v1", relay.address())).await.expect("resolved");
    for reference in [&pushed, &local.requested] {
        let gone =
            lab.docker.client().remove_image(reference, None::<bollard::query_parameters::RemoveImageOptions>, None);
        gone.await.expect("removed");
    }
    for (what, bytes) in [("in the middle of a layer", 1 << 20), ("before the first byte", 0)] {
        relay.set(Direction::Answers, Flow::StallAfter(bytes));
        let deployment = lab.request(image.clone(), lab.settings()).await;
        lab.noted(deployment, if bytes > 0 { "downloaded" } else { "pulling" }).await;
        cancelled(&lab, deployment, what).await;
    }
    lab.close().await;
}

#[tokio::test]
async fn while_a_health_check_hangs() {
    let lab = Lab::new().await;
    for check in [Check::Http, Check::Image] {
        let sample = SampleImage::new("1").with_healthcheck().env("HEALTH_DELAY_MS", 600_000);
        let image = lab.image("hangs", sample).await;
        let mut settings = StageSettings { stop_grace: Span::ZERO, ..lab.settings() };
        settings.health.timeout = Span::secs(60);
        settings.health.check = check;
        settings.health.path = (check == Check::Http).then(|| "/healthz".into());
        let deployment = lab.request(image, settings).await;
        lab.saw_of(deployment, "created", |event| matches!(event, stage::Event::Created { .. })).await;
        cancelled(&lab, deployment, &format!("health check {check:?}, container removed")).await;
    }
    lab.close().await;
}

#[tokio::test]
async fn while_a_container_takes_its_whole_grace_to_stop() {
    let lab = Lab::new().await;
    let settings = StageSettings { strategy: Strategy::Recreate, stop_grace: Span::secs(3), ..lab.settings() };
    let stubborn = lab.image("v1", SampleImage::new("1").env("IGNORE_SIGTERM", 1)).await;
    let old = lab.deploy(stubborn, settings.clone()).await;
    assert_eq!(old.outcome, Outcome::Succeeded, "{old:?}");
    let deployment = lab.request(lab.image("v2", SampleImage::new("2")).await, settings).await;
    lab.saw_of(deployment, "drained", |event| matches!(event, stage::Event::Drained(_))).await;
    let accepted = lab.cancel(deployment).await;
    lab.noted(deployment, "Retire is given up").await;
    println!("a stop under way: given up after {} ms", accepted.elapsed().as_millis());
    // What cannot be taken back is waited for, and the old release started again behind it.
    let run = lab.end(deployment).await;
    assert_eq!(run.outcome, Outcome::Cancelled, "{run:?}");
    lab.stands("the old one runs", |standing| standing.len() == 1 && standing.get(&old.deployment) == Some(&(1, 1)))
        .await;
    lab.live_is(old.deployment).await;
    lab.close().await;
}

#[tokio::test]
async fn while_the_engine_hangs_in_any_call() {
    let mut lab = Lab::impatient().await;
    let relay = lab.engine_relay().await;
    lab.start_deployer_on(relay.address().to_owned()).await;
    for (number, call) in ["/images/", "/containers/create", "/start HTTP", "/update HTTP"].into_iter().enumerate() {
        let image = lab.image(&format!("v{number}"), SampleImage::new(&number.to_string())).await;
        relay.stall_at(call);
        let deployment = lab.request(image, StageSettings { stop_grace: Span::ZERO, ..lab.settings() }).await;
        lab.stalled(&relay, call).await;
        let accepted = lab.cancel(deployment).await;
        lab.noted(deployment, "is given up").await;
        println!("engine hangs in {call}: given up after {} ms", accepted.elapsed().as_millis());
        relay.set_both(Flow::Pass);
        let back = Instant::now();
        let run = lab.end(deployment).await;
        println!("engine hangs in {call}: undone {} ms after it was back", back.elapsed().as_millis());
        assert_eq!(run.outcome, Outcome::Cancelled, "{call}: {run:?}");
        // Also what the engine did when it was back, on behalf of a call that nobody waited for any more.
        lab.stands(call, |standing| standing.is_empty()).await;
    }
    lab.close().await;
}
