//! Credentials: kept in the vault, never shown.

use reqwest::Method;
use serde_json::json;

use crate::app::{App, FOUNDED};

const PATH: &str = "/registries/127.0.0.1:5000/credentials";
const PASSWORD: &str = "correct horse battery staple";

#[tokio::test]
async fn a_password_goes_to_the_vault_and_nowhere_else() {
    let app = App::start().await;
    let body = json!({ "username": "ci", "password": PASSWORD });
    let answer = app.keyed(Method::PUT, PATH, body.clone(), "k").await;
    let sequence = answer.accepted();
    let listed = app.get(&format!("/registries?at_least={sequence}")).await.ok();
    let known = (&listed[0]["host"], &listed[0]["settings"]["username"], &listed[0]["signed_in"]);
    assert_eq!(known, (&json!("127.0.0.1:5000"), &json!("ci"), &json!(true)));
    let events = app.get(&format!("/events?after={FOUNDED}")).await.ok();
    for text in [&answer.body, &listed, &events].map(ToString::to_string) {
        assert!(!text.contains(PASSWORD) && !text.contains("password"), "{text}");
    }
    let name = events["events"][0]["data"]["secret"].as_str().expect("where it lies").to_owned();
    let kept = app.log.vault().get(&name).await.expect("the vault").expect("kept");
    assert_eq!(kept.expose(), PASSWORD.as_bytes());

    assert_eq!(app.keyed(Method::PUT, PATH, body, "k").await.accepted(), sequence, "once");
    let other = json!({ "username": "ci", "password": "another" });
    app.keyed(Method::PUT, PATH, other, "k").await.problem(422, "idempotency_key_reused");
    let kept = app.log.vault().get(&name).await.expect("the vault").expect("kept");
    assert_eq!(kept.expose(), PASSWORD.as_bytes(), "a refused request changes nothing");

    let removed = app.delete(PATH).await.accepted();
    assert_eq!(app.get(&format!("/registries?at_least={removed}")).await.ok(), json!([]));
    assert!(app.log.vault().get(&name).await.expect("the vault").is_none());
    app.delete(PATH).await.problem(404, "no_credentials");
    app.stop().await;
}

#[tokio::test]
async fn a_registry_is_declared_and_another_url_ends_its_password() {
    let app = App::start().await;
    let kept = async |sequence: u64| {
        let listed = app.get(&format!("/registries?at_least={sequence}")).await.ok();
        (listed[0]["settings"].clone(), listed[0]["signed_in"].clone())
    };
    let declared = json!({ "username": "ci", "poll": "5s" });
    let sequence = app.put("/registries/R.test", declared.clone()).await.accepted();
    assert_eq!(kept(sequence).await, (declared.clone(), json!(false)));
    let body = json!({ "username": "ci", "password": PASSWORD });
    let sequence = app.put("/registries/r.test/credentials", body).await.accepted();
    assert_eq!(kept(sequence).await, (declared, json!(true)), "the pace stays");
    let events = app.get(&format!("/events?after={FOUNDED}")).await.ok();
    let named = events["events"].as_array().expect("events").iter().find_map(|event| event["data"]["secret"].as_str());
    let secret = named.expect("where it lies").to_owned();
    let moved = json!({ "url": "https://elsewhere.test", "username": "ci", "poll": "5s" });
    let sequence = app.put("/registries/r.test", moved.clone()).await.accepted();
    assert_eq!(kept(sequence).await, (moved, json!(false)));
    assert!(app.log.vault().get(&secret).await.expect("the vault").is_none(), "and it is gone");
    for (bad, field) in [
        (json!({ "url": "ftp://x" }), "url"),
        (json!({ "poll": "1ms" }), "poll"),
        (json!({ "username": "" }), "username"),
        (json!({ "password": "x" }), "password"),
    ] {
        assert_eq!(app.put("/registries/r.test", bad).await.fields(422, "invalid"), [field]);
    }
    let removed = app.delete("/registries/r.test").await.accepted();
    assert_eq!(app.get(&format!("/registries?at_least={removed}")).await.ok(), json!([]));
    app.delete("/registries/r.test").await.problem(404, "registry_not_found");
    app.stop().await;
}

#[tokio::test]
async fn bad_credentials_are_refused_by_field() {
    let app = App::start().await;
    let body = |username: &str, password: &str| json!({ "username": username, "password": password });
    let put = async |host: &str, body| app.put(&format!("/registries/{host}/credentials"), body).await;
    assert_eq!(put("a%20b", body("ci", "x")).await.fields(422, "invalid"), ["host"]);
    assert_eq!(put("a.test", body("", "x")).await.fields(422, "invalid"), ["username"]);
    assert_eq!(put("a.test", body("ci", "")).await.fields(422, "invalid"), ["password"]);
    let problem = put("a.test", json!({ "username": "ci", "password": ["hunter2"] })).await.problem(422, "invalid");
    assert!(!problem.to_string().contains("hunter2"), "{problem:#}");
    assert_eq!(app.log.last_sequence().await.expect("an end"), FOUNDED, "nothing was written");
    app.stop().await;
}
