//! Promotions through the API: previewed, asked for, approved by others, proven; and the ways past them.

use domain::DeploymentId;
use reqwest::Method;
use serde_json::{Value, json};

use crate::app::{Answer, App};

const PROD: &str = "/projects/shop/stages/prod";

impl App {
    /// `shop`, whose `prod` promotes from `dev` under `gates`; v1 runs on `dev`.
    async fn promoting(gates: Value) -> App {
        let app = App::start().await;
        let image = "registry.test/shop";
        let stages = json!({
            "dev": { "image": image },
            "prod": { "image": image, "promote_from": "dev", "gates": gates }
        });
        app.put("/projects/shop", json!({ "stages": stages })).await.accepted();
        app.release("v1", 'a').await;
        app
    }

    /// Puts an image on `dev`, so that it can be read.
    async fn release(&self, tag: &str, digest: char) {
        self.image(&format!("registry.test/shop:{tag}"), digest);
        let answer = self.post("/projects/shop/stages/dev/deployments", json!({ "image": tag })).await;
        answer.accepted();
        let sequence = self.work("shop", "dev", deployment(&answer.body)).await;
        self.get(&format!("/stages?at_least={sequence}")).await.ok();
    }

    pub(crate) async fn token(&self, name: &str, role: &str) -> Holder<'_> {
        let answer = self.post("/tokens", json!({ "name": name, "role": role })).await;
        answer.accepted();
        let id = answer.body["id"].as_str().expect("an id").to_owned();
        Holder { app: self, id, token: answer.body["token"].as_str().expect("a token").to_owned() }
    }
}

/// Somebody with a token.
pub(crate) struct Holder<'a> {
    app: &'a App,
    id: String,
    pub(crate) token: String,
}

impl Holder<'_> {
    async fn send(&self, method: Method, path: &str, body: Value) -> Answer {
        let url = format!("{}/api/v1{path}", self.app.base);
        let request = self.app.http.request(method, url).bearer_auth(&self.token);
        Answer::of(request.header("content-type", "application/json").body(body.to_string())).await
    }
}

fn deployment(body: &Value) -> DeploymentId {
    body["deployment"].as_str().expect("a deployment").parse().expect("an id")
}

fn path_of(body: &Value) -> String {
    format!("/promotions/{}", body["promotion"].as_str().expect("a promotion"))
}

#[tokio::test]
async fn a_promotion_is_previewed_accepted_and_proven() {
    let app = App::promoting(json!({})).await;
    let preview = app.get(&format!("{PROD}/promotion")).await.ok();
    assert_eq!((&preview["source"], &preview["answer"]), (&json!("dev"), &json!("passed")));
    let body = json!({ "digest": preview["digest"] });
    let asked = app.keyed(Method::POST, &format!("{PROD}/promotions"), body.clone(), "k").await;
    let sequence = asked.accepted();
    assert_eq!(asked.body["status"], "accepted");
    let again = app.keyed(Method::POST, &format!("{PROD}/promotions"), body, "k").await;
    assert_eq!(again.body, asked.body);

    let read = app.get(&format!("{}?at_least={sequence}", path_of(&asked.body))).await.ok();
    assert_eq!((&read["status"], &read["digest"]), (&json!("accepted"), &preview["digest"]));
    assert_eq!(read["proof"]["digest"], preview["digest"]);
    let made = app.get(&format!("/deployments/{}", deployment(&asked.body))).await.ok();
    assert_eq!(made["image"]["digest"], preview["digest"]);
    assert_eq!(
        (&made["origin"]["kind"], &made["origin"]["promotion"]),
        (&json!("promotion"), &asked.body["promotion"])
    );
    let verification = app.get(&format!("{}/verification", path_of(&asked.body))).await.ok();
    assert_eq!((&verification["verified"], &verification["contradictions"]), (&json!(true), &json!([])));
    app.stop().await;
}

