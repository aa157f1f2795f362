//! The permission matrix, made from the router's own table: every route, every kind of credential, every standing.

use std::collections::BTreeMap;

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use crate::{
    app::{Answer, App, eventually},
    identity::{Browser, SECRET, login, person, try_login},
};

/// What somebody comes with.
#[derive(Debug, Clone)]
enum Credential {
    Nothing,
    Session(Browser),
    Token(String),
}

/// Somebody, and what they may do.
struct Caller {
    name: String,
    credential: Credential,
    /// None for whom nothing is open: role, and whether it is good for `shop` only.
    grant: Option<(&'static str, bool)>,
}

/// What the guard has to say.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    LetThrough,
    Unauthorized,
    Forbidden,
    OutsideGrant,
}

impl Credential {
    fn request(&self, app: &App, method: Method, path: &str) -> RequestBuilder {
        let url = format!("{}{path}", app.base);
        let request = app.http.request(method, url).header("content-type", "application/json");
        match self {
            Self::Nothing => request,
            Self::Token(token) => request.bearer_auth(token),
            Self::Session(Browser { base, cookie }) => {
                request.header("cookie", format!("sluice={cookie}")).header("origin", base)
            }
        }
    }
}

fn rank(role: &str) -> usize {
    ["viewer", "operator", "admin"].iter().position(|known| *known == role).expect("a role")
}

/// What SECURITY asks for, said once more in other words than the guard's.
fn expected(access: &str, caller: &Caller, project: &str, names_project: bool) -> Verdict {
    let (kind, role) = access.split_once(' ').unwrap_or((access, "viewer"));
    if kind == "public" || kind == "signed" {
        return Verdict::LetThrough;
    }
    let Some((has, narrowed)) = caller.grant else { return Verdict::Unauthorized };
    match kind {
        _ if rank(has) < rank(role) => Verdict::Forbidden,
        "needs" if narrowed => Verdict::OutsideGrant,
        "in_project" if narrowed && names_project && project != "shop" => Verdict::OutsideGrant,
        "needs" | "in_project" | "filtered" => Verdict::LetThrough,
        other => panic!("{other} is new: say here what it means"),
    }
}

fn fill(path: &str, project: &str) -> String {
    let path = path.replace("{project}", project).replace("{stage}", "dev").replace("{host}", "registry.test");
    let path = path.replace("{source}", "github").replace("{proxy}", "front").replace("{name}", "db");
    let path = path.replace("{id}", "018f0000-0000-7000-8000-000000000000");
    assert!(!path.contains('{'), "a variable without a value: {path}");
    path
}

async fn token(app: &App, maker: &Credential, body: Value) -> (String, String) {
    let made = Answer::of(maker.request(app, Method::POST, "/api/v1/tokens").body(body.to_string())).await;
    made.accepted();
    let text = |name: &str| made.body[name].as_str().expect("text").to_owned();
    (text("id"), text("token"))
}

async fn knows(app: &App, credential: &Credential) -> bool {
    Answer::of(credential.request(app, Method::GET, "/api/v1/auth/me")).await.status == 200
}

