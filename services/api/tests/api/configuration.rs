//! The whole configuration: exported, planned, applied.

use std::collections::BTreeMap;

use reqwest::Method;
use serde_json::{Value, json};

use crate::app::{App, eventually};

fn on(host: &str) -> Value {
    json!({ "route": { "host": host } })
}

/// With something of everything.
fn document() -> Value {
    json!({
        "projects": {
            "blog": { "stages": { "dev": on("blog.test") } },
            "shop": {
                "name": "The Shop",
                "auto_promote": true,
                "env": { "REGION": "eu", "KEY": { "secret": "api-key" } },
                "stages": {
                    "dev": { "route": { "host": "dev.shop.test" }, "health": { "check": "http", "path": "/up" } },
                    "prod": {
                        "replicas": 3,
                        "promote_from": "dev",
                        "gates": { "soak": "30m", "approvals": { "count": 2, "roles": ["operator"] } },
                        "resources": { "memory": "256MiB", "cpus": 0.5 },
                        "route": { "host": "shop.test" },
                        "env": { "PASSWORD": { "secret": "db" } },
                    },
                },
            },
        },
    })
}

/// The export as it is sent.
async fn export(app: &App, at_least: u64) -> String {
    let answer = app.request(Method::GET, &format!("/configuration?at_least={at_least}")).send().await;
    let answer = answer.expect("an answer");
    assert_eq!(answer.status(), 200);
    answer.text().await.expect("a body")
}

/// The actions of a plan by name.
fn actions(plan: &Value) -> BTreeMap<String, String> {
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let changes = plan["changes"].as_array().expect("changes");
    changes.iter().map(|c| (format!("{} {}", text(&c["kind"]), text(&c["name"])), text(&c["action"]))).collect()
}

#[tokio::test]
async fn an_export_makes_of_an_empty_installation_the_same_byte_for_byte() {
    let first = App::start().await;
    // Not through a document, but in the ways of every day.
    first.put("/projects/shop", document()["projects"]["shop"].clone()).await.accepted();
    first.put("/projects/gone", json!({})).await.accepted();
    first.post("/projects/gone/archive", json!({})).await.accepted();
    first.put("/projects/shop/secrets/db", json!({ "value": "canary" })).await;
    let last = first.put("/projects/blog", json!({ "stages": { "dev": on("blog.test") } })).await.accepted();
    let written = export(&first, last).await;
    let mut expected = document();
    expected["projects"]["blog"]["stages"]["dev"]["route"]["path"] = json!("/");
    for stage in ["dev", "prod"] {
        expected["projects"]["shop"]["stages"][stage]["route"]["path"] = json!("/");
    }
    assert_eq!(serde_json::from_str::<Value>(&written).expect("JSON"), expected);
    assert!(!written.contains("canary"));

    let second = App::start().await;
    assert_eq!(export(&second, 0).await, "{}");
    let body: Value = serde_json::from_str(&written).expect("JSON");
    let answer = second.put("/configuration", body.clone()).await;
    let sequence = answer.accepted();
    assert_eq!(
        answer.body["secrets_missing"],
        json!([{ "project": "shop", "secret": "api-key" }, { "project": "shop", "secret": "db" }])
    );
    assert_eq!(export(&second, sequence).await, written);

    let again = second.put("/configuration", body.clone()).await;
    assert_eq!((again.accepted(), &again.body["events"], &again.body["changes"]), (sequence, &json!(0), &json!([])));
    assert_eq!(second.log.last_sequence().await.expect("an end"), sequence, "a second time writes nothing");
    let planned = second.post("/configuration/plan?prune=true", body).await.ok();
    assert_eq!((&planned["changes"], &planned["left_alone"]), (&json!([]), &json!([])));
    first.stop().await;
    second.stop().await;
}

