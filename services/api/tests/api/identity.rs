//! People: let in, signing in and out, changing, going. And what is left of them.

use domain::{Key, UserId, administrators::Administrators};
use futures::{StreamExt, future::join_all};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use crate::app::{Answer, App, PASSWORD, Without, eventually, identity};

pub(crate) const SECRET: &str = "correct horse battery";

/// What a browser holds.
#[derive(Debug, Clone)]
pub(crate) struct Browser {
    pub(crate) base: String,
    pub(crate) cookie: String,
}

impl Browser {
    /// As our own pages send it.
    pub(crate) fn request(&self, app: &App, method: Method, path: &str) -> RequestBuilder {
        let request = app.http.request(method, format!("{}/api/v1{path}", self.base));
        let request = request.header("cookie", format!("sluice={}", self.cookie)).header("origin", &self.base);
        request.header("content-type", "application/json")
    }

    pub(crate) async fn get(&self, app: &App, path: &str) -> Answer {
        Answer::of(self.request(app, Method::GET, path)).await
    }

    pub(crate) async fn post(&self, app: &App, path: &str, body: Value) -> Answer {
        Answer::of(self.request(app, Method::POST, path).body(body.to_string())).await
    }

    pub(crate) fn of(base: &str, answer: &Answer) -> Self {
        let set = answer.headers["set-cookie"].to_str().expect("text");
        let cookie = set.strip_prefix("sluice=").and_then(|rest| rest.split(';').next()).expect("a cookie");
        assert!(set.contains("HttpOnly") && set.contains("SameSite=Lax") && set.contains("Path=/"), "{set}");
        Self { base: base.to_owned(), cookie: cookie.to_owned() }
    }
}

pub(crate) async fn try_login(app: &App, base: &str, name: &str, password: &str) -> Answer {
    let body = json!({ "name": name, "password": password }).to_string();
    let request = app.http.post(format!("{base}/api/v1/auth/login")).header("content-type", "application/json");
    Answer::of(request.body(body)).await
}

pub(crate) async fn login(app: &App, name: &str, password: &str) -> Browser {
    let answer = try_login(app, &app.base, name, password).await;
    assert_eq!(answer.status, 200, "{:#}", answer.body);
    Browser::of(&app.base, &answer)
}

/// A user without a password, and the token of the setup link.
pub(crate) async fn invite(app: &App, name: &str, grant: Value) -> (String, String) {
    let answer = app.post("/users", json!({ "name": name, "grant": grant })).await;
    answer.accepted();
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    (text(&answer.body["id"]), text(&answer.body["setup"]["token"]))
}

pub(crate) async fn set_up(app: &App, token: &str, password: &str) -> Answer {
    let body = json!({ "token": token, "password": password }).to_string();
    let request = app.http.post(format!("{}/api/v1/auth/setup", app.base)).header("content-type", "application/json");
    Answer::of(request.body(body)).await
}

/// A user who has chosen [`SECRET`] and is signed in.
pub(crate) async fn person(app: &App, name: &str, grant: Value) -> (String, Browser) {
    let (id, token) = invite(app, name, grant).await;
    let answer = set_up(app, &token, SECRET).await;
    assert_eq!(answer.status, 200, "{:#}", answer.body);
    (id, Browser::of(&app.base, &answer))
}

#[tokio::test]
async fn the_first_administrator_signs_in_with_the_password_of_the_environment() {
    let app = App::start().await;
    let browser = login(&app, "Admin", PASSWORD).await;
    let me = browser.get(&app, "/auth/me").await.ok();
    assert_eq!(
        (&me["name"], &me["via"], &me["grant"]),
        (&json!("admin"), &json!("session"), &json!({ "role": "admin" }))
    );
    for (name, password) in [("admin", "wrong"), ("nobody", PASSWORD), ("", ""), ("admin", "")] {
        try_login(&app, &app.base, name, password).await.problem(401, "bad_credentials");
    }
    // A second API finds that there is one, and asks for nothing.
    let mut app = app;
    app.identity.admin_password = None;
    let second = app.another_api().await;
    assert_eq!(try_login(&app, &second, "admin", PASSWORD).await.status, 200);
    app.stop().await;
}

#[tokio::test]
async fn without_an_administrator_nothing_starts_without_a_good_password_for_one() {
    let app = App::start().await;
    let empty = testkit::Nats::start().await.expect("NATS starts");
    let directory = tempfile::tempdir().expect("a directory");
    let log = crate::app::connect(&empty, directory.path()).await;
    let database = readmodel::connect(app.database.url()).await.expect("the database answers");
    for password in [None, Some("password"), Some("short")] {
        let config = api::Config {
            listen: "127.0.0.1:0".parse().expect("an address"),
            node: "local".into(),
            identity: api::Identity { admin_password: password.map(Into::into), ..identity() },
            oidc: crate::app::oidc(),
        };
        let error = api::run(config, log.clone(), database.clone(), app.stop_token()).await.expect_err("refused");
        assert!(format!("{error:#}").starts_with("ADMIN_PASSWORD"), "{error:#}");
    }
    log.close().await;
    app.stop().await;
}

