//! Registries that take a question and never finish the answer.

use std::time::Duration;

use domain::{
    node::{NodeHealth, health_subject},
    stage::{Outcome, Step},
};
use testkit::{Direction, Flow, Registry, Relay, SampleImage};
use tokio::time::Instant;

use crate::lab::Lab;

/// A registry behind a relay, with one image that the engine does not have.
async fn behind_a_relay(lab: &Lab) -> (Registry, Relay, String) {
    let registry = Registry::start().await.expect("a registry");
    let relay = Relay::tcp(registry.address()).await.expect("a relay");
    let local = lab.image("v1", SampleImage::new("1").ballast(8)).await;
    let pushed = registry.push(&lab.docker, &local.requested, "shop:v1").await.expect("pushed");
    for reference in [&pushed, &local.requested] {
        let gone =
            lab.docker.client().remove_image(reference, None::<bollard::query_parameters::RemoveImageOptions>, None);
        gone.await.expect("removed");
    }
    let reference = format!("{}/shop:v1", relay.address());
    (registry, relay, reference)
}

#[tokio::test]
async fn in_the_middle_of_a_layer_and_before_the_first_byte() {
    let mut lab = Lab::impatient().await;
    lab.start_deployer().await;
    let (_registry, relay, reference) = behind_a_relay(&lab).await;
    let image = lab.resolve(&reference).await.expect("resolved");

    for bytes in [1 << 20, 0] {
        relay.set(Direction::Answers, Flow::StallAfter(bytes));
        let run = lab.deploy(image.clone(), lab.settings()).await;
        let failure = run.failure();
        assert_eq!((run.outcome, failure.step), (Outcome::Failed, Step::Pull), "{failure:?}");
        assert_eq!(failure.code, "registry_unreachable", "{failure:?}");
        assert!(failure.message.contains("has sent nothing"), "{failure:?}");
    }

    relay.set_both(Flow::Pass);
    let run = lab.deploy(image, lab.settings()).await;
    assert_eq!(run.outcome, Outcome::Succeeded, "{run:?}");
    lab.close().await;
}

#[tokio::test]
async fn while_a_reference_is_resolved() {
    let mut lab = Lab::impatient().await;
    lab.start_deployer().await;
    let (_registry, relay, reference) = behind_a_relay(&lab).await;
    relay.set(Direction::Answers, Flow::Stall);
    // More than are worked on at a time, and none of them in the way of a question of health.
    let refused = futures::future::join_all((0..20).map(|_| lab.resolve(&reference)));
    let health = async {
        let answer =
            lab.log.request(&health_subject("local"), vec![], Duration::from_secs(20)).await.expect("an answer");
        let health: NodeHealth = serde_json::from_slice(&answer).expect("readable");
        assert!(health.docker.is_some(), "{health:?}");
        Instant::now()
    };
    let (refused, well) = tokio::join!(async { (refused.await, Instant::now()) }, health);
    assert!(well < refused.1, "the health of the node had to wait for a registry");
    for refused in refused.0 {
        let refused = refused.expect_err("nothing to resolve");
        assert_eq!(refused.code, "registry_unreachable", "{refused:?}");
        assert!(refused.message.contains(relay.address()), "{refused:?}");
    }
    relay.set_both(Flow::Pass);
    lab.resolve(&reference).await.expect("resolved");
    lab.close().await;
}
