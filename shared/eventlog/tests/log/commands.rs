use std::time::{Duration, Instant};

use domain::{DeploymentId, Event, Key, stage};
use testkit::Nats;

use crate::{bare, context, id, slug, soon, start};

/// A dispatch as it stands in the log, without the deployment around it.
async fn dispatch(nats: &Nats, stage: &str, node: &str) -> DeploymentId {
    let deployment = DeploymentId(id());
    let key: Key<stage::Stage> = Key::stage(&slug("shop"), &slug(stage));
    let event = stage::Event::Dispatched { deployment, node: node.into(), set: None };
    let (subject, body) = domain::encode(&key, &event, id(), &context()).expect("encodes");
    bare(nats).await.request(subject, body.into()).await.expect("stored");
    deployment
}

async fn empty(nats: &Nats) -> bool {
    let jetstream = async_nats::jetstream::new(bare(nats).await);
    let stream = jetstream.get_stream("COMMANDS").await.expect("is there");
    stream.cached_info().state.messages == 0
}

#[tokio::test]
async fn a_dispatch_becomes_a_command_for_its_node_and_is_done_once() {
    let (nats, log) = start().await;
    let mut here = log.commands("local").await.expect("opens");
    let mut there = log.commands("other").await.expect("opens");
    let (first, second) = (dispatch(&nats, "dev", "local").await, dispatch(&nats, "prod", "other").await);

    let command = soon(here.next()).await.expect("delivered");
    assert_eq!((command.project.as_str(), command.stage.as_str(), command.attempt), ("shop", "dev", 1));
    assert_eq!(
        (command.recorded.sequence, command.recorded.key.clone()),
        (1, vec!["shop".to_owned(), "dev".to_owned()])
    );
    assert!(
        matches!(&command.recorded.event, Event::Stage(stage::Event::Dispatched { deployment, .. }) if *deployment == first)
    );
    command.progress().await.expect("reported");
    command.done().await.expect("acknowledged");

    let command = soon(there.next()).await.expect("delivered");
    assert!(
        matches!(&command.recorded.event, Event::Stage(stage::Event::Dispatched { deployment, .. }) if *deployment == second)
    );
    command.done().await.expect("acknowledged");
    assert!(empty(&nats).await);
}

#[tokio::test]
async fn a_waiting_worker_hears_of_a_dispatch() {
    let (nats, log) = start().await;
    let mut commands = log.commands("local").await.expect("opens");
    let waiting = tokio::spawn(async move {
        commands.next().await.map(|command| (command.project.to_string(), command.stage.to_string()))
    });
    dispatch(&nats, "dev", "local").await;
    assert_eq!(soon(waiting).await.expect("no panic").expect("delivered"), ("shop".to_owned(), "dev".to_owned()));
}

#[tokio::test]
async fn a_command_given_back_or_abandoned_comes_again() {
    let (nats, log) = start().await;
    let mut commands = log.commands("local").await.expect("opens");
    dispatch(&nats, "dev", "local").await;
    let command = soon(commands.next()).await.expect("delivered");
    command.retry(Duration::from_millis(200)).await.expect("given back");
    let command = soon(commands.next()).await.expect("delivered");
    assert_eq!(command.attempt, 2);

    // As long as the worker is heard of, nobody else gets it.
    let mut rival = log.commands("local").await.expect("opens");
    let other = tokio::spawn(async move { rival.next().await.map(|command| (command.attempt, Instant::now())) });
    for _ in 0..6 {
        command.progress().await.expect("reported");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(!other.is_finished());
    drop(command);
    let (attempt, _) = soon(other).await.expect("no panic").expect("delivered");
    assert_eq!(attempt, 3);
}

#[tokio::test]
async fn a_worker_that_stops_waiting_loses_nothing() {
    let (nats, log) = start().await;
    let mut commands = log.commands("local").await.expect("opens");
    for _ in 0..20 {
        assert!(tokio::time::timeout(Duration::from_millis(5), commands.next()).await.is_err());
    }
    dispatch(&nats, "dev", "local").await;
    let command = soon(commands.next()).await.expect("delivered");
    assert_eq!(command.attempt, 1);
}

#[tokio::test]
async fn commands_wait_out_a_crash_of_nats() {
    let (mut nats, log) = start().await;
    let mut commands = log.commands("local").await.expect("opens");
    dispatch(&nats, "dev", "local").await;
    nats.kill();
    assert!(tokio::time::timeout(Duration::from_millis(300), commands.next()).await.is_err());
    nats.restart().await.expect("starts again");
    let command = soon(commands.next()).await.expect("delivered");
    assert_eq!(command.recorded.sequence, 1);
    command.done().await.expect("acknowledged");
    dispatch(&nats, "dev", "local").await;
    let command = soon(commands.next()).await.expect("delivered");
    assert_eq!(command.recorded.sequence, 2);
    command.done().await.expect("acknowledged");
    assert!(empty(&nats).await);
}

#[tokio::test]
async fn what_was_done_does_not_come_back_with_a_restart() {
    let (mut nats, log) = start().await;
    let mut commands = log.commands("local").await.expect("opens");
    for stage in ["dev", "prod", "dev"] {
        dispatch(&nats, stage, "local").await;
        soon(commands.next()).await.expect("delivered").done().await.expect("acknowledged");
    }
    for crash in [false, true] {
        if crash {
            nats.kill();
        }
        nats.restart().await.expect("starts again");
        let again = tokio::time::timeout(Duration::from_secs(3), commands.next()).await;
        assert!(again.is_err(), "a command came again, crash: {crash}");
    }
    let fresh = dispatch(&nats, "dev", "local").await;
    let command = soon(commands.next()).await.expect("delivered");
    assert!(
        matches!(&command.recorded.event, Event::Stage(stage::Event::Dispatched { deployment, .. }) if *deployment == fresh)
    );
}

#[tokio::test]
async fn a_node_name_that_is_no_token_is_refused() {
    let (_nats, log) = start().await;
    for bad in ["", "a.b", "*", ">", "a b"] {
        assert!(log.commands(bad).await.is_err(), "{bad:?} passed");
    }
}
