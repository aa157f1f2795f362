//! What cannot work ends in an error that says so, and leaves what served before as it was.

use std::net::SocketAddr;

use domain::{
    Key, Span,
    image::{Image, Source},
    proxy::{Command as Declare, Driver, Mode, Settings},
    registry::{self, Registry as Credentials},
    settings::{Check, HealthCheck, RouteSettings, StageSettings, Strategy},
    stage::{Outcome, Step},
};
use eventlog::Secret;
use testkit::{Registry, SampleImage};

use crate::lab::{Lab, Run};

/// Deploys what works, then `image`, which does not; checks that the first serves on, alone.
async fn refused_beside_a_good_one(lab: &Lab, image: Image, settings: StageSettings) -> Run {
    let good = lab.image("good", SampleImage::new("1")).await;
    let good = lab.deploy(good, StageSettings { strategy: settings.strategy, ..lab.settings() }).await;
    assert_eq!(good.outcome, Outcome::Succeeded, "{good:?}");
    let before = lab.live().await.expect("live");
    let run = lab.deploy(image, settings).await;
    assert!(!run.failure().hint.is_empty());
    let (serving, addresses) = lab.live().await.expect("live");
    assert_eq!((serving, addresses.len()), (good.deployment, before.1.len()));
    lab.stands("the good one, and nothing else", |standing| {
        standing.len() == 1 && standing.get(&good.deployment) == Some(&(1, 1))
    })
    .await;
    run
}

#[tokio::test]
async fn a_container_that_exits_at_once() {
    let lab = Lab::new().await;
    let image = lab.image("bad", SampleImage::new("2").exits_at_once()).await;
    let run = refused_beside_a_good_one(&lab, image, lab.settings()).await;
    let failure = run.failure();
    assert_eq!((run.outcome, failure.code.as_str()), (Outcome::Failed, "exited"), "{failure:?}");
    assert!(failure.message.contains("exit code 3"), "{failure:?}");
    assert!(failure.log.iter().any(|line| line.contains("gives up")), "{failure:?}");
    lab.close().await;
}

#[tokio::test]
async fn one_that_is_never_healthy_and_the_old_comes_back_from_a_recreate() {
    let lab = Lab::new().await;
    let image = lab.image("bad", SampleImage::new("2").broken()).await;
    let settings = StageSettings { strategy: Strategy::Recreate, ..lab.settings() };
    let run = refused_beside_a_good_one(&lab, image, settings).await;
    let failure = run.failure();
    assert_eq!((run.outcome, failure.code.as_str()), (Outcome::RolledBack, "unhealthy"), "{failure:?}");
    assert!(failure.message.contains("GET /healthz answered 500"), "{failure:?}");
    assert!(
        run.names.ends_with(&["step_failed", "discarded", "restored", "reverted", "rolled_back"].map(String::from))
    );
    lab.close().await;
}

#[tokio::test]
async fn one_that_is_healthy_and_then_dies_while_it_is_watched() {
    let lab = Lab::new().await;
    let image = lab.image("bad", SampleImage::new("2").env("EXIT_AFTER_MS", 5000).env("EXIT_CODE", 4)).await;
    let settings = StageSettings { bake: Span::secs(20), ..lab.settings() };
    let run = refused_beside_a_good_one(&lab, image, settings).await;
    let failure = run.failure();
    assert_eq!(
        (run.outcome, failure.code.as_str(), failure.step),
        (Outcome::RolledBack, "exited", Step::Bake),
        "{failure:?}"
    );
    assert!(failure.message.contains("exit code 4"), "{failure:?}");
    lab.close().await;
}

#[tokio::test]
async fn one_that_becomes_unhealthy_while_it_is_watched() {
    let lab = Lab::new().await;
    let image = lab.image("bad", SampleImage::new("2").env("UNHEALTHY_AFTER_MS", 5000)).await;
    let settings = StageSettings { bake: Span::secs(20), ..lab.settings() };
    let run = refused_beside_a_good_one(&lab, image, settings).await;
    assert_eq!((run.outcome, run.failure().code.as_str()), (Outcome::RolledBack, "unhealthy"), "{run:?}");
    lab.close().await;
}

#[tokio::test]
async fn an_image_that_does_not_fit_the_stage_or_the_node() {
    let lab = Lab::new().await;
    let portless = lab.image("portless", SampleImage::new("2").without_exposed_port()).await;
    let run = refused_beside_a_good_one(&lab, portless.clone(), lab.settings()).await;
    assert_eq!((run.failure().code.as_str(), run.failure().step), ("no_port", Step::Pull));

    let run = lab.deploy(portless, StageSettings { port: Some(8080), ..lab.settings() }).await;
    assert_eq!(run.outcome, Outcome::Succeeded, "a declared port will do: {run:?}");

    let foreign = lab.image("foreign", SampleImage::new("2").architecture("riscv64")).await;
    let refused = lab.resolve(&foreign.requested).await.expect_err("another architecture");
    assert_eq!(refused.code, "wrong_platform", "{refused:?}");
    let run = lab.deploy(foreign, lab.settings()).await;
    assert_eq!((run.failure().code.as_str(), run.failure().step), ("wrong_platform", Step::Pull));

    let health = HealthCheck { check: Check::Image, path: None, ..lab.settings().health };
    let plain = lab.image("plain", SampleImage::new("2")).await;
    let run = lab.deploy(plain, StageSettings { health, ..lab.settings() }).await;
    assert_eq!((run.failure().code.as_str(), run.failure().step), ("no_healthcheck", Step::Pull));
    lab.close().await;
}

