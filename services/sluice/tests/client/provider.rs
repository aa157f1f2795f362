//! The OpenID provider at a command line: declared, shown, tested, and signed in at.

use serde_json::{Value, json};

use crate::{
    server::{Reply, Server},
    sign_in::{ID, kept, run},
};

const ISSUER: &str = "https://id.example.com/realms/main";
const CALLBACK: &str = "https://sluice.example.com/auth/oidc/callback";

fn declared(managed_by: &str, has_secret: bool) -> Value {
    let settings = json!({
        "issuer": ISSUER, "client_id": "sluice", "scopes": ["openid"], "roles_claim": "groups", "label": "Enter",
        "role_map": { "admins": { "role": "admin" }, "shop-team": { "role": "operator", "projects": ["shop"] } },
        "algorithms": ["RS256"],
    });
    json!({ "managed_by": managed_by, "settings": settings, "has_secret": has_secret, "redirect_uri": CALLBACK })
}

fn accepted() -> Reply {
    Reply::json(202, &json!({ "sequence": 5 }))
}

/// The home of somebody who is signed in.
fn home(server: &Server) -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let home = tempfile::tempdir().expect("a directory");
    let file = kept(home.path());
    std::fs::create_dir_all(file.parent().expect("a directory")).expect("made");
    std::fs::write(&file, json!({ format!("{}/", server.url()): "sluice_admin" }).to_string()).expect("written");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("set");
    home
}

#[test]
fn a_provider_is_declared_with_a_secret_from_a_pipe_and_what_to_register_is_said() {
    let server = Server::new([accepted(), accepted(), Reply::json(200, &declared("settings", true))]);
    let home = home(&server);
    let args = ["provider", "set", ISSUER, "--client-id", "sluice", "--secret-stdin", "--roles-claim", "groups"];
    let roles = ["--role", "admins=admin", "--role", "cn=team=operator:shop+blog"];
    let (code, out, err) = run(&server, home.path(), &[&args[..], &roles].concat(), "cl1ent-s3cret\n");
    assert_eq!((code, out.as_str()), (Some(0), format!("people may sign in at {ISSUER}\n").as_str()), "{err}");
    assert!(err.contains(CALLBACK) && err.contains("sluice provider test") && !err.contains("cl1ent"), "{err}");
    let asked = server.asked();
    assert!(asked[0].starts_with("PUT /api/v1/auth/provider HTTP/1.1"), "{}", asked[0]);
    let body: Value = serde_json::from_str(asked[0].split("\r\n\r\n").nth(1).expect("a body")).expect("JSON");
    let roles =
        json!({ "admins": { "role": "admin" }, "cn=team": { "role": "operator", "projects": ["blog", "shop"] } });
    assert_eq!((&body["role_map"], &body["roles_claim"]), (&roles, &json!("groups")));
    assert_eq!((&body["scopes"], &body["label"]), (&json!(["openid", "profile", "email"]), &json!("Single sign-on")));
    assert!(asked[1].starts_with("PUT /api/v1/auth/provider/secret ") && asked[1].contains("cl1ent-s3cret"));
}