#[tokio::test]
async fn a_setup_link_lets_its_user_in_once() {
    let app = App::start().await;
    let (id, first) = invite(&app, "ann", json!({ "role": "operator" })).await;
    app.post("/users", json!({ "name": "ANN", "grant": { "role": "viewer" } })).await.problem(409, "name_taken");
    set_up(&app, &first, "password1").await.problem(422, "invalid");
    let again = app.post(&format!("/users/{id}/setup"), json!({})).await;
    let second = again.body["setup"]["token"].as_str().expect("a token").to_owned();
    for dead in [&first, &format!("{first}0"), "x", ""] {
        set_up(&app, dead, SECRET).await.problem(422, "setup_over");
    }
    assert_eq!(set_up(&app, &second, SECRET).await.status, 200);
    set_up(&app, &second, SECRET).await.problem(422, "setup_over");
    let me = login(&app, "ann", SECRET).await.get(&app, "/auth/me").await.ok();
    assert_eq!((&me["id"], &me["grant"]["role"]), (&json!(id), &json!("operator")));
    app.stop().await;
}

#[tokio::test]
async fn who_is_erased_cannot_be_told_by_anybody_and_the_log_still_reads() {
    let app = App::start().await;
    let body = json!({ "name": "canary-name", "display_name": "Canary Display", "email": "canary@example.com",
        "grant": { "role": "viewer" } });
    let made = app.post("/users", body).await;
    let (id, sequence) = (made.body["id"].as_str().expect("an id").to_owned(), made.accepted());
    let people = app.get(&format!("/people?at_least={sequence}")).await.ok();
    assert_eq!(people[&id], "Canary Display");
    let sequence = app.post(&format!("/users/{id}/erase"), json!({})).await.accepted();
    let user = app.get(&format!("/users/{id}?at_least={sequence}")).await.ok();
    assert_eq!((&user["standing"], &user["name"], &user["email"]), (&json!("erased"), &Value::Null, &Value::Null));
    assert_eq!(app.get("/people").await.ok().get(&id), None);
    assert_eq!(app.log.vault().get(&format!("person/{id}")).await.expect("asked"), None, "the key is gone");
    for event in events(&app).await {
        assert!(!event.to_lowercase().contains("canary"), "{event}");
    }
    // The name is free again, and the projector has gone on.
    let sequence = invite_sequence(&app, "canary-name").await;
    app.get(&format!("/users?at_least={sequence}")).await.ok();
    app.post(&format!("/users/{id}/enable"), json!({})).await.problem(409, "user_erased");
    app.stop().await;
}

async fn invite_sequence(app: &App, name: &str) -> u64 {
    app.post("/users", json!({ "name": name, "grant": { "role": "viewer" } })).await.accepted()
}

/// Every event, as it is stored.
async fn events(app: &App) -> Vec<String> {
    let last = app.log.last_sequence().await.expect("an end");
    let events = app.log.follow("sluice.events.>", 0).take(usize::try_from(last).expect("few"));
    events.map(|event| event.expect("readable").body).collect().await
}

#[tokio::test]
async fn the_last_administrator_stays_whoever_races() {
    let app = App::start().await;
    let mut ids = vec![];
    for n in 0..20 {
        ids.push(invite(&app, &format!("admin{n}"), json!({ "role": "admin" })).await.0);
    }
    let first = app.get("/users").await.ok()[0]["id"].as_str().expect("an id").to_owned();
    ids.push(first);
    let races = (0..1000).map(|n| {
        let (app, id) = (&app, &ids[n * 7 % ids.len()]);
        async move {
            if n % 2 == 0 {
                app.post(&format!("/users/{id}/disable"), json!({})).await
            } else {
                app.put(&format!("/users/{id}/grant"), json!({ "role": "viewer" })).await
            }
        }
    });
    let mut refused = 0;
    for answer in join_all(races).await {
        match (answer.status.as_u16(), answer.body["code"].as_str()) {
            (202, _) => {}
            (409, Some("last_administrator")) => refused += 1,
            (409, Some("conflict")) | (503, _) => {}
            other => panic!("{other:?} {:#}", answer.body),
        }
    }
    // Whoever is left is refused until somebody else is there.
    for id in &ids {
        if app.post(&format!("/users/{id}/disable"), json!({})).await.status == 409 {
            refused += 1;
        }
    }
    assert!(refused > 0);
    let last = app.log.load(&Key::<Administrators>::administrators()).await.expect("loaded").state.users;
    assert_eq!(last.len(), 1, "{last:?}");
    // At no time was there nobody: each leaving follows on another who stayed.
    let mut present = std::collections::BTreeSet::<UserId>::new();
    for event in app.log.follow("sluice.events.administrators.>", 0).take(20 + 20 + 1).collect::<Vec<_>>().await {
        match event.expect("readable").event {
            domain::Event::Administrators(domain::administrators::Event::Joined { user }) => present.insert(user),
            domain::Event::Administrators(domain::administrators::Event::Left { user }) => present.remove(&user),
            other => panic!("{other:?}"),
        };
        assert!(!present.is_empty());
    }
    let holder = app.log.load(&Key::<domain::user::User>::user(*last.first().expect("one"))).await.expect("loaded");
    assert!(holder.state.person.expect("a person").administers());
    app.stop().await;
}

