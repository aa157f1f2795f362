//! The end of stages and projects, and their return.

use domain::{
    DeploymentId, Key,
    image::{Image, Source},
    settings::{QueuePolicy, StageSettings},
    stage::{self, Kind, Spec, Stage},
};
use serde_json::json;

use crate::app::App;

fn deployment(answer: &crate::app::Answer) -> DeploymentId {
    answer.body["deployment"].as_str().expect("an id").parse().expect("a UUID")
}

#[tokio::test]
async fn an_archived_stage_gives_up_its_route_and_what_runs_is_removed_in_the_same_decision() {
    let app = App::start().await;
    app.image("v1", 'a');
    app.put("/projects/shop", json!({ "stages": { "dev": { "route": { "host": "x.test" } } } })).await.accepted();
    let requested = app.post("/projects/shop/stages/dev/deployments", json!({ "image": "v1" })).await;
    requested.accepted();
    let before = app.work("shop", "dev", deployment(&requested)).await;

    let archived = app.post("/projects/shop/stages/dev/archive", json!({})).await.accepted();
    assert_eq!(
        app.subjects(before).await,
        [
            "sluice.events.route.x_test.released",
            "sluice.events.stage.shop.dev.archived",
            "sluice.events.stage.shop.dev.deployment.requested",
            "sluice.events.stage.shop.dev.deployment.dispatched.local",
            "sluice.events.project.shop.stage.archived",
        ]
    );
    app.get(&format!("/projects/shop?at_least={archived}")).await.ok();
    app.post("/projects/shop/stages/dev/deployments", json!({ "image": "v1" })).await.problem(404, "stage_not_found");
    app.post("/projects/shop/stages/dev/archive", json!({})).await.problem(404, "stage_not_found");
    app.put("/projects/other", json!({ "stages": { "dev": { "route": { "host": "x.test" } } } })).await.accepted();

    // Declared again it takes deployments again.
    let reopened = app.put("/projects/shop/stages/dev", json!({})).await;
    assert_eq!(reopened.body["changes"], json!(["stage.reopened", "project.stage.added"]));
    app.post("/projects/shop/stages/dev/deployments", json!({ "image": "v1" })).await.accepted();
    app.stop().await;
}

#[tokio::test]
async fn an_archived_project_takes_nothing_more_and_is_listed_only_on_request() {
    let app = App::start().await;
    app.project("shop").await;
    let before = app.log.last_sequence().await.expect("an end");
    let archived = app.post("/projects/shop/archive", json!({})).await.accepted();
    assert_eq!(
        app.subjects(before).await,
        [
            "sluice.events.stage.shop.dev.archived",
            "sluice.events.stage.shop.prod.archived",
            "sluice.events.project.shop.stage.archived",
            "sluice.events.project.shop.stage.archived",
            "sluice.events.project.shop.archived",
        ]
    );
    assert_eq!(app.get(&format!("/projects?at_least={archived}")).await.ok(), json!([]));
    assert_eq!(app.get("/projects?archived=true").await.ok().as_array().map(Vec::len), Some(1));
    app.put("/projects/shop", json!({})).await.problem(409, "project_archived");
    app.put("/projects/shop/stages/dev", json!({})).await.problem(409, "project_archived");
    app.post("/projects/shop/stages/dev/deployments", json!({ "image": "v1" })).await.problem(409, "project_archived");
    app.stop().await;
}

#[tokio::test]
async fn a_project_on_which_more_waits_than_one_batch_holds_is_archived_all_the_same() {
    let app = App::start().await;
    app.project("shop").await;
    let image = Image { requested: "shop:v1".into(), digest: format!("sha256:{:064}", 1), source: Source::Registry };
    let settings = StageSettings { queue: QueuePolicy::Keep, ..StageSettings::default() };
    let keys =
        ["dev", "prod"].map(|stage| Key::<Stage>::stage(&"shop".parse().expect("good"), &stage.parse().expect("good")));
    for key in &keys {
        for _ in 0..520 {
            let deployment = DeploymentId(runtime::clock::new_id());
            let spec = Spec { image: image.clone(), settings: settings.clone() };
            let command = stage::Command::Request { deployment, spec, node: "elsewhere".into(), by: "ana".into() };
            app.log.execute(key, command, &runtime::clock::context("test")).await.expect("accepted");
        }
    }
    app.post("/projects/shop/archive", json!({})).await.accepted();
    for key in &keys {
        let stage = app.log.load(key).await.expect("loads").state;
        assert!(stage.archived && stage.queue.is_empty(), "{} left", stage.queue.len());
        assert!(stage.active.is_none_or(|active| active.kind == Kind::Removal));
    }
    app.stop().await;
}
