//! Our edge: by itself, to be switched and replaced; and under `sluice up`, to be killed.

use std::{
    fs, io,
    net::TcpListener,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use domain::{
    DeploymentId, Span,
    settings::{Check, HealthCheck},
    traffic::{ROUTES, Route, Target, Upstream, UpstreamSet},
};
use eventlog::{Bucket, EventLog};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use testkit::{Nats, Sluice, free_port};
use tokio::{process::Command, time::sleep};
use uuid::Uuid;

use super::{HOST, proxies::Upstreams};
use crate::{Bench, parts};

/// For the edge that is killed.
pub(super) const ROUTES_KEPT: u16 = 50;
const LIMIT: Duration = Duration::from_secs(20);
/// Nothing is deployed, so no engine is needed.
const NO_ENGINE: &str = "unix:///nonexistent/docker.sock";

/// `sluice edge` with a NATS of its own, through which it is switched as the deployer does it.
pub(super) struct Edge {
    pub(super) port: u16,
    routes: Bucket,
    directory: TempDir,
    _nats: Nats,
}

impl Edge {
    pub(super) async fn start(bench: &Bench, upstream: u16) -> Result<Edge> {
        let nats = Nats::start().await?;
        let routes = parts::event_log(&nats).await?.bucket(ROUTES);
        let (port, directory) = (free_port(), TempDir::with_prefix("sluice-bench-switches-")?);
        let log = fs::File::create(directory.path().join("edge.log"))?;
        std::process::Command::new(&bench.sluice)
            .arg("edge")
            .env_clear()
            .env("DATA_DIR", directory.path())
            .env("NATS_URL", nats.url())
            .env("EDGE_LISTEN", format!("127.0.0.1:{port}"))
            .env("LOG", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("starting the edge")?;
        let edge = Edge { port, routes, directory, _nats: nats };
        edge.switch(0, upstream).await?;
        Ok(edge)
    }

    pub(super) async fn switch(&self, number: usize, upstream: u16) -> Result<()> {
        let value = route("prod", HOST, u64::try_from(number)?, &[upstream])?;
        self.routes.put("bench.prod", value).await.context("writing the route")?;
        Ok(())
    }

    /// `sluice edge upgrade`, to the same program.
    pub(super) async fn upgrade(&self, bench: &Bench) -> Result<()> {
        let mut command = Command::new(&bench.sluice);
        command.args(["edge", "upgrade"]).env("DATA_DIR", self.directory.path()).stdin(Stdio::null());
        let output = tokio::time::timeout(LIMIT, command.kill_on_drop(true).output()).await??;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}

impl Drop for Edge {
    /// The process that serves takes along the one that it took over from.
    fn drop(&mut self) {
        let file = self.directory.path().join("edge.pid");
        let Some(pid) = process(&file) else { return };
        kill_process(pid, Signal::TERM).ok();
        // What is still open lasts until its drain deadline, so it is not waited for here.
        std::thread::sleep(Duration::from_millis(600));
        kill_process(pid, Signal::KILL).ok();
    }
}

fn process(file: &Path) -> Option<Pid> {
    fs::read_to_string(file).ok()?.trim().parse().ok().and_then(Pid::from_raw)
}

fn route(stage: &str, host: &str, number: u64, upstreams: &[u16]) -> Result<Vec<u8>> {
    let upstreams = upstreams.iter();
    let target = Target::Live(UpstreamSet {
        deployment: DeploymentId(Uuid::from_u128(number.into())),
        upstreams: upstreams
            .map(|port| Upstream { instance: format!("c{port}"), address: format!("127.0.0.1:{port}") })
            .collect(),
        health: HealthCheck { check: Check::Http, path: Some("/healthz".into()), ..HealthCheck::default() },
        drain: Span::secs(60),
    });
    let (project, stage) = ("bench".parse()?, stage.parse()?);
    let route = Route { project, stage, host: host.into(), path: "/".into(), target, fence: number, front: None };
    Ok(serde_json::to_vec(&route)?)
}

/// Milliseconds from the kill to the first good answer, once a round: with NATS stopped, and with as many dead
/// upstreams as living ones, half of those mute and half refusing.
pub(super) async fn back_after_kill(bench: &Bench) -> Result<Vec<f64>> {
    let upstreams = Upstreams::start().await?;
    // Accepts and never answers.
    let mute = TcpListener::bind("127.0.0.1:0")?;
    let dead = [mute.local_addr()?.port(), free_port()];
    let mut sluice = Sluice::prepare(&bench.sluice, NO_ENGINE)?;
    sluice.start().await?;
    let connection: serde_json::Value = serde_json::from_slice(&fs::read(sluice.data_dir().join("connection.json"))?)?;
    let url = connection["nats_url"].as_str().context("the URL of NATS")?.to_owned();
    let log = EventLog::connect(&eventlog::Config { url, name: "bench".into(), master_key: None }).await?;
    let routes = log.bucket(ROUTES);
    for number in 0..ROUTES_KEPT {
        let (stage, living) = (format!("stage-{number}"), upstreams.ports[usize::from(number % 2)]);
        let host = if number == 0 { HOST.to_owned() } else { format!("{stage}.test") };
        let value = route(&stage, &host, 1, &[living, dead[usize::from(number % 2)]])?;
        routes.put(&format!("bench.{stage}"), value).await.context("writing a route")?;
    }
    let saved = sluice.data_dir().join("edge/routes.json");
    let began = Instant::now();
    while fs::read_to_string(&saved).unwrap_or_default().matches("\"key\"").count() < ROUTES_KEPT.into() {
        ensure!(began.elapsed() < LIMIT, "the edge does not save its routes");
        sleep(Duration::from_millis(10)).await;
    }
    good_answer(sluice.edge(), None).await?;
    let nats = sluice.pid("nats-server")?;
    kill_process(nats, Signal::STOP)?;
    let mut rounds = Vec::new();
    for _ in 0..bench.rounds {
        // One that has lived for a while, as most have.
        sleep(Duration::from_secs(2)).await;
        let edge = sluice.pid("edge")?;
        let killed = Instant::now();
        kill_process(edge, Signal::KILL)?;
        good_answer(sluice.edge(), Some(edge)).await?;
        rounds.push(killed.elapsed().as_secs_f64() * 1000.0);
    }
    kill_process(nats, Signal::CONT)?;
    sluice.stop().await?;
    Ok(rounds)
}

/// Asks until there is one; not from the process `except`, which may still be dying.
async fn good_answer(address: &str, except: Option<Pid>) -> Result<()> {
    let gone = |pid: Pid| match fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_pid())) {
        Ok(stat) => stat.contains(") Z "),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    };
    let began = Instant::now();
    while !except.is_none_or(gone) {
        sleep(Duration::from_millis(1)).await;
    }
    let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build()?;
    while began.elapsed() < LIMIT {
        let answer = client.get(format!("http://{address}/")).header("host", HOST).send().await;
        if answer.is_ok_and(|answer| answer.status().is_success()) {
            return Ok(());
        }
        sleep(Duration::from_millis(2)).await;
    }
    bail!("no good answer within {LIMIT:?}")
}