#[tokio::test]
async fn a_plan_tells_what_applying_then_does_and_only_pruning_removes() {
    let app = App::start().await;
    let before = app.put("/configuration", document()).await.accepted();
    let mut wanted = document();
    wanted["projects"]["shop"]["stages"]["prod"]["replicas"] = json!(4);
    wanted["projects"]["shop"]["stages"]["test"] = json!({});
    wanted["projects"]["shop"]["stages"].as_object_mut().expect("stages").remove("dev");
    wanted["projects"]["shop"]["stages"]["prod"]["promote_from"] = json!("test");
    wanted["projects"].as_object_mut().expect("projects").remove("blog");

    let planned = app.post("/configuration/plan", wanted.clone()).await.ok();
    let change = |name: &str, action: &str| (name.to_owned(), action.to_owned());
    let mut expected = BTreeMap::from([change("stage shop/prod", "change"), change("stage shop/test", "create")]);
    assert_eq!(actions(&planned), expected);
    assert_eq!(
        planned["changes"][0]["fields"],
        json!([
            { "field": "promote_from", "from": "dev", "to": "test" },
            { "field": "replicas", "from": 3, "to": 4 }
        ])
    );
    assert_eq!(
        planned["left_alone"],
        json!([{ "kind": "project", "name": "blog" }, { "kind": "stage", "name": "shop/dev" }])
    );
    let planned = app.post("/configuration/plan?prune=true", wanted.clone()).await.ok();
    expected.extend([
        change("project blog", "remove"),
        change("stage blog/dev", "remove"),
        change("stage shop/dev", "remove"),
    ]);
    assert_eq!(actions(&planned), expected);
    assert_eq!(app.log.last_sequence().await.expect("an end"), before, "a plan changes nothing");

    let pruned = app.put("/configuration?prune=true", wanted.clone()).await;
    let sequence = pruned.accepted();
    assert_eq!(pruned.body["changes"], planned["changes"]);
    let exported: Value = serde_json::from_str(&export(&app, sequence).await).expect("JSON");
    let names = |value: &Value| value.as_object().expect("an object").keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&exported["projects"]), ["shop"]);
    assert_eq!(names(&exported["projects"]["shop"]["stages"]), ["prod", "test"]);
    assert_eq!(app.put("/configuration?prune=true", wanted).await.accepted(), sequence);
    // What was archived does not come back under its name.
    assert_eq!(app.put("/configuration", document()).await.fields(422, "invalid"), ["projects.blog"]);
    app.stop().await;
}

#[tokio::test]
async fn projects_may_pass_their_routes_around() {
    let app = App::start().await;
    let hosts = |hosts: [&str; 3]| {
        let projects = ["a", "b", "c"].into_iter().zip(hosts);
        let projects = projects.map(|(project, host)| (project.to_owned(), json!({ "stages": { "dev": on(host) } })));
        json!({ "projects": projects.collect::<serde_json::Map<_, _>>() })
    };
    let before = app.put("/configuration", hosts(["a.test", "b.test", "c.test"])).await.accepted();
    let around = hosts(["b.test", "c.test", "a.test"]);
    let after = app.put("/configuration", around.clone()).await.accepted();
    let mut subjects = app.subjects(before).await;
    subjects.sort_unstable();
    let of_projects = ["a", "b", "c"].map(|project| format!("sluice.events.project.{project}.stage.changed")).to_vec();
    let of_host = |host: &str| {
        [format!("sluice.events.route.{host}_test.claimed"), format!("sluice.events.route.{host}_test.released")]
    };
    let expected: Vec<String> =
        of_projects.into_iter().chain(["a", "b", "c"].iter().flat_map(|h| of_host(h))).collect();
    assert_eq!(subjects, expected);

    // One that ends hands over to another; one that is left alone does not.
    let heir = json!({ "projects": { "d": { "stages": { "dev": on("a.test") } } } });
    let refused = app.put("/configuration", heir.clone()).await;
    assert_eq!(refused.fields(422, "invalid"), ["projects.d.stages.dev.route"]);
    assert_eq!(app.log.last_sequence().await.expect("an end"), after);
    let sequence = app.put("/configuration?prune=true", heir).await.accepted();
    let exported: Value = serde_json::from_str(&export(&app, sequence).await).expect("JSON");
    assert_eq!(exported["projects"]["d"]["stages"]["dev"]["route"]["host"], "a.test");
    app.stop().await;
}