#[tokio::test]
async fn nobody_gives_more_than_they_have() {
    let app = App::start().await;
    let (_, operator) = person(&app, "op", json!({ "role": "operator", "projects": ["shop"] })).await;
    let token = |role: &str, projects: Value, personal: bool| json!({ "name": "t", "role": role, "projects": projects, "personal": personal });
    for body in [
        token("operator", Value::Null, true),
        token("admin", json!(["shop"]), true),
        token("operator", json!(["shop", "other"]), true),
        token("viewer", json!(["shop"]), false),
    ] {
        operator.post(&app, "/tokens", body).await.problem(403, "above_grant");
    }
    let made = operator.post(&app, "/tokens", token("viewer", json!(["shop"]), true)).await;
    let bearer = made.body["token"].as_str().expect("a token");
    let me = Answer::of(app.http.get(format!("{}/api/v1/auth/me", app.base)).bearer_auth(bearer)).await.ok();
    assert_eq!(
        (&me["via"], &me["grant"]),
        (&json!("personal_token"), &json!({ "role": "viewer", "projects": ["shop"] }))
    );
    app.stop().await;
}

#[tokio::test]
async fn a_cookie_changes_nothing_for_another_site() {
    let app = App::start().await;
    let browser = login(&app, "admin", PASSWORD).await;
    let url = format!("{}/api/v1/auth/logout", app.base);
    let plain = || app.http.post(&url).header("cookie", format!("sluice={}", browser.cookie));
    let json = "application/json";
    for (request, status, code) in [
        (plain(), 415, "not_json"),
        (plain().header("content-type", "text/plain").header("origin", &app.base), 415, "not_json"),
        (plain().header("content-type", json), 403, "cross_site"),
        (plain().header("content-type", json).header("origin", "http://evil.example"), 403, "cross_site"),
        (plain().header("content-type", json).header("sec-fetch-site", "cross-site"), 403, "cross_site"),
    ] {
        Answer::of(request).await.problem(status, code);
    }
    assert_eq!(browser.get(&app, "/auth/me").await.status, 200, "still signed in");
    let body = json!({ "name": "admin", "password": PASSWORD }).to_string();
    let foreign = app.http.post(format!("{}/api/v1/auth/login", app.base)).header("content-type", json);
    Answer::of(foreign.header("origin", "http://evil.example").body(body)).await.problem(403, "cross_site");
    app.stop().await;
}

#[tokio::test]
async fn a_narrowed_grant_sees_its_projects_and_nothing_else() {
    let app = App::start_without(Without::Nothing).await;
    for project in ["shop", "other"] {
        app.project(project).await;
    }
    app.image("registry.test/shop:v1", 'a');
    app.image("registry.test/other:v1", 'b');
    let mut ids = vec![];
    for project in ["shop", "other"] {
        let answer = app.post(&format!("/projects/{project}/stages/dev/deployments"), json!({ "image": "v1" })).await;
        ids.push(answer.body["deployment"].as_str().unwrap_or_default().to_owned());
        let sequence = answer.accepted();
        app.get(&format!("/projects?at_least={sequence}")).await.ok();
    }
    let (_, viewer) = person(&app, "vi", json!({ "role": "viewer", "projects": ["shop"] })).await;
    for path in ["/projects", "/stages", "/deployments", "/promotions", "/events?limit=500"] {
        let text = viewer.get(&app, path).await.ok().to_string();
        assert!(!text.contains("other"), "{path}: {text}");
        assert!(text.contains("shop") || path == "/promotions", "{path}: {text}");
    }
    viewer.get(&app, &format!("/deployments/{}", ids[0])).await.ok();
    viewer.get(&app, &format!("/deployments/{}", ids[1])).await.problem(404, "deployment_not_found");
    viewer.get(&app, "/projects/other/stages/dev/logs").await.problem(403, "outside_grant");
    viewer.get(&app, "/projects/never-heard-of").await.problem(403, "outside_grant");
    let response = viewer.request(&app, Method::GET, "/events/stream?after=0").send().await.expect("a stream");
    let mut stream = crate::events::Sse::new(response);
    app.put("/projects/other", json!({ "name": "Other" })).await.accepted();
    app.put("/projects/shop", json!({ "name": "The Shop" })).await.accepted();
    loop {
        let message = stream.soon().await;
        assert!(!message.data.contains("other"), "{}", message.data);
        if message.event.ends_with("project.renamed.v1") {
            break;
        }
    }
    app.stop().await;
}

