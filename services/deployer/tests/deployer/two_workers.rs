//! Two deployers of one node: what one has taken up and lost, it touches no more.

use std::sync::mpsc;

use domain::{
    Span,
    settings::StageSettings,
    stage::{self, Outcome},
};
use testkit::{Flow, Relay, SampleImage};
use tokio_util::sync::CancellationToken;

use crate::lab::Lab;

/// A deployer in a runtime of its own that can be stopped where it stands, as SIGSTOP does with a process: no task of
/// it runs, no timer, and nothing is read from its connections.
struct Stoppable {
    thread: std::thread::JoinHandle<anyhow::Result<()>>,
    runtime: tokio::runtime::Handle,
    shutdown: CancellationToken,
}

impl Stoppable {
    async fn start(lab: &Lab, engine: &Relay, nats: &Relay) -> Stoppable {
        let (config, shutdown) = (lab.config(engine.address().to_owned()), CancellationToken::new());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let handle = runtime.handle().clone();
        let connect = lab.connector(nats);
        let ending = shutdown.clone();
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                let log = connect.await;
                deployer::run(config, log, ending).await
            })
        });
        lab.deployer_answers().await;
        Stoppable { thread, runtime: handle, shutdown }
    }

    /// Stops it until what is returned is dropped.
    async fn freeze(&self) -> mpsc::Sender<()> {
        let (thaw, thawed) = mpsc::channel::<()>();
        let (stopped, stands) = tokio::sync::oneshot::channel();
        self.runtime.spawn(async move {
            let _ = stopped.send(());
            let _ = thawed.recv();
        });
        stands.await.expect("it stands");
        thaw
    }

    async fn end(self) {
        self.shutdown.cancel();
        let joined = tokio::task::spawn_blocking(|| self.thread.join());
        joined.await.expect("no panic").expect("no panic").expect("ends well");
    }
}

/// What a deployer asked its engine to change.
fn changes(engine: &Relay) -> Vec<String> {
    let changing = |head: &String| {
        let waits = ["/wait?", "/exec"].iter().any(|text| head.contains(text));
        (head.starts_with("POST") && !waits) || head.starts_with("DELETE")
    };
    engine.requests().into_iter().filter(changing).collect()
}

fn of(names: &[String], name: &str) -> usize {
    names.iter().filter(|other| *other == name).count()
}

#[tokio::test]
async fn one_that_hears_nothing_is_replaced_and_leaves_the_work_alone() {
    let lab = Lab::impatient().await;
    let (engine, nats) = (lab.engine_relay().await, lab.nats_relay().await);
    let first = lab.spawn_deployer(engine.address().to_owned(), lab.connect(&nats).await).await;
    let mut settings = lab.settings();
    settings.health.start_period = Span::secs(60);
    let image = lab.image("v1", SampleImage::new("1").env("START_DELAY_MS", 9000)).await;
    let deployment = lab.request(image, settings).await;
    lab.saw("created", |event| matches!(event, stage::Event::Created { .. })).await;
    nats.set_both(Flow::Stall);
    let before = changes(&engine);
    let second = lab.spawn_deployer(lab.docker.host().to_owned(), lab.log.clone()).await;
    let run = lab.end(deployment).await;
    assert_eq!((run.outcome, of(&run.names, "started")), (Outcome::Succeeded, 2), "{run:?}");
    assert_eq!(changes(&engine), before, "the first changed something while it was not heard");

    // It hears again, and finds that it has lost the work: what it takes up next is new.
    nats.set_both(Flow::Pass);
    second.stop().await;
    let next = lab.deploy(lab.image("v2", SampleImage::new("2")).await, lab.settings()).await;
    assert_eq!((next.outcome, of(&next.names, "started")), (Outcome::Succeeded, 1), "{next:?}");
    assert_eq!(lab.end(deployment).await.names, run.names, "the first told something of what was over");
    first.stop().await;
    lab.close().await;
}

#[tokio::test]
async fn one_that_slept_in_the_middle_of_a_step_changes_nothing_when_it_wakes() {
    let lab = Lab::impatient().await;
    let (engine, nats) = (lab.engine_relay().await, lab.nats_relay().await);
    let first = Stoppable::start(&lab, &engine, &nats).await;
    // Between its first and its second change: a container is made and has to be started.
    engine.stall_at("/containers/create");
    let settings = StageSettings { stop_grace: Span::ZERO, keep: 0, ..lab.settings() };
    let deployment = lab.request(lab.image("v1", SampleImage::new("1")).await, settings.clone()).await;
    lab.stalled(&engine, "/containers/create").await;
    let thaw = first.freeze().await;
    let before = changes(&engine);

    let second = lab.spawn_deployer(lab.docker.host().to_owned(), lab.log.clone()).await;
    let run = lab.end(deployment).await;
    assert_eq!((run.outcome, of(&run.names, "started")), (Outcome::Succeeded, 2), "{run:?}");
    // What it had made is gone by the time that the first wakes: a container it starts now would be nobody's.
    let next = lab.deploy(lab.image("v2", SampleImage::new("2")).await, settings).await;
    assert_eq!(next.outcome, Outcome::Succeeded, "{next:?}");
    lab.stands("the new one, alone", |standing| standing.len() == 1).await;
    assert_eq!(changes(&engine), before);

    // The call that was under way reaches the engine: that cannot be prevented, and the sweep removes what it made.
    engine.set_both(Flow::Pass);
    drop(thaw);
    lab.deployer_answers().await;
    lab.stands("the new one, alone", |standing| standing.len() == 1 && standing.get(&next.deployment) == Some(&(1, 1)))
        .await;
    second.stop().await;
    first.end().await;
    let after = changes(&engine).split_off(before.len());
    assert!(!after.iter().any(|call| call.contains("/start ")), "it started what it had made: {after:?}");
    assert_eq!(lab.end(deployment).await.names, run.names, "the first told something of what was over");
    assert_eq!(lab.live().await.expect("live").0, next.deployment);
    lab.close().await;
}
