//! Declaring projects, and the routes that come with them.

use reqwest::Method;
use serde_json::json;

use crate::app::App;

fn on(host: &str) -> serde_json::Value {
    json!({ "route": { "host": host } })
}

#[tokio::test]
async fn what_is_declared_is_what_is_read() {
    let app = App::start().await;
    let declaration =
        json!({ "name": "The Shop", "stages": { "dev": on("dev.shop.test"), "prod": { "replicas": 2 } } });
    let answer = app.put("/projects/shop", declaration.clone()).await;
    let sequence = answer.accepted();
    assert_eq!(
        answer.body["changes"],
        json!(["route.claimed", "project.created", "project.stage.added", "project.stage.added"])
    );
    let project = app.get(&format!("/projects/shop?at_least={sequence}")).await.ok();
    assert_eq!((&project["name"], &project["slug"]), (&json!("The Shop"), &json!("shop")));
    assert_eq!(project["stages"]["prod"]["replicas"], 2);
    let stages = app.get("/projects/shop/stages").await.ok();
    assert_eq!(stages.as_array().map(Vec::len), Some(2));
    let stage = app.get("/projects/shop/stages/dev").await.ok();
    assert_eq!(stage["settings"]["route"]["host"], "dev.shop.test");
    assert_eq!(stage["settings"]["route"]["path"], "/");

    let again = app.put("/projects/shop", declaration).await;
    assert_eq!((again.accepted(), &again.body["changes"]), (sequence, &json!([])));

    let change = app.put("/projects/shop/stages/prod", json!({ "replicas": 3 })).await;
    assert_eq!(change.body["changes"], json!(["project.stage.changed"]));
    let stage = app.get(&format!("/projects/shop/stages/prod?at_least={}", change.accepted())).await.ok();
    assert_eq!(stage["settings"]["replicas"], 3);
    assert_eq!(app.get("/projects").await.ok().as_array().map(Vec::len), Some(1));
    assert_eq!(app.get("/stages").await.ok().as_array().map(Vec::len), Some(2));
    app.stop().await;
}

#[tokio::test]
async fn a_repeated_declaration_answers_alike_and_another_under_its_key_is_refused() {
    let app = App::start().await;
    let one = json!({ "stages": { "dev": on("one.test") } });
    let first = app.keyed(Method::PUT, "/projects/shop", one.clone(), "k").await.accepted();
    // Meanwhile, somebody else changes it.
    let two = app.put("/projects/shop", json!({ "stages": { "dev": on("two.test") } })).await.accepted();
    assert_eq!(app.keyed(Method::PUT, "/projects/shop", one, "k").await.accepted(), first);
    assert_eq!(app.log.last_sequence().await.expect("an end"), two, "the repetition changed nothing");
    app.keyed(Method::PUT, "/projects/shop", json!({ "name": "x" }), "k").await.problem(422, "idempotency_key_reused");
    // On another address the same key is another command.
    app.keyed(Method::PUT, "/projects/other", json!({}), "k").await.accepted();

    let archived = app.keyed(Method::POST, "/projects/shop/archive", json!({}), "end").await.accepted();
    assert_eq!(app.keyed(Method::POST, "/projects/shop/archive", json!({}), "end").await.accepted(), archived);
    app.keyed(Method::POST, "/projects/shop/archive", json!({}), "again").await.problem(409, "project_archived");
    app.stop().await;
}

#[tokio::test]
async fn a_route_belongs_to_one_stage_of_one_project() {
    let app = App::start().await;
    app.put("/projects/one", json!({ "stages": { "dev": on("x.test") } })).await.accepted();
    let before = app.log.last_sequence().await.expect("an end");
    let clash = app.put("/projects/two", json!({ "stages": { "a": on("y.test"), "dev": on("x.test") } })).await;
    assert_eq!(clash.fields(409, "route_taken"), ["stages.dev.route"]);
    assert_eq!(app.log.last_sequence().await.expect("an end"), before, "all or nothing");
    app.put("/projects/three/", json!({})).await.problem(404, "no_such_path");

    // Another path on the same host is free; so is what was moved away from.
    let elsewhere = json!({ "stages": { "dev": { "route": { "host": "x.test", "path": "/two" } } } });
    app.put("/projects/two", elsewhere).await.accepted();
    app.put("/projects/one", json!({ "stages": { "dev": on("z.test") } })).await.accepted();
    app.put("/projects/two", json!({ "stages": { "dev": on("x.test") } })).await.accepted();

    // Two stages may exchange their routes in one declaration.
    app.put("/projects/one", json!({ "stages": { "a": on("a.test"), "b": on("b.test") } })).await.accepted();
    app.put("/projects/one", json!({ "stages": { "a": on("b.test"), "b": on("a.test") } })).await.accepted();
    app.stop().await;
}

#[tokio::test]
async fn of_many_who_want_a_route_at_once_one_gets_it() {
    let app = App::start().await;
    let wanted = (0..8).map(|n| {
        let path = format!("/projects/p{n}");
        let app = &app;
        async move { app.put(&path, json!({ "stages": { "dev": on("hot.test") } })).await }
    });
    let answers = futures::future::join_all(wanted).await;
    let (won, lost): (Vec<_>, Vec<_>) = answers.into_iter().partition(|answer| answer.status == 202);
    assert_eq!((won.len(), lost.len()), (1, 7));
    for answer in lost {
        answer.problem(409, "route_taken");
    }
    let sequence = won[0].accepted();
    let projects = app.get(&format!("/projects?at_least={sequence}")).await.ok();
    assert_eq!(projects.as_array().map(Vec::len), Some(1), "whoever lost left nothing behind");
    app.stop().await;
}

#[tokio::test]
async fn a_lock_keeps_deployments_away_and_says_why() {
    let app = App::start().await;
    app.project("shop").await;
    app.image("registry.test/shop:v1", 'a');
    let lock = "/projects/shop/stages/dev/lock";
    app.delete(lock).await.problem(409, "not_locked");
    assert_eq!(app.put(lock, json!({ "reason": " " })).await.fields(422, "invalid"), ["reason"]);
    let sequence = app.put(lock, json!({ "reason": "migration runs" })).await.accepted();
    assert_eq!(app.put(lock, json!({ "reason": "migration runs" })).await.accepted(), sequence);
    let stage = app.get(&format!("/projects/shop/stages/dev?at_least={sequence}")).await.ok();
    assert_eq!((&stage["lock"]["owner"], &stage["lock"]["reason"]), (&json!(app.admin), &json!("migration runs")));
    let deploy = || app.post("/projects/shop/stages/dev/deployments", json!({ "image": "v1" }));
    let problem = deploy().await.problem(423, "stage_locked");
    assert!(problem["detail"].as_str().expect("text").contains("migration runs"));
    app.delete(&format!("{lock}?force=maybe")).await.problem(422, "invalid");
    app.delete(&format!("{lock}?force=true")).await.accepted();
    deploy().await.accepted();
    app.stop().await;
}
