//! A long queue: a thousand deployments over a hundred stages, all requested before the first is begun. One drain, in
//! as many parts as there are rounds.

use std::collections::{BTreeMap, HashSet, VecDeque};

use anyhow::{Context, Result, bail, ensure};
use domain::{
    DeploymentId, Event, Key, Slug, Span,
    image::{Image, Source},
    settings::{Check, HealthCheck, QueuePolicy, StageSettings},
    stage::{self, Command, Spec, Stage},
};
use eventlog::EventLog;
use futures::{StreamExt, TryStreamExt, stream};
use rustix::process::Pid;
use tempfile::TempDir;
use testkit::{Docker, Nats, SampleImage};
use tokio::time::{Duration, Instant, timeout};

use crate::{
    Bench, parts, procfs,
    row::{Row, Target, Unit},
};

const PROJECTS: usize = 5;
/// Of each project: no more than find room in a small network.
const STAGES: usize = 20;
const EACH: usize = 10;
const ALL: usize = PROJECTS * STAGES * EACH;
/// As `DEPLOYER_CONCURRENCY` is where nobody sets it.
const AT_ONCE: usize = 4;
const LIMIT: Duration = Duration::from_secs(1800);

type Queues = BTreeMap<(String, String), VecDeque<DeploymentId>>;

pub(crate) async fn run(bench: &Bench) -> Result<Vec<Row>> {
    let nats = Nats::start().await?;
    let docker = Docker::connect_or_start().await?;
    let log = parts::event_log(&nats).await?;
    let reference = format!("queue-{}:1", &log.installation().simple().to_string()[..12]);
    SampleImage::new("1").load(&docker, &reference).await?;
    let digest = docker.client().inspect_image(&reference).await?.id.context("the image's id")?;
    let image = Image { requested: reference, digest, source: Source::Local };
    let waiting = request(&log, &image).await?;
    bench.say(&format!("{ALL} deployments wait on {} stages", waiting.len()));

    let data = TempDir::new().context("a data directory")?;
    eventlog::vault::create_key(&data.path().join("master.key")).context("a master key")?;
    let mut deployer = parts::sluice(&bench.sluice, &["deployer"], &nats, "", data.path())
        .env("DOCKER_HOST", docker.host())
        .env("DEPLOYER_CONCURRENCY", AT_ONCE.to_string())
        .spawn()
        .context("starting sluice deployer")?;
    let pid = deployer.id().and_then(|pid| Pid::from_raw(pid.cast_signed())).context("sluice deployer has ended")?;
    let drained = tokio::select! {
        drained = timeout(LIMIT, drain(bench, &log, waiting, pid)) => drained.context("the queue does not drain")??,
        status = deployer.wait() => bail!("sluice deployer ended with {}", status?),
    };
    deployer.kill().await.context("ending sluice deployer")?;
    log.close().await;

    let each = |figure: fn(&Part) -> f64| drained.iter().map(figure).collect::<Vec<f64>>();
    let scene = format!(
        "{ALL} real containers over {} stages, {AT_ONCE} rollouts at once; one drain in parts",
        PROJECTS * STAGES
    );
    Ok(vec![
        Row::new("queue: deployments carried out", Unit::PerSecond)
            .ours(each(|part| part.per_second))
            .bound("the engine: it creates, starts, stops and removes a container for each")
            .note(scene),
        Row::new("queue: peak memory of the deployer", Unit::Megabytes).ours(each(|part| part.peak)),
        Row::new("queue: order violations", Unit::Count).ours(each(|part| part.out_of_order)).target(Target::Zero),
        Row::new("queue: deployments that did not succeed", Unit::Count)
            .ours(each(|part| part.failed))
            .target(Target::Zero),
        Row::new("queue: most rollouts at once", Unit::Count)
            .ours(each(|part| part.most))
            .target(Target::AtMost { limit: AT_ONCE as f64 }),
    ])
}

/// Requests all of them, each stage's in order.
async fn request(log: &EventLog, image: &Image) -> Result<Queues> {
    let health =
        HealthCheck { check: Check::Running, interval: Span::millis(10), retries: 1, ..HealthCheck::default() };
    let settings = StageSettings { health, queue: QueuePolicy::Keep, keep: 0, ..StageSettings::default() };
    let spec = Spec { image: image.clone(), settings };
    let places =
        (0..PROJECTS).flat_map(|project| (0..STAGES).map(move |stage| (format!("p{project}"), format!("s{stage}"))));
    let requesting = stream::iter(places).map(|(project, stage)| {
        let spec = spec.clone();
        async move {
            let key: Key<Stage> = Key::stage(&project.parse::<Slug>()?, &stage.parse::<Slug>()?);
            let mut queue = VecDeque::new();
            for _ in 0..EACH {
                let deployment = DeploymentId(runtime::clock::new_id());
                let command =
                    Command::Request { deployment, spec: spec.clone(), node: "local".into(), by: "ana".into() };
                log.execute(&key, command, &runtime::clock::context("bench")).await?;
                queue.push_back(deployment);
            }
            anyhow::Ok(((project, stage), queue))
        }
    });
    requesting.buffer_unordered(16).try_collect().await
}

/// What happened while one part of the deployments ended.
struct Part {
    per_second: f64,
    /// Of the deployer's memory so far, in megabytes.
    peak: f64,
    out_of_order: f64,
    failed: f64,
    most: f64,
}

async fn drain(bench: &Bench, log: &EventLog, mut waiting: Queues, pid: Pid) -> Result<Vec<Part>> {
    let mut events = std::pin::pin!(log.follow("sluice.events.stage.>", 0));
    let mut parts = Vec::new();
    let mut busy = HashSet::new();
    let mut ended = 0;
    let mut began: Option<Instant> = None;
    let (mut out_of_order, mut failed, mut most, mut in_part) = (0, 0, 0, 0);
    while ended < ALL {
        let recorded = events.next().await.context("the log ended")??;
        let [project, stage] = recorded.key.as_slice() else { bail!("an event of no stage: {}", recorded.subject) };
        let queue = waiting.get_mut(&(project.clone(), stage.clone())).context("an unknown stage")?;
        let Event::Stage(event) = recorded.event else { continue };
        let (deployment, succeeded) = match event {
            stage::Event::Started { deployment, .. } => {
                began.get_or_insert_with(Instant::now);
                out_of_order += usize::from(queue.front() != Some(&deployment));
                busy.insert(deployment);
                most = most.max(busy.len());
                continue;
            }
            stage::Event::Succeeded { deployment } => (deployment, true),
            stage::Event::Failed { deployment, .. } | stage::Event::RolledBack { deployment, .. } => {
                (deployment, false)
            }
            _ => continue,
        };
        ensure!(busy.remove(&deployment), "{deployment} ended without having begun");
        out_of_order += usize::from(queue.pop_front() != Some(deployment));
        failed += usize::from(!succeeded);
        ended += 1;
        in_part += 1;
        if in_part == ALL.div_ceil(bench.rounds) || ended == ALL {
            let took = began.replace(Instant::now()).context("nothing began")?.elapsed();
            parts.push(Part {
                per_second: f64::from(u32::try_from(in_part)?) / took.as_secs_f64(),
                peak: procfs::peak_memory(pid)?,
                out_of_order: f64::from(u32::try_from(out_of_order)?),
                failed: f64::from(u32::try_from(failed)?),
                most: f64::from(u32::try_from(most)?),
            });
            bench.say(&format!("{ended} of {ALL} carried out"));
            (out_of_order, failed, most, in_part) = (0, 0, busy.len(), 0);
        }
    }
    Ok(parts)
}