#[tokio::test]
async fn what_is_wrong_is_told_by_field_and_nothing_is_changed() {
    let app = App::start().await;
    let wrong = json!({
        "projects": {
            "blog": { "stages": { "dev": on("a.test") } },
            "shop": { "stages": { "dev": { "replicas": 0 }, "prod": on("a.test") } },
            "tool": { "stages": { "prod": { "promote_from": "dev" } } },
        },
        "registries": { "r.test:5000": { "username": "" }, "R.test": {} },
        "hooks": { "images": { "source": "harbor" } },
    });
    let expected = [
        "registries.R.test",
        "registries.r.test:5000.username",
        "hooks.images.registry",
        "projects.shop.stages.dev.replicas",
        "projects.tool.stages.prod.promote_from",
        "projects.blog.stages.dev.route",
        "projects.shop.stages.prod.route",
    ];
    assert_eq!(app.post("/configuration/plan", wrong.clone()).await.fields(422, "invalid"), expected);
    assert_eq!(app.put("/configuration", wrong).await.fields(422, "invalid"), expected);
    for (body, field) in [
        (json!({ "project": {} }), "project"),
        (json!({ "projects": { "Shop": {} } }), "projects.Shop"),
        (
            json!({ "projects": { "shop": { "stages": { "dev": { "replica": 1 } } } } }),
            "projects.shop.stages.dev.replica",
        ),
    ] {
        assert_eq!(app.put("/configuration", body).await.fields(422, "invalid"), [field]);
    }
    assert_eq!(app.log.last_sequence().await.expect("an end"), crate::app::FOUNDED);

    app.stop().await;
}

#[tokio::test]
async fn registries_and_hooks_are_declared_and_what_they_still_need_is_said() {
    let app = App::start().await;
    let with = json!({
        "registries": { "r.test:5000": { "username": "ci", "poll": "5s" }, "open.test": {} },
        "hooks": { "images": { "source": "harbor", "registry": "r.test:5000" } },
    });
    let answer = app.put("/configuration", with.clone()).await;
    assert_eq!(answer.body["passwords_missing"], json!(["r.test:5000"]));
    assert_eq!(answer.body["hooks_without_secret"], json!(["images"]));
    assert_eq!(serde_json::from_str::<Value>(&export(&app, answer.accepted()).await).expect("JSON"), with);

    let credentials = json!({ "username": "ci", "password": "canary" });
    app.put("/registries/r.test:5000/credentials", credentials).await.accepted();
    app.put("/hooks/images/secret", json!({})).await.accepted();
    let answer = app.put("/configuration", with.clone()).await;
    assert_eq!((&answer.body["events"], &answer.body["changes"]), (&json!(0), &json!([])), "a sign-in is no change");
    assert_eq!((&answer.body["passwords_missing"], &answer.body["hooks_without_secret"]), (&json!([]), &json!([])));
    let moved = json!({ "registries": { "r.test:5000": { "username": "ci", "url": "https://other.test" } } });
    let answer = app.post("/configuration/plan", moved).await.ok();
    assert_eq!(answer["passwords_missing"], json!(["r.test:5000"]), "another URL ends it");

    let sequence = app.put("/configuration?prune=true", json!({})).await.accepted();
    assert_eq!(export(&app, sequence).await, "{}");
    app.stop().await;
}

#[tokio::test]
async fn a_proxy_that_still_leads_to_a_stage_is_not_pruned_and_nothing_else_is_done_either() {
    let app = App::start().await;
    let proxies = json!({ "front": { "driver": "caddy", "edge": "127.0.0.1:8080" } });
    let project =
        |proxy: Value| json!({ "shop": { "stages": { "dev": { "route": { "host": "a.test", "proxy": proxy } } } } });
    app.put("/configuration", json!({ "projects": project(json!("front")), "proxies": proxies.clone() }))
        .await
        .accepted();
    // As the deployer writes it with a switch.
    let route = json!({
        "project": "shop", "stage": "dev", "host": "a.test", "path": "/", "fence": 1,
        "target": { "state": "held", "limit": "1m" },
        "front": { "proxy": "front", "mode": "via_edge", "edge": "127.0.0.1:8080" },
    });
    let routes = app.log.bucket(domain::traffic::ROUTES);
    routes.put("shop.dev", route.to_string()).await.expect("written");
    let last = app.log.last_sequence().await.expect("an end");

    let mut without = json!({ "projects": project(json!(null)) });
    without["projects"]["blog"] = json!({});
    for answer in [
        app.post("/configuration/plan?prune=true", without.clone()).await,
        app.put("/configuration?prune=true", without.clone()).await,
    ] {
        let text = answer.body.to_string();
        assert_eq!(answer.fields(422, "invalid"), ["proxies.front"]);
        assert!(text.contains("shop.dev"), "{text}");
    }
    assert_eq!(app.log.last_sequence().await.expect("an end"), last, "nothing was begun");

    // As it says: keep it, deploy, and leave it out then.
    let mut kept = without.clone();
    kept["proxies"] = proxies;
    app.put("/configuration?prune=true", kept).await.accepted();
    app.put("/configuration?prune=true", without.clone()).await.fields(422, "invalid");
    routes.delete("shop.dev", None).await.expect("withdrawn");
    let sequence = app.put("/configuration?prune=true", without).await.accepted();
    assert!(!export(&app, sequence).await.contains("front"));
    app.stop().await;
}

