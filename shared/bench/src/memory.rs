//! What Sluice itself keeps in memory when it has worked and rests.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Pid;
use testkit::{Docker, Load, SampleImage, Sluice};

use crate::{
    Bench,
    procfs::{self, Memory},
    row::{Row, Target, Unit},
};

const ROLES: [&str; 6] = ["up", "edge", "projector", "deployer", "watcher", "api"];
const LIMIT_MB: f64 = 80.0;
const IMAGE: &str = "sluice-bench-memory:1";
const DECLARATION: &str = "
project: bench
stages:
  dev:
    port: 8080
    health: {check: http, path: /healthz}
    route: {host: bench.localhost}
    drain: 1s
    stop_grace: 1s
";
const REQUESTS: u64 = 20_000;

/// It rests when, for this long, all its processes together have used less than a hundredth of one processor.
const WINDOW: Duration = Duration::from_secs(3);
const MOST_TICKS: u64 = 3;
const REST_LIMIT: Duration = Duration::from_secs(120);

struct Sample {
    roles: Vec<Memory>,
    nats: Memory,
    postgres: Memory,
}

pub(crate) async fn run(bench: &Bench) -> Result<Vec<Row>> {
    let docker = Docker::connect_or_start().await?;
    SampleImage::new("1").load(&docker, IMAGE).await?;
    let mut sluice = Sluice::prepare(&bench.sluice, docker.host())?;
    let mut samples = Vec::new();
    for round in 1..=bench.rounds {
        sluice.start().await?;
        sluice.apply(DECLARATION).await?;
        sluice.run(&["deploy", "bench", "dev", IMAGE, "--follow"]).await?;
        let load = Load::new(sluice.edge(), "bench.localhost").connections(64).start();
        load.more(REQUESTS).await;
        let report = load.stop().await;
        ensure!(report.failed == 0, "requests failed: {report:?}");
        rest(&sluice).await?;
        let sample = sample(&sluice)?;
        bench.say(&format!(
            "round {round}: {:.1} MB",
            megabytes(sample.roles.iter().copied().sum::<Memory>().proportional)
        ));
        samples.push(sample);
        sluice.stop().await?;
    }
    Ok(rows(&samples))
}

async fn rest(sluice: &Sluice) -> Result<()> {
    let pids: Vec<Pid> = ROLES.iter().map(|role| sluice.pid(role)).collect::<Result<_>>()?;
    let used = || pids.iter().map(|pid| procfs::ticks(*pid)).sum::<Result<u64>>();
    let end = Instant::now() + REST_LIMIT;
    loop {
        let before = used()?;
        tokio::time::sleep(WINDOW).await;
        let ticks = used()? - before;
        if ticks <= MOST_TICKS {
            return Ok(());
        }
        ensure!(Instant::now() < end, "it does not come to rest: {ticks} ticks of processor time in {WINDOW:?}");
    }
}

fn sample(sluice: &Sluice) -> Result<Sample> {
    let of = |part: &str| procfs::memory(sluice.pid(part)?).with_context(|| format!("the memory of {part}"));
    let postgres = sluice.pid("postgres")?;
    let backends = procfs::children(postgres)?;
    // A backend may end while it is looked at.
    let backends = backends.into_iter().filter_map(|pid| procfs::memory(pid).ok());
    Ok(Sample {
        roles: ROLES.iter().map(|role| of(role)).collect::<Result<_>>()?,
        nats: of("nats-server")?,
        postgres: [procfs::memory(postgres)?].into_iter().chain(backends).sum(),
    })
}

fn rows(samples: &[Sample]) -> Vec<Row> {
    let each = |value: &dyn Fn(&Sample) -> u64| samples.iter().map(|one| megabytes(value(one))).collect::<Vec<_>>();
    let all = |sample: &Sample| sample.roles.iter().copied().sum::<Memory>();
    let row = |name: &str| Row::new(name, Unit::Megabytes);
    let mut rows = vec![
        row("idle memory, all of Sluice")
            .ours(each(&|sample| all(sample).proportional))
            .target(Target::AtMost { limit: LIMIT_MB })
            .bound("the program itself: five processes, each with its own heap and runtime")
            .note(format!(
                "proportional set size of {}, at rest after a deployment and {REQUESTS} requests over 64 connections",
                ROLES.join(", ")
            )),
        row("the same, shared pages counted for each process").ours(each(&|sample| all(sample).resident)),
    ];
    for (index, role) in ROLES.iter().enumerate() {
        rows.push(row(&format!("idle memory, {role}")).ours(each(&|sample| sample.roles[index].proportional)));
    }
    rows.push(row("beside it: nats-server").ours(each(&|sample| sample.nats.proportional)));
    rows.push(row("beside it: PostgreSQL, all processes").ours(each(&|sample| sample.postgres.proportional)));
    rows
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
