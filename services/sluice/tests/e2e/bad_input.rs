//! What goes in wrong must come out as a clear error that names the field or the step and says what
//! to do, and must change nothing it should not: each test ends by looking at what still serves.

use std::{net::TcpListener, time::Duration};

use testkit::{Docker, Registry, SampleImage};

use crate::harness::Sluice;

const STAGE: &str = "  dev:
    route: {host: shop.test}
    health: {check: http, path: /healthz, interval: 100ms, timeout: 1s, retries: 2, start_period: 1s}
    drain: 1s
    stop_grace: 1s
    bake: 2s
";

/// An installation on which version 1 of `shop dev` serves.
async fn serving() -> Sluice {
    serving_on(Docker::connect_or_start().await.expect("an engine")).await
}

async fn serving_on(docker: Docker) -> Sluice {
    let sluice = Sluice::up_on(docker).await;
    sluice.apply(STAGE).await;
    let first = sluice.push(SampleImage::new("1"), "v1").await;
    sluice.run(&["deploy", "shop", "dev", &first, "--follow"]).await;
    sluice
}

/// Deploys `reference`, which must be refused or fail with all of `words`; version 1 serves on.
async fn fails(sluice: &Sluice, reference: &str, words: &[&str]) {
    let (_, said) = sluice.refused(&["deploy", "shop", "dev", reference, "--follow"]).await;
    for word in words {
        assert!(said.contains(word), "`{word}` is not in: {said}");
    }
    assert_eq!(sluice.get("shop.test", "/healthz").await.0, 200);
    assert!(sluice.get("shop.test", "/").await.1.contains('1'), "version 1 no longer serves");
    let status = sluice.json(&["status", "shop", "dev"]).await;
    assert!(status.to_string().contains("v1"), "{status}");
}

#[tokio::test]
async fn an_unknown_tag_repository_or_registry() {
    let sluice = serving().await;
    let registry = sluice.registry.address().to_owned();
    fails(&sluice, &format!("{registry}/shop:nope"), &["shop:nope", "has no image"]).await;
    fails(&sluice, &format!("{registry}/nothing:v1"), &["nothing:v1", "has no image"]).await;
    fails(&sluice, "127.0.0.1:9/shop:v1", &["127.0.0.1:9", "reach"]).await;
    fails(&sluice, "Not An Image", &["is not an image"]).await;
}

#[tokio::test]
async fn wrong_credentials_and_then_the_right_ones() {
    let sluice = serving().await;
    let guarded = Registry::start_guarded().await.expect("a registry");
    SampleImage::new("2").load(&sluice.docker, "sluice-e2e-guarded:v2").await.expect("loaded");
    let reference = guarded.push(&sluice.docker, "sluice-e2e-guarded:v2", "shop:v2").await.expect("pushed");
    sluice.forget(&["sluice-e2e-guarded:v2", &reference]).await;
    fails(&sluice, &reference, &["registry login", guarded.address()]).await;
    let login = ["registry", "login", guarded.address(), "--username", Registry::USER];
    assert!(sluice.run_with_input(&login, "wrong-password\n").await.status.success());
    fails(&sluice, &reference, &["registry login", guarded.address()]).await;
    assert!(sluice.run_with_input(&login, &format!("{}\n", Registry::PASSWORD)).await.status.success());
    sluice.run(&["deploy", "shop", "dev", &reference, "--follow"]).await;
    assert!(sluice.get("shop.test", "/").await.1.contains('2'));
    // Neither password shows anywhere.
    let events = sluice.run(&["events", "--limit", "1000", "--json"]).await;
    for secret in ["wrong-password", Registry::PASSWORD] {
        assert!(!events.contains(secret) && !sluice.log_text().contains(secret), "a password leaked");
    }
}

#[tokio::test]
async fn no_exposed_port() {
    let sluice = serving().await;
    let image = sluice.push(SampleImage::new("2").without_exposed_port(), "v2").await;
    fails(&sluice, &image, &["port", "`port`"]).await;
}

#[tokio::test]
async fn another_architecture() {
    let sluice = serving().await;
    let image = sluice.push(SampleImage::new("2").architecture("arm64"), "v2").await;
    fails(&sluice, &image, &["arm64", "amd64"]).await;
}

#[tokio::test]
async fn a_container_that_exits_at_once() {
    let sluice = serving().await;
    let image = sluice.push(SampleImage::new("2").exits_at_once(), "v2").await;
    fails(&sluice, &image, &["exited", "3"]).await;
}

#[tokio::test]
async fn a_container_that_is_never_healthy() {
    let sluice = serving().await;
    let image = sluice.push(SampleImage::new("2").broken(), "v2").await;
    fails(&sluice, &image, &["/healthz", "500"]).await;
}