#[tokio::test]
async fn a_sign_in_at_a_command_line_is_recorded_with_its_token_or_not_at_all() {
    let app = App::start().await;
    let (id, _) = person(&app, "ann", json!({ "role": "operator" })).await;
    let sign_in = async |password: &str, grant: Value| {
        let body = json!({ "name": "ann", "password": password, "token_name": "laptop", "grant": grant });
        let request = app.http.post(format!("{}/api/v1/auth/token", app.base)).body(body.to_string());
        Answer::of(request.header("content-type", "application/json")).await
    };
    let before = app.log.last_sequence().await.expect("an end");
    sign_in(SECRET, json!({ "role": "admin" })).await.problem(403, "above_grant");
    assert_eq!(app.log.last_sequence().await.expect("an end"), before, "nothing came of it");
    let made = sign_in(SECRET, Value::Null).await.ok();
    let token = made["id"].as_str().expect("an id");
    assert_eq!(
        app.subjects(before).await,
        [format!("sluice.events.user.{id}.signed_in"), format!("sluice.events.token.{token}.created")]
    );
    let events: Vec<_> = app.log.follow("sluice.events.>", before).take(2).collect().await;
    let contexts = events.into_iter().map(|event| event.expect("readable").context);
    let contexts: Vec<_> = contexts.map(|context| (context.actor, context.command_id, context.request_id)).collect();
    assert_eq!(contexts[0], contexts[1], "one decision");
    assert_eq!(contexts[0].0, format!("user:{id}"));
    let user = app.get(&format!("/users/{id}?at_least={}", made["sequence"])).await.ok();
    assert!(user["signed_in_at"].is_string(), "{user}");
    sign_in("wrong", Value::Null).await.problem(401, "bad_credentials");
    app.stop().await;
}

#[tokio::test]
async fn a_token_shows_when_it_was_last_used_and_that_is_not_written_for_every_request() {
    let mut app = App::start().await;
    let made = app.post("/tokens", json!({ "name": "ci", "role": "viewer" })).await;
    let (id, sequence) = (made.body["id"].as_str().expect("an id").to_owned(), made.accepted());
    let token = made.body["token"].as_str().expect("a token").to_owned();
    let used = async |app: &App, base: &str| {
        let url = format!("{base}/api/v1/tokens?at_least={sequence}");
        let listed = Answer::of(app.http.get(url).bearer_auth(&app.token)).await.ok();
        let own = listed.as_array().expect("a list").iter().find(|token| token["id"] == id).expect("listed").clone();
        own["last_used_at"].as_str().map(|at| at.parse::<chrono::DateTime<chrono::Utc>>().expect("a time"))
    };
    assert_eq!(used(&app, &app.base).await, None);
    // Who only knows which token there is has not used it.
    let forged = format!("{}{}", &token[..token.len() - 1], if token.ends_with('0') { '1' } else { '0' });
    let get = async |app: &App, token: &str| {
        Answer::of(app.http.get(format!("{}/api/v1/projects", app.base)).bearer_auth(token)).await.status
    };
    assert_eq!(get(&app, &forged).await, 401);
    let begun = runtime::clock::now();
    for _ in 0..20 {
        assert_eq!(get(&app, &token).await, 200);
    }
    eventually("the use is written", async || used(&app, &app.base).await.is_some()).await;
    assert!(used(&app, &app.base).await.expect("used") >= begun);
    let written = async |app: &App| app.log.bucket("uses").get(&id).await.expect("asked").expect("written").revision;
    let revision = written(&app).await;
    let last = app.log.last_sequence().await.expect("an end");
    for _ in 0..20 {
        assert_eq!(get(&app, &token).await, 200);
    }
    assert_eq!(written(&app).await, revision, "not for every request");
    assert_eq!(app.log.last_sequence().await.expect("an end"), last, "no event");
    // It outlives the processes, and the server.
    app.nats.kill();
    app.nats.restart().await.expect("NATS is back");
    let second = app.another_api().await;
    eventually("it is known after a restart", async || {
        let request = app.http.get(format!("{second}/api/v1/auth/me")).bearer_auth(&app.token);
        Answer::of(request).await.status == 200
    })
    .await;
    assert!(used(&app, &second).await.is_some_and(|at| at >= begun));
    app.stop().await;
}
