//! The main job.

use std::{collections::HashMap, time::Duration};

use bollard::query_parameters::ListContainersOptionsBuilder;
use testkit::{Load, SampleImage, WebSocket};
use tokio::time::timeout;

use crate::harness::Sluice;

const STAGE: &str = "  dev:
    route: {host: shop.test}
    health: {check: http, path: /healthz, interval: 200ms, timeout: 1s, retries: 2, start_period: 3s}
    drain: 5s
    stop_grace: 3s
";

#[tokio::test]
async fn a_new_version_takes_over_under_load_and_a_broken_one_does_not_without_one_failed_request() {
    let sluice = Sluice::up().await;
    sluice.apply(STAGE).await;
    let first = sluice.push(SampleImage::new("1"), "v1").await;
    let second = sluice.push(SampleImage::new("2"), "v2").await;
    let broken = sluice.push(SampleImage::new("3").broken(), "v3").await;
    assert_eq!(sluice.get("shop.test", "/").await.0, 404, "no route before the first deployment");

    sluice.run(&["deploy", "shop", "dev", &first, "--follow"]).await;
    let keep_alive = Load::new(&sluice.edge, "shop.test").connections(8).rate(200).start();
    let fresh = Load::new(&sluice.edge, "shop.test").connections(4).rate(100).without_keep_alive().start();
    keep_alive.more(100).await;
    sluice.run(&["deploy", "shop", "dev", &second, "--follow"]).await;
    keep_alive.more(100).await;
    let (code, said) = sluice.refused(&["deploy", "shop", "dev", &broken, "--follow"]).await;
    keep_alive.more(100).await;
    let mut report = keep_alive.stop().await;
    report.add(fresh.stop().await);

    assert_eq!(report.failed, 0, "{:?}", report.failures);
    assert!(report.versions.contains_key("1") && report.versions.contains_key("2"), "{:?}", report.versions);
    assert!(!report.versions.contains_key("3"), "{:?}", report.versions);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("/healthz") && said.contains("500"), "it must say why: {said}");
    assert!(sluice.get("shop.test", "/").await.1.contains('2'));

    let deployments = sluice.json(&["deployments", "shop", "dev"]).await;
    let outcomes: Vec<&str> =
        deployments.as_array().expect("a list").iter().filter_map(|d| d["status"].as_str()).collect();
    assert_eq!(outcomes, ["failed", "succeeded", "succeeded"]);
    let subjects: Vec<String> = serde_json::from_value(
        sluice.json(&["events", "--subject", "sluice.events.stage.shop.dev.deployment.>"]).await,
    )
    .map(|events: Vec<serde_json::Value>| {
        events.iter().filter_map(|e| e["subject"].as_str().map(str::to_owned)).collect()
    })
    .expect("events");
    for happened in [
        "requested",
        "dispatched.local",
        "started",
        "pulled",
        "created",
        "healthy",
        "switched",
        "drained",
        "retired",
        "succeeded",
        "failed",
    ] {
        assert!(
            subjects.iter().any(|s| s.ends_with(&format!("deployment.{happened}"))),
            "{happened} is missing: {subjects:?}"
        );
    }
}

#[tokio::test]
async fn recreate_holds_requests_instead_of_dropping_them() {
    let sluice = Sluice::up().await;
    sluice.apply(&STAGE.replace("    drain: 5s\n", "    drain: 5s\n    strategy: recreate\n")).await;
    let first = sluice.push(SampleImage::new("1"), "v1").await;
    let second = sluice.push(SampleImage::new("2"), "v2").await;
    sluice.run(&["deploy", "shop", "dev", &first, "--follow"]).await;
    let load = Load::new(&sluice.edge, "shop.test").connections(8).rate(100).deadline(Duration::from_secs(40)).start();
    load.more(50).await;
    sluice.run(&["deploy", "shop", "dev", &second, "--follow"]).await;
    load.more(50).await;
    let report = load.stop().await;
    assert_eq!(report.failed, 0, "{:?}", report.failures);
    assert!(report.versions.contains_key("2"), "{:?}", report.versions);
}

#[tokio::test]
async fn a_websocket_lives_on_its_old_set_until_the_drain_deadline() {
    let sluice = Sluice::up().await;
    sluice.apply(STAGE).await;
    let first = sluice.push(SampleImage::new("1").env("IGNORE_SIGTERM", 1), "v1").await;
    let second = sluice.push(SampleImage::new("2"), "v2").await;
    sluice.run(&["deploy", "shop", "dev", &first, "--follow"]).await;
    let mut socket = WebSocket::connect(&sluice.edge, "shop.test", "/ws").await.expect("connected");
    socket.echo("before").await.expect("echoed");
    sluice.run(&["deploy", "shop", "dev", &second]).await;
    let switched = async {
        while !sluice.get("shop.test", "/").await.1.contains('2') {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(Duration::from_secs(60), switched).await.expect("version 2 takes over");
    socket.echo("after the switch").await.expect("still echoed by the old set");
    timeout(Duration::from_secs(30), socket.closed()).await.expect("closed at the drain deadline");
}

#[tokio::test]
async fn a_cancel_leaves_the_old_version_serving_and_the_queue_goes_on() {
    let sluice = Sluice::up().await;
    sluice.apply(&STAGE.replace("start_period: 3s", "start_period: 60s")).await;
    let first = sluice.push(SampleImage::new("1"), "v1").await;
    let slow = sluice.push(SampleImage::new("2").env("START_DELAY_MS", 600_000), "v2").await;
    let third = sluice.push(SampleImage::new("3"), "v3").await;
    sluice.run(&["deploy", "shop", "dev", &first, "--follow"]).await;
    let deployment =
        sluice.json(&["deploy", "shop", "dev", &slow]).await["deployment"].as_str().expect("an id").to_owned();
    sluice.step_done(&deployment, "create").await;
    sluice.run(&["deploy", "shop", "dev", &third]).await;
    sluice.run(&["cancel", &deployment]).await;
    let served = async {
        while !sluice.get("shop.test", "/").await.1.contains('3') {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(Duration::from_secs(60), served).await.expect("the next in the queue takes over");
    assert_eq!(sluice.json(&["deployment", &deployment]).await["status"], "cancelled");
}

#[tokio::test]
async fn archiving_a_stage_removes_its_containers_and_its_route() {
    let sluice = Sluice::up().await;
    sluice.apply(STAGE).await;
    let first = sluice.push(SampleImage::new("1"), "v1").await;
    sluice.run(&["deploy", "shop", "dev", &first, "--follow"]).await;
    let deployment = sluice.json(&["deployments", "shop", "dev"]).await[0]["id"].as_str().expect("an id").to_owned();
    sluice.run(&["stage", "archive", "shop", "dev"]).await;
    let gone = async {
        while sluice.get("shop.test", "/").await.0 != 404 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(Duration::from_secs(60), gone).await.expect("the route goes");
    let filters = HashMap::from([("label", vec![format!("dev.sluice.deployment={deployment}")])]);
    let left = async {
        loop {
            let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
            if sluice.docker.client().list_containers(Some(options)).await.expect("listed").is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(Duration::from_secs(60), left).await.expect("the containers go");
    let (code, said) = sluice.refused(&["deploy", "shop", "dev", &first]).await;
    assert_eq!(code, 3, "{said}");
}
