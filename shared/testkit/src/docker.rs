//! A Docker engine: the one that answers here, or a private daemon.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use bollard::query_parameters::{ListContainersOptions, RemoveContainerOptionsBuilder};
use rustix::process::{Signal, geteuid};
use tempfile::TempDir;

use crate::process::{Server, find_program, in_own_runtime, tethered};

const READY_DEADLINE: Duration = Duration::from_secs(60);
const DEFAULT_SOCKET: &str = "unix:///var/run/docker.sock";

/// A connection to an engine, and the daemon itself where it is a private one, which ends when dropped: its
/// containers first, then the daemon, then its data.
pub struct Docker {
    client: bollard::Docker,
    host: String,
    _daemon: Option<Daemon>,
}

impl Docker {
    /// Connects to the engine named in `DOCKER_HOST`, else to the default socket where an engine answers there, else
    /// starts a private daemon, for which the user must be root.
    pub async fn connect_or_start() -> Result<Docker> {
        match Docker::connect().await {
            Err(_) if std::env::var_os("DOCKER_HOST").is_none() => Docker::start_private().await,
            connected => connected,
        }
    }

    /// Connects to the engine named in `DOCKER_HOST`, else to the one at the default socket.
    pub async fn connect() -> Result<Docker> {
        let host = std::env::var("DOCKER_HOST").unwrap_or_else(|_| DEFAULT_SOCKET.into());
        let client = connect(&host).await.with_context(|| format!("connecting to the Docker engine at {host}"))?;
        Ok(Docker { client, host, _daemon: None })
    }

    /// Starts a private daemon. It leaves the machine's network rules alone, so that several can run beside each
    /// other and beside the machine's own; in return it has no default bridge: containers need a network by name.
    pub async fn start_private() -> Result<Docker> {
        if !geteuid().is_root() {
            bail!("no Docker engine answers, and only root may start a private one: start one or set DOCKER_HOST");
        }
        let daemon = Daemon::start().await?;
        let host = daemon.host();
        let client = connect(&host).await.context("connecting to the private dockerd")?;
        Ok(Docker { client, host, _daemon: Some(daemon) })
    }

    /// Speaks the API version that the engine and this client have in common.
    pub fn client(&self) -> &bollard::Docker {
        &self.client
    }

    /// The engine's address, as `DOCKER_HOST` takes it.
    pub fn host(&self) -> &str {
        &self.host
    }
}

async fn connect(host: &str) -> Result<bollard::Docker> {
    let client = bollard::Docker::connect_with_host(host)?;
    Ok(client.negotiate_version().await?)
}

struct Daemon {
    server: Option<Server>,
    directory: TempDir,
}

impl Daemon {
    async fn start() -> Result<Daemon> {
        let program = find_program("dockerd")
            .context("no dockerd found: run `make tools`, or install Debian's docker.io package")?;
        let directory = TempDir::with_prefix("sluice-docker-").context("creating the data root of dockerd")?;
        let mut daemon = Daemon { server: None, directory };
        let path = |name: &str| daemon.directory.path().join(name);
        // From the range for tests between networks, which no machine's own network or tunnel uses: a part of its own,
        // so that two daemons rarely meet; dockerd itself avoids what is in use at that moment.
        let (half, part) = (rand::random_range(18..20_u8), rand::random_range(0..16_u8) * 16);
        let pool = format!("base=198.{half}.{part}.0/20,size=27");
        let mut command = tethered(&program, "TERM", None);
        command
            .arg("--data-root")
            .arg(path("data"))
            .arg("--exec-root")
            .arg(path("exec"))
            .arg("--pidfile")
            .arg(path("docker.pid"))
            .args(["--host", &daemon.host()])
            .args(["--default-address-pool", &pool])
            .args(["--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false"])
            .args(["--shutdown-timeout=5", "--log-level=warn"]);
        let mut server = Server::spawn("dockerd", &mut command, path("docker.log"), Signal::TERM)?;
        let host = daemon.host();
        server.ready(READY_DEADLINE, async || connect(&host).await.is_ok()).await?;
        daemon.server = Some(server);
        Ok(daemon)
    }

    fn host(&self) -> String {
        format!("unix://{}", self.directory.path().join("docker.sock").display())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let host = self.host();
        if self.server.is_some() {
            // A container that stays is ended by the daemon's own shutdown, only more slowly.
            let _ = in_own_runtime(async move { remove_containers(&host).await });
        }
        self.server = None;
        for mount in mounts_below(self.directory.path()) {
            let _ = Command::new("umount").arg("--lazy").arg(mount).output();
        }
    }
}

async fn remove_containers(host: &str) -> Result<()> {
    let client = connect(host).await?;
    let all = ListContainersOptions { all: true, ..Default::default() };
    let containers = client.list_containers(Some(all)).await.context("listing the containers")?;
    let removals = containers.into_iter().filter_map(|container| container.id).map(|id| {
        let client = client.clone();
        let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
        tokio::spawn(async move { client.remove_container(&id, Some(options)).await })
    });
    for removal in removals.collect::<Vec<_>>() {
        removal.await.context("removing a container")??;
    }
    Ok(())
}

/// Deepest first.
fn mounts_below(directory: &Path) -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mounts = table.lines().filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from);
    let mut below: Vec<PathBuf> = mounts.filter(|mount| mount.starts_with(directory)).collect();
    below.sort();
    below.reverse();
    below
}
