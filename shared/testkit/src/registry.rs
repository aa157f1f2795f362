//! A private image registry.

use std::time::Duration;

use anyhow::{Context, Result};
use bollard::{
    auth::DockerCredentials,
    query_parameters::{PushImageOptionsBuilder, TagImageOptionsBuilder},
};
use futures::TryStreamExt;
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::{
    docker::Docker,
    process::{Server, find_program, free_port, tethered},
};

const READY_DEADLINE: Duration = Duration::from_secs(20);

/// A real OCI registry (Debian's docker-registry) on a loopback port of its own. Ends when dropped.
pub struct Registry {
    address: String,
    guarded: bool,
    _server: Server,
    _directory: TempDir,
}

impl Registry {
    /// Signs in to a [guarded](Registry::start_guarded) registry.
    pub const USER: &str = "robot";
    /// See [`Registry::USER`].
    pub const PASSWORD: &str = "registry-password";
    /// [`Registry::PASSWORD`] as htpasswd keeps it, with bcrypt.
    const PASSWORD_HASH: &str = "$2y$05$abcdefghijklmnopqrstuux7DVfxfgfXTmp/9Tsk6HzX2QQGjxePG";

    /// Starts an empty registry that is open to everybody.
    pub async fn start() -> Result<Registry> {
        Registry::launch(false).await
    }

    /// Starts an empty registry that asks for [`Registry::USER`] and [`Registry::PASSWORD`].
    pub async fn start_guarded() -> Result<Registry> {
        Registry::launch(true).await
    }

    async fn launch(guarded: bool) -> Result<Registry> {
        let program = find_program("docker-registry")
            .context("no docker-registry found: run `make tools`, or install Debian's docker-registry package")?;
        let directory = TempDir::with_prefix("sluice-registry-").context("creating the store of the registry")?;
        let path = |name: &str| directory.path().join(name);
        let port = free_port();
        let mut configuration = format!(
            "version: 0.1\nlog:\n  level: warn\nstorage:\n  delete:\n    enabled: true\n  filesystem:\n    rootdirectory: '{}'\n\
             http:\n  addr: 127.0.0.1:{port}\n",
            path("store").display()
        );
        if guarded {
            std::fs::write(path("htpasswd"), format!("{}:{}\n", Registry::USER, Registry::PASSWORD_HASH))
                .context("writing the users of the registry")?;
            configuration +=
                &format!("auth:\n  htpasswd:\n    realm: testkit\n    path: '{}'\n", path("htpasswd").display());
        }
        std::fs::write(path("config.yml"), configuration).context("writing the configuration of the registry")?;
        let mut command = tethered(&program, "KILL", None);
        command.arg("serve").arg(path("config.yml"));
        let mut server = Server::spawn("docker-registry", &mut command, path("registry.log"), Signal::TERM)?;
        server.ready(READY_DEADLINE, async || TcpStream::connect(("127.0.0.1", port)).await.is_ok()).await?;
        Ok(Registry { address: format!("127.0.0.1:{port}"), guarded, _server: server, _directory: directory })
    }

    /// Host and port, the first part of an image reference.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Pushes the engine's image `local` as `name` (such as `shop:1`). Answers the full reference,
    /// `127.0.0.1:<port>/shop:1`.
    pub async fn push(&self, docker: &Docker, local: &str, name: &str) -> Result<String> {
        let (repository, tag) = name.split_once(':').unwrap_or((name, "latest"));
        let repository = format!("{}/{repository}", self.address);
        let client = docker.client();
        let options = TagImageOptionsBuilder::default().repo(&repository).tag(tag).build();
        client.tag_image(local, Some(options)).await.with_context(|| format!("tagging {local}"))?;
        let credentials = self.guarded.then(|| DockerCredentials {
            username: Some(Registry::USER.into()),
            password: Some(Registry::PASSWORD.into()),
            ..Default::default()
        });
        let options = PushImageOptionsBuilder::default().tag(tag).build();
        client
            .push_image(&repository, Some(options), credentials)
            .try_for_each(async |_| Ok(()))
            .await
            .with_context(|| format!("pushing {repository}:{tag}"))?;
        Ok(format!("{repository}:{tag}"))
    }
}
