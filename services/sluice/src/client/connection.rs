//! Where Sluice answers and how to sign in: from the environment, else from what `sluice up` wrote down.

use std::{fs, io, path::Path};

use reqwest::Url;
use runtime::env;
use serde::Deserialize;

use super::Error;

const DEFAULT_API: &str = "http://127.0.0.1:7070";

pub(super) struct Connection {
    pub(super) api: Url,
    pub(super) token: Result<String, MissingToken>,
}

/// Only a request that needs the token fails for its want.
#[derive(Debug)]
pub(super) struct MissingToken {
    problem: String,
    hint: &'static str,
}

impl MissingToken {
    pub(super) fn to_error(&self) -> Error {
        Error::NoToken { problem: self.problem.clone(), hint: self.hint.to_owned() }
    }
}

/// `connection.json` in the data directory, as `sluice up` writes it.
#[derive(Deserialize)]
struct Written {
    api: String,
}

pub(super) fn find() -> Result<Connection, Error> {
    let dir = env::data_dir().map_err(|error| Error::Address { name: "DATA_DIR", problem: format!("{error:#}") })?;
    let found = resolve(env::optional("API_URL"), env::optional("API_TOKEN"), &dir)?;
    if env::optional("API_TOKEN").is_some() {
        return Ok(found);
    }
    // Who signed in by name acts in that name.
    match super::credentials::find(&found.api)? {
        Some(token) => Ok(Connection { token: Ok(token), ..found }),
        None => Ok(found),
    }
}

fn resolve(url: Option<String>, token: Option<String>, dir: &Path) -> Result<Connection, Error> {
    let written = fs::read(dir.join("connection.json")).ok();
    let written = written.and_then(|text| serde_json::from_slice::<Written>(&text).ok()).map(|written| written.api);
    let api = parse(&url.clone().or_else(|| written.clone()).unwrap_or_else(|| DEFAULT_API.to_owned()))?;
    let token = match token {
        Some(token) => Ok(token),
        // The administrator's token opens this installation and must not travel to another.
        None if url.is_some()
            && !loopback(&api)
            && written.as_deref().and_then(|own| parse(own).ok()).as_ref() != Some(&api) =>
        {
            Err(MissingToken {
                problem: format!("API_URL leads to {api}, and API_TOKEN is not set"),
                hint: "`sluice login` signs in there; a program sets API_TOKEN",
            })
        }
        None => stored_token(&dir.join("admin-token")),
    };
    Ok(Connection { api, token })
}

fn stored_token(path: &Path) -> Result<String, MissingToken> {
    let missing = |problem, hint| Err(MissingToken { problem, hint });
    match fs::read_to_string(path) {
        Ok(text) if text.trim().is_empty() => missing(format!("{} is empty", path.display()), "set API_TOKEN"),
        Ok(text) => Ok(text.trim().to_owned()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => missing(
            format!("{} may not be read by this user", path.display()),
            "run as the user who started `sluice up`, or set API_TOKEN",
        ),
        Err(error) => missing(
            format!("API_TOKEN is not set and {} cannot be read ({error})", path.display()),
            "start Sluice with `sluice up`; if another user or another DATA_DIR did, set DATA_DIR or API_TOKEN",
        ),
    }
}

fn parse(text: &str) -> Result<Url, Error> {
    let bad = |problem: &str| Error::Address { name: "API_URL", problem: format!("`{text}` {problem}") };
    let url = Url::parse(text).map_err(|_| bad("is not an address: write it like http://127.0.0.1:7070"))?;
    match url.scheme() {
        "http" if url.host().is_some() => Ok(url),
        "https" => Err(bad("asks for TLS, which Sluice does not speak: reach a remote one through an SSH tunnel")),
        _ => Err(bad("is not an address: write it like http://127.0.0.1:7070")),
    }
}

fn loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn installation() -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("admin-token"), "own\n").expect("written");
        fs::write(dir.path().join("connection.json"), r#"{"api":"http://127.0.0.1:7171","edge":"x"}"#)
            .expect("written");
        dir
    }

    fn resolved(url: Option<&str>, token: Option<&str>) -> (String, Option<String>) {
        let dir = installation();
        let found = resolve(url.map(Into::into), token.map(Into::into), dir.path()).expect("an address");
        (found.api.to_string(), found.token.ok())
    }

    #[test]
    fn what_up_wrote_down_is_enough() {
        assert_eq!(resolved(None, None), ("http://127.0.0.1:7171/".into(), Some("own".into())));
    }

    #[test]
    fn the_environment_wins() {
        assert_eq!(resolved(Some("http://[::1]:1"), Some("t")), ("http://[::1]:1/".into(), Some("t".into())));
        assert_eq!(resolved(Some("http://localhost:1"), None).1, Some("own".into()));
    }

    #[test]
    fn the_own_token_does_not_leave_the_machine() {
        assert_eq!(resolved(Some("http://sluice.example"), None).1, None);
        assert_eq!(resolved(Some("http://127.0.0.1.example"), None).1, None);
        assert_eq!(resolved(Some("http://sluice.example"), Some("t")).1, Some("t".into()));
    }

    #[test]
    fn a_bad_address_names_the_variable() {
        let dir = installation();
        for bad in ["https://x", "ftp://x", "x", "", "http://"] {
            let error = resolve(Some(bad.into()), None, dir.path()).err().expect(bad).to_string();
            assert!(error.starts_with("API_URL: "), "{error}");
        }
    }

    #[test]
    fn a_missing_token_says_where_it_was_sought() {
        let dir = tempfile::tempdir().expect("a directory");
        let found = resolve(None, None, dir.path()).expect("the default address");
        assert_eq!(found.api.as_str(), "http://127.0.0.1:7070/");
        let missing = found.token.expect_err("nothing is there").to_error().to_string();
        assert!(missing.contains("admin-token"), "{missing}");
    }
}
