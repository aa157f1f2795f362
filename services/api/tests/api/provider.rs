//! Signing in at an OpenID provider, and what becomes of people who come from there.

use reqwest::{StatusCode, header::HeaderMap, redirect};
use serde_json::{Value, json};
use testkit::HostileProvider;

use crate::{
    app::{App, eventually},
    identity::{Browser, invite, login, person},
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

fn text(headers: &HeaderMap, name: &str) -> String {
    headers.get(name).map(|value| value.to_str().expect("text").to_owned()).unwrap_or_default()
}

impl Lab {
    async fn start() -> Self {
        let app = App::start().await;
        let provider = HostileProvider::start().await.expect("the provider starts");
        let settings = json!({ "issuer": provider.issuer(), "client_id": HostileProvider::CLIENT_ID });
        app.put("/auth/provider", settings).await.accepted();
        let secret = json!({ "secret": HostileProvider::CLIENT_SECRET });
        app.put("/auth/provider/secret", secret).await.accepted();
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

    /// All of it, as a browser goes through it.
    async fn sign_in(&self) -> Led {
        let begun = self.go(&format!("{}/auth/oidc/start?return_to=/projects/shop", self.app.base), "").await;
        assert_eq!(begun.status, StatusCode::SEE_OTHER, "{:#}", begun.body);
        assert!(begun.cookie.starts_with("sluice-oidc="), "{}", begun.cookie);
        let back = self.go(&begun.location, "").await.location;
        assert!(back.starts_with(&format!("{}/auth/oidc/callback?", self.app.base)), "{back}");
        self.go(&back, &begun.cookie).await
    }

    async fn accepted(&self) -> Browser {
        let led = self.sign_in().await;
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
    let events = async || lab.app.get("/events?limit=500").await.ok().to_string();
    eventually("both are recorded", async || events().await.matches("dev.sluice.login.refused.v1").count() == 2).await;
    let events = events().await;
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
    assert_eq!(shown["provider"]["start"], "/auth/oidc/start");
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
