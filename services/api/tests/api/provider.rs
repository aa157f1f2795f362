//! Signing in at an OpenID provider, and what becomes of people who come from there.

use chrono::{DateTime, TimeDelta, Utc};
use futures::future::join_all;
use reqwest::{StatusCode, header::HeaderMap, redirect};
use serde_json::{Value, json};
use testkit::{CertifiedProvider, Fault, HostileProvider, Leg};

use crate::{
    app::{Answer, App, eventually},
    identity::{Browser, invite, login, person},
    oidc_browser,
};

/// An API whose provider is declared in its settings, and a browser that follows nothing by itself.
struct Lab {
    app: App,
    provider: HostileProvider,
    http: reqwest::Client,
}

/// Where an answer leads, and the cookie that it sets.
struct Led {
    status: StatusCode,
    location: String,
    cookie: String,
    body: Value,
}

async fn declare(app: &App, issuer: &str, secret: &str) {
    let settings = json!({ "issuer": issuer, "client_id": HostileProvider::CLIENT_ID });
    app.put("/auth/provider", settings).await.accepted();
    app.put("/auth/provider/secret", json!({ "secret": secret })).await.accepted();
}

fn text(headers: &HeaderMap, name: &str) -> String {
    headers.get(name).map(|value| value.to_str().expect("text").to_owned()).unwrap_or_default()
}

impl Lab {
    async fn start() -> Self {
        let app = App::start().await;
        let provider = HostileProvider::start().await.expect("the provider starts");
        declare(&app, provider.issuer(), HostileProvider::CLIENT_SECRET).await;
        let http = reqwest::Client::builder().no_proxy().redirect(redirect::Policy::none()).build().expect("a client");
        Self { app, provider, http }
    }

    async fn go(&self, url: &str, cookie: &str) -> Led {
        let answer = self.http.get(url).header("cookie", cookie).send().await.expect("an answer");
        let (status, headers) = (answer.status(), answer.headers().clone());
        let body = answer.bytes().await.expect("a body");
        let cookie = text(&headers, "set-cookie").split(';').next().unwrap_or_default().to_owned();
        let body = serde_json::from_slice(&body).unwrap_or_default();
        Led { status, location: text(&headers, "location"), cookie, body }
    }

    /// The cookie of a sign-in that has begun, and where the provider sends the browser then.
    async fn begun(&self) -> (String, String) {
        let begun = self.go(&format!("{}/auth/oidc/start?return_to=/projects/shop", self.app.base), "").await;
        assert_eq!(begun.status, StatusCode::SEE_OTHER, "{:#}", begun.body);
        assert!(begun.cookie.starts_with("sluice-oidc="), "{}", begun.cookie);
        let back = self.go(&begun.location, "").await.location;
        assert!(back.starts_with(&format!("{}/auth/oidc/callback?", self.app.base)), "{back}");
        (begun.cookie, back)
    }

    /// All of it, as a browser goes through it.
    async fn sign_in(&self) -> Led {
        let (cookie, back) = self.begun().await;
        self.go(&back, &cookie).await
    }

    /// How often nobody was let in, by the events.
    async fn refusals(&self) -> usize {
        self.app.get("/events?limit=500").await.ok().to_string().matches("dev.sluice.login.refused.v1").count()
    }

    async fn accepted(&self) -> Browser {
        let led = self.sign_in().await;
        self.browser(&led)
    }

    fn browser(&self, led: &Led) -> Browser {
        assert_eq!((led.status, led.location.as_str()), (StatusCode::SEE_OTHER, "/projects/shop"), "{:#}", led.body);
        let cookie = led.cookie.strip_prefix("sluice=").expect("the session's cookie").to_owned();
        Browser { base: self.app.base.clone(), cookie }
    }

    async fn refused(&self, status: u16, code: &str) {
        let led = self.sign_in().await;
        assert_eq!((led.status.as_u16(), &led.body["code"]), (status, &json!(code)), "{:#}", led.body);
        assert!(led.cookie.is_empty(), "{}", led.cookie);
    }

