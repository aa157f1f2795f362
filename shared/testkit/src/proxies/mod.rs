//! Proxies of a user's own: real Caddy and real Traefik, and a stand-in for Nginx Proxy Manager around a real nginx.

mod npm;

use std::{fs, process::Command, time::Duration};

use anyhow::{Context, Result};
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::process::{Server, find_program, free_port, tethered};

pub use npm::NpmStandIn;

const READY: Duration = Duration::from_secs(20);

/// The same for all that a program of `scripts/install proxies` needs.
fn command(program: &str) -> Result<Command> {
    let path = find_program(program).with_context(|| format!("{program} is missing: run `scripts/install proxies`"))?;
    let mut command = tethered(&path, "TERM", None);
    // One that was unpacked rather than installed has its libraries beside it.
    let root = path.ancestors().nth(3).unwrap_or(&path).to_path_buf();
    if root.ends_with("peers") {
        let mut directories = Vec::new();
        for libraries in [root.join("usr/lib"), root.join("lib")].iter().filter_map(|path| fs::read_dir(path).ok()) {
            let found = libraries.filter_map(|entry| Some(entry.ok()?.path()));
            directories.extend(found.filter(|path| path.to_string_lossy().ends_with("-linux-gnu")));
        }
        command.env("LD_LIBRARY_PATH", std::env::join_paths(directories).context("naming nginx's libraries")?);
    }
    Ok(command)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Caddy,
    Traefik,
}

/// A Caddy or Traefik with its admin API, on loopback, without a route. It forgets what the API was told when it ends.
pub struct UserProxy {
    kind: Kind,
    port: u16,
    admin: u16,
    server: Option<Server>,
    directory: TempDir,
}

impl UserProxy {
    pub async fn caddy() -> Result<UserProxy> {
        UserProxy::start(Kind::Caddy).await
    }

    /// It takes up a change of its routes a tenth of a second after the last one; by default that is two seconds.
    pub async fn traefik() -> Result<UserProxy> {
        UserProxy::start(Kind::Traefik).await
    }

    async fn start(kind: Kind) -> Result<UserProxy> {
        let directory = TempDir::with_prefix("sluice-proxy-").context("a directory for a proxy")?;
        let mut proxy = UserProxy { kind, port: free_port(), admin: free_port(), server: None, directory };
        proxy.up().await?;
        Ok(proxy)
    }

    /// Of the admin API.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.admin)
    }

    /// Where it takes requests.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Ends it in order.
    pub fn down(&mut self) {
        self.server = None;
    }

    /// Starts it again, as it was at first.
    pub async fn up(&mut self) -> Result<()> {
        let (port, admin) = (self.port, self.admin);
        let (program, argument, configuration, asked) = match self.kind {
            Kind::Caddy => ("caddy", "run --config", caddy(port, admin), "/config/"),
            // It listens before it has its own routes.
            Kind::Traefik => ("traefik", "--configFile", traefik(port, admin), "/api/http/routers/rest@internal"),
        };
        let path = self.directory.path();
        let file = path.join(if self.kind == Kind::Caddy { "caddy.json" } else { "traefik.yml" });
        fs::write(&file, configuration).context("writing a proxy's configuration")?;
        let mut command = command(program)?;
        command.args(argument.split(' ')).arg(file).env("HOME", path).current_dir(path);
        let mut server = Server::spawn(program, &mut command, path.join("log"), Signal::TERM)?;
        server
            .ready(READY, async || {
                let listens = TcpStream::connect(("127.0.0.1", port)).await.is_ok();
                listens && answers(admin, asked).await
            })
            .await?;
        self.server = Some(server);
        Ok(())
    }
}

async fn answers(port: u16, path: &str) -> bool {
    let asked = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\n\r\n").as_bytes()).await?;
        let mut status = [0; 12];
        stream.read_exact(&mut status).await?;
        std::io::Result::Ok(status.ends_with(b" 200"))
    };
    asked.await.unwrap_or(false)
}

fn caddy(port: u16, admin: u16) -> String {
    serde_json::json!({
        "admin": { "listen": format!("127.0.0.1:{admin}"), "config": { "persist": false } },
        "logging": { "logs": { "default": { "level": "WARN" } } },
        "apps": { "http": { "servers": { "main": {
            "listen": [format!("127.0.0.1:{port}")],
            "automatic_https": { "disable": true },
            // A user's own route, which takes what no other does.
            "routes": [{ "handle": [{ "handler": "static_response", "status_code": 404 }] }],
        } } } },
    })
    .to_string()
}

fn traefik(port: u16, admin: u16) -> String {
    format!(
        "entryPoints:
  web: {{ address: '127.0.0.1:{port}' }}
  traefik: {{ address: '127.0.0.1:{admin}' }}
api: {{ insecure: true }}
providers:
  providersThrottleDuration: 100ms
  rest: {{ insecure: true }}
log: {{ level: WARN }}
global: {{ checkNewVersion: false, sendAnonymousUsage: false }}
"
    )
}