#[tokio::test]
async fn a_container_that_dies_in_the_bake_window_is_rolled_back() {
    let sluice = serving().await;
    let image = sluice.push(SampleImage::new("2").env("EXIT_AFTER_MS", 1500).env("EXIT_CODE", 7), "v2").await;
    fails(&sluice, &image, &["exited", "7"]).await;
    assert_eq!(sluice.json(&["deployments", "shop", "dev"]).await[0]["status"], "rolled_back");
}

#[tokio::test]
async fn a_port_that_is_taken() {
    let mut sluice = Sluice::up().await;
    sluice.stop().await;
    for (variable, address) in [("API_LISTEN", sluice.api.clone()), ("EDGE_LISTEN", sluice.edge.clone())] {
        let _holder = TcpListener::bind(&address).expect("free now");
        let (_, said) = sluice.refused(&["up"]).await;
        assert!(said.contains(variable) && said.contains(&address), "{said}");
    }
}

#[tokio::test]
async fn declarations_that_cannot_be() {
    let sluice = serving().await;
    let cases = [
        ("unknown key", "project: shop\nstages:\n  dev:\n    replica: 2\n".to_owned(), vec!["replica"]),
        ("bad slug", "project: Shop!\nstages: {}\n".to_owned(), vec!["Shop!", "a-z"]),
        ("bad stage slug", "project: shop\nstages:\n  Dev: {}\n".to_owned(), vec!["Dev", "a-z"]),
        ("bad duration", "project: shop\nstages:\n  dev:\n    drain: 30\n".to_owned(), vec!["30s"]),
        (
            "bad field",
            "project: shop\nstages:\n  dev:\n    replicas: 0\n".to_owned(),
            vec!["stages.dev.replicas", "1 to 50"],
        ),
        ("10 MB", format!("project: shop\nname: {}\nstages: {{}}\n", "x".repeat(10 << 20)), vec!["1 MiB"]),
        (
            "two stages on one route",
            "project: shop\nstages:\n  dev:\n    route: {host: a.test}\n  prod:\n    route: {host: a.test}\n"
                .to_owned(),
            vec!["stages.prod.route", "dev"],
        ),
        (
            "another project's route",
            "project: other\nstages:\n  dev:\n    route: {host: shop.test}\n".to_owned(),
            vec!["shop", "dev", "stages.dev.route"],
        ),
    ];
    let before = sluice.json(&["projector", "checksum"]).await;
    for (name, yaml, words) in cases {
        let file = sluice.write("bad.yaml", &yaml);
        let (_, said) = sluice.refused(&["project", "apply", "-f", &file.display().to_string()]).await;
        for word in words {
            assert!(said.contains(word), "{name}: `{word}` is not in: {}", said.chars().take(2000).collect::<String>());
        }
        assert!(said.len() < 10_000, "{name}: the error repeats the input");
    }
    assert_eq!(sluice.json(&["projector", "checksum"]).await, before, "a refused declaration changed something");
}

#[tokio::test]
async fn a_disk_that_is_full_when_the_image_is_pulled() {
    let sluice = serving_on(Docker::start_private_with_room(40).await.expect("a small engine")).await;
    // Pushed by an engine that has room.
    let roomy = Docker::connect_or_start().await.expect("an engine");
    SampleImage::new("2").ballast(64).load(&roomy, "sluice-e2e-large:v2").await.expect("loaded");
    let large = sluice.registry.push(&roomy, "sluice-e2e-large:v2", "shop:v2").await.expect("pushed");
    fails(&sluice, &large, &["no space left", "docker system df"]).await;
}

#[tokio::test]
async fn an_engine_that_dies_in_the_middle() {
    let mut sluice = serving_on(Docker::start_private().await.expect("an engine")).await;
    let slow = sluice.push(SampleImage::new("2").env("START_DELAY_MS", 600_000), "v2").await;
    sluice.apply(&STAGE.replace("start_period: 1s", "start_period: 20s")).await;
    let deployment =
        sluice.json(&["deploy", "shop", "dev", &slow]).await["deployment"].as_str().expect("an id").to_owned();
    sluice.step_done(&deployment, "create").await;
    sluice.docker.kill().await.expect("killed");
    assert_eq!(sluice.get("shop.test", "/").await.0, 200, "containers do not need their engine to serve");
    let (_, said) = sluice.refused(&["deploy", "shop", "dev", "127.0.0.1:9/shop:v9"]).await;
    assert!(said.contains("Docker"), "{said}");
    sluice.docker.restart().await.expect("the engine is back");
    let ended = async {
        loop {
            let status = sluice.json(&["deployment", &deployment]).await["status"].clone();
            if status == "failed" && sluice.get("shop.test", "/").await.1.contains('1') {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(90), ended).await.expect("it fails, and version 1 serves");
    let third = sluice.push(SampleImage::new("3"), "v3").await;
    sluice.run(&["deploy", "shop", "dev", &third, "--follow"]).await;
    assert!(sluice.get("shop.test", "/").await.1.contains('3'));
}
