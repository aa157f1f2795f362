//! A Docker engine: the one that answers here, or a private daemon.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, geteuid, kill_process, test_kill_process};
use tempfile::TempDir;
use tokio::time::timeout;

use crate::{
    cleanup,
    process::{Server, find_program, in_own_runtime, random_secret, tethered},
};

const READY_DEADLINE: Duration = Duration::from_secs(60);
const CLEANUP_DEADLINE: Duration = Duration::from_secs(20);
const DEFAULT_SOCKET: &str = "unix:///var/run/docker.sock";

/// A connection to an engine, and the daemon itself where it is a private one, which ends when dropped: its
/// containers first, then the daemon, then its data. In an engine that others use too, the images that were loaded
/// through this connection end with it, and every container of them.
pub struct Docker {
    client: bollard::Docker,
    host: String,
    mark: Option<String>,
    daemon: Option<Daemon>,
}

impl Docker {
    /// Connects to the engine named in `DOCKER_HOST`, else to the default socket where an engine answers there, else
    /// starts a private daemon, for which the user must be root.
    pub async fn connect_or_start() -> Result<Docker> {
        match Docker::connect().await {
            Err(_) if std::env::var_os("DOCKER_HOST").is_none() => Docker::start_private().await,
            connected => {
                let mut docker = connected?;
                docker.mark = Some(random_secret());
                Ok(docker)
            }
        }
    }

    /// Connects to the engine named in `DOCKER_HOST`, else to the one at the default socket. Whatever is loaded
    /// through this connection stays.
    pub async fn connect() -> Result<Docker> {
        Docker::connect_to(&std::env::var("DOCKER_HOST").unwrap_or_else(|_| DEFAULT_SOCKET.into())).await
    }

    /// The same for the engine at `host`, as `DOCKER_HOST` takes it.
    pub async fn connect_to(host: &str) -> Result<Docker> {
        let client = connect(host).await.with_context(|| format!("connecting to the Docker engine at {host}"))?;
        Ok(Docker { client, host: host.to_owned(), mark: None, daemon: None })
    }

    /// Starts a private daemon. It leaves the machine's network rules alone, so that several can run beside each
    /// other and beside the machine's own; in return it has no default bridge: containers need a network by name.
    pub async fn start_private() -> Result<Docker> {
        Docker::private(None, Network::Machine).await
    }

    /// A private daemon on a disk of `mebibytes`, to be filled.
    pub async fn start_private_with_room(mebibytes: u32) -> Result<Docker> {
        Docker::private(Some(mebibytes), Network::Machine).await
    }

    /// A private daemon in a network namespace of its own, set up as it comes: with a default bridge, network rules
    /// and published ports, which only those reach who enter [`Docker::namespace`].
    pub async fn start_in_namespace() -> Result<Docker> {
        let docker = Docker::private(None, Network::Own).await?;
        let loopback = Command::new("nsenter")
            .arg(format!("--net={}", docker.namespace()?.display()))
            .args(["--", "ip", "link", "set", "lo", "up"])
            .status();
        if !loopback.context("bringing the loopback device up: `ip` and `nsenter` are needed")?.success() {
            bail!("the loopback device of the daemon's namespace did not come up");
        }
        Ok(docker)
    }

    /// Leads to the network namespace that the private daemon runs in.
    pub fn namespace(&self) -> Result<PathBuf> {
        Ok(format!("/proc/{}/ns/net", self.server()?.pid().as_raw_nonzero()).into())
    }

