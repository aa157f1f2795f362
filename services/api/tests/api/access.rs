//! Who gets in.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::Value;

use crate::app::{Answer, App};

/// Every operation of the document: method, path with its variables filled in, whether it is public.
fn operations() -> Vec<(Method, String, bool)> {
    let document: Value = serde_json::from_str(api::openapi()).expect("JSON");
    let paths = document["paths"].as_object().expect("paths");
    let mut all = vec![];
    for (path, item) in paths {
        for (method, operation) in item.as_object().expect("an item") {
            let method = Method::from_bytes(method.to_uppercase().as_bytes()).expect("a method");
            let path = path
                .replace("{project}", "shop")
                .replace("{stage}", "dev")
                .replace("{host}", "registry.test")
                .replace("{source}", "github")
                .replace("{proxy}", "front")
                .replace("{name}", "db")
                .replace("{id}", "018f0000-0000-7000-8000-000000000000");
            assert!(!path.contains('{'), "a variable without a value: {path}");
            let public = operation["security"] == serde_json::json!([{}]);
            all.push((method, path, public));
        }
    }
    all
}

/// Takes messages that prove themselves.
const SIGNED: &str = "/hooks/github/db";

#[tokio::test]
async fn nothing_but_health_answers_without_the_token() {
    let app = App::start().await;
    // One that no request among them signs out.
    let machine = app.token("machine", "admin").await;
    let operations = operations();
    assert!(operations.len() > 20, "{operations:?}");
    let public: Vec<_> = operations.iter().filter(|(_, _, public)| *public).map(|(_, path, _)| path.as_str()).collect();
    let signing_in = ["/api/v1/auth/code", "/api/v1/auth/login", "/api/v1/auth/setup", "/api/v1/auth/token"];
    let at_provider = ["/auth/oidc/callback", "/auth/oidc/start"];
    let known = [&signing_in[..], &at_provider, &["/api/v1/auth/methods", "/api/v1/health", SIGNED]].concat();
    assert_eq!(public.into_iter().collect::<BTreeSet<_>>(), known.into_iter().collect());
    for (method, path, public) in operations {
        let url = format!("{}{path}", app.base);
        let plain = || app.http.request(method.clone(), &url);
        if path == SIGNED {
            // Not even the administrator's token makes a message of it.
            for unproven in [plain(), plain().bearer_auth(&machine.token)] {
                Answer::of(unproven).await.problem(401, "bad_signature");
            }
            continue;
        }
        if public && signing_in.contains(&path.as_str()) {
            // Whoever says nothing is told what to say.
            Answer::of(plain()).await.problem(422, "invalid");
            continue;
        }
        if at_provider.contains(&path.as_str()) {
            Answer::of(plain()).await.problem(404, "provider_not_found");
            continue;
        }
        if public {
            app.watcher_lives().await;
            assert_eq!(Answer::of(plain()).await.status, 200, "{method} {path}");
            continue;
        }
        for refused in [
            plain(),
            plain().bearer_auth("a-token-of-at-least-32-characterS"),
            plain().bearer_auth(""),
            plain().header("authorization", "Basic YWRtaW46YWRtaW4="),
            app.http.request(method.clone(), format!("{url}?token={}", machine.token)),
        ] {
            let answer = Answer::of(refused).await;
            assert_eq!(answer.headers["www-authenticate"], "Bearer");
            answer.problem(401, "unauthorized");
        }
        let answer = Answer::of(plain().bearer_auth(&machine.token).timeout(std::time::Duration::from_secs(5)));
        if path.ends_with("/stream") {
            continue;
        }
        assert_ne!(answer.await.status, 401, "{method} {path}");
    }
    app.stop().await;
}

#[tokio::test]
async fn an_address_that_does_not_exist_says_so_only_to_those_who_may_know() {
    let app = App::start().await;
    for path in ["/api/v1/nothing", "/api/v2/projects", "/api", "/", "/api/v1/projects/shop/secret"] {
        let url = format!("{}{path}", app.base);
        Answer::of(app.http.get(&url)).await.problem(401, "unauthorized");
        Answer::of(app.http.get(&url).bearer_auth(&app.token)).await.problem(404, "no_such_path");
    }
    let url = format!("{}/api/v1/projects", app.base);
    Answer::of(app.http.delete(&url)).await.problem(401, "unauthorized");
    Answer::of(app.http.delete(&url).bearer_auth(&app.token)).await.problem(405, "method_not_allowed");
    app.stop().await;
}

#[tokio::test]
async fn every_answer_names_its_request_and_forbids_what_a_browser_might_do_with_it() {
    let app = App::start().await;
    for request in [app.request(Method::GET, "/projects"), app.http.get(format!("{}/nothing", app.base))] {
        let answer = Answer::of(request.header("x-request-id", "mine")).await;
        assert_ne!(answer.headers["x-request-id"], "mine");
        assert!(answer.headers["content-security-policy"].to_str().expect("text").contains("frame-ancestors 'none'"));
        assert_eq!(answer.headers["x-content-type-options"], "nosniff");
        assert_eq!(answer.headers["cache-control"], "no-store");
        assert!(!answer.headers.contains_key("server"));
    }
    app.stop().await;
}

#[tokio::test]
async fn the_request_that_caused_an_event_is_named_in_it() {
    let app = App::start().await;
    let answer = app.put("/projects/shop", serde_json::json!({})).await;
    let sequence = answer.accepted();
    let events: Vec<_> =
        futures::StreamExt::collect(futures::StreamExt::take(app.log.follow(">", sequence - 1), 1)).await;
    let event = events.into_iter().next().expect("one").expect("readable");
    assert_eq!(event.context.request_id.as_deref(), answer.headers["x-request-id"].to_str().ok());
    assert_eq!(event.context.actor, app.admin);
    app.stop().await;
}

#[tokio::test]
async fn what_is_refused_or_fails_is_logged_with_who_asked_from_where() {
    let (logs, guard) = crate::app::capture_logs();
    let app = App::start_without(crate::app::Without::Node).await;
    app.project("shop").await;
    let grant = serde_json::json!({ "role": "viewer", "projects": ["shop"] });
    let (id, viewer) = crate::identity::person(&app, "vi", grant).await;
    let actor = format!("user:{id}");
    let mut lines = vec![
        (
            viewer.post(&app, "/projects/shop/stages/dev/archive", serde_json::json!({})).await,
            "forbidden",
            actor.clone(),
        ),
        (viewer.get(&app, "/projects/other").await, "outside_grant", actor),
        (Answer::of(app.http.get(format!("{}/api/v1/projects", app.base))).await, "unauthorized", String::new()),
    ];
    let bad = crate::identity::try_login(&app, &app.base, "vi", "wrong").await;
    lines.push((bad, "bad_credentials", String::new()));
    let image = serde_json::json!({ "image": "v1" });
    let failed = app.post("/projects/shop/stages/dev/deployments", image).await;
    lines.push((failed, "request failed", String::new()));
    drop(guard);
    let text = logs.text();
    for (answer, what, actor) in lines {
        let request = answer.headers["x-request-id"].to_str().expect("text");
        let logged = |line: &&str| line.contains(request) && line.contains(what);
        let line = text.lines().find(logged).unwrap_or_else(|| panic!("{what}: {:#} in {text}", answer.body));
        assert!(line.contains("127.0.0.1") && line.contains(&actor), "{line}");
        assert!(line.contains('Z'), "in UTC: {line}");
    }
    app.stop().await;
}
