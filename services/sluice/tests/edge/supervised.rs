//! The edge under `sluice up`: the supervisor follows it from process to process, and brings it back when it is killed.

use std::path::Path;

use domain::traffic::ROUTES;
use eventlog::EventLog;
use rustix::process::{Pid, Signal, kill_process};
use testkit::{Load, Sluice};

use crate::harness::{Client, DRAIN, HOST, KEY, app, lives, pid, route, until};

/// Nothing is deployed here, so no engine is needed.
const NO_ENGINE: &str = "unix:///nonexistent/docker.sock";

fn serving(sluice: &Sluice) -> Option<Pid> {
    sluice.pid("edge").ok().filter(|pid| lives(*pid))
}

async fn answers(sluice: &Sluice) {
    until("the edge answers", async || Client::connect(sluice.edge()).await?.get().await).await;
}

async fn upgrade(sluice: &Sluice) -> Result<(Pid, Pid), anyhow::Error> {
    let upgraded = sluice.json(&["edge", "upgrade"]).await?;
    let process = |name: &str| upgraded[name].as_u64().and_then(|raw| u32::try_from(raw).ok()).map(pid);
    Ok((process("old_pid").expect("a process"), process("new_pid").expect("a process")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_supervisor_follows_an_upgrade_and_brings_a_killed_edge_back_without_nats() {
    let ((one, _one), (two, dies)) = (app("1").await, app("1").await);
    let mut sluice = Sluice::prepare(Path::new(env!("CARGO_BIN_EXE_sluice")), NO_ENGINE).expect("prepared");
    sluice.set("EDGE_DRAIN", format!("{}ms", DRAIN.as_millis()));
    sluice.start().await.expect("starts");
    let connection = std::fs::read(sluice.data_dir().join("connection.json")).expect("written");
    let connection: serde_json::Value = serde_json::from_slice(&connection).expect("JSON");
    let url = connection["nats_url"].as_str().expect("a URL").to_owned();
    let log = EventLog::connect(&eventlog::Config { url, name: "edge-test".into(), master_key: None }).await;
    let routes = log.expect("connected").bucket(ROUTES);
    routes.put(KEY, route(1, &[one, two])).await.expect("NATS takes the route");
    answers(&sluice).await;

    let load = Load::new(sluice.edge(), HOST).start();
    let mut socket = Client::websocket(sluice.edge()).await;
    let (old, new) = upgrade(&sluice).await.expect("upgraded");
    assert_eq!(serving(&sluice), Some(new));
    load.more(100).await;
    assert!(socket.echoes().await);
    until("the old one has ended", async || (!lives(old)).then_some(())).await;
    // A third edge would have found the address taken, and the log would say so.
    load.more(100).await;
    let report = load.stop().await;
    assert_eq!(report.failed, 0, "{:?}\n{}", report.failures, sluice.log_text());
    assert!(sluice.log_text().contains("following it"), "{}", sluice.log_text());
    assert!(!sluice.log_text().contains("cannot listen"), "{}", sluice.log_text());

    // Killed after that, without NATS, and with a container that died meanwhile.
    let nats = sluice.pid("nats-server").expect("runs");
    kill_process(nats, Signal::STOP).expect("stopped");
    let before = sluice.log_text().len();
    kill_process(new, Signal::KILL).expect("killed");
    drop(dies);
    until("another edge serves", async || serving(&sluice).filter(|pid| *pid != new)).await;
    answers(&sluice).await;
    let load = Load::new(sluice.edge(), HOST).start();
    load.more(100).await;
    let report = load.stop().await;
    assert_eq!(report.failed, 0, "{:?}", report.failures);
    let log = sluice.log_text().split_off(before);
    assert!(!log.contains("does not take connections"), "a request was sent to the one that died: {log}");
    kill_process(nats, Signal::CONT).expect("goes on");

    // The supervisor dies, the edge is upgraded without it, and the next supervisor adopts the right process.
    sluice.kill().await.expect("killed");
    let (_, new) = upgrade(&sluice).await.expect("upgraded");
    sluice.start().await.expect("starts");
    assert_eq!(serving(&sluice), Some(new));
    answers(&sluice).await;

    // Stopped in the middle of a hand-over, nothing stays behind.
    let mut socket = Client::websocket(sluice.edge()).await;
    let (old, new) = upgrade(&sluice).await.expect("upgraded");
    assert!(socket.echoes().await);
    sluice.stop().await.expect("stops");
    assert!(!lives(old) && !lives(new), "{}", sluice.log_text());
    assert!(sluice.pid("edge").is_err(), "no pid file is left");
}
