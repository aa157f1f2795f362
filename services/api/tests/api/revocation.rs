//! What was taken away is gone with the very next request, and open streams end soon. And nothing secret is found anywhere.

use std::time::Duration;

use futures::{StreamExt, future::BoxFuture};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    app::{Answer, App, Without, identity},
    events::Sse,
    identity::{Browser, SECRET, login, person, set_up, try_login},
};

/// By name: what takes something away from the user with this id, who holds this session.
type Taking = (&'static str, for<'a> fn(&'a App, &'a str, &'a Browser) -> BoxFuture<'a, ()>);

const TAKINGS: [Taking; 6] = [
    ("disable", |app, id, _| {
        Box::pin(async move { done(&app.post(&format!("/users/{id}/disable"), json!({})).await) })
    }),
    ("erase", |app, id, _| Box::pin(async move { done(&app.post(&format!("/users/{id}/erase"), json!({})).await) })),
    ("password", |app, _, browser| {
        Box::pin(async move {
            let body = json!({ "current": SECRET, "new": "another good password" });
            done(&browser.post(app, "/auth/password", body).await);
        })
    }),
    ("logout", |app, _, browser| Box::pin(async move { done(&browser.post(app, "/auth/logout", json!({})).await) })),
    ("end by an administrator", |app, id, _| {
        Box::pin(async move {
            let last = app.log.last_sequence().await.expect("an end");
            let sessions = app.get(&format!("/sessions?at_least={last}")).await.ok();
            let own = sessions.as_array().expect("a list").iter().find(|session| session["user_id"] == id);
            let session = own.expect("listed")["id"].as_str().expect("an id");
            done(&app.delete(&format!("/sessions/{session}")).await);
        })
    }),
    ("role", |app, id, _| {
        Box::pin(async move { done(&app.put(&format!("/users/{id}/grant"), json!({ "role": "viewer" })).await) })
    }),
];

#[track_caller]
fn done(answer: &Answer) {
    assert!(answer.status.is_success(), "{:#}", answer.body);
}

async fn closes(mut stream: Sse, what: &str) {
    let end = async { while stream.next().await.is_some() {} };
    tokio::time::timeout(Duration::from_secs(5), end).await.unwrap_or_else(|_| panic!("the stream lives on: {what}"));
}

#[tokio::test]
async fn what_is_taken_away_is_gone_with_the_next_request_and_streams_close() {
    let app = App::start().await;
    for (n, (what, take)) in TAKINGS.into_iter().enumerate() {
        let (id, browser) = person(&app, &format!("user{n}"), json!({ "role": "admin" })).await;
        let stream = Sse::new(browser.request(&app, Method::GET, "/events/stream").send().await.expect("a stream"));
        browser.get(&app, "/users").await.ok();
        take(&app, &id, &browser).await;
        let next = browser.get(&app, "/users").await;
        match what {
            "role" => next.problem(403, "forbidden"),
            _ => next.problem(401, "unauthorized"),
        };
        closes(stream, what).await;
    }
    app.stop().await;
}

#[tokio::test]
async fn a_new_password_ends_everything_but_the_session_that_set_it() {
    let app = App::start().await;
    let (_, first) = person(&app, "ann", json!({ "role": "viewer" })).await;
    let second = login(&app, "ann", SECRET).await;
    let body = json!({ "name": "laptop", "role": "viewer", "personal": true });
    let token = first.post(&app, "/tokens", body).await.body["token"].as_str().expect("a token").to_owned();
    first
        .post(&app, "/auth/password", json!({ "current": "wrong", "new": "another good password" }))
        .await
        .problem(403, "wrong_password");
    first.post(&app, "/auth/password", json!({ "current": SECRET, "new": "password1" })).await.problem(422, "invalid");
    let changed =
        first.post(&app, "/auth/password", json!({ "current": SECRET, "new": "another good password" })).await;
    assert_eq!(changed.status, 200, "{:#}", changed.body);
    let renewed = Browser::of(&app.base, &changed);
    assert_eq!(renewed.get(&app, "/auth/me").await.status, 200);
    for dead in [&first, &second] {
        dead.get(&app, "/auth/me").await.problem(401, "unauthorized");
    }
    let by_token = app.http.get(format!("{}/api/v1/auth/me", app.base)).bearer_auth(token);
    Answer::of(by_token).await.problem(401, "unauthorized");
    try_login(&app, &app.base, "ann", SECRET).await.problem(401, "bad_credentials");
    app.stop().await;
}

#[tokio::test]
async fn a_revoked_token_is_dead_and_its_stream_closes() {
    let app = App::start().await;
    let made = app.post("/tokens", json!({ "name": "ci", "role": "viewer" })).await;
    let (id, token) = (made.body["id"].as_str().expect("an id"), made.body["token"].as_str().expect("a token"));
    let get = |path: &str| app.http.get(format!("{}/api/v1{path}", app.base)).bearer_auth(token);
    let stream = Sse::new(get("/events/stream").send().await.expect("a stream"));
    app.delete(&format!("/tokens/{id}")).await.accepted();
    Answer::of(get("/projects")).await.problem(401, "unauthorized");
    closes(stream, "a revoked token").await;
    app.stop().await;
}

#[tokio::test]
async fn signing_in_again_ends_the_session_before_and_gives_a_new_one() {
    let app = App::start().await;
    let (_, first) = person(&app, "ann", json!({ "role": "viewer" })).await;
    let body = json!({ "name": "ann", "password": SECRET });
    let again = first.post(&app, "/auth/login", body).await;
    let second = Browser::of(&app.base, &again);
    assert_ne!(first.cookie, second.cookie);
    first.get(&app, "/auth/me").await.problem(401, "unauthorized");
    assert_eq!(second.get(&app, "/auth/me").await.status, 200);
    app.stop().await;
}

#[tokio::test]
async fn a_handle_that_is_not_ours_opens_nothing() {
    let app = App::start().await;
    let (_, browser) = person(&app, "ann", json!({ "role": "viewer" })).await;
    let parts: Vec<&str> = browser.cookie.split('.').collect();
    let none = "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0";
    let mut flipped = parts[2].to_owned();
    flipped.replace_range(0..1, if flipped.starts_with('A') { "B" } else { "A" });
    for forged in [
        format!("{none}.{}.", parts[1]),
        format!("{none}.{}.{}", parts[1], parts[2]),
        format!("{}.{}.", parts[0], parts[1]),
        format!("{}.{}.{flipped}", parts[0], parts[1]),
        format!("{}.{}", parts[0], parts[1]),
        "x".repeat(5000),
    ] {
        let forged = Browser { cookie: forged, ..browser.clone() };
        forged.get(&app, "/auth/me").await.problem(401, "unauthorized");
    }
    assert_eq!(browser.get(&app, "/auth/me").await.status, 200);
    app.stop().await;
}

/// Text that is looked for everywhere, in every way in which it was sent.
const CANARY: &str = "Canary-7f3a9c";

#[tokio::test]
async fn what_is_secret_is_found_nowhere() {
    let (logs, guard) = crate::app::capture_logs();
    let app = App::start_with(Without::Nothing, identity()).await;
    let canary = |n: usize| format!("{CANARY}-{n}");
    let mut stream = Sse::open(&app, "", None).await;
    let mut answers: Vec<Value> = vec![];
    let json = "application/json";
    let public = |path: &str, body: Value| {
        Answer::of(
            app.http.post(format!("{}/api/v1{path}", app.base)).header("content-type", json).body(body.to_string()),
        )
    };
    answers.push(public("/auth/login", json!({ "name": canary(1), "password": canary(2) })).await.body);
    answers.push(public("/auth/login", json!({ "name": "admin", "password": canary(3), "extra": 1 })).await.body);
    answers.push(public("/auth/setup", json!({ "token": canary(4), "password": canary(5) })).await.body);
    let sign_in = json!({ "name": "admin", "password": canary(6), "token_name": "t" });
    answers.push(public("/auth/token", sign_in).await.body);
    let profile = json!({ "name": canary(7), "display_name": canary(8), "email": format!("{}@example.com", canary(9)),
        "grant": { "role": "viewer" } });
    let made = app.post("/users", profile).await;
    let setup = made.body["setup"]["token"].as_str().expect("a token").to_owned();
    let signed_in = set_up(&app, &setup, &canary(10)).await;
    let browser = Browser::of(&app.base, &signed_in);
    answers.push(browser.post(&app, "/auth/password", json!({ "current": canary(11), "new": canary(12) })).await.body);
    let changed = browser.post(&app, "/auth/password", json!({ "current": canary(10), "new": canary(13) })).await;
    let browser = Browser::of(&app.base, &changed);
    answers.push(changed.body);
    let token = browser.post(&app, "/tokens", json!({ "name": "t", "role": "viewer", "personal": true })).await;
    let token = token.body["token"].as_str().expect("a token").to_owned();
    for request in [
        app.http.get(format!("{}/api/v1/auth/me", app.base)).bearer_auth(canary(14)),
        app.http.get(format!("{}/api/v1/projects?{}={}", app.base, canary(15), "x")),
        app.http.get(format!("{}/api/v1/auth/me", app.base)).header("cookie", format!("sluice={}", canary(16))),
        app.http.get(format!("{}/api/v1/{}", app.base, canary(17))),
        app.http.get(format!("{}/auth/oidc/callback?code={}&state={}", app.base, canary(18), canary(19))),
        app.http.get(format!("{}/auth/oidc/start?return_to=/{}", app.base, canary(20))),
        app.http
            .get(format!("{}/auth/oidc/callback", app.base))
            .header("cookie", format!("sluice-oidc={}", canary(21))),
        app.http.post(format!("{}/hooks/harbor/images", app.base)).bearer_auth(canary(22)).body(canary(23)),
    ] {
        answers.push(Answer::of(request).await.body);
    }
    answers.push(public("/auth/code", json!({ "code": canary(24), "token_name": "t" })).await.body);
    for (declared, settings, place, secret) in [
        ("/projects/blog", json!({}), "/projects/blog/secrets/db", json!({ "value": canary(25) })),
        (
            "/registries/registry.test",
            json!({ "username": "ci" }),
            "/registries/registry.test/credentials",
            json!({ "username": "ci", "password": canary(26) }),
        ),
        (
            "/hooks/images",
            json!({ "source": "distribution", "registry": "registry.test" }),
            "/hooks/images/secret",
            json!({ "secret": canary(27) }),
        ),
        (
            "/proxies/front",
            json!({ "driver": "npm", "mode": "direct", "url": "http://10.0.0.7:81", "address": "10.0.0.7:80" }),
            "/proxies/front/credentials",
            json!({ "username": "me@example.com", "password": canary(28) }),
        ),
        (
            "/auth/provider",
            json!({ "issuer": "https://id.example.com", "client_id": "sluice" }),
            "/auth/provider/secret",
            json!({ "secret": canary(29) }),
        ),
    ] {
        app.put(declared, settings).await.accepted();
        let (field, value) = secret.as_object().and_then(|secret| secret.iter().next_back()).expect("a field");
        answers.push(app.put(place, json!({ field: [value] })).await.problem(422, "invalid"));
        let kept = app.put(place, secret).await;
        kept.accepted();
        answers.push(kept.body);
    }
    let last = app.put("/projects/shop", json!({})).await.accepted();
    app.get(&format!("/projects?at_least={last}")).await.ok();

    let mut frames = String::new();
    loop {
        let message = stream.soon().await;
        frames.push_str(&message.data);
        if message.id == last.to_string() {
            break;
        }
    }
    let events = app.log.follow("sluice.events.>", 0).take(usize::try_from(last).expect("few"));
    let events: Vec<String> = events.map(|event| event.expect("readable").body).collect().await;
    let rows = app.rows().await;
    let store = app.nats.stored().expect("the store is read");
    drop(guard);
    let secrets = [CANARY.to_owned(), token, setup, browser.cookie.clone(), crate::app::PASSWORD.to_owned()];
    for (place, text) in [
        ("answers", serde_json::to_string(&answers).expect("JSON").into_bytes()),
        ("frames", frames.into_bytes()),
        ("events", events.concat().into_bytes()),
        ("database", rows.into_bytes()),
        ("store", store),
        ("log", logs.text().into_bytes()),
    ] {
        assert!(!text.is_empty(), "nothing was looked at: {place}");
        for secret in &secrets {
            let found = text.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!found, "{secret} is in the {place}");
        }
    }
    app.stop().await;
}
