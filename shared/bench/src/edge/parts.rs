//! The proxies, each configured as its manual advises for this job, and the one upstream behind them all.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use domain::{
    DeploymentId, Span,
    settings::{Check, HealthCheck},
    traffic::{ROUTES, Route, Target, Upstream, UpstreamSet},
};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use testkit::{Nats, find_program, free_port};
use uuid::Uuid;

use super::HOST;
use crate::{Bench, parts};

const READY: Duration = Duration::from_secs(20);
const STOP: Duration = Duration::from_secs(5);
const LARGE: usize = 100_000;

/// Serves until dropped.
pub(super) struct Proxy {
    pub(super) name: &'static str,
    pub(super) port: u16,
    // Dropped in this order.
    _server: Server,
    _upstream: Option<Server>,
    _nats: Option<Nats>,
    _directory: Option<TempDir>,
}

/// Where programs that were unpacked rather than installed find their libraries.
pub(crate) struct Library(Vec<PathBuf>);

impl Library {
    pub(crate) fn find() -> Result<Library> {
        let nginx = find_program("nginx").context("nginx is missing: run `scripts/install peers`")?;
        let root = nginx.ancestors().nth(3).unwrap_or(Path::new("/"));
        let mut directories = Vec::new();
        for libraries in [root.join("usr/lib"), root.join("lib")].iter().filter_map(|path| fs::read_dir(path).ok()) {
            for directory in libraries {
                let path = directory?.path();
                if path.to_string_lossy().ends_with("-linux-gnu") {
                    directories.push(path);
                }
            }
        }
        Ok(Library(directories))
    }

    pub(crate) fn command(&self, program: &str) -> Result<Command> {
        let path =
            find_program(program).with_context(|| format!("{program} is missing: run `scripts/install peers`"))?;
        // Ends with us, however we end.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM", "--"]).arg(path);
        command.env("LD_LIBRARY_PATH", std::env::join_paths(&self.0)?);
        Ok(command)
    }
}

/// A process that is asked to end, and waited for, when dropped.
pub(crate) struct Server(Child);

impl Server {
    pub(crate) fn start(mut command: Command, directory: &Path, name: &str) -> Result<Server> {
        let log = fs::File::create(directory.join(format!("{name}.log")))?;
        command.current_dir(directory).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(Server(command.spawn().with_context(|| format!("starting {name}"))?))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Fails only where it has ended.
        let _ = kill_process(Pid::from_child(&self.0), Signal::TERM);
        let end = Instant::now() + STOP;
        while matches!(self.0.try_wait(), Ok(None)) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Ours first. The upstream goes when the first of them does.
pub(super) async fn start(bench: &Bench, library: &Library) -> Result<Vec<Proxy>> {
    let directory = TempDir::with_prefix("sluice-bench-edge-")?;
    let path = directory.path();
    // Started by root, nginx serves as somebody else.
    fs::set_permissions(path, Permissions::from_mode(0o755))?;
    let upstream = free_port();
    fs::write(path.join("large"), "x".repeat(LARGE))?;
    let server = nginx(library, path, "upstream", &upstream_conf(path, upstream))?;
    ready("the upstream", upstream).await?;

    let mut proxies = vec![edge(bench, path, upstream).await?];
    let port = free_port();
    proxies.push(Proxy::new("nginx", port, nginx(library, path, "nginx", &nginx_conf(path, port, upstream))?));
    let port = free_port();
    fs::write(path.join("haproxy.cfg"), haproxy_conf(port, upstream))?;
    let mut haproxy = library.command("haproxy")?;
    haproxy.args(["-db", "-f", "haproxy.cfg"]);
    proxies.push(Proxy::new("HAProxy", port, Server::start(haproxy, path, "haproxy")?));
    let port = free_port();
    fs::write(path.join("traefik.yml"), traefik_conf(path, port))?;
    fs::write(path.join("routes.yml"), traefik_routes(upstream))?;
    let mut traefik = library.command("traefik")?;
    traefik.arg("--configFile=traefik.yml");
    proxies.push(Proxy::new("Traefik", port, Server::start(traefik, path, "traefik")?));
    let port = free_port();
    fs::write(path.join("Caddyfile"), caddyfile(port, upstream))?;
    let mut caddy = library.command("caddy")?;
    caddy.args(["run", "--config", "Caddyfile", "--adapter", "caddyfile"]).env("HOME", path);
    proxies.push(Proxy::new("Caddy", port, Server::start(caddy, path, "caddy")?));

    for proxy in &proxies {
        ready(proxy.name, proxy.port).await?;
    }
    if let Some(first) = proxies.first_mut() {
        (first._upstream, first._directory) = (Some(server), Some(directory));
    }
    Ok(proxies)
}

impl Proxy {
    fn new(name: &'static str, port: u16, server: Server) -> Proxy {
        Proxy { name, port, _server: server, _upstream: None, _nats: None, _directory: None }
    }
}

/// `sluice edge`, with its route from a NATS of its own.
async fn edge(bench: &Bench, directory: &Path, upstream: u16) -> Result<Proxy> {
    let nats = Nats::start().await?;
    let target = Target::Live(UpstreamSet {
        deployment: DeploymentId(Uuid::from_u128(1)),
        upstreams: vec![Upstream { instance: "upstream".into(), address: format!("127.0.0.1:{upstream}") }],
        health: HealthCheck { check: Check::Tcp, ..HealthCheck::default() },
        drain: Span::secs(1),
    });
    let route = Route {
        project: "bench".parse()?,
        stage: "prod".parse()?,
        host: HOST.into(),
        path: "/".into(),
        target,
        fence: 1,
        front: None,
    };
    let routes = parts::event_log(&nats).await?.bucket(ROUTES);
    routes.put("bench.prod", serde_json::to_vec(&route)?).await?;
    let port = free_port();
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "TERM", "--"])
        .arg(&bench.sluice)
        .arg("edge")
        .env_clear()
        .env("DATA_DIR", directory.join("data"))
        .env("NATS_URL", nats.url())
        .env("EDGE_LISTEN", format!("127.0.0.1:{port}"))
        .env("LOG", "warn");
    Ok(Proxy { _nats: Some(nats), ..Proxy::new("Sluice", port, Server::start(command, directory, "edge")?) })
}

