//! An edge as a process of its own, an application behind it, and clients that forgive nothing.

use std::{
    fs::{self, File},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use domain::{
    Span,
    settings::HealthCheck,
    traffic::{EdgeStatus, ROUTES, Route, Target, Upstream, UpstreamSet, status_subject},
};
use edge::{Answer, UpgradeError, Upgraded};
use eventlog::EventLog;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;
use tempfile::TempDir;
use testkit::{Nats, free_port};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
    task::JoinSet,
    time::{sleep, timeout},
};

const SLUICE: &str = env!("CARGO_BIN_EXE_sluice");
pub(crate) const HOST: &str = "shop.test";
pub(crate) const KEY: &str = "shop.prod";
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);
/// How long what is open lives on an edge that was replaced.
pub(crate) const DRAIN: Duration = Duration::from_secs(3);

pub(crate) struct Installation {
    pub(crate) address: String,
    pub(crate) nats: Nats,
    pub(crate) log: EventLog,
    data: TempDir,
    children: Vec<Child>,
}

impl Installation {
    /// A NATS with one route to `upstreams`, and an edge that serves it.
    pub(crate) async fn serving(upstreams: &[SocketAddr]) -> Self {
        let nats = Nats::start().await.expect("nats-server starts");
        let config = eventlog::Config { url: nats.url().into(), name: "edge-test".into(), master_key: None };
        let log = EventLog::connect(&config).await.expect("connected");
        let data = TempDir::with_prefix("sluice-edge-").expect("a directory");
        let address = format!("127.0.0.1:{}", free_port());
        let mut installation = Self { address, nats, log, data, children: vec![] };
        installation.route(1, upstreams).await;
        installation.start();
        installation.answers("1").await;
        until("the snapshot is written", async || installation.read("edge/routes.json")?.contains(KEY).then_some(()))
            .await;
        installation
    }

    /// Starts an edge, as an init system does.
    pub(crate) fn start(&mut self) {
        let log = File::options().create(true).append(true).open(self.path("edge.log")).expect("a log");
        let child = self.command(&["edge"]).stdin(Stdio::null()).stderr(log).spawn().expect("the edge starts");
        self.children.push(child);
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(SLUICE);
        command
            .args(arguments)
            .env("DATA_DIR", self.data.path())
            .env("EDGE_LISTEN", &self.address)
            .env("EDGE_DRAIN", format!("{}ms", DRAIN.as_millis()))
            .env("NATS_URL", self.nats.url())
            .env_remove("NODE")
            .env_remove("EDGE_HANDOVER");
        command
    }

    /// Points the route at `upstreams`; deployment and fence are `number`. Returns its revision.
    pub(crate) async fn route(&self, number: u64, upstreams: &[SocketAddr]) -> u64 {
        self.log.bucket(ROUTES).put(KEY, route(number, upstreams)).await.expect("NATS takes the route")
    }

    /// What the edge that goes by `id` says of itself.
    pub(crate) async fn status(&self, id: &str) -> Option<EdgeStatus> {
        let reply = self.log.request(&status_subject(id), vec![], Duration::from_secs(2)).await.ok()?;
        serde_json::from_slice(&reply).ok()
    }

    /// `sluice edge upgrade --json`.
    pub(crate) async fn upgrade(&self) -> Upgraded {
        let output = self.command(&["edge", "upgrade", "--json"]).output();
        let output = timeout(DEADLINE, output).await.expect("in time").expect("runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}\n{}", self.log_text());
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// A command line that must fail: exit code and the error document.
    pub(crate) async fn refused(&self, arguments: &[&str]) -> (Option<i32>, Value) {
        let output = self.command(&[arguments, &["--json"]].concat()).output();
        let output = timeout(DEADLINE, output).await.expect("in time").expect("runs");
        assert!(!output.status.success(), "{arguments:?} succeeded");
        (output.status.code(), serde_json::from_slice(&output.stderr).expect("JSON"))
    }

    /// Asks for an upgrade to `program`; each step goes to `progress`.
    pub(crate) async fn upgrade_to(
        &self,
        program: &Path,
        progress: impl FnMut(&Answer),
    ) -> Result<Upgraded, UpgradeError> {
        timeout(DEADLINE, edge::upgrade(&self.path("edge/control"), program, progress)).await.expect("in time")
    }

    /// A program that starts and never says a word.
    pub(crate) fn mute(&self) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let path = self.path("mute");
        fs::write(&path, "#!/bin/sh\nexec sleep 600\n").expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("executable");
        path
    }

    /// The process that the pid file names.
    pub(crate) fn pid(&self) -> Option<Pid> {
        self.read("edge.pid")?.trim().parse().ok().and_then(Pid::from_raw)
    }

    /// Waits until version `version` answers.
    pub(crate) async fn answers(&self, version: &str) {
        let what = format!("version {version} answers");
        until(&what, async || {
            let mut client = Client::connect(&self.address).await?;
            (client.get().await?.version() == version).then_some(())
        })
        .await;
    }

    /// Waits until the process has ended; one of ours is reaped, with its success.
    pub(crate) async fn ended(&mut self, pid: Pid) {
        let ours = self.children.iter().position(|child| child.id() == Some(pid.as_raw_pid().cast_unsigned()));
        match ours {
            Some(index) => {
                let status = timeout(DEADLINE, self.children.remove(index).wait()).await.expect("in time");
                assert!(status.expect("waited for").success());
            }
            None => until("the process has ended", async || (!lives(pid)).then_some(())).await,
        }
    }

    /// SIGKILL.
    pub(crate) async fn kill(&mut self, pid: Pid) {
        kill_process(pid, Signal::KILL).expect("killed");
        let ours = self.children.iter().position(|child| child.id() == Some(pid.as_raw_pid().cast_unsigned()));
        if let Some(index) = ours {
            self.children.remove(index).wait().await.expect("waited for");
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.data.path().join(name)
    }

    pub(crate) fn read(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.path(name)).ok()
    }

