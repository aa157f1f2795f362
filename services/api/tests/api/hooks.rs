//! Webhooks as senders see them: a message gets through only with its proof.

use domain::push::{Answer, Finding, Heard, SUBJECT, Told, What};
use futures::{StreamExt, future::join_all};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::app::App;

/// What the watcher was told, in order; it answers as one does that finds nothing new.
async fn watcher(app: &App) -> mpsc::UnboundedReceiver<Told> {
    let (tell, told) = mpsc::unbounded_channel();
    let mut questions = Box::pin(app.log.share(SUBJECT).await.expect("served"));
    tokio::spawn(async move {
        while let Some(request) = questions.next().await {
            let message: Told = serde_json::from_slice(&request.payload).expect("a message");
            let heard = match &message.what {
                What::Pushed(_) => vec![],
                What::Deploy { project, stage, image, .. } => {
                    let reason = "it is locked".to_owned();
                    let finding = match image.as_str() {
                        "locked" => Finding::Refused { code: "locked".into(), reason },
                        _ => Finding::NothingNew,
                    };
                    vec![Heard { project: project.clone(), stage: stage.clone(), finding }]
                }
            };
            tell.send(message).expect("somebody listens");
            let answer = serde_json::to_vec(&Answer::Heard(heard)).expect("JSON");
            request.reply(answer).await.expect("answered");
        }
    });
    told
}

async fn send(app: &App, path: &str, headers: &[(&str, &str)], body: &Value) -> (StatusCode, Value) {
    let url = format!("{}/hooks/{path}", app.base);
    let request = headers.iter().fold(app.http.post(url), |request, (name, value)| request.header(*name, *value));
    let response = request.body(body.to_string()).send().await.expect("an answer");
    let status = response.status();
    (status, response.json().await.expect("JSON"))
}

/// A hook, and its secret.
async fn hook(app: &App, name: &str, settings: Value) -> String {
    app.put(&format!("/hooks/{name}"), settings).await.accepted();
    let answer = app.put(&format!("/hooks/{name}/secret"), json!({})).await;
    answer.accepted();
    answer.body["secret"].as_str().expect("shown once").to_owned()
}

fn push(tag: &str) -> Value {
    json!({"events": [{"action": "push", "target": {"repository": "team/shop", "tag": tag}}]})
}

#[tokio::test]
async fn a_message_gets_through_with_its_secret_and_never_without() {
    let app = App::start().await;
    let mut told = watcher(&app).await;
    let secret = hook(&app, "images", json!({"source": "distribution", "registry": "r.test"})).await;
    let bearer = format!("Bearer {secret}");
    let (status, answer) = send(&app, "distribution/images", &[("authorization", &bearer)], &push("v1")).await;
    assert_eq!((status, answer), (StatusCode::ACCEPTED, json!({"stages": []})));
    let message = told.recv().await.expect("told");
    assert_eq!(message.context.actor, "hook/images");
    let What::Pushed(pushed) = message.what else { panic!("a push") };
    assert_eq!((pushed[0].repository.as_str(), pushed[0].tag.as_str()), ("r.test/team/shop", "v1"));

    let admin = format!("Bearer {}", app.token);
    for (path, authorization) in [
        ("distribution/images", "Bearer wrong"),
        ("distribution/images", ""),
        ("distribution/images", admin.as_str()),
        ("distribution/nobody", bearer.as_str()),
        ("harbor/images", bearer.as_str()),
    ] {
        let (status, answer) = send(&app, path, &[("authorization", authorization)], &push("v2")).await;
        assert_eq!((status, &answer["code"]), (StatusCode::UNAUTHORIZED, &json!("bad_signature")), "{path}");
    }
    for path in ["distribution/IMAGES", "smoke/images"] {
        let (status, _) = send(&app, path, &[("authorization", &bearer)], &push("v2")).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{path}");
    }
    let (status, _) = send(&app, "distribution/images", &[("authorization", &bearer)], &json!([])).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);

    // Another secret, and the old one is nothing any more.
    let own = "a-secret-of-one's-own";
    let sequence = app.put("/hooks/images/secret", json!({ "secret": own })).await.accepted();
    let (status, _) = send(&app, "distribution/images", &[("authorization", &bearer)], &push("v3")).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    let (status, _) = send(&app, "distribution/images", &[("authorization", own)], &push("v4")).await;
    assert_eq!(status, StatusCode::ACCEPTED);
    let What::Pushed(pushed) = told.recv().await.expect("told").what else { panic!("a push") };
    assert_eq!(pushed[0].tag, "v4", "nothing of what was refused was told");

    let events = app.get(&format!("/events?at_least={sequence}")).await.ok().to_string();
    let listed = app.get(&format!("/hooks?at_least={sequence}")).await.ok();
    for text in [&events, &listed.to_string()] {
        assert!(!text.contains(&secret) && !text.contains(own), "{text}");
    }
    assert_eq!(listed[0]["has_secret"], json!(true));
    let removed = app.delete("/hooks/images").await.accepted();
    assert_eq!(app.get(&format!("/hooks?at_least={removed}")).await.ok(), json!([]));
    let (status, _) = send(&app, "distribution/images", &[("authorization", own)], &push("v5")).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    app.delete("/hooks/images").await.problem(404, "hook_not_found");
    app.stop().await;
}