/// Until it passes on an answer of the upstream.
async fn ready(name: &str, port: u16) -> Result<()> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    let end = Instant::now() + READY;
    loop {
        let answer = client.get(format!("http://127.0.0.1:{port}/large")).header("host", HOST).send().await;
        match answer {
            Ok(answer) if answer.status() == 200 => {
                if answer.bytes().await?.len() == LARGE {
                    return Ok(());
                }
                bail!("{name} does not pass the whole body on");
            }
            other if Instant::now() > end => bail!("{name} does not pass on the upstream's answer: {other:?}"),
            _ => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

fn nginx(library: &Library, directory: &Path, name: &str, conf: &str) -> Result<Server> {
    let file = directory.join(format!("{name}.conf"));
    fs::write(&file, conf)?;
    let mut command = library.command("nginx")?;
    command.arg("-c").arg(file).arg("-p").arg(directory).args(["-e", "stderr"]);
    Server::start(command, directory, name)
}

/// What every nginx here has: two processes, no logs, connections kept, its files in `directory`.
fn nginx_base(directory: &Path, name: &str, http: &str) -> String {
    let path = directory.join(name);
    let path = path.display();
    format!(
        "worker_processes 2; daemon off; pid {path}.pid; error_log stderr warn;
events {{ worker_connections 4096; }}
http {{
    access_log off; sendfile on; tcp_nodelay on; keepalive_timeout 75s; keepalive_requests 1000000000;
    client_body_temp_path {path}.body; proxy_temp_path {path}.proxy; fastcgi_temp_path {path}.fastcgi;
    uwsgi_temp_path {path}.uwsgi; scgi_temp_path {path}.scgi;
    {http}
}}
"
    )
}

fn upstream_conf(directory: &Path, port: u16) -> String {
    let http = format!(
        "tcp_nopush on; open_file_cache max=10;
    server {{
        listen 127.0.0.1:{port} backlog=4096; root {};
        location = /small {{ return 200 \"Hello, world\\n\"; }}
    }}",
        directory.display()
    );
    nginx_base(directory, "upstream", &http)
}

fn nginx_conf(directory: &Path, port: u16, upstream: u16) -> String {
    let http = format!(
        "upstream app {{ server 127.0.0.1:{upstream}; keepalive 128; keepalive_requests 1000000000; }}
    server {{
        listen 127.0.0.1:{port} backlog=4096; server_name {HOST};
        location / {{
            proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection \"\";
            proxy_set_header Host $http_host;
            proxy_set_header X-Real-IP $remote_addr; proxy_set_header X-Forwarded-For $remote_addr;
            proxy_set_header X-Forwarded-Proto $scheme; proxy_set_header X-Forwarded-Host $http_host;
            proxy_set_header X-Forwarded-Port $server_port;
        }}
    }}"
    );
    nginx_base(directory, "nginx", &http)
}

fn haproxy_conf(port: u16, upstream: u16) -> String {
    format!(
        "global
    nbthread 2
    maxconn 4096
defaults
    mode http
    timeout connect 2s
    timeout client 60s
    timeout server 60s
    http-reuse always
frontend bench
    bind 127.0.0.1:{port}
    option forwardfor
    acl host hdr(host) -i {HOST}
    use_backend app if host
backend app
    server upstream 127.0.0.1:{upstream} pool-max-conn 128
"
    )
}

fn traefik_conf(directory: &Path, port: u16) -> String {
    format!(
        "entryPoints: {{ web: {{ address: \"127.0.0.1:{port}\" }} }}
providers: {{ file: {{ filename: {}/routes.yml }} }}
log: {{ level: ERROR }}
",
        directory.display()
    )
}

fn traefik_routes(upstream: u16) -> String {
    format!(
        "http:
  routers: {{ bench: {{ rule: \"Host(`{HOST}`)\", service: app, entryPoints: [web] }} }}
  services: {{ app: {{ loadBalancer: {{ servers: [ {{ url: \"http://127.0.0.1:{upstream}\" }} ] }} }} }}
"
    )
}

fn caddyfile(port: u16, upstream: u16) -> String {
    format!(
        "{{
\tadmin off
\tauto_https off
}}
http://{HOST}:{port} {{
\tbind 127.0.0.1
\treverse_proxy 127.0.0.1:{upstream}
}}
"
    )
}
