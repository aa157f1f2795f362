//! Whole rollouts behind a proxy of the user's own that deployments change themselves.

use domain::{
    DeploymentId, Key, Span,
    proxy::{Command as Declare, Driver, Mode, Settings},
    settings::{RouteSettings, StageSettings},
    stage::{Command, Outcome},
};
use testkit::{Load, SampleImage, UserProxy};
use tokio::{net::TcpListener, time::timeout};

use crate::lab::{Lab, PATIENCE};

/// The version that answers for the stage's host, or the status where none does.
async fn version(lab: &Lab, caddy: &UserProxy) -> String {
    let asked = reqwest::Client::new().get(format!("http://{}/", caddy.address()));
    let answer = asked.header("host", host(lab)).send().await.expect("Caddy answers");
    let version = answer.headers().get("x-version").and_then(|version| version.to_str().ok());
    version.map_or_else(|| answer.status().as_u16().to_string(), str::to_owned)
}

fn host(lab: &Lab) -> String {
    format!("{}.test", lab.project)
}

#[tokio::test]
async fn caddy_serves_each_release_and_keeps_the_one_that_works() {
    let caddy = UserProxy::caddy().await.expect("Caddy starts");
    // No edge runs: none is needed.
    let mut lab = Lab::without_edge().await;
    let name: domain::Slug = "front".parse().expect("a slug");
    let settings = Settings {
        driver: Driver::Caddy,
        mode: Mode::Direct,
        url: Some(caddy.url()),
        address: Some(caddy.address()),
        edge: None,
    };
    let context = runtime::clock::context("test");
    lab.log.execute(&Key::proxy(&name), Declare::Configure(settings), &context).await.expect("declared");
    lab.start_deployer().await;
    let route = Some(RouteSettings { host: host(&lab), path: "/".into(), proxy: Some(name) });
    let settings = StageSettings { route, drain: Span::secs(1), ..lab.settings() };

    let first = lab.deploy(lab.image("v1", SampleImage::new("1")).await, settings.clone()).await;
    assert_eq!(first.outcome, Outcome::Succeeded, "{first:?}");
    assert_eq!(version(&lab, &caddy).await, "1");

    let load = Load::new(&caddy.address(), &host(&lab)).rate(100).start();
    load.more(20).await;
    let second = lab.deploy(lab.image("v2", SampleImage::new("2")).await, settings.clone()).await;
    assert_eq!(second.outcome, Outcome::Succeeded, "{second:?}");
    load.more(20).await;
    let report = load.stop().await;
    assert!(report.versions.contains_key("1") && report.versions.contains_key("2"), "{report:?}");
    let statuses = report.failures.keys().filter(|reason| reason.starts_with("status"));
    assert_eq!(statuses.count(), 0, "{:?}", report.failures);

    // One that falls ill after the switch: the proxy goes back.
    let ill = SampleImage::new("3").env("EXIT_AFTER_MS", 3000);
    let third =
        lab.deploy(lab.image("v3", ill).await, StageSettings { bake: Span::secs(20), ..settings.clone() }).await;
    assert_eq!(third.outcome, Outcome::RolledBack, "{third:?}");
    assert!(third.names.contains(&"switched".to_owned()) && third.names.contains(&"reverted".to_owned()), "{third:?}");
    assert_eq!(version(&lab, &caddy).await, "2");

    // A stage that holds requests back cannot lie behind it.
    let strategy = domain::settings::Strategy::Recreate;
    let refused =
        lab.deploy(lab.image("v4", SampleImage::new("4")).await, StageSettings { strategy, ..settings }).await;
    assert_eq!(refused.failure().code, "cannot_hold", "{refused:?}");
    assert_eq!(version(&lab, &caddy).await, "2");

    let removal = DeploymentId(runtime::clock::new_id());
    lab.execute(Command::Archive { removal }).await;
    assert_eq!(lab.end(removal).await.outcome, Outcome::Succeeded);
    assert_eq!(version(&lab, &caddy).await, "404", "the user's own route takes the rest");
    lab.close().await;
}

/// A Caddy that a stage moves to, and whose answers to clients never come.
async fn silent(caddy: &UserProxy) -> (TcpListener, Settings) {
    let (_, port) =
        caddy.address().rsplit_once(':').map(|(ip, port)| (ip.to_owned(), port.to_owned())).expect("ip:port");
    let listener = TcpListener::bind(format!("127.0.0.2:{port}")).await.expect("a port");
    let address = Some(listener.local_addr().expect("an address").to_string());
    (listener, Settings { driver: Driver::Caddy, mode: Mode::Direct, url: Some(caddy.url()), address, edge: None })
}

#[tokio::test]
async fn a_switch_to_a_direct_proxy_that_is_cut_off_leaves_nothing_there() {
    let caddy = UserProxy::caddy().await.expect("Caddy starts");
    let lab = Lab::new().await;
    let (listener, settings) = silent(&caddy).await;
    let name: domain::Slug = "front".parse().expect("a slug");
    let context = runtime::clock::context("test");
    lab.log.execute(&Key::proxy(&name), Declare::Configure(settings), &context).await.expect("declared");

    let first = lab.deploy(lab.image("v1", SampleImage::new("1")).await, lab.settings()).await;
    assert_eq!(first.outcome, Outcome::Succeeded, "{first:?}");
    let route = Some(RouteSettings { host: host(&lab), path: "/".into(), proxy: Some(name) });
    let moved = StageSettings { route, ..lab.settings() };
    let second = lab.request(lab.image("v2", SampleImage::new("2")).await, moved).await;
    // The proxy has it, and is asked whether it shows it.
    let probe = timeout(PATIENCE, listener.accept()).await.expect("a probe comes").expect("accepted");
    assert_eq!(version(&lab, &caddy).await, "2");
    lab.cancel(second).await;
    drop((probe, listener));
    assert_eq!(lab.end(second).await.outcome, Outcome::Cancelled);
    lab.live_is(first.deployment).await;
    assert_eq!(lab.route().await.expect("a route").front, None);
    assert_eq!(version(&lab, &caddy).await, "404", "nothing of the stage is left at the proxy");
    lab.close().await;
}