#[test]
fn what_is_wrong_with_the_arguments_is_said_before_anything_is_sent() {
    let server = Server::new([]);
    let home = home(&server);
    let set = |more: &[&'static str]| [&["provider", "set", ISSUER, "--client-id", "sluice"][..], more].concat();
    for (args, words) in [
        (set(&["--role", "admins"]), "value=role"),
        (set(&["--role", "admins=root"]), "no role"),
        (set(&["--algorithm", "none"]), "RS256"),
        (vec!["provider", "set", ISSUER], "--client-id"),
        (vec!["login"], "NAME"),
        (vec!["login", "ann", "--browser"], "cannot be used with"),
    ] {
        let (code, _, err) = run(&server, home.path(), &args, "");
        assert!(code == Some(2) && err.contains(words), "{args:?}: {code:?} {err}");
    }
    assert!(server.asked().is_empty());
}

#[test]
fn what_is_declared_is_shown_with_who_declared_it() {
    let server = Server::new([
        Reply::json(200, &declared("environment", false)),
        Reply::json(404, &json!({ "title": "Not Found", "status": 404, "code": "provider_not_found" })),
        accepted(),
        accepted(),
    ]);
    let home = home(&server);
    let (code, out, _) = run(&server, home.path(), &["provider", "show"], "");
    assert_eq!(code, Some(0));
    for words in [ISSUER, CALLBACK, "OIDC_*", "none", "groups", "admins is admin", "shop-team is operator of shop"] {
        assert!(out.contains(words), "{words}: {out}");
    }
    assert_eq!(run(&server, home.path(), &["provider", "show"], "").0, Some(3));
    assert_eq!(run(&server, home.path(), &["provider", "secret", "--remove"], "").0, Some(0));
    assert_eq!(run(&server, home.path(), &["provider", "remove"], "").0, Some(0));
    let asked = server.asked();
    assert!(asked[2].starts_with("DELETE /api/v1/auth/provider/secret "), "{}", asked[2]);
    assert!(asked[3].starts_with("DELETE /api/v1/auth/provider HTTP/1.1"), "{}", asked[3]);
}

#[test]
fn a_script_can_tell_whether_a_sign_in_can_work() {
    let report = |good: bool| {
        let check =
            json!({ "name": "issuer", "outcome": if good { "passed" } else { "failed" }, "detail": "so it is" });
        Reply::json(200, &json!({ "good": good, "checks": [check] }))
    };
    let server = Server::new([report(true), report(false), report(false)]);
    let home = home(&server);
    let (code, out, _) = run(&server, home.path(), &["provider", "test"], "");
    assert!(code == Some(0) && out.contains("issuer  passed") && out.contains("so it is"), "{code:?} {out}");
    assert_eq!(run(&server, home.path(), &["provider", "test"], "").0, Some(1));
    let (code, out, _) = run(&server, home.path(), &["provider", "test", "--json"], "");
    let report: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!((code, &report["good"]), (Some(1), &json!(false)));
}

fn methods(provider: Value) -> Reply {
    Reply::json(200, &json!({ "password": true, "provider": provider }))
}

fn button() -> Value {
    json!({ "label": "Enter", "start": "https://sluice.example.com/auth/oidc/start" })
}

#[test]
fn who_has_no_password_here_is_told_the_other_way() {
    let refused = json!({ "title": "Unauthorized", "status": 401, "code": "bad_credentials",
        "detail": "the name or the password is wrong" });
    for (provider, told) in [(button(), true), (Value::Null, false)] {
        let server = Server::new([Reply::json(401, &refused), methods(provider)]);
        let home = tempfile::tempdir().expect("a directory");
        let (code, _, err) = run(&server, home.path(), &["login", "ann"], "x\n");
        assert_eq!((code, err.contains("sluice login --browser")), (Some(5), told), "{err}");
        assert!(err.contains("the name or the password is wrong"), "{err}");
    }
}

#[test]
fn a_browser_shows_a_code_and_the_command_line_takes_it() {
    let created = json!({ "sequence": 5, "id": ID, "token": "sluice_personal", "expires_at": null });
    let server = Server::new([methods(button()), Reply::json(200, &created), methods(Value::Null)]);
    let home = tempfile::tempdir().expect("a directory");
    let (code, out, err) = run(&server, home.path(), &["login", "--browser"], "c0de\n");
    assert_eq!(code, Some(0), "{err}");
    let address = "https://sluice.example.com/auth/oidc/start?return_to=/api/v1/auth/code";
    assert!(err.contains(address) && out.starts_with("signed in to "), "{out} {err}");
    assert!(!out.contains("sluice_personal") && !err.contains("c0de"), "{out} {err}");
    assert!(std::fs::read_to_string(kept(home.path())).expect("kept").contains("sluice_personal"));
    let (code, _, err) = run(&server, home.path(), &["login", "--browser"], "c0de\n");
    assert_eq!(code, Some(3), "{err}");
    let asked = server.asked();
    assert!(asked[1].starts_with("POST /api/v1/auth/code ") && asked[1].contains("c0de"), "{}", asked[1]);
    assert!(asked.iter().all(|request| crate::server::header(request, "authorization").is_none()
        || request.starts_with("GET /api/v1/auth/methods")));
}
