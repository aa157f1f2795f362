//! The whole configuration of two hundred projects with four stages each: applied to an empty installation by the command
//! line, exported again, applied once more.

use std::{
    fmt::Write,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use testkit::{Nats, Postgres};
use tokio::time::timeout;

use crate::{
    Bench,
    parts::{self, Api},
    row::{Row, Target, Unit},
};

const PROJECTS: usize = 200;
const STAGES: [&str; 4] = ["dev", "test", "staging", "prod"];
const LIMIT_S: f64 = 5.0;
const PATIENCE: Duration = Duration::from_secs(120);

struct Round {
    apply: f64,
    export: f64,
    again: f64,
}

pub(crate) async fn run(bench: &Bench) -> Result<Vec<Row>> {
    let cluster = Postgres::start_like_sluice_up().await?;
    let mut rounds = Vec::new();
    for number in 1..=bench.rounds {
        let round = measure(bench, &cluster, number).await?;
        bench.say(&format!("round {number}: applied in {:.2} s, exported in {:.2} s", round.apply, round.export));
        rounds.push(round);
    }
    let each = |figure: fn(&Round) -> f64| rounds.iter().map(figure).collect::<Vec<f64>>();
    let row = |name: &str| Row::new(format!("configuration: {name}, {PROJECTS} projects x 4 stages"), Unit::Seconds);
    Ok(vec![
        row("apply and export")
            .ours(each(|round| round.apply + round.export))
            .target(Target::AtMost { limit: LIMIT_S })
            .bound("one atomic batch for each project, each on the disk before it is acknowledged")
            .note("by the command line, plan included, on an empty installation; a route and a gate in each project"),
        row("apply").ours(each(|round| round.apply)),
        row("export").ours(each(|round| round.export)),
        row("apply where nothing changes").ours(each(|round| round.again)),
    ])
}

async fn measure(bench: &Bench, cluster: &Postgres, number: usize) -> Result<Round> {
    let nats = Nats::start().await?;
    let database = parts::database(cluster, &format!("configuration_{number}")).await?;
    let data = TempDir::new().context("a data directory")?;
    eventlog::vault::create_key(&data.path().join("master.key")).context("a master key")?;
    let mut projector = parts::sluice(&bench.sluice, &["projector"], &nats, &database, data.path())
        .spawn()
        .context("starting sluice projector")?;
    let api = Api::start(&bench.sluice, &nats, &database, data.path()).await?;
    let written = data.path().join("all.yaml");
    std::fs::write(&written, document()?).context("writing the configuration")?;
    let exported = data.path().join("export.yaml");
    let [written, exported] = [&written, &exported].map(|path| path.display().to_string());

    let began = Instant::now();
    command(bench, &api, data.path(), &["apply", "-f", &written]).await?;
    let apply = began.elapsed().as_secs_f64();
    let began = Instant::now();
    command(bench, &api, data.path(), &["export", "-o", &exported]).await?;
    let export = began.elapsed().as_secs_f64();
    let text = std::fs::read_to_string(&exported).context("reading the export")?;
    let stages = text.lines().filter(|line| line.trim_start().starts_with("host: ")).count();
    ensure!(stages == PROJECTS * STAGES.len(), "the export has {stages} stages");
    let began = Instant::now();
    command(bench, &api, data.path(), &["apply", "-f", &exported]).await?;
    let again = began.elapsed().as_secs_f64();
    projector.kill().await.context("ending sluice projector")?;
    Ok(Round { apply, export, again })
}

async fn command(bench: &Bench, api: &Api, data: &Path, arguments: &[&str]) -> Result<()> {
    let mut command = api.command(&bench.sluice, arguments, data)?;
    let output = timeout(PATIENCE, command.output()).await.context("it hangs")?.context("starting sluice")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "sluice {}: {}: {said}", arguments.join(" "), output.status);
    Ok(())
}

fn document() -> Result<String> {
    let mut text = String::from("projects:\n");
    for n in 0..PROJECTS {
        writeln!(text, "  p{n}:\n    name: Project number {n}\n    env: {{REGION: eu, LEVEL: info}}\n    stages:")?;
        for (at, stage) in STAGES.iter().enumerate() {
            writeln!(text, "      {stage}:")?;
            writeln!(
                text,
                "        image: registry.example.com/p{n}\n        port: 8080\n        replicas: {}",
                at + 1
            )?;
            writeln!(text, "        health: {{check: http, path: /healthz, interval: 2s}}")?;
            writeln!(text, "        resources: {{memory: 256MiB, cpus: 0.5}}")?;
            writeln!(text, "        env: {{STAGE: {stage}, PASSWORD: {{secret: db-password}}}}")?;
            writeln!(text, "        route: {{host: {stage}.p{n}.example.com}}")?;
            if let Some(source) = at.checked_sub(1) {
                writeln!(text, "        promote_from: {}\n        gates: {{soak: 30m}}", STAGES[source])?;
            }
        }
    }
    Ok(text)
}
