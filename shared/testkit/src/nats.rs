//! A private nats-server.

use std::{
    io::{BufRead, BufReader},
    net::TcpStream,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal};
use tempfile::TempDir;

use crate::{
    disk::LossyDisk,
    process::{Server, find_program, free_port, random_secret, tethered},
};

const USER: &str = "sluice";
const READY_DEADLINE: Duration = Duration::from_secs(20);

/// A nats-server with JetStream on a loopback port of its own. Ends, and its store with it, when dropped.
pub struct Nats {
    server: Option<Server>,
    program: PathBuf,
    port: u16,
    password: String,
    url: String,
    directory: TempDir,
    disk: Option<Arc<LossyDisk>>,
}

impl Nats {
    /// Starts a server with an empty store, configured as `sluice up` configures its own.
    pub async fn start() -> Result<Nats> {
        Nats::start_with(None).await
    }

    /// The same with its store on `disk`.
    pub async fn start_on(disk: &Arc<LossyDisk>) -> Result<Nats> {
        Nats::start_with(Some(disk.clone())).await
    }

    async fn start_with(disk: Option<Arc<LossyDisk>>) -> Result<Nats> {
        let program = nats_server()?;
        let directory = TempDir::with_prefix("sluice-nats-").context("creating the store of nats-server")?;
        let port = free_port();
        let password = random_secret();
        let url = format!("nats://{USER}:{password}@127.0.0.1:{port}");
        let mut nats = Nats { server: None, program, port, password, url, directory, disk };
        nats.configure(&nats.configuration())?;
        nats.restart().await?;
        Ok(nats)
    }

    /// Every byte of the store, as it lies on disk.
    pub fn stored(&self) -> Result<Vec<u8>> {
        let mut bytes = vec![];
        let mut directories = vec![self.directory.path().to_owned()];
        while let Some(directory) = directories.pop() {
            for entry in std::fs::read_dir(&directory).context("reading the store of nats-server")? {
                let path = entry.context("reading the store of nats-server")?.path();
                match path.is_dir() {
                    true => directories.push(path),
                    false => bytes.extend(std::fs::read(path).context("reading the store of nats-server")?),
                }
            }
        }
        Ok(bytes)
    }

    /// Where clients connect, credentials included.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Kills the server as a crash would. The store stays for [`Nats::restart`].
    pub fn kill(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.kill();
        }
    }

    /// The processes that end with its disk's power (see [`LossyDisk::power_loss`]).
    pub fn processes(&self) -> Vec<Pid> {
        self.server.iter().map(Server::pid).collect()
    }

    /// From the next start on it syncs as nats-server does by itself, every two minutes, and not before every
    /// acknowledgement.
    pub fn sync_by_default(&self) -> Result<()> {
        const ALWAYS: &str = "sync_interval: always";
        let configuration = self.configuration();
        anyhow::ensure!(configuration.contains(ALWAYS), "nats/server.conf no longer says `{ALWAYS}`");
        self.configure(&configuration.replace(ALWAYS, ""))
    }

    /// From the next start on it syncs before every acknowledgement, as it did at first.
    pub fn sync_always(&self) -> Result<()> {
        self.configure(&self.configuration())
    }

    /// Stops the process where it stands, until [`Nats::thaw`]: it accepts connections and answers nothing.
    pub fn freeze(&self) -> Result<()> {
        self.server.as_ref().context("nats-server does not run")?.freeze()
    }

    /// Lets a frozen server go on.
    pub fn thaw(&self) -> Result<()> {
        self.server.as_ref().context("nats-server does not run")?.thaw()
    }

    /// Starts the server again on the same port and store; an orderly stop comes first where it still runs.
    pub async fn restart(&mut self) -> Result<()> {
        self.server = None;
        let mut command = tethered(&self.program, "KILL", None);
        command.arg("-c").arg(self.directory.path().join("nats.conf"));
        let log = self.directory.path().join("nats.log");
        let mut server = Server::spawn("nats-server", &mut command, log, Signal::TERM)?;
        server.ready(READY_DEADLINE, async || greets(self.port)).await?;
        self.server = Some(server);
        Ok(())
    }

    /// Filled in here, not by the event log: that crate's own tests run against this server.
    fn configuration(&self) -> String {
        let store = self.disk.as_ref().map_or(self.directory.path(), |disk| disk.path()).join("store");
        include_str!("../../../nats/server.conf")
            .replace("{{port}}", &self.port.to_string())
            .replace("{{store_dir}}", &store.to_string_lossy())
            .replace("{{user}}", USER)
            .replace("{{password}}", &self.password)
    }

    fn configure(&self, configuration: &str) -> Result<()> {
        std::fs::write(self.directory.path().join("nats.conf"), configuration)
            .context("writing the configuration of nats-server")
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        // Before its disk.
        self.server = None;
    }
}

/// The server greets only once its store has been read.
fn greets(port: u16) -> bool {
    let Ok(stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    let mut greeting = String::new();
    stream.set_read_timeout(Some(Duration::from_secs(1))).is_ok()
        && BufReader::new(stream).read_line(&mut greeting).is_ok()
        && greeting.starts_with("INFO ")
}

/// The nats-server that tests run: `NATS_SERVER`, else the project's own, else the one on the PATH.
pub fn nats_server() -> Result<PathBuf> {
    let named = std::env::var_os("NATS_SERVER").map(PathBuf::from);
    named
        .or_else(|| find_program("nats-server"))
        .context("no nats-server found: run `make tools`, or name one in NATS_SERVER")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn starts_dies_and_comes_back_on_its_port() {
        let mut nats = Nats::start().await.expect("nats-server starts");
        assert!(greets(nats.port));
        nats.kill();
        assert!(!greets(nats.port));
        nats.restart().await.expect("nats-server starts again");
        assert!(greets(nats.port));
        let port = nats.port;
        drop(nats);
        assert!(!greets(port));
    }
}
