//! The command line as a process, against a server that breaks off, refuses and stalls at the
//! exact moment: what a real one does only by accident. Whole walks through a real Sluice are
//! tested elsewhere.

mod provider;
mod server;
mod sign_in;

use std::{
    io::{BufRead, BufReader, Read, Write},
    process::{Command, Output, Stdio},
};

use serde_json::{Value, json};
use server::{Reply, Server};

const ID: &str = "0193a1b2-0000-7000-8000-000000000001";

fn sluice(server: &Server, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
    command
        .args(args)
        .env("API_URL", server.url())
        .env("API_TOKEN", "secret-token")
        .env("DATA_DIR", "/nonexistent")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn run(server: &Server, args: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = sluice(server, args).output().expect("it runs");
    (status.code(), String::from_utf8(stdout).expect("UTF-8"), String::from_utf8(stderr).expect("UTF-8"))
}

fn accepted() -> Reply {
    let image =
        json!({"requested": "127.0.0.1:5000/shop:v2", "digest": "sha256:0123456789abcdef", "source": "registry"});
    Reply::json(202, &json!({"sequence": 5, "deployment": ID, "image": image}))
}

fn event(sequence: u64, name: &str, mut data: Value) -> String {
    data["deployment"] = ID.into();
    let event = json!({
        "id": ID, "time": "2026-01-01T00:00:00Z", "type": format!("dev.sluice.stage.deployment.{name}.v1"),
        "subject": "stage.shop.dev", "actor": "deployer/local", "data": data,
    });
    format!("id: {sequence}\nevent: {name}\ndata: {event}\n\n")
}

fn failure() -> Value {
    json!({"step": "await_healthy", "code": "exited", "message": "it exited with 1", "hint": "read its log", "log": ["boom"]})
}

#[test]
fn a_mutation_is_repeated_with_the_same_key_when_its_answer_was_lost() {
    let server = Server::new([Reply::Cut, Reply::json(202, &json!({"sequence": 7})), Reply::json(200, &json!({}))]);
    let (code, out, err) = run(&server, &["lock", "shop", "dev", "--reason", "release day"]);
    assert_eq!((code, out.as_str(), err.as_str()), (Some(0), "shop/dev is locked: release day\n", ""));
    let asked = server.asked();
    assert_eq!(asked.len(), 3);
    assert!(asked[2].starts_with("GET /api/v1/projects/shop/stages/dev?at_least=7 "), "{}", asked[2]);
    assert!(asked[0].starts_with("PUT /api/v1/projects/shop/stages/dev/lock HTTP/1.1"), "{}", asked[0]);
    let keys: Vec<_> = asked[..2].iter().map(|request| server::header(request, "idempotency-key")).collect();
    assert!(keys[0].is_some() && keys[0] == keys[1], "{keys:?}");
    assert_eq!(server::header(&asked[0], "authorization").as_deref(), Some("Bearer secret-token"));
}

#[test]
fn a_followed_deployment_is_picked_up_where_the_stream_broke_off() {
    let server = Server::new([
        accepted(),
        Reply::events(&[event(6, "started", json!({"worker": "w"})), "id: 7\ndata: {\"half".into()]),
        Reply::Cut,
        Reply::events(&[event(7, "pulled", json!({"elapsed_ms": 1200})), event(8, "succeeded", json!({}))]),
        Reply::json(503, &json!({})),
    ]);
    let (code, out, err) = run(&server, &["deploy", "shop", "dev", "v2", "--follow"]);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    let wanted = format!(
        "shop/dev: deployment {ID} of 127.0.0.1:5000/shop:v2 (sha256:0123456789ab)\n\
         00:00:00  started       by w\n00:00:00  pulled        1.2 s\n00:00:00  succeeded     after 0 ms\n"
    );
    assert_eq!(out, wanted);
    let asked = server.asked();
    assert!(asked[1].contains("after=4"), "{}", asked[1]);
    let resumed: Vec<_> = asked[1..4].iter().map(|request| server::header(request, "last-event-id")).collect();
    assert_eq!(resumed, [None, Some("6".to_owned()), Some("6".to_owned())]);
}

#[test]
fn a_failed_deployment_says_where_why_and_what_to_do() {
    let others = event(6, "succeeded", json!({})).replace(ID, "0193a1b2-0000-7000-8000-00000000000f");
    let server = Server::new([
        accepted(),
        Reply::events(&[others, event(7, "failed", json!({"failure": failure()}))]),
        Reply::json(200, &json!({})),
    ]);
    let (code, out, _) = run(&server, &["deploy", "shop", "dev", "v2", "--follow"]);
    assert_eq!(code, Some(1));
    for wanted in
        ["failed at await healthy: it exited with 1 (exited)", "hint: read its log", "  | boom", "is as it was before"]
    {
        assert!(out.contains(wanted), "no `{wanted}` in: {out}");
    }
}

#[test]
fn json_is_a_line_for_each_event_and_the_deployment_last() {
    let rolled_back = event(6, "rolled_back", json!({"failure": failure(), "to": ID}));
    let server =
        Server::new([accepted(), Reply::events(&[rolled_back]), Reply::json(200, &json!({"status": "rolled_back"}))]);
    let (code, out, err) = run(&server, &["--json", "deploy", "shop", "dev", "v2", "-f"]);
    assert_eq!((code, err.as_str()), (Some(6), ""));
    let lines: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines[0]["accepted"]["deployment"], ID);
    assert_eq!(lines[1]["event"]["sequence"], 6);
    assert_eq!(lines[2]["deployment"]["status"], "rolled_back");
    assert!(server.asked()[2].contains("at_least=6"), "{:?}", server.asked());
}

