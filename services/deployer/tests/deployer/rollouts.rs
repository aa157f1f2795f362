//! Rollouts that go well.

use domain::{
    settings::{Check, HealthCheck, QueuePolicy, Strategy},
    stage::Outcome,
    traffic::Target,
};
use testkit::SampleImage;

use crate::lab::Lab;

#[tokio::test]
async fn a_first_release_takes_the_route_and_stays() {
    let lab = Lab::new().await;
    let image = lab.image("v1", SampleImage::new("1")).await;
    let settings = domain::settings::StageSettings { replicas: 2, ..lab.settings() };
    let run = lab.deploy(image, settings).await;
    assert_eq!(
        run.names,
        ["requested", "dispatched", "started", "pulled", "created", "healthy", "switched", "retired", "succeeded"]
    );
    assert_eq!(lab.standing().await[&run.deployment], (2, 2));

    let (deployment, addresses) = lab.live().await.expect("a live route");
    assert_eq!((deployment, addresses.len()), (run.deployment, 2));
    for (_, container) in lab.containers().await {
        let found = lab.docker.client().inspect_container(&container.id.expect("an id"), None).await.expect("there");
        let host = found.host_config.expect("set");
        assert_eq!(host.restart_policy.and_then(|p| p.name).map(|n| n.to_string()).as_deref(), Some("always"));
        assert_eq!(host.security_opt, Some(vec!["no-new-privileges".to_owned()]));
    }
    lab.close().await;
}

#[tokio::test]
async fn the_next_release_replaces_it_and_what_is_beyond_retention_goes() {
    let lab = Lab::new().await;
    let settings = domain::settings::StageSettings { keep: 1, ..lab.settings() };
    let mut runs = Vec::new();
    for version in ["1", "2", "3"] {
        let image = lab.image(version, SampleImage::new(version)).await;
        let run = lab.deploy(image, settings.clone()).await;
        assert_eq!(run.outcome, Outcome::Succeeded, "{run:?}");
        assert_eq!(lab.live().await.expect("live").0, run.deployment);
        runs.push(run);
    }
    assert!(runs[1].names.contains(&"drained".to_owned()), "{:?}", runs[1].names);
    lab.stands("one runs, one is kept", |standing| {
        standing.get(&runs[2].deployment) == Some(&(1, 1))
            && standing.get(&runs[1].deployment) == Some(&(0, 1))
            && !standing.contains_key(&runs[0].deployment)
    })
    .await;
    lab.close().await;
}

#[tokio::test]
async fn recreate_holds_the_route_while_the_old_stops() {
    let lab = Lab::new().await;
    let settings = domain::settings::StageSettings { strategy: Strategy::Recreate, ..lab.settings() };
    let first = lab.deploy(lab.image("v1", SampleImage::new("1")).await, settings.clone()).await;
    assert_eq!(first.outcome, Outcome::Succeeded, "{first:?}");
    let run = lab.deploy(lab.image("v2", SampleImage::new("2").env("IGNORE_SIGTERM", 1)).await, settings).await;
    assert_eq!(
        run.names,
        [
            "requested",
            "dispatched",
            "started",
            "pulled",
            "held",
            "drained",
            "retired",
            "created",
            "healthy",
            "switched",
            "succeeded"
        ]
    );
    let edge = lab.edge.as_ref().expect("an edge");
    assert_eq!(edge.hosts(), [format!("{}.test", lab.project)]);
    let history = edge.history.lock().expect("unpoisoned").clone();
    assert!(matches!(history[..], [Target::Live(_), Target::Held { .. }, Target::Live(_)]), "{history:?}");
    lab.close().await;
}

#[tokio::test]
async fn the_images_own_healthcheck_and_no_route_at_all() {
    let lab = Lab::new().await;
    let health = HealthCheck { check: Check::Image, path: None, ..lab.settings().health };
    let settings = domain::settings::StageSettings { health, route: None, ..lab.settings() };
    let image = lab.image("v1", SampleImage::new("1").with_healthcheck()).await;
    let run = lab.deploy(image, settings).await;
    assert_eq!(
        run.names,
        ["requested", "dispatched", "started", "pulled", "created", "healthy", "retired", "succeeded"]
    );
    assert_eq!(lab.live().await, None);
    lab.close().await;
}

#[tokio::test]
async fn requests_that_wait_are_carried_out_in_order() {
    let lab = Lab::new().await;
    let settings = domain::settings::StageSettings { queue: QueuePolicy::Keep, ..lab.settings() };
    let mut requested = Vec::new();
    for version in ["1", "2", "3", "4"] {
        let image = lab.image(version, SampleImage::new(version)).await;
        requested.push(lab.request(image, settings.clone()).await);
    }
    for deployment in &requested {
        let run = lab.end(*deployment).await;
        assert_eq!(run.outcome, Outcome::Succeeded, "{run:?}");
        assert_eq!(run.names.iter().filter(|name| *name == "started").count(), 1, "nobody takes it up twice: {run:?}");
    }
    let last = *requested.last().expect("four");
    assert_eq!(lab.live().await.expect("live").0, last);
    lab.stands("one runs, three are kept", |standing| {
        standing.len() == 4 && standing.iter().all(|(id, all)| *all == (usize::from(*id == last), 1))
    })
    .await;
    lab.close().await;
}
