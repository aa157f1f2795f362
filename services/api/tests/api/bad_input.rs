//! What is wrong is refused with the name of the field, and changes nothing.

use reqwest::Method;
use serde_json::json;

use crate::app::{Answer, App, FOUNDED};

#[tokio::test]
async fn bodies_are_refused_by_the_field_that_is_wrong() {
    let app = App::start().await;
    let stage = |settings: serde_json::Value| json!({ "stages": { "dev": settings } });
    for (body, field) in [
        (stage(json!({ "replica": 2 })), "stages.dev.replica"),
        (stage(json!({ "replicas": "two" })), "stages.dev.replicas"),
        (stage(json!({ "health": { "check": "telepathy" } })), "stages.dev.health.check"),
        (stage(json!({ "health": { "check": "http" } })), "stages.dev.health.path"),
        (stage(json!({ "drain": "30" })), "stages.dev.drain"),
        (stage(json!({ "replicas": 0 })), "stages.dev.replicas"),
        (stage(json!({ "route": { "host": "*" } })), "stages.dev.route.host"),
        (stage(json!({ "route": { "host": "a.>" } })), "stages.dev.route.host"),
        (stage(json!({ "image": "Shop:1" })), "stages.dev.image"),
        (json!({ "stages": { "Dev": {} } }), "stages.Dev"),
        (json!({ "nmae": "Shop" }), "nmae"),
        (json!({ "name": "" }), "name"),
    ] {
        let fields = app.put("/projects/shop", body.clone()).await.fields(422, "invalid");
        assert_eq!(fields, [field], "{body}");
    }
    let both = json!({ "stages": { "a": { "route": { "host": "x.test" } }, "b": { "route": { "host": "x.test" } } } });
    assert_eq!(app.put("/projects/shop", both).await.fields(422, "invalid"), ["stages.b.route"]);
    assert_eq!(app.log.last_sequence().await.expect("an end"), FOUNDED, "nothing was written");
    app.stop().await;
}

#[tokio::test]
async fn what_is_not_json_or_too_large_is_refused_as_such() {
    let app = App::start().await;
    let put = || app.request(Method::PUT, "/projects/shop");
    let json = || put().header("content-type", "application/json");
    Answer::of(json().body("{")).await.problem(400, "malformed");
    Answer::of(json().body("{} {}")).await.problem(400, "malformed");
    Answer::of(json().body("name: shop")).await.problem(400, "malformed");
    Answer::of(put().body("{}")).await.problem(415, "not_json");
    Answer::of(put().header("content-type", "text/plain").body("{}")).await.problem(415, "not_json");
    let name = "x".repeat(10 << 20);
    Answer::of(json().body(json!({ "name": name }).to_string())).await.problem(413, "too_large");
    // Just as large without saying so beforehand.
    let chunks = (0..10).map(|_| Ok::<_, std::io::Error>("x".repeat(1 << 20)));
    let stream = reqwest::Body::wrap_stream(futures::stream::iter(chunks));
    Answer::of(json().body(stream)).await.problem(413, "too_large");
    assert_eq!(app.log.last_sequence().await.expect("an end"), FOUNDED, "nothing was written");
    app.stop().await;
}

