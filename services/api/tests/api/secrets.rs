//! Secrets go in and never come out.

use reqwest::Method;
use serde_json::json;

use crate::app::App;

const CANARY: &str = "canary-7d1e";

#[tokio::test]
async fn a_secret_is_set_anew_listed_and_forgotten_and_its_value_told_nowhere() {
    let app = App::start().await;
    let stages = json!({ "dev": { "image": "registry.test/shop", "env": { "PASSWORD": { "secret": "db" } } } });
    app.put("/projects/shop", json!({ "stages": stages })).await.accepted();
    app.image("registry.test/shop:v1", 'a');
    let deploy = async || app.post("/projects/shop/stages/dev/deployments", json!({ "image": "v1" })).await;
    let problem = deploy().await.problem(409, "secrets_missing");
    assert!(problem["detail"].as_str().expect("a detail").contains("`db`"));

    let path = "/projects/shop/secrets/db";
    app.put(path, json!({ "value": CANARY })).await.accepted();
    let second = app.keyed(Method::PUT, path, json!({ "value": format!("{CANARY}-2") }), "k").await.accepted();
    let again = app.keyed(Method::PUT, path, json!({ "value": format!("{CANARY}-2") }), "k").await;
    assert_eq!(again.accepted(), second);
    app.keyed(Method::PUT, path, json!({ "value": "another" }), "k").await.problem(422, "idempotency_key_reused");
    let shop = app.get(&format!("/projects/shop?at_least={second}")).await.ok();
    assert_eq!((&shop["secrets"]["db"]["version"], &shop["secrets"]["db"]["set_by"]), (&json!(2), &json!(app.admin)));
    let sequence = deploy().await.accepted();
    app.delete(path).await.problem(409, "secret_in_use");

    let events = app.get(&format!("/events?limit=500&at_least={sequence}")).await.ok().to_string();
    assert!(events.contains("project.secret.set") && events.contains(r#""version":2"#), "{events}");
    assert!(!events.contains(CANARY) && !shop.to_string().contains(CANARY));

    for value in [json!(""), json!("a\0b"), json!("x".repeat(32_769)), json!(7)] {
        let answer = app.put(path, json!({ "value": value })).await;
        assert_eq!(answer.fields(422, "invalid"), ["value"]);
    }
    app.put("/projects/shop/secrets/a.b", json!({ "value": "x" })).await.problem(422, "invalid");
    app.put("/projects/none/secrets/db", json!({ "value": "x" })).await.problem(404, "project_not_found");
    app.delete("/projects/shop/secrets/none").await.problem(404, "secret_not_found");
    let bound = json!({ "dev": { "env": { "PASSWORD": { "secret": "db", "version": 1 } } } });
    let answer = app.put("/projects/shop", json!({ "stages": bound })).await;
    assert_eq!(answer.fields(422, "invalid"), ["stages.dev.env.PASSWORD"]);
    let without = json!({ "dev": { "image": "registry.test/shop" } });
    app.put("/projects/shop", json!({ "stages": without })).await.accepted();
    app.delete(path).await.accepted();
    app.stop().await;
}

#[tokio::test]
async fn what_runs_is_deployed_again_with_what_is_declared_now() {
    let app = App::start().await;
    app.project("shop").await;
    let dev = "/projects/shop/stages/dev";
    app.post(&format!("{dev}/redeploy"), json!({})).await.problem(409, "nothing_runs");
    app.image("registry.test/shop:v1", 'a');
    let first = app.post(&format!("{dev}/deployments"), json!({ "image": "v1" })).await;
    first.accepted();
    app.work("shop", "dev", first.body["deployment"].as_str().expect("an id").parse().expect("an id")).await;
    app.put("/projects/shop", json!({ "env": { "LEVEL": "debug" }, "stages": {} })).await.accepted();
    // The tag has moved; the bytes that run are what counts.
    app.image("registry.test/shop:v1", 'b');
    let again = app.keyed(Method::POST, &format!("{dev}/redeploy"), json!({}), "k").await;
    let sequence = again.accepted();
    assert_eq!(again.body["image"], first.body["image"]);
    let repeated = app.keyed(Method::POST, &format!("{dev}/redeploy"), json!({}), "k").await;
    assert_eq!((repeated.accepted(), &repeated.body), (sequence, &again.body));
    let events = app.get(&format!("/events?limit=500&at_least={sequence}")).await.ok().to_string();
    assert!(events.contains(r#""env":{"LEVEL":"debug"}"#), "{events}");
    app.stop().await;
}
