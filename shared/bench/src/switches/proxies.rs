//! What is switched, each by the means that its manual offers, between two sample applications.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tempfile::TempDir;
use testkit::{free_port, sample_program};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::sleep,
};

use super::{HOST, edges::Edge};
use crate::{
    Bench,
    edge::parts::{Library, Server},
};

const READY: Duration = Duration::from_secs(20);
const CADDY_TRIES: usize = 100;
pub(super) const VERSIONS: [&str; 2] = ["a", "b"];
/// Ours first.
pub(super) const NAMES: [&str; 4] = ["Sluice", "HAProxy (runtime socket)", "nginx (reload)", "Caddy (PATCH)"];

/// Two processes of the sample application.
pub(super) struct Upstreams {
    pub(super) ports: [u16; 2],
    _servers: Vec<Server>,
    _directory: TempDir,
}

impl Upstreams {
    pub(super) async fn start() -> Result<Upstreams> {
        let directory = TempDir::with_prefix("sluice-bench-upstreams-")?;
        let ports = [free_port(), free_port()];
        let mut servers = Vec::new();
        for (port, version) in ports.iter().zip(VERSIONS) {
            let mut command = Command::new("setpriv");
            command.args(["--pdeathsig", "TERM", "--"]).arg(sample_program()?);
            command.env("PORT", port.to_string()).env("VERSION", version);
            servers.push(Server::start(command, directory.path(), version)?);
        }
        for port in ports {
            ready("the sample application", port).await?;
        }
        Ok(Upstreams { ports, _servers: servers, _directory: directory })
    }
}

pub(super) enum Proxy {
    Sluice(Edge),
    Haproxy { port: u16, socket: PathBuf, _server: Server, _directory: TempDir },
    Nginx { port: u16, include: PathBuf, master: PathBuf, _server: Server, _directory: TempDir },
    Caddy { port: u16, object: String, client: reqwest::Client, _server: Server, _directory: TempDir },
}

impl Proxy {
    /// The one of that place in [`NAMES`], pointed at the first upstream.
    pub(super) async fn start(index: usize, bench: &Bench, library: &Library, upstreams: &Upstreams) -> Result<Proxy> {
        let (port, first) = (free_port(), upstreams.ports[0]);
        let directory = TempDir::with_prefix("sluice-bench-proxy-")?;
        let path = directory.path();
        // Started by root, nginx serves as somebody else.
        fs::set_permissions(path, Permissions::from_mode(0o755))?;
        let proxy = match index {
            0 => Proxy::Sluice(Edge::start(bench, first).await?),
            1 => {
                let socket = path.join("admin");
                fs::write(path.join("haproxy.cfg"), haproxy_conf(port, first, &socket.display().to_string()))?;
                let mut command = library.command("haproxy")?;
                command.args(["-db", "-f", "haproxy.cfg"]);
                let _server = Server::start(command, path, "haproxy")?;
                Proxy::Haproxy { port, socket, _server, _directory: directory }
            }
            2 => {
                let (include, master) = (path.join("upstream.inc"), path.join("nginx.pid"));
                fs::write(&include, nginx_upstream(first))?;
                fs::write(path.join("nginx.conf"), nginx_conf(&path.display().to_string(), port))?;
                let mut command = library.command("nginx")?;
                command.arg("-c").arg(path.join("nginx.conf")).arg("-p").arg(path).args(["-e", "stderr"]);
                let _server = Server::start(command, path, "nginx")?;
                Proxy::Nginx { port, include, master, _server, _directory: directory }
            }
            3 => {
                let admin = free_port();
                let config = caddy_config(port, admin, first);
                fs::write(path.join("caddy.json"), serde_json::to_vec(&config)?)?;
                let mut command = library.command("caddy")?;
                command.args(["run", "--config", "caddy.json"]).env("HOME", path);
                let _server = Server::start(command, path, "caddy")?;
                let object = format!("http://127.0.0.1:{admin}/id/app");
                // Each change ends the admin interface with its connections, and starts it anew.
                let client = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build()?;
                Proxy::Caddy { port, object, client, _server, _directory: directory }
            }
            other => bail!("there is no proxy {other}"),
        };
        ready(NAMES[index], proxy.port()).await?;
        Ok(proxy)
    }

    pub(super) fn port(&self) -> u16 {
        match self {
            Proxy::Sluice(edge) => edge.port,
            Proxy::Haproxy { port, .. } | Proxy::Nginx { port, .. } | Proxy::Caddy { port, .. } => *port,
        }
    }