#[tokio::test]
async fn addresses_and_queries_are_refused_by_the_parameter_that_is_wrong() {
    let app = App::start().await;
    let sequence = app.project("shop").await;
    for (path, field) in [
        ("/projects/Shop", "project"),
        ("/projects/shop.dev", "project"),
        ("/projects/%2A", "project"),
        ("/projects/shop/stages/1st", "stage"),
        ("/deployments/17", "id"),
        ("/deployments?limit=0", "limit"),
        ("/deployments?limit=501", "limit"),
        ("/deployments?limit=many", "limit"),
        ("/deployments?outcome=happy", "outcome"),
        ("/deployments?page=2", "page"),
        ("/projects?at_least=soon", "at_least"),
        ("/projects?at_least=99999", "at_least"),
        ("/projects?atleast=1", "atleast"),
        ("/events?subject=a..b", "subject"),
        ("/events/stream?subject=a.b*", "subject"),
        ("/events/stream?after=x", "after"),
        ("/events/stream?after=99999", "after"),
        ("/projects/shop/stages/dev/logs?tail=1000000", "tail"),
        ("/projects/shop/stages/dev/logs?deployment=1", "deployment"),
    ] {
        assert_eq!(app.get(path).await.fields(422, "invalid"), [field], "{path}");
    }
    let key = app.request(Method::PUT, "/projects/shop").header("idempotency-key", "with space");
    assert_eq!(Answer::of(key).await.fields(422, "invalid"), ["Idempotency-Key"]);
    app.put("/projects/shop?force=1", json!({})).await.problem(422, "invalid");
    assert_eq!(app.log.last_sequence().await.expect("an end"), sequence, "nothing was written");
    app.stop().await;
}

#[tokio::test]
async fn what_does_not_exist_is_not_found() {
    let app = App::start().await;
    app.project("shop").await;
    let nowhere = "018f0000-0000-7000-8000-000000000000";
    app.get("/projects/other").await.problem(404, "project_not_found");
    app.get("/projects/other/stages").await.problem(404, "project_not_found");
    app.get("/projects/shop/stages/test").await.problem(404, "stage_not_found");
    app.get("/projects/other/stages/dev/logs").await.problem(404, "project_not_found");
    app.get(&format!("/deployments/{nowhere}")).await.problem(404, "deployment_not_found");
    app.post(&format!("/deployments/{nowhere}/cancel"), json!({})).await.problem(404, "deployment_not_found");
    app.post("/projects/other/stages/dev/deployments", json!({ "image": "v1" }))
        .await
        .problem(404, "project_not_found");
    app.post("/projects/shop/stages/test/deployments", json!({ "image": "v1" })).await.problem(404, "stage_not_found");
    app.put("/projects/other/stages/dev", json!({})).await.problem(404, "project_not_found");
    app.put("/projects/shop/stages/test/lock", json!({ "reason": "x" })).await.problem(404, "stage_not_found");
    app.post("/projects/other/archive", json!({})).await.problem(404, "project_not_found");
    app.post("/projects/shop/stages/test/archive", json!({})).await.problem(404, "stage_not_found");
    app.delete("/registries/registry.test/credentials").await.problem(404, "no_credentials");
    app.stop().await;
}

#[tokio::test]
async fn an_image_that_cannot_be_deployed_is_refused_with_what_to_do() {
    let app = App::start().await;
    let before = app.project("shop").await;
    app.no_image("registry.test/shop:private", "registry_unauthorized");
    app.no_image("registry.test/shop:far", "registry_unreachable");
    app.no_image("registry.test/shop:now", "engine_unavailable");
    let path = "/projects/shop/stages/dev/deployments";
    for (image, status, code) in [
        ("none", 422, "image_not_found"),
        ("private", 422, "registry_unauthorized"),
        ("far", 502, "registry_unreachable"),
        ("now", 503, "engine_unavailable"),
    ] {
        let problem = app.post(path, json!({ "image": image })).await.problem(status, code);
        assert!(problem["hint"].is_string(), "{problem:#}");
    }
    for (image, code) in [("$(reboot)", "bad_image"), ("", "bad_image"), ("registry.test/other:v1", "other_repository")]
    {
        assert_eq!(app.post(path, json!({ "image": image })).await.fields(422, code), ["image"], "{image}");
    }
    assert_eq!(app.post(path, json!({})).await.fields(422, "invalid").len(), 1);
    assert_eq!(app.post(path, json!({ "image": 1 })).await.fields(422, "invalid"), ["image"]);
    assert_eq!(app.log.last_sequence().await.expect("an end"), before, "nothing was written");
    app.stop().await;
}
