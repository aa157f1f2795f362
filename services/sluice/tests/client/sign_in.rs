//! Signing in at a command line: what is kept, where, and what is sent.

use std::{
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde_json::json;

use crate::server::{self, Reply, Server};

pub(crate) const ID: &str = "0193a1b2-0000-7000-8000-000000000001";
const PASSWORD: &str = "correct horse battery";

/// Without `API_TOKEN`, with `input` on standard input.
pub(crate) fn run(server: &Server, home: &Path, args: &[&str], input: &str) -> (Option<i32>, String, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_sluice"))
        .args(args)
        .env("API_URL", server.url())
        .env_remove("API_TOKEN")
        .env("XDG_CONFIG_HOME", home)
        .env("DATA_DIR", "/nonexistent")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("taken");
    let Output { status, stdout, stderr } = child.wait_with_output().expect("it ends");
    (status.code(), String::from_utf8(stdout).expect("UTF-8"), String::from_utf8(stderr).expect("UTF-8"))
}

pub(crate) fn kept(home: &Path) -> PathBuf {
    home.join("sluice/credentials.json")
}

fn created() -> Reply {
    Reply::json(200, &json!({ "sequence": 5, "id": ID, "token": "sluice_personal", "expires_at": null }))
}

fn me() -> Reply {
    let grant = json!({ "role": "operator", "projects": ["shop"] });
    Reply::json(200, &json!({ "actor": format!("user:{ID}"), "name": "ann", "grant": grant, "until": null }))
}

#[test]
fn who_signs_in_acts_in_their_own_name_until_they_sign_out() {
    let home = tempfile::tempdir().expect("a directory");
    let server = Server::new([created(), me(), Reply::json(200, &json!({ "sequence": 6 }))]);
    let (code, out, err) = run(&server, home.path(), &["login", "ann"], &format!("{PASSWORD}\n"));
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert!(out.contains("as ann") && !out.contains("sluice_personal"), "{out}");
    let file = kept(home.path());
    assert_eq!(std::fs::metadata(&file).expect("kept").permissions().mode() & 0o777, 0o600);
    let text = std::fs::read_to_string(&file).expect("readable");
    assert!(text.contains("sluice_personal") && !text.contains(PASSWORD), "{text}");

    let (code, out, _) = run(&server, home.path(), &["whoami"], "");
    assert_eq!((code, out.as_str()), (Some(0), format!("ann (user:{ID}): operator of shop\n").as_str()));
    let (code, _, err) = run(&server, home.path(), &["logout"], "");
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert!(!std::fs::read_to_string(&file).expect("readable").contains("sluice_personal"));

    let asked = server.asked();
    assert!(asked[0].starts_with("POST /api/v1/auth/token ") && asked[0].contains(PASSWORD), "{}", asked[0]);
    assert_eq!(server::header(&asked[0], "authorization"), None);
    for request in &asked[1..] {
        assert_eq!(server::header(request, "authorization").as_deref(), Some("Bearer sluice_personal"), "{request}");
    }
}

#[test]
fn a_refused_sign_in_keeps_nothing() {
    let home = tempfile::tempdir().expect("a directory");
    let refused = json!({ "title": "Unauthorized", "status": 401, "code": "bad_credentials",
        "detail": "the name or the password is wrong" });
    let methods = json!({ "password": true, "provider": null });
    let server = Server::new([Reply::json(401, &refused), Reply::json(200, &methods)]);
    let (code, out, err) = run(&server, home.path(), &["login", "ann"], &format!("{PASSWORD}\n"));
    assert!(code != Some(0) && err.contains("the name or the password is wrong"), "{code:?} {out} {err}");
    assert!(!err.contains(PASSWORD) && !kept(home.path()).exists());
}

#[test]
fn credentials_that_others_may_read_are_not_used() {
    let home = tempfile::tempdir().expect("a directory");
    let file = kept(home.path());
    std::fs::create_dir_all(file.parent().expect("a directory")).expect("made");
    std::fs::write(&file, "{}").expect("written");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).expect("set");
    let server = Server::new([]);
    let (code, _, err) = run(&server, home.path(), &["whoami"], "");
    assert!(code == Some(2) && err.contains("chmod 600"), "{code:?} {err}");
}