    /// Kills a private daemon as a crash would; its containers run on for now.
    pub async fn kill(&mut self) -> Result<()> {
        let daemon = self.daemon.as_mut().context("only a private daemon can be killed")?;
        let containerd = std::fs::read_to_string(daemon.path("exec/containerd/containerd.pid"));
        let containerd: i32 = containerd.context("finding its containerd")?.trim().parse()?;
        if let Some(mut server) = daemon.server.take() {
            server.kill();
            daemon.killed = true;
        }
        // The kernel kills containerd with it. A new daemon that finds it dying would wait for it in vain.
        let gone = async {
            while Pid::from_raw(containerd).is_some_and(|pid| test_kill_process(pid).is_ok()) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(READY_DEADLINE, gone).await.context("its containerd lives on")
    }

    /// Stops a private daemon where it stands, until [`Docker::thaw`]: it accepts connections and answers nothing. Its
    /// containers run on.
    pub fn freeze(&self) -> Result<()> {
        self.server()?.freeze()
    }

    /// Lets a frozen private daemon go on.
    pub fn thaw(&self) -> Result<()> {
        self.server()?.thaw()
    }

    fn server(&self) -> Result<&Server> {
        let daemon = self.daemon.as_ref().and_then(|daemon| daemon.server.as_ref());
        daemon.context("there is no private daemon that runs")
    }

    /// Starts a killed private daemon again.
    pub async fn restart(&mut self) -> Result<()> {
        self.daemon.as_mut().context("only a private daemon can be started again")?.run().await
    }

    async fn private(room: Option<u32>, network: Network) -> Result<Docker> {
        if !geteuid().is_root() {
            bail!("no Docker engine answers, and only root may start a private one: start one or set DOCKER_HOST");
        }
        let daemon = Daemon::start(room, network).await?;
        let host = daemon.host();
        let client = connect(&host).await.context("connecting to the private dockerd")?;
        Ok(Docker { client, host, mark: None, daemon: Some(daemon) })
    }

    /// Speaks the API version that the engine and this client have in common.
    pub fn client(&self) -> &bollard::Docker {
        &self.client
    }

    /// What images loaded through this connection are marked with, to be found again.
    pub(crate) fn mark(&self) -> Option<&str> {
        self.mark.as_deref()
    }

    /// The engine's address, as `DOCKER_HOST` takes it.
    pub fn host(&self) -> &str {
        &self.host
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        let Some(mark) = &self.mark else { return };
        // Of a connection of its own: this one's may belong to a runtime that stands still now.
        let _ = in_own_runtime(async || {
            let engine = connect(&self.host).await?;
            timeout(CLEANUP_DEADLINE, cleanup::remove_marked(&engine, mark)).await?
        });
    }
}

async fn connect(host: &str) -> Result<bollard::Docker> {
    let client = bollard::Docker::connect_with_host(host)?;
    Ok(client.negotiate_version().await?)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Network {
    /// The machine's, whose rules are left alone.
    Machine,
    /// A namespace of its own.
    Own,
}

struct Daemon {
    server: Option<Server>,
    /// And its containers may still run.
    killed: bool,
    program: PathBuf,
    address_pool: String,
    network: Network,
    directory: TempDir,
}

impl Daemon {
    async fn start(room: Option<u32>, network: Network) -> Result<Daemon> {
        let program = find_program("dockerd")
            .context("no dockerd found: run `make tools`, or install Debian's docker.io package")?;
        let directory = TempDir::with_prefix("sluice-docker-").context("creating the data root of dockerd")?;
        // From the range for tests between networks, which no machine's own network or tunnel uses: a part of its own,
        // so that two daemons rarely meet; dockerd itself avoids what is in use at that moment.
        let (half, part) = (rand::random_range(18..20_u8), rand::random_range(0..16_u8) * 16);
        let address_pool = format!("base=198.{half}.{part}.0/20,size=25");
        let mut daemon = Daemon { server: None, killed: false, program, address_pool, network, directory };
        if let Some(mebibytes) = room {
            let data = daemon.path("data");
            std::fs::create_dir(&data).context("creating a small disk")?;
            let size = format!("size={mebibytes}m");
            let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "sluice-test"]).arg(data).status();
            if !mounted.context("mounting a small disk")?.success() {
                bail!("a small disk could not be mounted");
            }
        }
        daemon.run().await?;
        Ok(daemon)
    }

    async fn run(&mut self) -> Result<()> {
        let mut command = match self.network {
            Network::Machine => tethered(&self.program, "TERM", None),
            Network::Own => {
                let mut command = tethered(Path::new("unshare"), "TERM", None);
                command.args(["--net", "--"]).arg(&self.program);
                command
            }
        };
        command
            .arg("--data-root")
            .arg(self.path("data"))
            .arg("--exec-root")
            .arg(self.path("exec"))
            .arg("--pidfile")
            .arg(self.path("docker.pid"))
            .args(["--host", &self.host()])
            .args(["--default-address-pool", &self.address_pool])
            .args(["--shutdown-timeout=5", "--log-level=warn"]);
        if self.network == Network::Machine {
            command.args(["--bridge=none", "--iptables=false", "--ip6tables=false"]);
            command.args(["--ip-forward=false", "--ip-masq=false"]);
        }
        let mut server = Server::spawn("dockerd", &mut command, self.path("docker.log"), Signal::TERM)?;
        let host = self.host();
        server.ready(READY_DEADLINE, async || connect(&host).await.is_ok()).await?;
        self.server = Some(server);
        self.killed = false;
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn host(&self) -> String {
        format!("unix://{}", self.path("docker.sock").display())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // A container that stays is ended by the daemon's own shutdown, only more slowly; those of a daemon that was
        // killed have none but its successor to end them.
        if let Some(server) = &self.server {
            let _ = server.thaw();
        }
        let _ = in_own_runtime(async || {
            if self.killed {
                self.run().await?;
            }
            let engine = connect(&self.host()).await?;
            timeout(CLEANUP_DEADLINE, cleanup::remove_containers(&engine, None)).await??;
            Ok(())
        });
        self.server = None;
        end_forgotten(self.directory.path());
        for mount in mounts_below(self.directory.path()) {
            let _ = Command::new("umount").arg("--lazy").arg(mount).output();
        }
    }
}

/// Ends containers that the daemon no longer knew: one that is killed while it starts a container may not find it again.
/// Whatever keeps such a container names a file in `directory` on its command line.
fn end_forgotten(directory: &Path) {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    for process in processes.map(|entry| entry.path()) {
        let line = std::fs::read(process.join("cmdline")).unwrap_or_default();
        let Some(keeper) = number(&process) else { continue };
        if !String::from_utf8_lossy(&line).contains(&*directory.to_string_lossy()) {
            continue;
        }
        let children = format!("task/{}/children", keeper.as_raw_pid());
        let children = std::fs::read_to_string(process.join(children)).unwrap_or_default();
        let contained = children.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?));
        for pid in contained.chain([keeper]) {
            // One that has ended since needs none.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// Of a directory in /proc that is a process's.
fn number(process: &Path) -> Option<Pid> {
    Pid::from_raw(process.file_name()?.to_str()?.parse().ok()?)
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
