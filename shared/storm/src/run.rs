//! The storm itself, from the first start of every part to the report.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use bollard::query_parameters::ListContainersOptions;
use domain::{Event, stage};
use eventlog::EventLog;
use futures::StreamExt;
use testkit::{Docker, Sluice};
use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::{
    Storm,
    faults::World,
    load::{self, Load},
    net,
    outages::Outages,
    parts::{API_PORT, EDGE_PORT, Lab},
    report::{Report, milliseconds},
    requests::Caller,
    say,
    schedule::{Deploy, Entry, Fault, Part, Schedule},
    stages::{self, Image, STAGES},
    verdict::{DEPLOYMENT, Made, Scene, Sightings},
};

/// For everything to start, and to be well again after the last fault.
const READY: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(100);

/// Whether everything that should be zero is.
pub(crate) async fn storm(storm: &Storm, directory: &Path) -> Result<bool> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        ended = weather(storm, directory) => ended,
        _ = interrupt.recv() => anyhow::bail!("interrupted"),
        _ = terminate.recv() => anyhow::bail!("told to stop"),
    }
}

async fn weather(storm: &Storm, directory: &Path) -> Result<bool> {
    let schedule = Schedule::new(storm.seed, storm.kills, &storm.kinds);
    say(&format!("storm: seed {}, {} kills among {} faults", storm.seed, storm.kills, schedule.faults.len()));
    let logs = storm.report.join("storm");
    let _ = fs::remove_dir_all(&logs);
    fs::create_dir_all(&logs).with_context(|| format!("creating {}", logs.display()))?;
    let logs = logs.canonicalize().context("finding the directory of the logs")?;

    net::set_up(directory).await?;
    let lab = Arc::new(Lab::new(directory, &logs, &storm.sluice)?);
    lab.prepare().await?;
    let outages = Outages::default();
    let keepers = Part::RUNNING.map(|part| (part, lab.start(part, &outages)));
    let world = Arc::new(World { lab: lab.clone(), keepers: keepers.into(), outages: outages.clone() });
    let docker = engine(&lab).await?;
    stages::load_images(&docker).await?;

    // The command line and the verdict see it as any installation.
    let mut sluice = Sluice::prepare(&storm.sluice, docker.host())?;
    let edge = format!("{}:{EDGE_PORT}", net::address(Part::Edge));
    net::relay(sluice.api(), Part::Api, ([127, 0, 0, 1], API_PORT).into()).await?;
    net::relay(sluice.edge(), Part::Edge, edge.parse()?).await?;
    sluice.set("API_URL", format!("http://{}", sluice.api()));
    let connection = serde_json::json!({
        "api": sluice.api(), "edge": edge, "nats_url": lab.nats_url(), "database_url": lab.database_url(),
    });
    sluice.write("connection.json", &connection.to_string())?;
    let caller = Caller::new(sluice.api())?;
    await_health(&caller).await?;
    sluice.sign_in("admin", lab.password()).await?;
    let caller = caller.with_token(sluice.token("storm").await?);
    for declaration in stages::declarations() {
        sluice.apply(&declaration).await?;
    }
    first_releases(&caller).await?;

    say("every stage serves; the storm begins");
    let start = Instant::now();
    let load = Load::start(outages.clone());
    let made = Notes::start(docker.client().clone());
    let mut troubles =
        tokio::join!(faults(&world, &schedule.faults, start), deployments(&caller, &schedule.deployments, start));
    troubles.0.append(&mut troubles.1);
    let mut troubles = troubles.0;

    say(&format!("{:7.1}s  the storm is over", start.elapsed().as_secs_f64()));
    if let Err(error) = await_health(&caller).await {
        troubles.push(format!("{error:#}"));
    }
    let scene = Scene { sluice: &sluice, engine: docker.client(), private: true };
    let accepted = caller.noted().accepted.clone();
    let verdict = match scene.verdict(accepted, made.end(schedule.kills_the_engine())).await {
        Ok(verdict) => verdict,
        Err(error) => {
            troubles.push(format!("no verdict: {error:#}"));
            Default::default()
        }
    };
    let tally = load.stop().await?;
    let kept = timeout(READY, keep_events(&lab.nats_url(), &logs.join("events.jsonl"))).await;
    let outcomes = kept.context("not within two minutes").flatten().unwrap_or_else(|error| {
        troubles.push(format!("the events cannot be kept: {error:#}"));
        BTreeMap::new()
    });

    let noted = std::mem::take(&mut *caller.noted());
    let unexcused = tally.unexcused(&outages);
    let mut counts = BTreeMap::new();
    for entry in &schedule.faults {
        *counts.entry(entry.what.kind().name()).or_default() += 1;
    }
    let mut edge_back: Vec<u64> = world.keepers[&Part::Edge].starts().into_iter().skip(1).map(milliseconds).collect();
    edge_back.sort_unstable();
    let exits = world.keepers.iter().map(|(part, keeper)| (part.name(), keeper.exits()));
    let report = Report {
        seed: storm.seed,
        kills: schedule.faults.iter().filter(|entry| entry.what.is_kill()).count(),
        faults: counts,
        verdict,
        http_requests: tally.requests,
        http_failed_while_edge_lived: unexcused.len(),
        http_failed_excused: tally.failed.len() - unexcused.len(),
        excused_s: outages.excused(),
        http_failures: load::told(&unexcused, start),
        http_slowest_ms: milliseconds(tally.slowest),
        excused_reasons: load::reasons(&tally.failed),
        edge_back_ms: edge_back,
        requests_repeated: noted.repeated,
        requests_refused: noted.refused,
        outcomes,
        ended_by_themselves: exits.filter(|(_, count)| *count > 0).collect(),
        troubles,
        elapsed_s: start.elapsed().as_secs(),
        logs: logs.display().to_string(),
        schedule,
    };
    report.write(&storm.report)?;
    say(&report.text());
    Ok(report.is_clean())
}