#[test]
fn ctrl_c_ends_the_looking_on_and_not_the_deployment() {
    let server = Server::new([accepted(), Reply::Hold(event(6, "started", json!({"worker": "w"})))]);
    let mut child = sluice(&server, &["deploy", "shop", "dev", "v2", "--follow"]).spawn().expect("it runs");
    let mut out = BufReader::new(child.stdout.take().expect("piped"));
    let mut line = String::new();
    while !line.contains("started") {
        line.clear();
        assert_ne!(out.read_line(&mut line).expect("readable"), 0, "it ended early");
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("signalled");
    let mut err = String::new();
    child.stderr.take().expect("piped").read_to_string(&mut err).expect("readable");
    assert_eq!(child.wait().expect("it ends").code(), Some(130));
    assert!(err.contains("goes on") && err.contains(&format!("sluice cancel {ID}")), "{err}");
}

#[test]
fn a_refusal_keeps_its_fields_its_hint_and_its_exit_code() {
    let problem = json!({
        "title": "Locked", "status": 423, "code": "stage_locked", "detail": "this stage is locked by ann: release day",
        "request_id": "r-1", "hint": "wait",
    });
    let server = Server::new([Reply::json(423, &problem), Reply::json(423, &problem)]);
    let (code, out, err) = run(&server, &["deploy", "shop", "dev", "v2"]);
    assert_eq!((code, out.as_str()), (Some(4), ""));
    assert_eq!(err, "error: this stage is locked by ann: release day\nhint: wait\n");
    let (code, out, err) = run(&server, &["deploy", "shop", "dev", "v2", "--json"]);
    assert_eq!((code, out.as_str()), (Some(4), ""));
    let error: Value = serde_json::from_str(&err).expect("JSON");
    assert_eq!((&error["error"]["code"], &error["exit_code"]), (&json!("stage_locked"), &json!(4)));
}

#[test]
fn what_the_server_refuses_in_a_file_is_named_with_its_line() {
    let field = json!({"field": "stages.dev.route", "problem": "shop.localhost: path / is taken"});
    let problem = json!({"title": "Conflict", "status": 409, "code": "route_taken", "detail": "shop.localhost: path / is taken", "errors": [field]});
    let server = Server::new([Reply::json(404, &json!({})), Reply::json(409, &problem)]);
    let mut child = sluice(&server, &["project", "apply", "-f", "-"]).stdin(Stdio::piped()).spawn().expect("it runs");
    let file = b"project: shop\nstages:\n  dev:\n    route: { host: shop.localhost }\n";
    child.stdin.take().expect("piped").write_all(file).expect("taken");
    let output = child.wait_with_output().expect("it ends");
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{err}");
    assert!(err.contains("standard input:4: stages.dev.route: shop.localhost: path / is taken"), "{err}");
}

#[test]
fn a_long_list_is_one_document_however_many_pages_it_takes() {
    let page = |sequences: std::ops::Range<u64>, next: Option<u64>| {
        let events: Vec<Value> = sequences.rev().map(|sequence| json!({ "sequence": sequence })).collect();
        Reply::json(200, &json!({ "events": events, "next": next }))
    };
    let server = Server::new([page(200..700, Some(200)), page(0..200, None)]);
    let (code, out, _) = run(&server, &["events", "--limit", "1000", "--json"]);
    let events: Vec<Value> = serde_json::from_str(&out).expect("a list");
    assert_eq!((code, events.len(), &events[699]["sequence"]), (Some(0), 700, &json!(0)));
    let asked = server.asked();
    assert!(asked[0].contains("limit=500 ") && asked[1].contains("limit=500&before=200 "), "{asked:?}");
}

#[test]
fn a_reader_that_goes_away_is_no_panic() {
    let events: Vec<Value> = (0..500)
        .map(|sequence| {
            json!({"sequence": sequence, "id": ID, "time": "2026-01-01T00:00:00Z", "subject": "sluice.events.project.shop.created",
                "type": "dev.sluice.project.created.v1", "actor": "admin", "data": {"name": "x".repeat(300)}})
        })
        .collect();
    let server = Server::new([Reply::json(200, &json!({"events": events, "next": null}))]);
    let mut child = sluice(&server, &["events", "-n", "500"]).spawn().expect("it runs");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(141), ""));
}

