//! The data directory: what is generated at the first start and found again at every later one.

use std::{
    fs::{self, File, OpenOptions},
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

/// Everything below `DATA_DIR`.
pub(super) struct DataDir {
    root: PathBuf,
    /// Held while this process runs, so that two never share a directory.
    _lock: File,
}

/// Generated once; the file that holds it is readable by its owner only.
#[derive(Serialize, Deserialize)]
pub(super) struct Generated {
    pub(super) nats_port: u16,
    pub(super) nats_password: String,
    pub(super) postgres_port: u16,
    pub(super) postgres_password: String,
    /// Empty in what was generated before there were sessions.
    #[serde(default)]
    pub(super) jwt_secret: String,
    /// Of the first administrator; empty in what was generated before there were users.
    #[serde(default)]
    pub(super) admin_password: String,
}

/// Where the parts listen: read by the CLI on this machine, so the file is its owner's only.
#[derive(Serialize)]
pub(super) struct Connection<'a> {
    pub(super) api: &'a str,
    pub(super) edge: &'a str,
    pub(super) nats_url: &'a str,
    pub(super) database_url: &'a str,
}

impl DataDir {
    pub(super) fn open(root: PathBuf) -> Result<Self> {
        runtime::files::create_dir(&root).with_context(|| {
            format!("creating the data directory {}: set DATA_DIR to a directory you may write", root.display())
        })?;
        let lock =
            OpenOptions::new().create(true).write(true).truncate(false).open(root.join("lock")).with_context(|| {
                format!("opening {}: set DATA_DIR to a directory you may write", root.join("lock").display())
            })?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            bail!("another `sluice up` runs on {}: stop it, or set DATA_DIR to another directory", root.display());
        }
        Ok(Self { root, _lock: lock })
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// What an earlier start generated, or new values.
    pub(super) fn generated(&self) -> Result<Generated> {
        let path = self.path("generated.json");
        if path.exists() {
            let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
            let mut found: Generated = serde_json::from_slice(&text).with_context(|| {
                format!(
                    "{} is damaged: restore it from a backup; without it the databases cannot be opened",
                    path.display()
                )
            })?;
            let missing: Vec<_> = [&mut found.jwt_secret, &mut found.admin_password]
                .into_iter()
                .filter(|value| value.is_empty())
                .collect();
            if !missing.is_empty() {
                missing.into_iter().for_each(|value| *value = secret());
                self.keep(&path, &found)?;
            }
            return Ok(found);
        }
        let generated = Generated {
            nats_port: free_port()?,
            nats_password: secret(),
            postgres_port: free_port()?,
            postgres_password: secret(),
            jwt_secret: secret(),
            admin_password: secret(),
        };
        self.keep(&path, &generated)?;
        Ok(generated)
    }

    fn keep(&self, path: &Path, generated: &Generated) -> Result<()> {
        runtime::files::replace(path, &serde_json::to_vec_pretty(generated)?, 0o600)
            .with_context(|| format!("writing {}", path.display()))
    }

    /// Writes a file that only its owner may read.
    pub(super) fn write_private(&self, name: &str, content: &[u8]) -> Result<PathBuf> {
        let path = self.path(name);
        runtime::files::replace(&path, content, 0o600).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }

    pub(super) fn create_dir(&self, name: &str) -> Result<PathBuf> {
        let path = self.path(name);
        runtime::files::create_dir(&path).with_context(|| format!("creating {}", path.display()))?;
        Ok(path)
    }
}

/// 256 random bits, as text that needs no quoting anywhere.
fn secret() -> String {
    rand::random::<[u8; 32]>().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A port that nothing listens on at this moment, below the range from which the kernel picks for
/// outgoing connections: a client that keeps reconnecting to a stopped server there could end up
/// connected to itself.
fn free_port() -> Result<u16> {
    let free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    let mut candidates = std::iter::repeat_with(|| rand::random_range(15_000..32_000)).take(1000);
    candidates.find(free).context("no free port between 15000 and 32000 on 127.0.0.1")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_second_start_finds_what_the_first_generated_and_nobody_else_can_read_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let first = DataDir::open(dir.path().join("data")).expect("opens");
        let generated = first.generated().expect("generates");
        let secrets = |found: &Generated| [found.jwt_secret.clone(), found.admin_password.clone()];
        assert!(secrets(&generated).iter().all(|secret| secret.len() == 64));
        assert_eq!(secrets(&first.generated().expect("reads")), secrets(&generated));
        // As an earlier version left it.
        let mut old = serde_json::to_value(&generated).expect("JSON");
        old.as_object_mut().expect("an object").retain(|name, _| name != "jwt_secret" && name != "admin_password");
        first.write_private("generated.json", old.to_string().as_bytes()).expect("written");
        let grown = first.generated().expect("reads");
        assert_eq!((grown.jwt_secret.len(), grown.admin_password.len()), (64, 64));
        assert_eq!(secrets(&first.generated().expect("reads")), secrets(&grown));
        let mode = fs::metadata(first.path("generated.json")).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn two_cannot_share_a_directory() {
        let dir = tempfile::tempdir().expect("a directory");
        let _first = DataDir::open(dir.path().to_owned()).expect("opens");
        let error = DataDir::open(dir.path().to_owned()).err().expect("refused").to_string();
        assert!(error.contains("DATA_DIR"), "{error}");
    }
}