#[tokio::test]
async fn a_refusal_is_recorded_with_its_gate_and_has_no_proof() {
    let app = App::promoting(json!({ "soak": "1h" })).await;
    let asked = app.post(&format!("{PROD}/promotions"), json!({})).await;
    let sequence = asked.accepted();
    assert_eq!((&asked.body["status"], &asked.body["gate"]), (&json!("refused"), &json!("soak")));
    let listed = app.get(&format!("/promotions?project=shop&at_least={sequence}")).await.ok();
    assert_eq!(listed["promotions"][0]["gate"], "soak");
    app.get(&format!("{}/verification", path_of(&asked.body))).await.problem(409, "no_proof");

    let garbage = app.post(&format!("{PROD}/promotions"), json!({ "digest": "garbage" })).await;
    assert_eq!(garbage.fields(422, "invalid"), ["digest"]);
    let digest = json!({ "digest": format!("sha256:{}", "f".repeat(64)) });
    let other = app.post(&format!("{PROD}/promotions"), digest).await;
    assert_eq!(other.body["gate"], "source");
    let waiting = app.post(&format!("{PROD}/promotions"), json!({ "wait": true })).await;
    assert_eq!(waiting.body["status"], "waiting");
    let sequence = waiting.accepted();
    let stage = app.get(&format!("{PROD}?at_least={sequence}")).await.ok();
    assert_eq!(stage["promotion"], waiting.body["promotion"]);
    app.post(&format!("{PROD}/promotions"), json!({})).await.problem(409, "promotion_waits");
    let withdraw = format!("{}/withdraw", path_of(&waiting.body));
    app.post(&withdraw, json!({ "reason": " " })).await.problem(422, "invalid");
    app.post(&withdraw, json!({ "reason": "too soon" })).await.accepted();
    app.post("/promotions/018f0000-0000-7000-8000-000000000000/withdraw", json!({ "reason": "x" }))
        .await
        .problem(404, "promotion_not_found");
    app.stop().await;
}

#[tokio::test]
async fn others_approve_by_their_roles_and_the_requester_never() {
    let app = App::promoting(json!({ "approvals": { "count": 2, "roles": ["operator"] } })).await;
    let (ann, bob) = (app.token("ann", "operator").await, app.token("bob", "operator").await);
    let eve = app.token("eve", "viewer").await;
    let asked = ann.send(Method::POST, &format!("{PROD}/promotions"), json!({})).await;
    let sequence = asked.accepted();
    assert_eq!(asked.body["status"], "waiting");
    let path = path_of(&asked.body);
    app.get(&format!("{path}?at_least={sequence}")).await.ok();
    let approve = format!("{path}/approve");
    ann.send(Method::POST, &approve, json!({})).await.problem(403, "own_promotion");
    eve.send(Method::POST, &approve, json!({})).await.problem(403, "forbidden");
    let one = bob.send(Method::POST, &approve, json!({})).await;
    one.accepted();
    assert_eq!(one.body["status"], "waiting");
    bob.send(Method::POST, &approve, json!({})).await.accepted();
    // The administrator counts as well.
    let two = app.post(&approve, json!({})).await;
    let sequence = two.accepted();
    assert_eq!(two.body["status"], "accepted");
    let read = app.get(&format!("{path}?at_least={sequence}")).await.ok();
    let by: Vec<_> = read["approvals"].as_array().expect("approvals").iter().map(|one| one["by"].clone()).collect();
    assert_eq!((by, &read["requested_by"]), (vec![json!("bob"), json!(app.admin)], &json!("ann")));
    assert_eq!(app.get(&format!("{path}/verification")).await.ok()["verified"], true);
    app.stop().await;
}

#[tokio::test]
async fn a_stage_with_a_source_is_reached_past_its_gates_only_by_an_administrator_with_a_reason() {
    let app = App::promoting(json!({})).await;
    let ann = app.token("ann", "operator").await;
    app.image("registry.test/shop:v2", 'b');
    app.post(&format!("{PROD}/deployments"), json!({ "image": "v2" })).await.problem(409, "promotion_only");
    let hotfix = json!({ "image": "v2", "reason": "payments are down" });
    ann.send(Method::POST, &format!("{PROD}/hotfixes"), hotfix.clone()).await.problem(403, "forbidden");
    app.post(&format!("{PROD}/hotfixes"), json!({ "image": "v2", "reason": "" })).await.problem(422, "invalid");
    let made = app.post(&format!("{PROD}/hotfixes"), hotfix).await;
    let sequence = made.accepted();
    let read = app.get(&format!("/deployments/{}?at_least={sequence}", deployment(&made.body))).await.ok();
    assert_eq!(read["origin"], json!({ "kind": "hotfix", "reason": "payments are down" }));
    let stage = app.get(PROD).await.ok();
    assert_eq!(stage["hold"]["reason"], "hotfix: payments are down");
    app.stop().await;
}