    pub(crate) fn log_text(&self) -> String {
        self.read("edge.log").unwrap_or_default()
    }
}

impl Drop for Installation {
    fn drop(&mut self) {
        let left = self.children.iter().filter_map(|child| child.id()?.try_into().ok().and_then(Pid::from_raw));
        for pid in left.chain(self.pid()) {
            kill_process(pid, Signal::KILL).ok();
        }
    }
}

pub(crate) fn route(number: u64, upstreams: &[SocketAddr]) -> Vec<u8> {
    let name = |text: &str| text.parse().expect("a name");
    let upstreams = upstreams.iter().enumerate();
    let deployment = format!("00000000-0000-0000-0000-{number:012}");
    let target = Target::Live(UpstreamSet {
        deployment: serde_json::from_value(deployment.into()).expect("an id"),
        upstreams: upstreams.map(|(i, a)| Upstream { instance: format!("c{i}"), address: a.to_string() }).collect(),
        health: HealthCheck::default(),
        drain: Span::secs(30),
    });
    let (project, stage) = (name("shop"), name("prod"));
    let route = Route { project, stage, host: HOST.into(), path: "/".into(), target, fence: number, front: None };
    serde_json::to_vec(&route).expect("serializable")
}

/// Asks again and again until there is an answer.
pub(crate) async fn until<T>(what: &str, ask: impl AsyncFn() -> Option<T>) -> T {
    let asked = timeout(DEADLINE, async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            sleep(Duration::from_millis(5)).await;
        }
    });
    asked.await.unwrap_or_else(|_| panic!("not within {DEADLINE:?}: {what}"))
}

/// A process that waits to be reaped lives no more.
pub(crate) fn lives(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_pid())).unwrap_or_default();
    test_kill_process(pid).is_ok() && !stat.contains(") Z ")
}

pub(crate) fn pid(raw: u32) -> Pid {
    Pid::from_raw(raw.cast_signed()).expect("a process id")
}

/// Answers every request with `version`, `/socket` with an echo, and `/events` with an endless stream.
pub(crate) async fn app(version: &'static str) -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn(async move { serve(stream, version).await });
            while connections.try_join_next().is_some() {}
        }
    });
    (address, tasks)
}

async fn serve(stream: TcpStream, version: &str) -> Option<()> {
    let mut client = Client { stream };
    client.stream.set_nodelay(true).ok()?;
    loop {
        let head = client.head().await?;
        let stream = &mut client.stream;
        if head.starts_with("GET /socket ") {
            let answer = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
            stream.write_all(answer.as_bytes()).await.ok()?;
            let (mut from, mut to) = stream.split();
            tokio::io::copy(&mut from, &mut to).await.ok()?;
            return None;
        }
        if head.starts_with("GET /events ") {
            let answer = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";
            stream.write_all(answer.as_bytes()).await.ok()?;
            loop {
                stream.write_all(b"data: tick\n\n").await.ok()?;
                sleep(Duration::from_millis(20)).await;
            }
        }
        let answer = format!("HTTP/1.1 200 OK\r\nX-Version: {version}\r\nContent-Length: 2\r\n\r\nok");
        stream.write_all(answer.as_bytes()).await.ok()?;
    }
}

/// A client that says exactly what it is told to.
pub(crate) struct Client {
    stream: TcpStream,
}

pub(crate) struct Head(String);

impl Head {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.0.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    pub(crate) fn version(&self) -> &str {
        self.header("x-version").unwrap_or_default()
    }
}

impl Client {
    pub(crate) async fn connect(address: &str) -> Option<Self> {
        Some(Self { stream: TcpStream::connect(address).await.ok()? })
    }

    /// The answer to a request, if it is a good one.
    pub(crate) async fn get(&mut self) -> Option<Head> {
        self.ask("GET / HTTP/1.1\r\n").await?;
        let head = self.head().await?;
        self.stream.read_exact(&mut [0; 2]).await.ok()?;
        head.starts_with("HTTP/1.1 200 ").then_some(Head(head))
    }

    pub(crate) async fn websocket(address: &str) -> Self {
        let mut client = Self::connect(address).await.expect("connected");
        client.ask("GET /socket HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n").await.expect("asked");
        assert!(client.head().await.expect("an answer").starts_with("HTTP/1.1 101 "));
        client
    }

    /// Whether what is sent comes back.
    pub(crate) async fn echoes(&mut self) -> bool {
        let mut back = [0; 4];
        let echo = async {
            self.stream.write_all(b"ping").await.ok()?;
            self.stream.read_exact(&mut back).await.ok()
        };
        timeout(DEADLINE, echo).await.expect("in time").is_some() && back == *b"ping"
    }

    pub(crate) async fn events(address: &str) -> Self {
        let mut client = Self::connect(address).await.expect("connected");
        client.ask("GET /events HTTP/1.1\r\n").await.expect("asked");
        assert!(client.head().await.expect("an answer").starts_with("HTTP/1.1 200 "));
        client
    }

    /// Whether something of a stream comes.
    pub(crate) async fn hears(&mut self) -> bool {
        let read = timeout(DEADLINE, self.stream.read(&mut [0; 1024])).await.expect("in time");
        read.is_ok_and(|read| read > 0)
    }

    async fn ask(&mut self, request: &str) -> Option<()> {
        self.stream.write_all(format!("{request}Host: {HOST}\r\n\r\n").as_bytes()).await.ok()
    }

    async fn head(&mut self) -> Option<String> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(self.stream.read_u8().await.ok()?);
        }
        String::from_utf8(head).ok()
    }
}