    fn claims(&self, name: &'static str, role: &'static str) {
        self.provider.claims(move |claims| {
            claims["preferred_username"] = json!(name);
            claims["roles"] = json!([role]);
        });
    }

    async fn browser_code(&self, browser: &Browser) -> String {
        browser.get(&self.app, "/auth/code").await.ok()["code"].as_str().expect("a code").to_owned()
    }

    async fn me(&self, browser: &Browser) -> Value {
        browser.get(&self.app, "/auth/me").await.ok()
    }
}

#[tokio::test]
async fn whom_the_provider_knows_comes_to_be_once_and_is_known_by_the_subject() {
    let lab = Lab::start().await;
    lab.claims("ann", "operator");
    let me = lab.me(&lab.accepted().await).await;
    assert_eq!((&me["name"], &me["source"], &me["grant"]["role"]), (&json!("ann"), &json!("oidc"), &json!("operator")));
    // Another name, another role: the same person.
    lab.claims("ann.smith", "viewer");
    let browser = lab.accepted().await;
    let later = lab.me(&browser).await;
    assert_eq!(
        (&later["id"], &later["name"], &later["grant"]["role"]),
        (&me["id"], &json!("ann.smith"), &json!("viewer"))
    );
    // The old name is free again.
    invite(&lab.app, "ann", json!({ "role": "viewer" })).await;
    let until: DateTime<Utc> = serde_json::from_value(later["until"].clone()).expect("a time");
    assert!(until <= runtime::clock::now() + TimeDelta::hours(12), "{until}");
    for (kind, times) in [("user.created", 2 + 1), ("user.signed_in", 2 + 1), ("session.opened", 2)] {
        eventually(kind, async || {
            let events = lab.app.get("/events?limit=500").await.ok().to_string();
            events.matches(&format!("dev.sluice.{kind}.v1")).count() == times
        })
        .await;
    }
    let events = lab.app.get("/events?limit=500").await.ok().to_string();
    assert!(events.contains(r#""source":"oidc""#) && events.contains(r#""method":"oidc""#), "{events}");
    for told in [events, lab.app.rows().await] {
        for secret in ["ann", HostileProvider::SUBJECT, HostileProvider::CLIENT_SECRET, "eyJ"] {
            assert!(!told.contains(secret), "{secret} stands in {told}");
        }
    }

    let out = browser.post(&lab.app, "/auth/logout", json!({})).await.ok();
    let location = out["location"].as_str().expect("the provider has a place to sign out at");
    assert!(location.starts_with(&format!("{}/logout?", lab.provider.issuer())), "{location}");
    assert!(location.contains("id_token_hint=ey"), "{location}");
    browser.get(&lab.app, "/auth/me").await.problem(401, "unauthorized");
    lab.app.stop().await;
}

#[tokio::test]
async fn a_name_that_is_somebodys_is_refused_and_recorded() {
    let lab = Lab::start().await;
    person(&lab.app, "bob", json!({ "role": "admin" })).await;
    lab.claims("BOB", "admin");
    lab.refused(403, "name_taken").await;
    lab.claims("ann", "viewer");
    lab.accepted().await;
    // A new subject under an old name.
    lab.provider.claims(|claims| {
        claims["sub"] = json!("somebody else");
        claims["preferred_username"] = json!("ann");
        claims["roles"] = json!(["admin"]);
    });
    lab.provider.userinfo(|info| info["sub"] = json!("somebody else"));
    lab.refused(403, "name_taken").await;
    eventually("both are recorded", async || lab.refusals().await == 2).await;
    let events = lab.app.get("/events?limit=500").await.ok().to_string();
    assert!(events.contains("name_taken") && !events.contains("ann"), "who they are stands in no event: {events}");
    lab.app.stop().await;
}

#[tokio::test]
async fn who_is_disabled_or_has_no_role_any_more_is_not_let_in() {
    let lab = Lab::start().await;
    lab.claims("ann", "operator");
    let browser = lab.accepted().await;
    let id = lab.me(&browser).await["id"].as_str().expect("an id").to_owned();
    lab.claims("ann", "none of ours");
    lab.refused(403, "roles_no_match").await;
    lab.claims("ann", "operator");
    lab.app.post(&format!("/users/{id}/disable"), json!({})).await.accepted();
    browser.get(&lab.app, "/auth/me").await.problem(401, "unauthorized");
    lab.refused(403, "user_disabled").await;
    lab.app.post(&format!("/users/{id}/enable"), json!({})).await.accepted();
    let browser = lab.accepted().await;
    lab.app.post(&format!("/users/{id}/erase"), json!({})).await.accepted();
    browser.get(&lab.app, "/auth/me").await.problem(401, "unauthorized");
    assert_ne!(lab.me(&lab.accepted().await).await["id"], id, "whoever was erased comes as somebody new");
    lab.app.stop().await;
}

#[tokio::test]
async fn the_provider_is_declared_shown_and_tested_by_administrators() {
    let lab = Lab::start().await;
    let app = &lab.app;
    let methods = |app: &App| app.http.get(format!("{}/api/v1/auth/methods", app.base));
    let shown: Value = methods(app).send().await.expect("an answer").json().await.expect("JSON");
    assert_eq!(shown["provider"]["start"], format!("{}/auth/oidc/start", app.base));
    let declared = app.get("/auth/provider").await.ok();
    assert_eq!((&declared["managed_by"], &declared["has_secret"]), (&json!("settings"), &json!(true)));
    assert_eq!(declared["redirect_uri"], format!("{}/auth/oidc/callback", app.base));
    assert!(!declared.to_string().contains(HostileProvider::CLIENT_SECRET));
    let report = app.post("/auth/provider/test", json!({})).await.ok();
    assert!(report.to_string().contains("issuer"), "{report:#}");

    // Another issuer ends the secret.
    let other = json!({ "issuer": "https://id.example.com", "client_id": "x" });
    app.put("/auth/provider", other).await.accepted();
    assert_eq!(app.get("/auth/provider").await.ok()["has_secret"], false);
    app.put("/auth/provider", json!({ "issuer": "nowhere", "client_id": "x" })).await.problem(422, "invalid");
    app.delete("/auth/provider").await.accepted();
    app.get("/auth/provider").await.problem(404, "provider_not_found");
    let led = lab.go(&format!("{}/auth/oidc/start", app.base), "").await;
    assert_eq!((led.status.as_u16(), &led.body["code"]), (404, &json!("provider_not_found")));
    // The password stays a way in.
    login(app, "admin", crate::app::PASSWORD).await;
    lab.app.stop().await;
}

#[tokio::test]
async fn the_last_administrator_cannot_be_demoted_by_the_provider() {
    let lab = Lab::start().await;
    lab.claims("ann", "admin");
    let ann = lab.accepted().await;
    let users = ann.get(&lab.app, "/users").await.ok();
    let admin = users.as_array().expect("a list").iter().find(|user| user["name"] == "admin").expect("the first");
    let path = format!("/users/{}/disable", admin["id"].as_str().expect("an id"));
    ann.post(&lab.app, &path, json!({})).await.accepted();
    lab.claims("ann", "viewer");
    lab.refused(403, "last_administrator").await;
    assert_eq!(lab.me(&ann).await["grant"]["role"], "admin");
    lab.app.stop().await;
}

#[tokio::test]
async fn one_person_in_many_tabs_at_once_comes_to_be_once() {
    let lab = Lab::start().await;
    // A new name at the same time makes it worse.
    for name in ["ann", "ann.smith"] {
        lab.claims(name, "operator");
        let begun = join_all((0..6).map(|_| lab.begun())).await;
        let led = join_all(begun.iter().map(|(cookie, back)| lab.go(back, cookie))).await;
        let browsers: Vec<_> = led.iter().map(|led| lab.browser(led)).collect();
        let all = join_all(browsers.iter().map(|browser| lab.me(browser))).await;
        assert!(all.iter().all(|me| me["id"] == all[0]["id"] && me["name"] == name), "{all:#?}");
    }
    let users = lab.app.get("/users").await.ok();
    assert_eq!(users.as_array().map(Vec::len), Some(2), "the first administrator, and Ann: {users:#}");
    // No name of hers is taken that she does not bear.
    invite(&lab.app, "ann", json!({ "role": "viewer" })).await;
    lab.app.stop().await;
}

#[tokio::test]
async fn an_answer_is_good_once_and_in_the_browser_that_asked_and_strangers_fill_no_log() {
    let lab = Lab::start().await;
    lab.claims("ann", "viewer");
    let (cookie, back) = lab.begun().await;
    let (other, _) = lab.begun().await;
    let code = async |url: &str, cookie: &str| {
        let led = lab.go(url, cookie).await;
        assert!(led.cookie.is_empty() && led.location.is_empty(), "{} {}", led.cookie, led.location);
        (led.status.as_u16(), led.body["code"].as_str().unwrap_or_default().to_owned())
    };
    let callback = format!("{}/auth/oidc/callback", lab.app.base);
    for (url, cookie, expected) in [
        (back.as_str(), "", "state_of_another_browser"),
        (&back, &other, "state_of_another_browser"),
        (&callback, &cookie, "state_missing"),
        (&format!("{callback}?state=x&code=y"), &cookie, "state_unknown"),
        (&format!("{callback}?state=x&state=y"), &cookie, "callback_malformed"),
    ] {
        assert_eq!(code(url, cookie).await, (403, expected.to_owned()));
    }
    let led = lab.go(&back, &cookie).await;
    assert_eq!(led.status, StatusCode::SEE_OTHER, "{:#}", led.body);
    assert_eq!(code(&back, &cookie).await, (403, "state_unknown".into()));
    for evil in ["//evil.example", "https://evil.example", "/%5cevil.example"] {
        let url = format!("{}/auth/oidc/start?return_to={evil}", lab.app.base);
        assert_eq!(code(&url, "").await, (422, "return_path_refused".into()));
    }
    // What somebody began is recorded; it comes last, so that all before it would be there.
    lab.provider.callback(|pairs| {
        pairs.retain(|(name, _)| name != "code");
        pairs.push(("error".into(), "access_denied".into()));
    });
    lab.refused(403, "access_denied").await;
    eventually("it is recorded", async || lab.refusals().await > 0).await;
    assert_eq!(lab.refusals().await, 1);
    lab.app.stop().await;
}

#[tokio::test]
async fn the_environment_speaks_alone_and_says_so() {
    let mut lab = Lab::start().await;
    lab.claims("ann", "viewer");
    let id = lab.me(&lab.accepted().await).await["id"].clone();
    // What is stored leads nowhere from now on.
    declare(&lab.app, "https://id.example.com", "x").await;
    let variables = [("OIDC_ISSUER", lab.provider.issuer()), ("OIDC_CLIENT_ID", HostileProvider::CLIENT_ID)];
    let variables =
        [&variables[..], &[("OIDC_CLIENT_SECRET", HostileProvider::CLIENT_SECRET), ("OIDC_LABEL", "Enter")]];
    let get =
        |name: &str| variables.concat().iter().find(|(known, _)| *known == name).map(|(_, value)| value.to_string());
    lab.app.oidc.declared = api::oidc::Config::read(get).expect("good").declared;
    lab.app.base = lab.app.another_api().await;
    let methods = lab.go(&format!("{}/api/v1/auth/methods", lab.app.base), "").await.body;
    let start = format!("{}/auth/oidc/start", lab.app.base);
    assert_eq!(methods, json!({ "password": true, "provider": { "label": "Enter", "start": start } }));
    let declared = lab.app.get("/auth/provider").await.ok();
    assert_eq!((&declared["managed_by"], &declared["has_secret"]), (&json!("environment"), &json!(true)));
    assert_eq!(declared["settings"]["issuer"], lab.provider.issuer());
    let settings = json!({ "issuer": "https://id.example.com", "client_id": "y" });
    lab.app.put("/auth/provider", settings).await.problem(409, "provider_of_environment");
    lab.app.put("/auth/provider/secret", json!({ "secret": "x" })).await.problem(409, "provider_of_environment");
    assert_eq!(lab.me(&lab.accepted().await).await["id"], id, "it is the same issuer");
    // What is stored can go.
    lab.app.delete("/auth/provider").await.accepted();
    lab.accepted().await;
    lab.app.stop().await;
}

#[tokio::test]
async fn a_role_is_what_the_provider_said_at_the_last_sign_in() {
    let lab = Lab::start().await;
    person(&lab.app, "bob", json!({ "role": "viewer" })).await;
    lab.claims("ann", "operator");
    let browser = lab.accepted().await;
    let ann = lab.me(&browser).await;
    lab.claims("ann", "viewer");
    assert_eq!(lab.me(&browser).await["grant"]["role"], "operator", "nobody asks in between");
    // What an administrator says holds until then.
    let path = format!("/users/{}/grant", ann["id"].as_str().expect("an id"));
    lab.app.put(&path, json!({ "role": "admin" })).await.accepted();
    assert_eq!(lab.me(&browser).await["grant"]["role"], "admin");
    // A name that is somebody's changes nothing of it.
    lab.claims("Bob", "viewer");
    lab.refused(403, "name_taken").await;
    assert_eq!(lab.me(&browser).await["grant"]["role"], "admin");
    lab.claims("ann", "viewer");
    let again = lab.accepted().await;
    let me = lab.me(&again).await;
    assert_eq!((&me["id"], &me["grant"]["role"]), (&ann["id"], &json!("viewer")));
    assert_eq!(lab.me(&browser).await["grant"]["role"], "viewer", "in every session");
    // She has no password, and none can be set.
    let setup = format!("/users/{}/setup", ann["id"].as_str().expect("an id"));
    lab.app.post(&setup, json!({})).await.problem(409, "no_password");
    lab.app.stop().await;
}

#[tokio::test]
async fn who_signs_out_is_signed_out_here_whatever_the_provider_does() {
    let lab = Lab::start().await;
    lab.claims("ann", "viewer");
    let [ann, other] = [lab.accepted().await, lab.accepted().await];
    let admin = login(&lab.app, "admin", crate::app::PASSWORD).await;
    let out = admin.post(&lab.app, "/auth/logout", json!({})).await.ok();
    assert!(out.get("location").is_none(), "a password has no provider: {out:#}");
    // Another provider gets no token that was not its own.
    let next = HostileProvider::start().await.expect("another provider");
    declare(&lab.app, next.issuer(), "x").await;
    let out = ann.post(&lab.app, "/auth/logout", json!({})).await.ok();
    assert!(out.get("location").is_none(), "{out:#}");
    ann.get(&lab.app, "/auth/me").await.problem(401, "unauthorized");
    next.fail(Leg::Discovery, Fault::Status(500));
    lab.app.delete("/auth/provider").await.accepted();
    let out = other.post(&lab.app, "/auth/logout", json!({})).await.ok();
    assert!(out.get("location").is_none(), "{out:#}");
    other.get(&lab.app, "/auth/me").await.problem(401, "unauthorized");
    let kept = lab.app.log.vault().names().await.expect("listed");
    assert!(!kept.iter().any(|(name, _)| name.starts_with("id-token/")), "{kept:?}");
    lab.app.stop().await;
}

#[tokio::test]
async fn somebody_signs_in_and_out_at_a_certified_provider() {
    let app = App::start().await;
    let place = |path: &str| format!("{}{path}", app.base);
    let certified = CertifiedProvider::start(&place("/auth/oidc/callback"), &place("/login")).await.expect("it starts");
    declare(&app, &certified.issuer(), certified.secret()).await;
    let report = app.post("/auth/provider/test", json!({})).await.ok();
    let bad: Vec<_> =
        report["checks"].as_array().expect("checks").iter().filter(|c| c["outcome"] != "passed").collect();
    assert!(report["good"] == true && bad.len() == 1 && bad[0]["name"] == "redirect_uri", "{report:#}");

    let browser = oidc_browser::Browser::new();
    let get = async |url: String| browser.send(reqwest::Method::GET, url.parse().expect("an address"), &[]).await;
    let begun = get(place("/auth/oidc/start?return_to=/projects/shop")).await;
    let location = text(begun.headers(), "location");
    let back = browser.sign_in(&certified.issuer(), &location, CertifiedProvider::PERSON).await;
    let led = get(back.to_string()).await;
    assert_eq!((led.status(), text(led.headers(), "location").as_str()), (StatusCode::SEE_OTHER, "/projects/shop"));
    let cookie = text(led.headers(), "set-cookie");
    let cookie = cookie.strip_prefix("sluice=").and_then(|rest| rest.split(';').next()).expect("a cookie").to_owned();
    let ann = Browser { base: app.base.clone(), cookie };
    let me = ann.get(&app, "/auth/me").await.ok();
    assert_eq!(
        (&me["name"], &me["email"], &me["grant"]["role"]),
        (&json!("ann"), &json!("ann@example.com"), &json!("operator"))
    );
    let out = ann.post(&app, "/auth/logout", json!({})).await.ok();
    let location = out["location"].as_str().expect("it has a place to sign out at");
    let back = browser.sign_out(&certified.issuer(), location).await;
    assert_eq!(back.as_str(), place("/login"));
    ann.get(&app, "/auth/me").await.problem(401, "unauthorized");
    app.stop().await;
}

#[tokio::test]
async fn a_code_that_the_browser_shows_signs_in_at_a_command_line_once() {
    let lab = Lab::start().await;
    lab.claims("ann", "operator");
    let browser = lab.accepted().await;
    let code = async || lab.browser_code(&browser).await;
    let redeem = async |code: &str| {
        let body = json!({ "code": code, "token_name": "laptop" }).to_string();
        let request = lab.app.http.post(format!("{}/api/v1/auth/code", lab.app.base));
        Answer::of(request.header("content-type", "application/json").body(body)).await
    };
    let first = code().await;
    // Of several at once one is served.
    let all = join_all((0..5).map(|_| redeem(&first))).await;
    let (good, bad): (Vec<_>, Vec<_>) = all.into_iter().partition(|answer| answer.status == 200);
    let [good] = &good[..] else { panic!("{good:?}") };
    bad.into_iter().for_each(|answer| drop(answer.problem(401, "bad_code")));
    let token = good.body["token"].as_str().expect("a token");
    let me = Answer::of(lab.app.http.get(format!("{}/api/v1/auth/me", lab.app.base)).bearer_auth(token)).await.ok();
    assert_eq!(
        (&me["name"], &me["via"], &me["grant"]["role"]),
        (&json!("ann"), &json!("personal_token"), &json!("operator"))
    );
    for dead in [first.as_str(), "", "x"] {
        redeem(dead).await.problem(401, "bad_code");
    }
    // A token shows none: it would outlive itself. And a code ends with its session.
    let by_token = lab.app.http.get(format!("{}/api/v1/auth/code", lab.app.base)).bearer_auth(token);
    Answer::of(by_token).await.problem(409, "not_signed_in");
    let late = code().await;
    browser.post(&lab.app, "/auth/logout", json!({})).await.ok();
    redeem(&late).await.problem(401, "bad_code");
    lab.app.stop().await;
}
