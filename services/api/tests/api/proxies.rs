//! Proxies of the user's own: declared, signed in to, and not removed from under a stage.

use reqwest::Method;
use serde_json::{Value, json};

use crate::app::App;

const PASSWORD: &str = "correct horse battery staple";

fn direct(driver: &str, url: &str) -> Value {
    json!({ "driver": driver, "mode": "direct", "url": url, "address": "127.0.0.1:80" })
}

fn behind(proxy: Value, more: Value) -> Value {
    let mut stage = json!({ "route": { "host": "a.test", "proxy": proxy } });
    for (name, value) in more.as_object().expect("an object") {
        stage[name] = value.clone();
    }
    json!({ "stages": { "dev": stage } })
}

#[tokio::test]
async fn a_proxy_is_declared_and_its_password_shown_to_nobody_and_to_no_other_server() {
    let app = App::start().await;
    let declared = app.put("/proxies/front", direct("npm", "http://127.0.0.1:81")).await.accepted();
    let body = json!({ "username": "admin", "password": PASSWORD });
    let sequence = app.keyed(Method::PUT, "/proxies/front/credentials", body, "k").await.accepted();
    assert!(sequence > declared);
    let listed = app.get(&format!("/proxies?at_least={sequence}")).await.ok();
    assert_eq!((&listed[0]["name"], &listed[0]["username"]), (&json!("front"), &json!("admin")));
    assert_eq!(listed[0]["settings"]["mode"], "direct");
    let events = app.get("/events").await.ok();
    for text in [&listed, &events].map(ToString::to_string) {
        assert!(!text.contains(PASSWORD), "{text}");
    }
    let secret = events["events"][0]["data"]["secret"].as_str().expect("where it lies").to_owned();
    let kept = app.log.vault().get(&secret).await.expect("the vault").expect("kept");
    assert_eq!(kept.expose(), PASSWORD.as_bytes());

    let moved = app.put("/proxies/front", direct("npm", "http://127.0.0.1:82")).await.accepted();
    assert_eq!(app.get(&format!("/proxies?at_least={moved}")).await.ok()[0]["username"], json!(null));
    assert!(app.log.vault().get(&secret).await.expect("the vault").is_none());
    app.stop().await;
}

#[tokio::test]
async fn what_is_wrong_is_refused_by_field() {
    let app = App::start().await;
    let bad = json!({ "driver": "caddy", "mode": "direct", "url": "https://x/", "edge": "e:1" });
    assert_eq!(app.put("/proxies/front", bad).await.fields(422, "invalid"), ["url", "address", "edge"]);
    app.put("/proxies/front/credentials", json!({ "username": "a", "password": "b" }))
        .await
        .problem(404, "proxy_not_found");
    app.get("/proxies/front/drift").await.problem(404, "proxy_not_found");
    app.delete("/proxies/front").await.problem(404, "proxy_not_found");

    // A stage behind a proxy that is not there, or cannot do what the stage asks of it.
    let route = app.put("/projects/shop", behind(json!("front"), json!({}))).await;
    assert_eq!(route.fields(422, "invalid"), ["stages.dev.route.proxy"]);
    app.put("/proxies/front", direct("npm", "http://127.0.0.1:81")).await.accepted();
    let stage = behind(json!("front"), json!({ "strategy": "recreate", "replicas": 2 }));
    let fields = app.put("/projects/shop", stage).await.fields(422, "invalid");
    assert_eq!(fields, ["stages.dev.strategy", "stages.dev.replicas"]);
    app.stop().await;
}

#[tokio::test]
async fn a_proxy_stays_as_long_as_a_stage_lies_behind_it() {
    let app = App::start().await;
    let via = json!({ "driver": "npm", "edge": "127.0.0.1:8080" });
    app.put("/proxies/front", via).await.accepted();
    let stage = behind(json!("front"), json!({ "strategy": "recreate" }));
    app.put("/projects/shop", stage).await.accepted();
    let problem = app.delete("/proxies/front").await.problem(409, "proxy_in_use");
    assert!(problem.to_string().contains("shop.dev"), "{problem:#}");
    // What the stage asks for cannot be had in that mode.
    let answer = app.put("/proxies/front", direct("npm", "http://127.0.0.1:81")).await;
    assert_eq!(answer.fields(422, "invalid"), ["mode"]);
    app.put("/projects/shop", behind(json!(null), json!({ "strategy": "recreate" }))).await.accepted();
    let removed = app.delete("/proxies/front").await.accepted();
    assert_eq!(app.get(&format!("/proxies?at_least={removed}")).await.ok(), json!([]));
    app.stop().await;
}
