//! `demo SLUICE` shows the main job on real input: a registry, versions of the sample application, the real `sluice`
//! binary, and load that runs through it all; then the way from stage to stage. It prints what happened, writes
//! `target/report/demo.json`, and fails when a single request did.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command line tool")]

mod release;
mod report;
mod sluice;

use std::{
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use bollard::query_parameters::RemoveImageOptions;
use report::Demo;
use sluice::Sluice;
use testkit::{Docker, Load, Registry, Running, SampleImage, Sockets};
use tokio::time::timeout;

const HOST: &str = "shop.localhost";
const LIMIT: Duration = Duration::from_secs(170);
const REPORT: &str = "target/report/demo.json";

#[tokio::main]
async fn main() -> ExitCode {
    let ended = tokio::select! {
        ended = timeout(LIMIT, run()) => ended.context("the demo took too long").flatten(),
        _ = tokio::signal::ctrl_c() => Err(anyhow!("interrupted")),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<()> {
    let program = std::env::args_os().nth(1).context("usage: demo PATH-OF-SLUICE")?;
    let began = Instant::now();
    let say = |what: &str| println!("{:5.1} s  {what}", began.elapsed().as_secs_f64());

    let docker = Docker::connect_or_start().await?;
    let mut registry = Registry::start().await?;
    for version in ["1", "2", "3"] {
        push(&docker, &registry, version).await?;
    }
    say(&format!("pushed versions 1 to 3 of the sample application to {}/shop", registry.address()));

    let sluice = Sluice::up(Path::new(&program), &docker).await?;
    say(&format!("`sluice up` runs: API {}, traffic {}", sluice.api(), sluice.edge()));
    sluice.apply(&declaration(&registry)).await?;
    say("applied the project shop: dev, then staging with a soak time, then prod with an approval");

    let first = sluice.deploy("1").await?;
    say(&format!("deployed version 1: {}", first.outcome));
    let loads = start_loads(sluice.edge());
    let sockets = Sockets::open(sluice.edge(), HOST, 8);
    settle(&loads).await;
    say("load runs: kept connections, new connections, slow requests, websockets");

    let second = sluice.deploy("2").await?;
    say(&format!("deployed version 2 under load: {}", second.outcome));
    settle(&loads).await;
    let third = sluice.deploy("3").await?;
    say(&format!("deployed version 3, whose health check fails: {}", third.outcome));
    settle(&loads).await;

    let mut demo = Demo::new([first, second, third], sockets.close().await);
    for load in loads {
        demo.load.add(load.stop().await);
    }
    demo.release = Some(release::act(&sluice, &docker, &mut registry, &say).await?);
    let exported = sluice.export().await?;
    let fresh = Sluice::up(Path::new(&program), &docker).await?;
    fresh.apply_all(&exported).await?;
    ensure!(fresh.export().await? == exported, "what was applied to a fresh installation is exported differently");
    fresh.stop().await?;
    say(&format!(
        "exported the configuration ({} bytes), applied it to a fresh installation: the same export",
        exported.len()
    ));
    sluice.stop().await?;
    demo.elapsed = began.elapsed();
    say("stopped");
    print!("\n{}", demo.table());
    demo.write(Path::new(REPORT))?;
    println!("\nwrote {REPORT}");
    demo.judge()
}

async fn push(docker: &Docker, registry: &Registry, version: &str) -> Result<()> {
    let image = SampleImage::new(version);
    let image = if version == "3" { image.broken() } else { image };
    let local = format!("sluice-demo:{version}");
    image.load(docker, &local).await?;
    let pushed = registry.push(docker, &local, &format!("shop:{version}")).await?;
    // Only the registry has it from here on: deploying must pull.
    for name in [&local, &pushed] {
        let removed = docker.client().remove_image(name, None::<RemoveImageOptions>, None).await;
        removed.with_context(|| format!("removing {name}"))?;
    }
    Ok(())
}

fn declaration(registry: &Registry) -> String {
    format!(
        "project: shop
stages:
  dev:
    image: {}/shop
    port: 8080
    replicas: 2
    health: {{ check: http, path: /healthz, interval: 500ms, retries: 3, start_period: 3s }}
    drain: 5s
    route: {{ host: {HOST} }}
  staging:
    port: 8080
    promote_from: dev
    gates: {{ soak: 3s }}
    drain: 1s
    stop_grace: 1s
  prod:
    port: 8080
    promote_from: staging
    gates: {{ approvals: {{ count: 1, roles: [operator] }} }}
    drain: 5s
    stop_grace: 1s
    route: {{ host: {prod} }}
",
        registry.address(),
        prod = release::HOST,
    )
}

fn start_loads(edge: &str) -> Vec<Running> {
    vec![
        Load::new(edge, HOST).rate(200).start(),
        Load::new(edge, HOST).connections(4).rate(50).without_keep_alive().start(),
        // Long enough that many are in flight at any switch.
        Load::new(edge, HOST).connections(4).rate(10).path("/slow?ms=300").start(),
    ]
}

/// Waits until each load has met what serves now.
async fn settle(loads: &[Running]) {
    for load in loads {
        load.more(20).await;
    }
}

/// One of the three deployments.
struct Deployment {
    version: &'static str,
    outcome: String,
    elapsed: Duration,
    steps: Vec<Step>,
    reason: Option<String>,
}

struct Step {
    name: String,
    elapsed: Duration,
}

impl Deployment {
    fn check(&self, outcome: &str) -> Result<()> {
        ensure!(self.outcome == outcome, "version {} {}, not {outcome}", self.version, self.outcome);
        Ok(())
    }
}
