//! Where Sluice answers and how to sign in: from the environment, else from what `sluice up` and `sluice login` wrote
//! down.

use std::{fs, path::Path};

use reqwest::Url;
use runtime::env;
use serde::Deserialize;

use super::Error;

const DEFAULT_API: &str = "http://127.0.0.1:7070";

pub(super) struct Connection {
    pub(super) api: Url,
    /// None of whom has not signed in: only a request that needs a token fails for its want.
    pub(super) token: Option<String>,
}

/// `connection.json` in the data directory, as `sluice up` writes it.
#[derive(Deserialize)]
struct Written {
    api: String,
}

pub(super) fn find() -> Result<Connection, Error> {
    let dir = env::data_dir().map_err(|error| Error::Address { name: "DATA_DIR", problem: format!("{error:#}") })?;
    let api = address(env::optional("API_URL"), &dir)?;
    let token = match env::optional("API_TOKEN") {
        Some(token) => Some(token),
        None => super::credentials::find(&api)?,
    };
    Ok(Connection { api, token })
}

fn address(url: Option<String>, dir: &Path) -> Result<Url, Error> {
    let written = || serde_json::from_slice::<Written>(&fs::read(dir.join("connection.json")).ok()?).ok();
    parse(&url.or_else(|| Some(written()?.api)).unwrap_or_else(|| DEFAULT_API.to_owned()))
}

fn parse(text: &str) -> Result<Url, Error> {
    let bad = |problem: &str| Error::Address { name: "API_URL", problem: format!("`{text}` {problem}") };
    let form = "is not an address: write it like https://sluice.example.com or http://127.0.0.1:7070";
    let url = Url::parse(text).map_err(|_| bad(form))?;
    match url.scheme() {
        "https" if url.host().is_some() => Ok(url),
        "http" if url.host().is_some() && loopback(&url) => Ok(url),
        "http" if url.host().is_some() => Err(bad(
            "would send passwords and tokens in clear: use the https:// address, or a tunnel that ends on this machine",
        )),
        _ => Err(bad(form)),
    }
}

fn loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_wins_over_what_up_wrote_down() {
        let dir = tempfile::tempdir().expect("a directory");
        let found = |url: Option<&str>| address(url.map(Into::into), dir.path()).expect("an address").to_string();
        assert_eq!(found(None), "http://127.0.0.1:7070/");
        fs::write(dir.path().join("connection.json"), r#"{"api":"http://127.0.0.1:7171","edge":"x"}"#)
            .expect("written");
        assert_eq!(found(None), "http://127.0.0.1:7171/");
        for url in ["http://[::1]:1/", "http://localhost:1/", "https://sluice.example/"] {
            assert_eq!(found(Some(url)), url);
        }
    }

    #[test]
    fn a_bad_address_names_the_variable() {
        let dir = tempfile::tempdir().expect("a directory");
        for bad in ["ftp://x", "x", "", "http://", "https://", "http://sluice.example", "http://127.0.0.1.example"] {
            let error = address(Some(bad.into()), dir.path()).expect_err(bad).to_string();
            assert!(error.starts_with("API_URL: "), "{error}");
        }
    }
}