async fn engine(lab: &Lab) -> Result<Docker> {
    let end = Instant::now() + READY;
    loop {
        match Docker::connect_to(&lab.engine_socket()).await {
            Ok(docker) => return Ok(docker),
            Err(error) if Instant::now() > end => return Err(error),
            Err(_) => sleep(LOOK).await,
        }
    }
}

async fn await_health(caller: &Caller) -> Result<()> {
    let mut said = String::new();
    let healthy = async {
        while let Err(unwell) = caller.healthy().await {
            said = unwell;
            sleep(LOOK).await;
        }
    };
    let ended = timeout(READY, healthy).await;
    ended.with_context(|| format!("not every part was well within {}s: {said}", READY.as_secs()))
}

/// So that every stage serves when the storm begins.
async fn first_releases(caller: &Caller) -> Result<()> {
    for stage in 0..STAGES.len() {
        let deploy = Deploy { stage, image: Some(Image::V1), cancel_after_ms: None };
        // Their numbers are none of the schedule's.
        caller.deploy(1_000_000 + stage, &deploy).await?;
    }
    let serving = async {
        for stage in 0..STAGES.len() {
            while !load::serves(stage).await {
                sleep(LOOK).await;
            }
        }
    };
    timeout(READY, serving).await.context("not every stage serves its first release")
}

/// Every fault at its time; what of it could not be done.
async fn faults(world: &Arc<World>, faults: &[Entry<Fault>], start: Instant) -> Vec<String> {
    let mut under_way = JoinSet::new();
    let (mut kills, all) = (0, faults.iter().filter(|entry| entry.what.is_kill()).count());
    for entry in faults {
        sleep_until(start + Duration::from_millis(entry.at_ms)).await;
        kills += usize::from(entry.what.is_kill());
        say(&format!("{:7.1}s  [{kills:3}/{all}]  {}", start.elapsed().as_secs_f64(), words(&entry.what)));
        let (world, fault) = (world.clone(), entry.what.clone());
        under_way.spawn(async move { world.strike(&fault).await.with_context(|| words(&fault)) });
    }
    troubles(under_way).await
}

