//! Deployments: requested once however often one asks, read, cancelled.

use reqwest::Method;
use serde_json::json;

use crate::app::{App, Without};

const PATH: &str = "/projects/shop/stages/dev/deployments";

#[tokio::test]
async fn a_deployment_carries_the_digest_and_is_read_through_to_its_end() {
    let app = App::start().await;
    app.project("shop").await;
    let image = app.image("registry.test/shop:v1", 'a');
    let answer = app.post(PATH, json!({ "image": "v1" })).await;
    let sequence = answer.accepted();
    assert_eq!(answer.body["image"]["digest"], image.digest);
    let id = answer.body["deployment"].as_str().expect("an id").to_owned();
    let read = app.get(&format!("/deployments/{id}?at_least={sequence}")).await.ok();
    assert_eq!((&read["status"], &read["image"]["digest"]), (&json!("dispatched"), &json!(image.digest)));
    assert_eq!(
        (&read["requested_by"], &read["project"], &read["stage"]),
        (&json!(app.admin), &json!("shop"), &json!("dev"))
    );

    let sequence = app.work("shop", "dev", id.parse().expect("a UUID")).await;
    let read = app.get(&format!("/deployments/{id}?at_least={sequence}")).await.ok();
    assert_eq!(read["status"], "succeeded");
    assert!(read["steps"].as_array().expect("steps").len() >= 3, "{read:#}");
    let stage = app.get("/projects/shop/stages/dev").await.ok();
    assert_eq!(stage["current"]["deployment"], id.as_str());
    for path in [PATH, "/deployments?outcome=succeeded&project=shop&stage=dev", "/deployments?limit=1"] {
        assert_eq!(app.get(path).await.ok()["deployments"][0]["id"], id.as_str(), "{path}");
    }
    assert_eq!(app.get("/deployments?outcome=failed").await.ok()["deployments"], json!([]));
    app.stop().await;
}

#[tokio::test]
async fn a_repeated_request_is_the_same_deployment_even_when_its_tag_has_moved_or_gone() {
    let app = App::start().await;
    app.project("shop").await;
    let first_image = app.image("registry.test/shop:v1", 'a');
    let ask = || app.keyed(Method::POST, PATH, json!({ "image": "v1" }), "k1");
    let first = ask().await;
    let sequence = first.accepted();
    app.image("registry.test/shop:v1", 'b');
    let second = ask().await;
    assert_eq!((second.accepted(), &second.body), (sequence, &first.body));
    app.no_image("registry.test/shop:v1", "image_not_found");
    assert_eq!(ask().await.body, first.body);
    assert_eq!(first.body["image"]["digest"], first_image.digest);

    let id = first.body["deployment"].as_str().expect("an id").parse().expect("a UUID");
    app.work("shop", "dev", id).await;
    assert_eq!(ask().await.body, first.body, "also after its end");

    app.image("registry.test/shop:v2", 'c');
    let other = app.keyed(Method::POST, PATH, json!({ "image": "v2" }), "k1").await;
    other.problem(422, "idempotency_key_reused");
    // Without a key, and with another, it is another deployment.
    let third = app.keyed(Method::POST, PATH, json!({ "image": "v2" }), "k2").await;
    assert_ne!(third.body["deployment"], first.body["deployment"]);
    assert!(third.accepted() > sequence);
    app.stop().await;
}

#[tokio::test]
async fn many_at_once_with_one_key_are_one_deployment() {
    let app = App::start().await;
    app.project("shop").await;
    app.image("registry.test/shop:v1", 'a');
    let asked = (0..8).map(|_| app.keyed(Method::POST, PATH, json!({ "image": "v1" }), "same"));
    let answers = futures::future::join_all(asked).await;
    let sequence = answers[0].accepted();
    for answer in &answers {
        assert_eq!((answer.accepted(), &answer.body), (sequence, &answers[0].body));
    }
    let listed = app.get(&format!("{PATH}?at_least={sequence}")).await.ok();
    assert_eq!(listed["deployments"].as_array().map(Vec::len), Some(1));
    app.stop().await;
}

#[tokio::test]
async fn a_busy_stage_queues_and_a_newer_request_supersedes() {
    let app = App::start().await;
    app.project("shop").await;
    let mut ids = vec![];
    for (tag, digest) in [("v1", 'a'), ("v2", 'b'), ("v3", 'c')] {
        app.image(&format!("registry.test/shop:{tag}"), digest);
        let answer = app.post(PATH, json!({ "image": tag })).await;
        ids.push(answer.body["deployment"].as_str().expect("an id").to_owned());
    }
    let last = app.log.last_sequence().await.expect("an end");
    let mut statuses = vec![];
    for id in &ids {
        statuses.push(app.get(&format!("/deployments/{id}?at_least={last}")).await.ok()["status"].clone());
    }
    assert_eq!(statuses, ["dispatched", "superseded", "queued"]);
    app.stop().await;
}

#[tokio::test]
async fn a_cancelled_deployment_is_over_and_cancelling_again_changes_nothing() {
    let app = App::start().await;
    app.project("shop").await;
    app.image("registry.test/shop:v1", 'a');
    let requested = app.post(PATH, json!({ "image": "v1" })).await;
    let id = requested.body["deployment"].as_str().expect("an id").to_owned();
    let cancel = format!("/deployments/{id}/cancel");
    // At once: the read models need not have seen it.
    let sequence = app.post(&cancel, json!({ "reason": "wrong one" })).await.accepted();
    let read = app.get(&format!("/deployments/{id}?at_least={sequence}")).await.ok();
    assert_eq!((&read["status"], &read["cancel_reason"]), (&json!("cancelled"), &json!("wrong one")));
    assert_eq!(app.post(&cancel, json!({})).await.accepted(), sequence);
    assert_eq!(app.post(&cancel, json!({ "reason": "x".repeat(501) })).await.fields(422, "invalid"), ["reason"]);

    let next = app.post(PATH, json!({ "image": "v1" })).await;
    let id = next.body["deployment"].as_str().expect("an id").to_owned();
    app.work("shop", "dev", id.parse().expect("a UUID")).await;
    app.post(&format!("/deployments/{id}/cancel"), json!({})).await.problem(409, "deployment_ended");
    app.stop().await;
}

#[tokio::test]
async fn without_a_deployer_a_request_says_so() {
    let app = App::start_without(Without::Node).await;
    app.project("shop").await;
    let problem = app.post(PATH, json!({ "image": "v1" })).await.problem(503, "deployer_unavailable");
    assert!(problem["hint"].as_str().expect("a hint").contains("sluice up"));
    app.stop().await;
}

#[tokio::test]
async fn a_cancel_waits_neither_for_the_projector_nor_for_the_deployer() {
    let app = App::start_without(Without::Projector).await;
    app.project("shop").await;
    app.image("registry.test/shop:v1", 'a');
    let requested = app.post(PATH, json!({ "image": "v1" })).await;
    let id = requested.body["deployment"].as_str().expect("an id").to_owned();
    // Nobody tells the read models of it.
    assert!(app.post(&format!("/deployments/{id}/cancel"), json!({})).await.accepted() > requested.accepted());
    let unknown = format!("/deployments/{}/cancel", uuid::Uuid::from_u128(7));
    app.post(&unknown, json!({})).await.problem(404, "deployment_not_found");
    app.stop().await;
}