#[tokio::test]
async fn a_build_is_told_what_became_of_its_wish_and_repeats_it_safely() {
    let app = App::start().await;
    let mut told = watcher(&app).await;
    let secret = hook(&app, "ci", json!({"source": "plain", "project": "shop", "stage": "dev"})).await;
    let bearer = format!("Bearer {secret}");
    let wish = async |image: &str, key: &str| {
        send(&app, "plain/ci", &[("authorization", &bearer), ("idempotency-key", key)], &json!({ "image": image }))
            .await
    };
    let mut deployment = async || match told.recv().await.expect("told").what {
        What::Deploy { deployment, .. } => deployment,
        What::Pushed(_) => panic!("a wish"),
    };
    assert_eq!(wish("v1", "run-1").await.0, StatusCode::ACCEPTED);
    let first = deployment().await;
    wish("v1", "run-1").await;
    assert_eq!(deployment().await, first, "the same key is the same deployment");
    wish("v1", "run-2").await;
    assert_ne!(deployment().await, first);
    let (status, answer) = wish("locked", "run-3").await;
    assert_eq!(
        (status, &answer["code"], &answer["detail"]),
        (StatusCode::CONFLICT, &json!("locked"), &json!("it is locked"))
    );
    let (status, answer) = send(&app, "plain/ci", &[("authorization", &bearer)], &json!({"tag": "v1"})).await;
    assert_eq!((status, &answer["code"]), (StatusCode::BAD_REQUEST, &json!("malformed")));
    app.stop().await;
}

#[tokio::test]
async fn without_a_watcher_a_sender_is_told_to_come_again() {
    let app = App::start().await;
    let secret = hook(&app, "images", json!({"source": "distribution", "registry": "r.test"})).await;
    let (status, answer) = send(&app, "distribution/images", &[("authorization", &secret)], &push("v1")).await;
    assert_eq!((status, &answer["code"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("watcher_unavailable")));
    let largest = json!({"events": [], "more": "x".repeat(2 << 20)});
    let (status, _) = send(&app, "distribution/images", &[("authorization", &secret)], &largest).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    app.stop().await;
}

#[tokio::test]
async fn a_flood_is_answered_and_what_is_too_much_is_turned_away() {
    let app = App::start().await;
    let mut told = watcher(&app).await;
    let secret = hook(&app, "images", json!({"source": "distribution", "registry": "r.test"})).await;
    let senders = (0..500).map(|n| {
        let (app, secret) = (&app, &secret);
        async move { send(app, "distribution/images", &[("authorization", secret)], &push(&format!("v{n}"))).await.0 }
    });
    let statuses = join_all(senders).await;
    let taken = statuses.iter().filter(|status| **status == StatusCode::ACCEPTED).count();
    let away = statuses.iter().filter(|status| **status == StatusCode::SERVICE_UNAVAILABLE).count();
    assert_eq!(taken + away, 500);
    assert!(taken >= 64, "{taken}");
    let mut messages = 0;
    while told.try_recv().is_ok() {
        messages += 1;
    }
    assert_eq!(messages, taken, "each that was taken was told once");
    app.stop().await;
}

#[tokio::test]
async fn bad_hooks_are_refused_by_field() {
    let app = App::start().await;
    for (settings, fields) in [
        (json!({"source": "plain"}), vec!["project", "stage"]),
        (json!({"source": "harbor"}), vec!["registry"]),
        (json!({"source": "smoke"}), vec!["source"]),
        (json!({"source": "github", "stage": "dev"}), vec!["stage"]),
    ] {
        assert_eq!(app.put("/hooks/x", settings).await.fields(422, "invalid"), fields);
    }
    app.put("/hooks/x/secret", json!({})).await.problem(404, "hook_not_found");
    app.put("/hooks/x", json!({"source": "github"})).await.accepted();
    assert_eq!(app.put("/hooks/x/secret", json!({"secret": "short"})).await.fields(422, "invalid"), ["secret"]);
    let unknown = app.request(Method::GET, "/hooks/x").send().await.expect("an answer");
    assert_eq!(unknown.status(), StatusCode::METHOD_NOT_ALLOWED);
    app.stop().await;
}
