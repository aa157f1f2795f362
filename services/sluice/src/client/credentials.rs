//! What `sluice login` keeps: a personal token for each address, in a file that only its owner may read.

use std::{collections::BTreeMap, fs, io, os::unix::fs::PermissionsExt, path::PathBuf};

use reqwest::Url;
use runtime::env;
use serde::{Deserialize, Serialize};

use super::Error;

const FILE: &str = "sluice/credentials.json";

/// Tokens by address.
#[derive(Default, Serialize, Deserialize)]
struct Kept(BTreeMap<String, String>);

/// `$XDG_CONFIG_HOME/sluice/credentials.json`, by default below `~/.config`. None for whom has no home.
pub(crate) fn path() -> Option<PathBuf> {
    let home = || env::optional("HOME").map(|home| PathBuf::from(home).join(".config"));
    env::optional("XDG_CONFIG_HOME").map(PathBuf::from).or_else(home).map(|dir| dir.join(FILE))
}

/// The token for `api`, where there is one.
pub(super) fn find(api: &Url) -> Result<Option<String>, Error> {
    let Some(path) = path() else { return Ok(None) };
    Ok(read(&path)?.0.remove(api.as_str()))
}

/// Keeps the token for `api`; without one, forgets the one that there was.
pub(super) fn keep(api: &Url, token: Option<&str>) -> Result<(), Error> {
    let problem = |problem: String| Error::Address { name: "XDG_CONFIG_HOME", problem };
    let path = path().ok_or_else(|| problem("is not set, nor is HOME: there is nowhere to keep the token".into()))?;
    let mut kept = read(&path)?;
    let before = match token {
        Some(token) => kept.0.insert(api.to_string(), token.to_owned()),
        None => kept.0.remove(api.as_str()),
    };
    if token.is_none() && before.is_none() {
        return Ok(());
    }
    let text = serde_json::to_vec_pretty(&kept).map_err(|error| problem(error.to_string()))?;
    let parent = path.parent().map_or(Ok(()), runtime::files::create_dir);
    parent
        .and_then(|()| runtime::files::replace(&path, &text, 0o600))
        .map_err(|error| problem(format!("{} cannot be written: {error}", path.display())))
}

fn read(path: &std::path::Path) -> Result<Kept, Error> {
    let bad = |problem: String| Error::Address { name: "credentials", problem };
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Kept::default()),
        Err(error) => return Err(bad(format!("{} cannot be read: {error}", path.display()))),
    };
    let mode = fs::metadata(path).map_or(0, |metadata| metadata.permissions().mode()) & 0o777;
    if mode & 0o077 != 0 {
        let path = path.display();
        return Err(bad(format!("others may read {path} (mode {mode:03o}): chmod 600 it, and sign in anew")));
    }
    serde_json::from_slice(&text).map_err(|_| bad(format!("{} is damaged: remove it and sign in anew", path.display())))
}
