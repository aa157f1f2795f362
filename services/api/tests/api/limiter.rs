//! Guessing passwords: counted by address, by all processes together, through restarts and outages.

use std::time::Duration;

use domain::Event;
use futures::{StreamExt, future::join_all};
use serde_json::json;

use crate::{
    app::{Answer, App, PASSWORD, Without, eventually, identity},
    identity::try_login,
};

async fn app(cooldown: u64) -> App {
    let limited = api::Identity { login_max_failures: 5, login_cooldown: cooldown, ..identity() };
    App::start_with(Without::Nothing, limited).await
}

fn refused(answer: Answer, cooldown: &str) {
    assert_eq!(answer.headers["retry-after"], cooldown);
    let problem = answer.problem(429, "login_rate_limited");
    assert_eq!(problem["detail"], "Too many failed login attempts. Please try again later.");
    assert!(problem.get("hint").is_none());
}

#[tokio::test]
async fn five_failures_block_the_address_in_every_process_whatever_it_claims_to_be() {
    let mut app = app(900).await;
    let second = app.another_api().await;
    for n in 0..5 {
        let base = if n % 2 == 0 { &app.base } else { &second };
        try_login(&app, base, "admin", "wrong").await.problem(401, "bad_credentials");
    }
    // A process that starts now knows it, too.
    let third = app.another_api().await;
    for base in [&app.base, &second, &third] {
        refused(try_login(&app, base, "admin", PASSWORD).await, "900");
    }
    for n in 0..100 {
        let request =
            app.http.post(format!("{}/api/v1/auth/login", app.base)).header("content-type", "application/json");
        let forged = request.header("x-forwarded-for", format!("198.51.100.{n}")).header("x-real-ip", "203.0.113.1");
        let body = json!({ "name": "admin", "password": PASSWORD }).to_string();
        refused(Answer::of(forged.body(body)).await, "900");
    }
    let mut blocks = Box::pin(app.log.follow("sluice.events.login.*.blocked", 0));
    let block = blocks.next().await.expect("one").expect("readable");
    let Event::Login(domain::login::Event::Blocked { source, .. }) = block.event else { panic!("{block:?}") };
    assert_eq!((source.as_str(), block.context.actor.as_str()), ("127.0.0.1", "anonymous"));
    assert!(block.context.request_id.is_some());
    app.stop().await;
}

#[tokio::test]
async fn many_at_once_gain_nothing() {
    let mut app = app(900).await;
    let second = app.another_api().await;
    let tries = (0..60).map(|n| {
        let (app, base) = (&app, if n % 2 == 0 { &app.base } else { &second });
        try_login(app, base, "admin", "wrong")
    });
    let looked_at = join_all(tries).await.into_iter().filter(|answer| answer.status == 401).count();
    assert_eq!(looked_at, 5);
    app.stop().await;
}

#[tokio::test]
async fn a_success_clears_and_a_block_ends() {
    let app = app(1).await;
    for _ in 0..3 {
        for _ in 0..4 {
            try_login(&app, &app.base, "admin", "wrong").await.problem(401, "bad_credentials");
        }
        assert_eq!(try_login(&app, &app.base, "admin", PASSWORD).await.status, 200);
    }
    for _ in 0..5 {
        try_login(&app, &app.base, "nobody", "wrong").await.problem(401, "bad_credentials");
    }
    refused(try_login(&app, &app.base, "admin", PASSWORD).await, "1");
    eventually("the block ends", async || try_login(&app, &app.base, "admin", PASSWORD).await.status == 200).await;
    app.stop().await;
}

#[tokio::test]
async fn without_the_store_each_process_counts_for_itself() {
    let app = app(900).await;
    let gone = app.log.request("$JS.API.STREAM.DELETE.KV_logins", vec![], Duration::from_secs(5)).await;
    assert!(String::from_utf8(gone.expect("answered")).expect("text").contains(r#""success":true"#));
    assert_eq!(try_login(&app, &app.base, "admin", PASSWORD).await.status, 200, "the owner still gets in");
    for _ in 0..5 {
        try_login(&app, &app.base, "admin", "wrong").await.problem(401, "bad_credentials");
    }
    refused(try_login(&app, &app.base, "admin", PASSWORD).await, "900");
    app.stop().await;
}

#[tokio::test]
async fn whoever_does_not_sign_in_does_not_ask_for_ever() {
    let limited = api::Identity { rate_limit_requests: 20, ..identity() };
    let app = App::start_with(Without::Nothing, limited).await;
    let health = || Answer::of(app.http.get(format!("{}/api/v1/health", app.base)));
    let mut last = health().await;
    for _ in 0..25 {
        last = health().await;
    }
    assert_eq!(last.headers["retry-after"], "60");
    last.problem(429, "rate_limited");
    assert_eq!(app.get("/projects").await.status, 200, "who signs in is not held up");
    app.stop().await;
}
