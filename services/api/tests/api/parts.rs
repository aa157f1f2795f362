//! When parts are away, and when everything ends.

use std::time::Duration;

use eventlog::{LogLine, LogRef, LogStream};
use reqwest::Method;
use serde_json::json;

use crate::app::{App, NODE, Without, eventually};

#[tokio::test]
async fn health_names_the_part_that_is_away() {
    let app = App::start().await;
    let alone = app.get("/health").await;
    assert_eq!((alone.status.as_u16(), &alone.body["watcher"]["watchers"]), (503, &json!(0)));
    app.watcher_lives().await;
    let health = app.get("/health").await.ok();
    assert_eq!(health["watcher"], json!({ "ok": true, "watchers": 1, "error": null }));
    assert_eq!((&health["status"], &health["version"]), (&json!("ok"), &json!(env!("CARGO_PKG_VERSION"))));
    assert_eq!(health["docker"], json!({ "ok": true, "version": "20.10", "error": null }));
    assert_eq!((&health["projector"]["ok"], &health["projector"]["lag"]), (&json!(true), &json!(0)));
    app.stop().await;

    let app = App::start_without(Without::Node).await;
    let answer = app.get("/health").await;
    assert_eq!(answer.status, 503);
    assert_eq!((&answer.body["status"], &answer.body["docker"]["ok"]), (&json!("degraded"), &json!(false)));
    assert_eq!((&answer.body["nats"]["ok"], &answer.body["postgres"]["ok"]), (&json!(true), &json!(true)));
    app.stop().await;
}

#[tokio::test]
async fn a_reader_waits_for_its_own_write_and_is_told_when_it_waits_in_vain() {
    let mut app = App::start_without(Without::Projector).await;
    let sequence = app.project("shop").await;
    let health = app.get("/health").await;
    assert_eq!((health.status.as_u16(), &health.body["projector"]["lag"]), (503, &json!(sequence)));
    let path = format!("/projects/shop?at_least={sequence}");
    let problem = app.get(&path).await.problem(503, "not_yet_visible");
    assert!(problem["hint"].is_string());

    let waiting = tokio::spawn(crate::app::Answer::of(app.request(Method::GET, &path)));
    app.start_projector().await;
    waiting.await.expect("no panic").ok();
    // From here on every write is read back at once.
    for replicas in 1..=20 {
        let sequence = app.put("/projects/shop/stages/dev", json!({ "replicas": replicas })).await.accepted();
        let stage = app.get(&format!("/projects/shop/stages/dev?at_least={sequence}")).await.ok();
        assert_eq!(stage["settings"]["replicas"], replicas);
    }
    app.stop().await;
}

#[tokio::test]
async fn when_nats_is_away_a_command_says_that_it_can_be_repeated() {
    let mut app = App::start().await;
    app.project("shop").await;
    app.nats.kill();
    let answer = app.keyed(Method::PUT, "/projects/shop", json!({ "name": "x" }), "k").await;
    let problem = answer.problem(503, "log_unavailable");
    assert!(problem["hint"].as_str().expect("a hint").contains("Idempotency-Key"));
    assert!(!problem.to_string().contains("nats://"), "{problem:#}");
    app.nats.restart().await.expect("NATS is back");
    eventually("the command is taken", async || {
        app.keyed(Method::PUT, "/projects/shop", json!({ "name": "x" }), "k").await.status == 202
    })
    .await;
    app.stop().await;
}

#[tokio::test]
async fn output_is_read_and_followed() {
    let app = App::start().await;
    app.project("shop").await;
    let slug = |text: &str| text.parse().expect("a slug");
    let from = LogRef {
        project: slug("shop"),
        stage: slug("dev"),
        deployment: "018f0000-0000-7000-8000-000000000000".parse().expect("a UUID"),
        source: "shop-dev-1".into(),
    };
    let line = |text: &str| LogLine { time: runtime::clock::now(), stream: LogStream::Stderr, text: text.into() };
    app.log.logs().append(&from, vec![line("one"), line("two"), line("three")]);
    let path = "/projects/shop/stages/dev/logs";
    eventually("the lines arrive", async || app.get(path).await.ok().as_array().map(Vec::len) == Some(3)).await;
    let tail = app.get(&format!("{path}?tail=2")).await.ok();
    assert_eq!((&tail[0]["text"], &tail[1]["text"]), (&json!("two"), &json!("three")));
    assert_eq!((&tail[0]["stream"], &tail[0]["source"]), (&json!("stderr"), &json!("shop-dev-1")));
    assert_eq!(app.get(&format!("{path}?deployment=018f0000-0000-7000-8000-000000000001")).await.ok(), json!([]));

    let response = app.request(Method::GET, &format!("{path}?follow=true&tail=1")).send().await.expect("a stream");
    let mut stream = crate::events::Sse::new(response);
    assert_eq!(stream.json().await["text"], "three");
    app.log.logs().append(&from, vec![line("four")]);
    assert_eq!(stream.json().await["text"], "four");

    // Cut off in the middle of a message: the rest of it comes, and nothing twice.
    let first = app.request(Method::GET, &format!("{path}?follow=true&tail=3")).send().await.expect("a stream");
    let seen = crate::events::Sse::new(first).soon().await.id;
    let again = app.request(Method::GET, &format!("{path}?follow=true")).header("last-event-id", seen);
    let mut again = crate::events::Sse::new(again.send().await.expect("a stream"));
    for text in ["three", "four"] {
        assert_eq!(again.json().await["text"], text);
    }
    app.stop().await;
}

fn config(listen: &str, public_url: Option<&str>) -> api::Config {
    api::Config {
        listen: listen.parse().expect("an address"),
        node: NODE.into(),
        identity: api::Identity { public_url: public_url.map(Into::into), ..crate::app::identity() },
        oidc: crate::app::oidc(),
    }
}

#[tokio::test]
async fn a_bad_setting_ends_the_start_with_the_name_of_its_variable() {
    let app = App::start().await;
    let taken = app.base.trim_start_matches("http://").to_owned();
    let database = readmodel::connect(app.database.url()).await.expect("the database answers");
    for (config, name) in [
        (config("127.0.0.1:0", Some("sluice.example.com")), "PUBLIC_URL"),
        (config("0.0.0.0:0", None), "API_LISTEN"),
        (config("[::]:0", Some("http://sluice.example.com")), "API_LISTEN"),
        (config(&taken, None), "API_LISTEN"),
    ] {
        let error = api::run(config, app.log.clone(), database.clone(), app.stop_token()).await.expect_err("refused");
        let error = format!("{error:#}");
        assert!(error.contains(name), "{error}");
    }
    app.stop().await;
}

#[tokio::test]
async fn the_end_closes_streams_at_once() {
    let app = App::start().await;
    let response = app.request(Method::GET, "/events/stream").send().await.expect("a stream");
    let mut stream = crate::events::Sse::new(response);
    let stopping = tokio::spawn(app.stop());
    let ended = tokio::time::timeout(Duration::from_secs(5), stream.next()).await.expect("ends soon");
    assert!(ended.is_none());
    stopping.await.expect("ends in order");
}