#[tokio::test]
async fn a_document_may_be_large_but_not_without_bounds() {
    let app = App::start().await;
    let env: serde_json::Map<String, Value> = (0..100).map(|n| (format!("V{n}"), json!("x".repeat(20_000)))).collect();
    let large = json!({ "projects": { "shop": { "env": env } } });
    app.post("/configuration/plan", large).await.ok();
    let env = json!({ "A": "x".repeat(17 << 20) });
    app.post("/configuration/plan", json!({ "projects": { "shop": { "env": env } } })).await.problem(413, "too_large");
    app.stop().await;
}

#[tokio::test]
async fn what_was_interrupted_is_completed_by_applying_again_and_nothing_is_doubled() {
    const PROJECTS: usize = 200;
    let app = App::start().await;
    let stages = |n: usize| {
        let stages = ["dev", "test", "staging", "prod"];
        let stages = stages.map(|stage| (stage.to_owned(), on(&format!("{stage}.p{n}.test"))));
        json!({ "stages": serde_json::Map::from_iter(stages) })
    };
    let projects = (0..PROJECTS).map(|n| (format!("p{n}"), stages(n)));
    let wanted = json!({ "projects": projects.collect::<serde_json::Map<_, _>>() });
    let request = || {
        let request = app.request(Method::PUT, "/configuration").header("idempotency-key", "one");
        request.header("content-type", "application/json").body(wanted.to_string())
    };
    // Whoever asked goes away in the middle.
    let asking = tokio::spawn(request().send());
    eventually("some projects are there", async || app.log.last_sequence().await.expect("an end") > 100).await;
    asking.abort();
    eventually("nothing is begun any more", async || {
        let before = app.log.last_sequence().await.expect("an end");
        app.get("/configuration").await.ok();
        app.log.last_sequence().await.expect("an end") == before
    })
    .await;
    let last = app.log.last_sequence().await.expect("an end");
    let made = |subjects: &[String]| subjects.iter().filter(|subject| subject.ends_with(".created")).count();
    let begun = made(&app.subjects(crate::app::FOUNDED).await);
    assert!((1..PROJECTS).contains(&begun), "{begun} projects were made: it was not interrupted");
    // Each that was begun is whole.
    let half: Value = serde_json::from_str(&export(&app, last).await).expect("JSON");
    for (slug, project) in half["projects"].as_object().expect("projects") {
        assert_eq!(project["stages"].as_object().map(serde_json::Map::len), Some(4), "{slug}");
    }

    let answer = crate::app::Answer::of(request()).await;
    let sequence = answer.accepted();
    let subjects = app.subjects(crate::app::FOUNDED).await;
    assert_eq!(made(&subjects), PROJECTS);
    assert_eq!(subjects.len(), PROJECTS * (1 + 4 + 4), "a project, its stages and their routes, once each");
    let whole: Value = serde_json::from_str(&export(&app, sequence).await).expect("JSON");
    assert_eq!(whole["projects"].as_object().map(serde_json::Map::len), Some(PROJECTS));
    let again = app.put("/configuration", wanted.clone()).await;
    assert_eq!((again.accepted(), &again.body["events"]), (sequence, &json!(0)));
    // Another document under the same key is not taken for a repetition.
    let other = json!({ "projects": { "p0": { "name": "Another" } } });
    let refused = app.keyed(Method::PUT, "/configuration", other, "one").await;
    let problem = refused.problem(422, "idempotency_key_reused");
    assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains("0 of 1 changes")), "{problem}");
    app.stop().await;
}
