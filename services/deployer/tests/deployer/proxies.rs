//! Whole rollouts behind a proxy of the user's own that deployments change themselves.

use domain::{
    DeploymentId, Key, Span,
    proxy::{Command as Declare, Driver, Mode, Settings},
    settings::{RouteSettings, StageSettings},
    stage::{Command, Outcome},
};
use testkit::{Load, SampleImage, UserProxy};

use crate::lab::Lab;

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