/// Everybody: the living by role and kind, the dead by what they died of.
async fn callers(app: &mut App) -> Vec<Caller> {
    let root = Credential::Token(app.token.clone());
    let mut all = vec![
        Caller { name: "anonymous".into(), credential: Credential::Nothing, grant: None },
        Caller { name: "made up".into(), credential: Credential::Token("sluice_x_y".into()), grant: None },
    ];
    let standings = ["viewer", "operator", "admin"].into_iter().flat_map(|role| [(role, false), (role, true)]);
    for (role, narrowed) in standings {
        let projects = if narrowed { json!(["shop"]) } else { Value::Null };
        let name = format!("{role}-of-{}", if narrowed { "shop" } else { "all" });
        let grant = json!({ "role": role, "projects": projects });
        let (_, browser) = person(app, &name, grant).await;
        let session = Credential::Session(browser);
        let body = |personal| json!({ "name": "t", "role": role, "projects": projects, "personal": personal });
        let (_, personal) = token(app, &session, body(true)).await;
        let (_, machine) = token(app, &root, body(false)).await;
        for (kind, credential) in [
            ("session", session),
            ("personal token", Credential::Token(personal)),
            ("machine token", Credential::Token(machine)),
        ] {
            all.push(Caller { name: format!("{name} by {kind}"), credential, grant: Some((role, narrowed)) });
        }
    }
    // An administrator each, so that nothing but the credential stands in the way.
    let admin = json!({ "role": "admin" });
    let body = |personal: bool| json!({ "name": "t", "role": "admin", "personal": personal });
    let mut dead = vec![];

    let (id, browser) = person(app, "disabled", admin.clone()).await;
    let session = Credential::Session(browser);
    let (_, personal) = token(app, &session, body(true)).await;
    app.post(&format!("/users/{id}/disable"), json!({})).await.accepted();
    dead.extend([("disabled session", session), ("disabled personal token", Credential::Token(personal))]);

    let (_, browser) = person(app, "revoked", admin.clone()).await;
    let session = Credential::Session(browser.clone());
    let (personal_id, personal) = token(app, &session, body(true)).await;
    let (machine_id, machine) = token(app, &root, body(false)).await;
    for id in [personal_id, machine_id] {
        app.delete(&format!("/tokens/{id}")).await.accepted();
    }
    browser.post(app, "/auth/logout", json!({})).await.ok();
    dead.extend([
        ("revoked session", session),
        ("revoked personal token", Credential::Token(personal)),
        ("revoked machine token", Credential::Token(machine)),
    ]);

    let (_, browser) = person(app, "expired", admin).await;
    let expiring = |personal: bool| {
        let soon = runtime::clock::now() + chrono::TimeDelta::seconds(1);
        json!({ "name": "t", "role": "admin", "personal": personal, "expires_at": soon })
    };
    let (_, personal) = token(app, &Credential::Session(browser), expiring(true)).await;
    let (_, machine) = token(app, &root, expiring(false)).await;
    app.identity.session_max = 1;
    let short = app.another_api().await;
    let session = Browser::of(&app.base, &try_login(app, &short, "expired", SECRET).await);
    dead.extend([
        ("expired session", Credential::Session(session)),
        ("expired personal token", Credential::Token(personal)),
        ("expired machine token", Credential::Token(machine)),
    ]);
    for (name, credential) in dead {
        eventually(name, async || !knows(app, &credential).await).await;
        all.push(Caller { name: name.into(), credential, grant: None });
    }
    all
}

#[tokio::test]
async fn every_route_lets_in_whom_it_declares_by_every_kind_of_credential() {
    let mut app = App::start().await;
    for project in ["shop", "other"] {
        app.project(project).await;
    }
    let permissions: BTreeMap<String, String> = api::permissions();
    assert!(permissions.len() > 70, "{permissions:#?}");
    let callers = callers(&mut app).await;
    assert_eq!(callers.len(), 2 + 6 * 3 + 8);
    let mut judged = 0;
    for (operation, access) in &permissions {
        let (method, template) = operation.split_once(' ').expect("method and path");
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        for caller in &callers {
            for project in ["shop", "other"] {
                if project == "other" && !template.contains("{project}") {
                    continue;
                }
                // A body that nothing takes: nobody changes anything here.
                let body = if method == Method::GET { "" } else { r#"{"nobody takes this":1}"# };
                let request = caller.credential.request(&app, method.clone(), &fill(template, project));
                let response = request.body(body).send().await.expect("an answer");
                let status = response.status().as_u16();
                let streams =
                    response.headers()["content-type"].to_str().is_ok_and(|kind| kind.contains("event-stream"));
                let answer: Value = if streams { Value::Null } else { response.json().await.unwrap_or_default() };
                let verdict = match (status, answer["code"].as_str()) {
                    (401, Some("unauthorized")) => Verdict::Unauthorized,
                    (403, Some("forbidden")) => Verdict::Forbidden,
                    (403, Some("outside_grant")) => Verdict::OutsideGrant,
                    _ => Verdict::LetThrough,
                };
                let expected = expected(access, caller, project, template.contains("{project}"));
                assert_eq!(
                    verdict, expected,
                    "{operation} ({access}) on {project} as {}: {status} {answer}",
                    caller.name
                );
                if method != Method::GET && access != "signed" {
                    assert!(status >= 400, "{operation} as {} took a body of nothing: {status}", caller.name);
                }
                judged += 1;
            }
        }
    }
    assert!(judged > permissions.len() * callers.len());
    // Nobody's standing was changed on the way.
    for caller in callers.iter().filter(|caller| caller.grant.is_some()) {
        assert!(knows(&app, &caller.credential).await, "{}", caller.name);
    }
    login(&app, "admin", crate::app::PASSWORD).await;
    app.stop().await;
}

#[test]
fn every_documented_operation_declares_what_it_asks_for() {
    let document: Value = serde_json::from_str(api::openapi()).expect("JSON");
    let mut documented = vec![];
    for (path, item) in document["paths"].as_object().expect("paths") {
        let methods = item.as_object().expect("an item").keys();
        documented.extend(methods.map(|method| format!("{} {path}", method.to_uppercase())));
    }
    documented.sort();
    assert_eq!(documented, api::permissions().into_keys().collect::<Vec<_>>());
}
