//! A NATS that takes everything and acknowledges nothing.

use std::time::Duration;

use domain::{
    Span,
    stage::{self, Outcome},
};
use eventlog::Delivery;
use testkit::{Direction, Flow, SampleImage};

use crate::lab::{Lab, Run};

fn starts(run: &Run) -> usize {
    run.names.iter().filter(|name| *name == "started").count()
}

#[tokio::test]
async fn a_worker_that_is_not_heard_lets_go_and_takes_the_work_up_again() {
    let lab = Lab::impatient().await;
    let relay = lab.nats_relay().await;
    let log = lab.connect(&relay).await;
    let deployer = lab.spawn_deployer(lab.docker.host().to_owned(), log).await;
    let image = lab.image("v1", SampleImage::new("1").env("START_DELAY_MS", 1000)).await;
    let mut settings = lab.settings();
    settings.health.start_period = Span::secs(20);
    let deployment = lab.request(image, settings).await;
    lab.saw("created", |event| matches!(event, stage::Event::Created { .. })).await;
    // Its reports arrive, and it hears of nothing.
    relay.set(Direction::Answers, Flow::Stall);
    tokio::time::sleep(Delivery::LEASE + Duration::from_secs(1)).await;
    relay.set_both(Flow::Pass);
    let run = lab.end(deployment).await;
    assert_eq!((run.outcome, starts(&run)), (Outcome::Succeeded, 2), "{run:?}");
    assert_eq!(lab.standing().await[&deployment], (1, 1));
    deployer.stop().await;
    lab.close().await;
}

#[tokio::test]
async fn a_server_that_is_stopped_and_goes_on_costs_only_time() {
    let mut lab = Lab::impatient().await;
    lab.start_deployer().await;
    let chatty = SampleImage::new("1").env("START_DELAY_MS", 500);
    let mut settings = lab.settings();
    settings.health.start_period = Span::secs(20);
    let image = lab.image("v1", chatty).await;
    let deployment = lab.request(image, settings.clone()).await;
    // In whatever step it is then.
    lab.saw("started", |event| matches!(event, stage::Event::Started { .. })).await;
    lab.nats.freeze().expect("stopped");
    tokio::time::sleep(Delivery::LEASE + Duration::from_secs(1)).await;
    lab.nats.thaw().expect("goes on");
    let run = lab.end(deployment).await;
    assert_eq!(run.outcome, Outcome::Succeeded, "{run:?}");
    lab.live_is(deployment).await;
    let next = lab.deploy(lab.image("v2", SampleImage::new("2")).await, settings).await;
    assert_eq!((next.outcome, starts(&next)), (Outcome::Succeeded, 1), "{next:?}");
    lab.close().await;
}
