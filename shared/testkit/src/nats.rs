//! A private nats-server.

use std::{
    io::{BufRead, BufReader},
    net::TcpStream,
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::process::{Server, find_program, free_port, random_secret, tethered};

const USER: &str = "sluice";
const READY_DEADLINE: Duration = Duration::from_secs(20);

/// A nats-server with JetStream on a loopback port of its own. Ends, and its store with it, when dropped.
pub struct Nats {
    server: Option<Server>,
    program: PathBuf,
    port: u16,
    url: String,
    directory: TempDir,
}

impl Nats {
    /// Starts a server with an empty store, configured as `sluice up` configures its own.
    pub async fn start() -> Result<Nats> {
        let program = nats_server()?;
        let directory = TempDir::with_prefix("sluice-nats-").context("creating the store of nats-server")?;
        let port = free_port();
        let password = random_secret();
        std::fs::write(directory.path().join("nats.conf"), configuration(&directory, port, &password))
            .context("writing the configuration of nats-server")?;
        let url = format!("nats://{USER}:{password}@127.0.0.1:{port}");
        let mut nats = Nats { server: None, program, port, url, directory };
        nats.restart().await?;
        Ok(nats)
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
}

/// Filled in here, not by the event log: that crate's own tests run against this server.
fn configuration(directory: &TempDir, port: u16, password: &str) -> String {
    include_str!("../../../nats/server.conf")
        .replace("{{port}}", &port.to_string())
        .replace("{{store_dir}}", &directory.path().join("store").to_string_lossy())
        .replace("{{user}}", USER)
        .replace("{{password}}", password)
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
