//! A certified OpenID Connect provider (npm's `oidc-provider`), as `oidc/server.js` starts it.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::process::{Server, free_port, random_secret, tethered, workspace};

const READY_DEADLINE: Duration = Duration::from_secs(30);

/// The provider, on a loopback port of its own, with one client and one person, [`CertifiedProvider::PERSON`], who signs
/// in by naming herself. Ends when dropped.
pub struct CertifiedProvider {
    directory: TempDir,
    port: u16,
    secret: String,
    /// Where the client may have people sent back to, after they signed in and after they signed out.
    places: [String; 2],
    server: Option<Server>,
}

impl CertifiedProvider {
    pub const CLIENT_ID: &str = "sluice";
    pub const PERSON: &str = "ann";

    pub async fn start(redirect: &str, signed_out: &str) -> Result<Self> {
        let directory = TempDir::with_prefix("sluice-oidc-").context("a directory for the provider")?;
        let places = [redirect, signed_out].map(str::to_owned);
        let mut provider = Self { directory, port: free_port(), secret: random_secret(), places, server: None };
        provider.restart().await?;
        Ok(provider)
    }

    /// Ends it and starts it again at the same address, with new keys, and without a memory of anybody.
    pub async fn restart(&mut self) -> Result<()> {
        self.server = None;
        let home = workspace().join("shared/testkit/oidc");
        let node: PathBuf = home.join("node_modules/.bin/node");
        ensure!(node.exists(), "the provider is not installed: run `make tools`");
        let mut command = tethered(&node, "KILL", None);
        command.arg(home.join("server.js")).arg(self.port.to_string()).args([Self::CLIENT_ID, &self.secret]);
        command.args(&self.places);
        let log = self.directory.path().join("provider.log");
        let mut server = Server::spawn("oidc-provider", &mut command, log, Signal::TERM)?;
        let address = ("127.0.0.1", self.port);
        server.ready(READY_DEADLINE, async || TcpStream::connect(address).await.is_ok()).await?;
        self.server = Some(server);
        Ok(())
    }

    pub fn issuer(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn secret(&self) -> &str {
        &self.secret
    }
}