#[test]
fn a_setup_link_is_printed_once_and_users_are_found_by_name() {
    let home = tempfile::tempdir().expect("a directory");
    let setup = json!({ "token": "t0ken", "url": null, "expires_at": "2026-01-01T01:00:00Z" });
    let users = json!([{ "id": ID, "name": "Ann", "display_name": null, "grant": { "role": "viewer" },
        "standing": "enabled", "signed_in_at": null }]);
    let server = Server::new([
        Reply::json(202, &json!({ "sequence": 5, "id": ID, "setup": setup })),
        Reply::json(200, &users),
        Reply::json(200, &users),
        Reply::json(202, &json!({ "sequence": 6 })),
        Reply::json(200, &users),
        created(),
        Reply::json(200, &json!([])),
    ]);
    std::fs::create_dir_all(home.path().join("sluice")).expect("made");
    let token = json!({ format!("{}/", server.url()): "sluice_admin" }).to_string();
    std::fs::write(kept(home.path()), token).expect("written");
    std::fs::set_permissions(kept(home.path()), std::fs::Permissions::from_mode(0o600)).expect("set");

    let create = ["user", "create", "ann", "--role", "operator", "--project", "shop"];
    let (code, out, err) = run(&server, home.path(), &create, "");
    assert_eq!((code, out.as_str()), (Some(0), "t0ken\n"), "{err}");
    let (code, out, err) = run(&server, home.path(), &["user", "disable", "ann"], "");
    assert_eq!((code, out.as_str(), err.as_str()), (Some(0), "ann is locked out\n", ""));
    let ci = ["token", "create", "ci", "--role", "operator", "--project", "shop", "--expires", "90d"];
    let (code, out, _) = run(&server, home.path(), &ci, "");
    assert_eq!((code, out.as_str()), (Some(0), "sluice_personal\n"));
    let asked = server.asked();
    assert!(asked[0].contains(r#""projects":["shop"]"#) && asked[0].contains(r#""role":"operator""#), "{}", asked[0]);
    assert!(asked[3].starts_with(&format!("POST /api/v1/users/{ID}/disable ")), "{}", asked[3]);
    assert!(asked[5].contains(r#""expires_at":"20"#) && asked[5].contains(r#""personal":false"#), "{}", asked[5]);
    assert!(asked.iter().all(|request| !request.lines().next().is_some_and(|line| line.contains("ann"))));
}

#[test]
fn people_are_shown_by_name_and_stay_what_they_are_in_json() {
    let home = tempfile::tempdir().expect("a directory");
    let secrets = json!({ "db": { "version": 2, "set_at": "2026-01-01T00:00:00Z", "set_by": format!("user:{ID}") },
        "mail": { "version": 1, "set_at": "2026-01-01T00:00:00Z", "set_by": "ci" } });
    let project = || {
        Reply::json(
            200,
            &json!({ "slug": "shop", "name": "shop", "archived": false, "stages": {}, "secrets": secrets,
        "changed_at": "2026-01-01T00:00:00Z" }),
        )
    };
    let server = Server::new([
        created(),
        project(),
        Reply::json(200, &json!({ ID: "Ann" })),
        project(),
        project(),
        Reply::json(503, &json!({})),
    ]);
    run(&server, home.path(), &["login", "ann"], PASSWORD);
    let list = ["secret", "list", "shop"];
    let (code, out, err) = run(&server, home.path(), &list, "");
    assert!(code == Some(0) && out.contains("Ann") && out.contains("ci") && !out.contains(ID), "{out}{err}");
    let (_, out, _) = run(&server, home.path(), &[&list[..], &["--json"]].concat(), "");
    assert!(out.contains(&format!("user:{ID}")), "{out}");
    let (code, out, _) = run(&server, home.path(), &list, "");
    assert!(code == Some(0) && out.contains(&format!("user:{ID}")), "names that cannot be had hold nothing up: {out}");
}

#[test]
fn nothing_is_sent_in_clear_to_another_machine() {
    let output = Command::new(env!("CARGO_BIN_EXE_sluice"))
        .args(["whoami"])
        .env("API_URL", "http://sluice.example.com")
        .env("API_TOKEN", "sluice_personal")
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && said.contains("https://"), "{said}");
}