#[test]
fn a_password_comes_from_a_pipe_and_goes_nowhere_but_to_the_server() {
    let server = Server::new([Reply::json(202, &json!({"sequence": 3})), Reply::json(503, &json!({}))]);
    let args = ["registry", "login", "127.0.0.1:5000", "--username", "ci"];
    let mut child = sluice(&server, &args).stdin(Stdio::piped()).spawn().expect("it runs");
    child.stdin.take().expect("piped").write_all(b"pa ss\n").expect("taken");
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(0));
    assert!(!String::from_utf8_lossy(&output.stdout).contains("pa ss"));
    let asked = &server.asked()[0];
    assert!(asked.starts_with("PUT /api/v1/registries/127.0.0.1:5000/credentials "), "{asked}");
    assert!(asked.ends_with(r#"{"password":"pa ss","username":"ci"}"#), "{asked}");
}

#[test]
fn nobody_there_is_an_exit_code_of_its_own() {
    let server = Server::new([]);
    let (code, out, err) = run(&server, &["status"]);
    assert_eq!((code, out.as_str()), (Some(5), ""));
    assert!(err.starts_with("error: cannot reach Sluice at http://127.0.0.1:") && err.contains("hint: "), "{err}");
}

#[test]
fn health_needs_no_token_and_tells_trouble() {
    let part = |ok| json!({"ok": ok, "error": if ok { Value::Null } else { "does not answer".into() }});
    let health = json!({"status": "degraded", "version": "0.1.0", "postgres": part(true), "nats": part(true),
        "docker": part(false), "projector": {"ok": true, "lag": 0, "error": null},
        "watcher": {"ok": true, "watchers": 2, "error": null}});
    let server = Server::new([Reply::json(503, &health)]);
    let output = sluice(&server, &["health"]).env_remove("API_TOKEN").output().expect("it runs");
    assert_eq!(output.status.code(), Some(1));
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(out.contains("degraded") && out.contains("does not answer") && out.contains("2 running"), "{out}");
    assert_eq!(server::header(&server.asked()[0], "authorization"), None);
}

#[test]
fn input_that_cannot_be_meant_is_refused_before_anything_is_sent() {
    let server = Server::new([]);
    for args in [
        &["deploy", "Shop", "dev", "v2"] as &[&str],
        &["status", "a/b"],
        &["cancel", "not-an-id"],
        &["registry", "login", "http://x", "--username", "u"],
        &["logs", "shop", "dev", "--tail", "99999999"],
        &["project", "apply", "-f", "/nonexistent.yaml"],
        &["frobnicate"],
    ] {
        let (code, out, err) = run(&server, args);
        assert_eq!((code, out.as_str()), (Some(2), ""), "{args:?}: {err}");
    }
    assert_eq!(server.asked(), Vec::<String>::new());
}

#[test]
fn completions_need_no_server() {
    let server = Server::new([]);
    for shell in ["bash", "zsh", "fish"] {
        let (code, out, _) = run(&server, &["completions", shell]);
        assert!(code == Some(0) && out.contains("deploy") && out.contains("cancel"), "{shell}");
    }
}