#[tokio::test]
async fn without_an_edge_nothing_can_switch() {
    let mut lab = Lab::without_edge().await;
    lab.start_deployer().await;
    let image = lab.image("v1", SampleImage::new("1")).await;
    let run = lab.deploy(image, lab.settings()).await;
    assert_eq!((run.outcome, run.failure().code.as_str()), (Outcome::Failed, "no_edge"), "{run:?}");
    assert_eq!(lab.route().await, None);
    lab.close().await;
}

#[tokio::test]
async fn what_a_registry_does_not_have_or_does_not_give() {
    let lab = Lab::new().await;
    let registry = Registry::start_guarded().await.expect("a registry");
    let local = lab.image("v1", SampleImage::new("1")).await;
    let reference = registry.push(&lab.docker, &local.requested, "shop:v1").await.expect("pushed");
    let client = lab.docker.client();
    client
        .remove_image(&reference, None::<bollard::query_parameters::RemoveImageOptions>, None)
        .await
        .expect("untagged");

    let refused = lab.resolve(&reference).await.expect_err("no credentials");
    assert_eq!(refused.code, "registry_unauthorized", "{refused:?}");
    store(&lab, registry.address(), "wrong?~>").await;
    let refused = lab.resolve(&reference).await.expect_err("wrong credentials");
    assert_eq!(refused.code, "registry_unauthorized", "{refused:?}");
    assert!(refused.hint.contains(registry.address()), "{refused:?}");
    assert!(!format!("{refused:?}").contains("wrong?~>"), "{refused:?}");

    store(&lab, registry.address(), Registry::PASSWORD).await;
    let image = lab.resolve(&reference).await.expect("resolved");
    assert_eq!((image.source, image.requested.as_str()), (Source::Registry, reference.as_str()));
    let by_digest = lab.resolve(&image.pinned()).await.expect("by digest");
    assert_eq!(by_digest.digest, image.digest);
    let refused = lab.resolve(&format!("{}/shop:v9", registry.address())).await.expect_err("no such tag");
    assert_eq!(refused.code, "image_not_found", "{refused:?}");
    let refused = lab.resolve("127.0.0.1:9/shop:v1").await.expect_err("nobody listens there");
    assert_eq!(refused.code, "registry_unreachable", "{refused:?}");
    let refused = lab.resolve("Not An Image").await.expect_err("no reference");
    assert_eq!(refused.code, "bad_reference", "{refused:?}");

    let run = lab.deploy(image.clone(), lab.settings()).await;
    assert_eq!(run.outcome, Outcome::Succeeded, "{run:?}");
    let gone = Image { digest: format!("sha256:{}", "1".repeat(64)), ..image };
    let run = lab.deploy(gone, lab.settings()).await;
    assert_eq!((run.failure().code.as_str(), run.failure().step), ("image_not_found", Step::Pull), "{run:?}");
    lab.close().await;
}

async fn store(lab: &Lab, host: &str, password: &str) {
    let key = Key::<Credentials>::registry(host).expect("a host");
    let version = lab.log.vault().put(&key.secret(), &Secret::new(password)).await.expect("kept");
    let username = Registry::USER.to_owned();
    let command = registry::Command::SetCredentials { host: host.into(), username, secret: key.secret(), version };
    lab.log.execute(&key, command, &runtime::clock::context("test")).await.expect("stored");
}

#[tokio::test]
async fn an_image_that_only_the_node_has() {
    let lab = Lab::new().await;
    let image = lab.image("v1", SampleImage::new("1")).await;
    assert_eq!(lab.resolve(&image.requested).await.expect("built here"), image);

    // Named after a registry that does not have it.
    let registry = Registry::start().await.expect("a registry");
    let named = format!("{}/shop:v1", registry.address());
    SampleImage::new("1").load(&lab.docker, &named).await.expect("loads");
    let found = lab.resolve(&named).await.expect("local");
    assert_eq!((found.source, &found.digest), (Source::Local, &image.digest));
    lab.close().await;
}

#[tokio::test]
async fn a_proxy_among_what_a_cloud_tells_its_machines() {
    let caddy = testkit::UserProxy::caddy().await.expect("Caddy starts");
    let metadata = "169.254.169.254";
    let url = format!("http://{metadata}:80");
    let port = caddy.address().parse::<SocketAddr>().expect("an address").port();
    for (driver, url, address, code) in [
        (Driver::Caddy, url.clone(), caddy.address(), "proxy_address_refused"),
        (Driver::Npm, url, caddy.address(), "proxy_address_refused"),
        // The admin API is where it should be; what the probe would ask is not.
        (Driver::Caddy, caddy.url(), format!("{metadata}:{port}"), "not_confirmed"),
    ] {
        let lab = Lab::new().await;
        let name = "front".parse().expect("a slug");
        let declared = Settings { driver, mode: Mode::Direct, url: Some(url), address: Some(address), edge: None };
        let context = runtime::clock::context("test");
        lab.log.execute(&Key::proxy(&name), Declare::Configure(declared), &context).await.expect("declared");
        let route = Some(RouteSettings { host: format!("{}.test", lab.project), path: "/".into(), proxy: Some(name) });
        let image = lab.image("v2", SampleImage::new("2")).await;
        let run = refused_beside_a_good_one(&lab, image, StageSettings { route, ..lab.settings() }).await;
        assert_eq!(run.failure().code, code, "{:?}", run.failure());
        lab.close().await;
    }
}