/// Every request at its time; those that got no answer.
async fn deployments(caller: &Caller, deployments: &[Entry<Deploy>], start: Instant) -> Vec<String> {
    let mut under_way = JoinSet::new();
    for (number, entry) in deployments.iter().enumerate() {
        sleep_until(start + Duration::from_millis(entry.at_ms)).await;
        let (caller, deploy) = (caller.clone(), entry.what.clone());
        under_way.spawn(async move { caller.deploy(number, &deploy).await });
    }
    troubles(under_way).await
}

async fn troubles(mut under_way: JoinSet<Result<()>>) -> Vec<String> {
    let mut troubles = Vec::new();
    while let Some(ended) = under_way.join_next().await {
        if let Err(error) = ended.context("a task panicked").flatten() {
            troubles.push(format!("{error:#}"));
        }
    }
    troubles
}

fn words(fault: &Fault) -> String {
    let seconds = |ms: u64| format!("{:.1} s", ms as f64 / 1000.0);
    let lasts = seconds(fault.lasts());
    match fault {
        Fault::Kill { part, .. } => format!("kill -9 {}, back after {lasts}", part.name()),
        Fault::KillAll { .. } => format!("kill -9 everything, back after {lasts}"),
        Fault::Stop { part, .. } => format!("{} hangs for {lasts}", part.name()),
        Fault::Cut { from, to, both, .. } => {
            let way = if *both { "and" } else { "to" };
            format!("network cut from {} {way} {} for {lasts}", from.name(), to.name())
        }
        Fault::FullDisk { .. } => format!("the disk of the event log is full for {lasts}"),
        Fault::SlowDatabase { .. } => format!("PostgreSQL is slow for {lasts}"),
        Fault::Clock { part, seconds, .. } => {
            format!("the clock of {} is off by {seconds:+} s for {lasts}", part.name())
        }
    }
}

/// Looks at the containers all the time.
struct Notes {
    seen: Arc<Mutex<Sightings>>,
    looking: tokio::task::JoinHandle<()>,
}

impl Notes {
    fn start(docker: bollard::Docker) -> Notes {
        let seen = Arc::new(Mutex::new(Sightings::default()));
        let notes = seen.clone();
        let looking = tokio::spawn(async move {
            loop {
                let labels = HashMap::from([("label".to_owned(), vec![DEPLOYMENT.to_owned()])]);
                let all = ListContainersOptions { all: true, filters: Some(labels), ..Default::default() };
                // An engine that is away is asked again.
                if let Ok(containers) = docker.list_containers(Some(all)).await {
                    notes.lock().unwrap_or_else(PoisonError::into_inner).note(containers);
                }
                sleep(LOOK * 2).await;
            }
        });
        Notes { seen, looking }
    }

    fn end(self, engine_killed: bool) -> Vec<Made> {
        self.looking.abort();
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).made(engine_killed)
    }
}

/// Writes every event to `path`, one a line; how many deployments ended how.
async fn keep_events(url: &str, path: &Path) -> Result<BTreeMap<String, u64>> {
    let config = eventlog::Config { url: url.to_owned(), name: "storm".into(), master_key: None };
    let log = EventLog::connect(&config).await?;
    let last = log.last_sequence().await?;
    let (mut text, mut outcomes, mut seen) = (String::new(), BTreeMap::new(), 0);
    let mut events = Box::pin(log.follow("sluice.events.>", 0));
    while seen < last {
        let recorded = events.next().await.context("the log ended")??;
        seen = recorded.sequence;
        if let Event::Stage(event) = &recorded.event
            && let Some(outcome) = outcome(event)
        {
            *outcomes.entry(outcome.to_owned()).or_default() += 1;
        }
        text += &format!("{{\"sequence\":{seen},{}\n", recorded.body.trim_start_matches('{'));
    }
    drop(events);
    log.close().await;
    ensure!(seen == last, "the log is at {seen} of {last}");
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    Ok(outcomes)
}

fn outcome(event: &stage::Event) -> Option<&'static str> {
    match event {
        stage::Event::Succeeded { .. } => Some("succeeded"),
        stage::Event::Failed { .. } => Some("failed"),
        stage::Event::RolledBack { .. } => Some("rolled_back"),
        stage::Event::Cancelled { .. } => Some("cancelled"),
        stage::Event::Superseded { .. } => Some("superseded"),
        _ => None,
    }
}
