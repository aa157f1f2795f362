//! A private image registry.

use std::{path::PathBuf, time::Duration};

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
    program: PathBuf,
    address: String,
    guarded: bool,
    server: Option<Server>,
    directory: TempDir,
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
        let mut registry =
            Registry { program, address: format!("127.0.0.1:{}", free_port()), guarded, server: None, directory };
        registry.restart(None).await?;
        Ok(registry)
    }

    /// Starts it again on the same images and address, so that it tells of pushes at `url`, with `authorization`.
    pub async fn notify(&mut self, url: &str, authorization: &str) -> Result<()> {
        let endpoint = format!(
            "notifications:\n  endpoints:\n  - name: sluice\n    url: '{url}'\n    headers: {{Authorization: ['{authorization}']}}\n    \
             timeout: 5s\n    threshold: 5\n    backoff: 1s\n"
        );
        self.restart(Some(endpoint)).await
    }

    async fn restart(&mut self, more: Option<String>) -> Result<()> {
        self.server = None;
        let path = |name: &str| self.directory.path().join(name);
        let mut configuration = format!(
            "version: 0.1\nlog:\n  level: warn\nstorage:\n  delete:\n    enabled: true\n  filesystem:\n    rootdirectory: '{}'\n\
             http:\n  addr: {}\n",
            path("store").display(),
            self.address
        );
        if self.guarded {
            std::fs::write(path("htpasswd"), format!("{}:{}\n", Registry::USER, Registry::PASSWORD_HASH))
                .context("writing the users of the registry")?;
            configuration +=
                &format!("auth:\n  htpasswd:\n    realm: testkit\n    path: '{}'\n", path("htpasswd").display());
        }
        configuration += &more.unwrap_or_default();
        std::fs::write(path("config.yml"), configuration).context("writing the configuration of the registry")?;
        let mut command = tethered(&self.program, "KILL", None);
        command.arg("serve").arg(path("config.yml"));
        let mut server = Server::spawn("docker-registry", &mut command, path("registry.log"), Signal::TERM)?;
        let address = &self.address;
        server.ready(READY_DEADLINE, async || TcpStream::connect(address).await.is_ok()).await?;
        self.server = Some(server);
        Ok(())
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
