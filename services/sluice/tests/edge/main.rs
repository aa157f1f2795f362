//! `sluice edge` by itself: one process takes over from another, and either may die in the middle.

mod harness;
mod supervised;

use std::{path::Path, time::Instant};

use domain::traffic::EDGES;
use edge::{Answer, UpgradeError};
use rustix::process::{Signal, kill_process};
use testkit::Load;

use crate::harness::{Client, DRAIN, Installation, app, lives, pid, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_while_another_process_takes_over_and_open_connections_last_until_the_drain_deadline() {
    let (address, _app) = app("1").await;
    let mut edge = Installation::serving(&[address]).await;
    let kept = Load::new(&edge.address, "shop.test").start();
    let single = Load::new(&edge.address, "shop.test").connections(4).without_keep_alive().start();
    let mut socket = Client::websocket(&edge.address).await;
    let mut events = Client::events(&edge.address).await;
    let mut idle = Client::connect(&edge.address).await.expect("connected");
    assert_ne!(idle.get().await.expect("an answer").header("connection"), Some("close"));
    kept.more(100).await;

    let first = edge.pid().expect("a pid file");
    let began = Instant::now();
    let upgraded = edge.upgrade().await;
    assert_eq!(pid(upgraded.old_pid), first);
    assert_eq!(edge.pid(), Some(pid(upgraded.new_pid)));
    assert!(upgraded.connections >= 3, "{upgraded:?}");
    kept.more(100).await;
    single.more(100).await;
    assert!(lives(first) && socket.echoes().await && events.hears().await);
    let last = idle.get().await.expect("an idle connection is good for one more request");
    assert_eq!(last.header("connection"), Some("close"));

    // Again, while the first still serves what it has.
    let again = edge.upgrade().await;
    assert_eq!(again.old_pid, upgraded.new_pid);
    kept.more(100).await;
    single.more(100).await;
    assert!(lives(first) && socket.echoes().await && events.hears().await);

    edge.ended(first).await;
    assert!(began.elapsed() >= DRAIN, "the websocket was cut before the deadline");
    assert!(!socket.echoes().await, "it ends with its process");
    edge.ended(pid(again.old_pid)).await;
    kept.more(100).await;
    let mut report = kept.stop().await;
    report.add(single.stop().await);
    assert_eq!(report.failed, 0, "{:?}", report.failures);
    assert_eq!(edge.pid(), Some(pid(again.new_pid)));

    // Told to stop, it leaves nothing behind.
    kill_process(pid(again.new_pid), Signal::TERM).expect("told");
    edge.ended(pid(again.new_pid)).await;
    assert_eq!(edge.pid(), None);
    let (code, document) = edge.refused(&["edge", "upgrade"]).await;
    assert_eq!((code, document["error"]["code"].as_str()), (Some(5), Some("no_edge")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_switches_a_route_hears_of_both_processes() {
    let ((one, _one), (two, _two)) = (app("1").await, app("2").await);
    let mut edge = Installation::serving(&[one]).await;
    let mut socket = Client::websocket(&edge.address).await;
    let mut idle = Client::connect(&edge.address).await.expect("connected");
    idle.get().await.expect("an answer");
    let upgraded = edge.upgrade().await;

    let old = format!("local-{}", upgraded.old_pid);
    let presence = edge.log.bucket(EDGES).get(&old).await.expect("NATS answers").expect("it is present");
    let presence: domain::traffic::EdgePresence = serde_json::from_slice(&presence.value).expect("readable");
    assert_eq!((presence.id.as_str(), presence.address.as_str()), (old.as_str(), edge.address.as_str()));
    let status = edge.status(&old).await.expect("the old process answers");
    let in_flight = |status: &domain::traffic::EdgeStatus| status.routes[0].live.as_ref().expect("live").in_flight;
    assert_eq!(in_flight(&status), 1, "its websocket still needs the containers");
    let status = edge.status("local").await.expect("the new process answers");
    assert_eq!(in_flight(&status), 0);

    // A switch reaches both: a connection that the old one has kept must not lead to containers that are gone.
    let revision = edge.route(2, &[two]).await;
    for id in ["local", &old] {
        until("the switch is in force", async || (edge.status(id).await?.routes[0].revision == revision).then_some(()))
            .await;
    }
    assert_eq!(idle.get().await.expect("an answer").version(), "2");
    edge.answers("2").await;
    let draining = edge.status(&old).await.expect("an answer").draining;
    assert_eq!(draining.iter().map(|set| set.in_flight).sum::<u64>(), 1, "the websocket drains");
    assert!(socket.echoes().await);

    edge.ended(pid(upgraded.old_pid)).await;
    assert!(edge.log.bucket(EDGES).get(&old).await.expect("NATS answers").is_none(), "it took its name back");
    assert!(edge.status("local").await.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_edge_that_does_not_come_up_leaves_the_old_one_unharmed() {
    let (address, _app) = app("1").await;
    let mut edge = Installation::serving(&[address]).await;
    let load = Load::new(&edge.address, "shop.test").start();
    let before = edge.pid();
    let failure = |ended| match ended {
        Err(UpgradeError::Failed(reason)) => reason,
        other => panic!("{other:?}"),
    };
    let reason = failure(edge.upgrade_to(Path::new("/nowhere/sluice"), |_| {}).await);
    assert!(reason.contains("/nowhere/sluice"), "{reason}");
    let reason = failure(edge.upgrade_to(Path::new("/bin/false"), |_| {}).await);
    assert!(reason.contains("exit status: 1"), "{reason}");

    // One that hangs, and another upgrade meanwhile; then it is killed.
    let mute = edge.mute();
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let hanging = edge.upgrade_to(&mute, |answer| {
        if let Answer::Started { pid } = answer {
            tell.send(*pid).expect("heard");
        }
    });
    let meanwhile = async {
        let started = told.recv().await.expect("started");
        let (code, document) = edge.refused(&["edge", "upgrade"]).await;
        assert_eq!((code, document["error"]["code"].as_str()), (Some(4), Some("refused")), "{document}");
        kill_process(pid(started), Signal::KILL).expect("killed");
    };
    let (hung, ()) = tokio::join!(hanging, meanwhile);
    let reason = failure(hung);
    assert!(reason.contains("signal: 9"), "{reason}");

    load.more(100).await;
    assert_eq!(edge.pid(), before);
    assert!(edge.status("local").await.is_some());
    let upgraded = edge.upgrade().await;
    load.more(100).await;
    let report = load.stop().await;
    assert_eq!(report.failed, 0, "{:?}", report.failures);
    edge.ended(pid(upgraded.old_pid)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_edge_that_is_killed_is_replaced_by_the_old_one() {
    let (address, _app) = app("1").await;
    let mut edge = Installation::serving(&[address]).await;
    let mut socket = Client::websocket(&edge.address).await;
    let upgraded = edge.upgrade().await;
    edge.kill(pid(upgraded.new_pid)).await;
    // The socket was never closed: who connects meanwhile waits, and is served.
    let mut client = Client::connect(&edge.address).await.expect("connected");
    assert_eq!(client.get().await.expect("an answer").version(), "1");
    assert!(socket.echoes().await);
    let old = pid(upgraded.old_pid);
    until("the pid file names it again", async || (edge.pid() == Some(old)).then_some(())).await;
    until("it answers as the edge", async || edge.status("local").await).await;

    let upgraded = edge.upgrade().await;
    assert_eq!(pid(upgraded.old_pid), old);
    // Told to stop, the new one takes the old one along.
    kill_process(pid(upgraded.new_pid), Signal::TERM).expect("told");
    edge.ended(pid(upgraded.new_pid)).await;
    edge.ended(old).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_edge_that_is_killed_in_the_middle_is_replaced_by_the_new_one_at_once() {
    let (address, _app) = app("1").await;
    let mut edge = Installation::serving(&[address]).await;
    // Without it the new one waits for a while before it is ready: that is the middle.
    edge.nats.kill();
    let old = edge.pid().expect("a pid file");
    let mut started = None;
    let ended = edge
        .upgrade_to(Path::new(env!("CARGO_BIN_EXE_sluice")), |answer| {
            if let Answer::Started { pid: new } = answer {
                started = Some(pid(*new));
                kill_process(old, Signal::KILL).expect("killed");
            }
        })
        .await;
    assert!(matches!(ended, Err(UpgradeError::NoAnswer)), "{ended:?}");
    let mut client = Client::connect(&edge.address).await.expect("the socket was never closed");
    assert_eq!(client.get().await.expect("an answer").version(), "1");
    until("the pid file names the new one", async || (edge.pid() == started).then_some(())).await;
    edge.kill(old).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_edge_comes_back_from_its_snapshot_and_avoids_who_died_meanwhile() {
    let ((one, _one), (two, dies)) = (app("1").await, app("1").await);
    let mut edge = Installation::serving(&[one, two]).await;
    edge.nats.kill();
    let first = edge.pid().expect("a pid file");
    edge.kill(first).await;
    drop(dies);
    let before = edge.log_text().len();
    edge.start();
    edge.answers("1").await;
    let load = Load::new(&edge.address, "shop.test").start();
    load.more(200).await;
    let report = load.stop().await;
    assert_eq!(report.failed, 0, "{:?}", report.failures);
    let log = edge.log_text().split_off(before);
    assert!(log.contains("upstream does not answer, avoided until it does"), "{log}");
    assert!(!log.contains("does not take connections"), "a request was sent to the one that died: {log}");
}