    /// Lets new requests go to the upstream at `to`.
    pub(super) async fn switch(&mut self, number: usize, to: u16) -> Result<()> {
        match self {
            Proxy::Sluice(edge) => edge.switch(number, to).await,
            Proxy::Haproxy { socket, .. } => {
                let mut stream = UnixStream::connect(socket).await.context("connecting to HAProxy's socket")?;
                stream.write_all(format!("set server app/app addr 127.0.0.1 port {to}\n").as_bytes()).await?;
                let mut answer = String::new();
                stream.read_to_string(&mut answer).await?;
                ensure!(answer.contains("changed from"), "HAProxy answered {answer:?}");
                Ok(())
            }
            Proxy::Nginx { include, master, .. } => {
                let fresh = include.with_extension("new");
                fs::write(&fresh, nginx_upstream(to))?;
                fs::rename(&fresh, &include)?;
                let master = fs::read_to_string(master)?.trim().parse().ok().and_then(Pid::from_raw);
                Ok(kill_process(master.context("the pid of nginx")?, Signal::HUP)?)
            }
            Proxy::Caddy { object, client, .. } => {
                let body = json!({ "@id": "app", "dial": format!("127.0.0.1:{to}") });
                // It may restart its admin interface under the request of the change before.
                let mut last = None;
                for _ in 0..CADDY_TRIES {
                    match client.patch(&*object).json(&body).send().await {
                        Ok(answer) => {
                            ensure!(answer.status().is_success(), "Caddy answered {}", answer.status());
                            return Ok(());
                        }
                        Err(error) => last = Some(error),
                    }
                    sleep(Duration::from_millis(20)).await;
                }
                bail!("Caddy did not answer a change in {CADDY_TRIES} tries: {last:?}")
            }
        }
    }
}

/// Until it answers with a version.
async fn ready(name: &str, port: u16) -> Result<()> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    let began = Instant::now();
    loop {
        let answer = client.get(format!("http://127.0.0.1:{port}/")).header("host", HOST).send().await;
        match answer {
            Ok(answer) if answer.headers().contains_key("x-version") => return Ok(()),
            other if began.elapsed() > READY => bail!("{name} does not answer: {other:?}"),
            _ => sleep(Duration::from_millis(20)).await,
        }
    }
}

fn haproxy_conf(port: u16, upstream: u16, socket: &str) -> String {
    format!(
        "global
    nbthread 2
    maxconn 4096
    stats socket {socket} mode 600 level admin
defaults
    mode http
    timeout connect 2s
    timeout client 60s
    timeout server 60s
    timeout tunnel 60s
frontend bench
    bind 127.0.0.1:{port}
    acl host hdr(host) -i {HOST}
    use_backend app if host
backend app
    server app 127.0.0.1:{upstream}
"
    )
}

fn nginx_upstream(port: u16) -> String {
    format!("server 127.0.0.1:{port};\n")
}

fn nginx_conf(directory: &str, port: u16) -> String {
    format!(
        "worker_processes 2; daemon off; pid {directory}/nginx.pid; error_log stderr warn;
events {{ worker_connections 4096; }}
http {{
    access_log off; tcp_nodelay on; keepalive_timeout 75s; keepalive_requests 1000000000;
    client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi; uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
    map $http_upgrade $upgrade {{ default upgrade; '' ''; }}
    upstream app {{ include {directory}/upstream.inc; keepalive 128; keepalive_requests 1000000000; }}
    server {{
        listen 127.0.0.1:{port} backlog=4096; server_name {HOST};
        location / {{
            proxy_pass http://app; proxy_http_version 1.1; proxy_buffering off;
            proxy_set_header Host $http_host; proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $upgrade;
        }}
    }}
}}
"
    )
}

fn caddy_config(port: u16, admin: u16, upstream: u16) -> serde_json::Value {
    let handler = json!({
        "handler": "reverse_proxy",
        "upstreams": [{ "@id": "app", "dial": format!("127.0.0.1:{upstream}") }],
        "flush_interval": -1,
    });
    json!({
        "admin": { "listen": format!("127.0.0.1:{admin}"), "config": { "persist": false } },
        "logging": { "logs": { "default": { "level": "ERROR" } } },
        "apps": { "http": { "servers": { "bench": {
            "listen": [format!("127.0.0.1:{port}")],
            "automatic_https": { "disable": true },
            "routes": [{ "match": [{ "host": [HOST] }], "handle": [handler] }],
        } } } },
    })
}