#[tokio::test]
async fn a_rollback_goes_to_the_release_before_and_holds_the_stage() {
    let app = App::promoting(json!({})).await;
    let dev = "/projects/shop/stages/dev";
    app.post(&format!("{dev}/rollback"), json!({})).await.problem(409, "no_earlier_release");
    let first = app.get(dev).await.ok()["current"]["deployment"].clone();
    app.release("v2", 'b').await;
    let back = app.keyed(Method::POST, &format!("{dev}/rollback"), json!({ "to": first }), "k").await;
    let sequence = back.accepted();
    assert!(back.body["image"]["digest"].as_str().expect("a digest").contains("aaaa"));
    let again = app.keyed(Method::POST, &format!("{dev}/rollback"), json!({ "to": first }), "k").await;
    assert_eq!((again.accepted(), &again.body), (sequence, &back.body));
    let sequence = app.work("shop", "dev", deployment(&back.body)).await;
    let stage = app.get(&format!("{dev}?at_least={sequence}")).await.ok();
    assert_eq!(stage["current"]["image"]["digest"], back.body["image"]["digest"]);
    assert!(stage["hold"]["reason"].as_str().expect("on hold").contains("v1"), "{stage:#}");
    let current = json!({ "to": back.body["deployment"] });
    app.post(&format!("{dev}/rollback"), current).await.problem(409, "already_current");
    app.delete(&format!("{dev}/hold")).await.accepted();
    app.delete(&format!("{dev}/hold")).await.problem(409, "not_on_hold");
    app.put(&format!("{dev}/hold"), json!({ "reason": "a visit" })).await.accepted();
    app.stop().await;
}

#[tokio::test]
async fn a_token_is_good_for_its_role_until_it_is_revoked_and_shown_once() {
    let app = App::start().await;
    let ann = app.token("ann", "operator").await;
    let read = async || ann.send(Method::GET, "/projects", Value::Null).await.status.as_u16();
    assert_eq!(read().await, 200);
    ann.send(Method::PUT, "/projects/shop", json!({ "stages": {} })).await.problem(403, "forbidden");
    for reserved in ["admin", "system", "nobody"] {
        app.post("/tokens", json!({ "name": reserved, "role": "viewer" })).await.problem(422, "invalid");
    }
    app.post("/tokens", json!({ "name": "bob", "role": "owner" })).await.problem(422, "invalid");

    let body = json!({ "name": "carol", "role": "viewer" });
    let first = app.keyed(Method::POST, "/tokens", body.clone(), "k").await;
    let sequence = first.accepted();
    let second = app.keyed(Method::POST, "/tokens", body, "k").await;
    assert_eq!((second.accepted(), &second.body["id"]), (sequence, &first.body["id"]));
    assert_eq!(second.body["token"], Value::Null);
    let carol = Holder {
        app: &app,
        id: first.body["id"].as_str().expect("an id").into(),
        token: first.body["token"].as_str().expect("a token").into(),
    };
    carol.send(Method::GET, "/projects", Value::Null).await.ok();

    let listed = app.get(&format!("/tokens?at_least={sequence}")).await.ok();
    let names: Vec<_> = listed.as_array().expect("tokens").iter().map(|token| token["name"].clone()).collect();
    assert_eq!(names, [json!("ann"), json!("carol"), json!("tests")]);
    let secret = ann.token.rsplit_once('_').expect("a secret").1;
    let events = app.get("/events?limit=500").await.ok().to_string();
    assert!(!events.contains(secret) && !listed.to_string().contains(secret));
    // One letter of another.
    let last = if ann.token.ends_with('0') { "1" } else { "0" };
    let forged = Holder { app: &app, id: String::new(), token: format!("{}{last}", &ann.token[..ann.token.len() - 1]) };
    forged.send(Method::GET, "/projects", Value::Null).await.problem(401, "unauthorized");

    app.delete(&format!("/tokens/{}", ann.id)).await.accepted();
    assert_eq!(read().await, 401);
    carol.send(Method::GET, "/projects", Value::Null).await.ok();
    app.delete(&format!("/tokens/{}", carol.id)).await.accepted();
    app.delete("/tokens/018f0000-0000-7000-8000-000000000000").await.problem(404, "token_not_found");
    app.stop().await;
}
