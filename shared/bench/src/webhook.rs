//! From the message of a registry that a tag has moved to the requested deployment: a whole installation, and a real
//! registry. The registry itself tells nobody and is not polled, so that the message that is timed is the only one.

mod flood;

use std::{
    pin::Pin,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use domain::{
    DeploymentId, Event, Recorded,
    push::{Finding, Heard},
    stage,
};
use eventlog::EventLog;
use futures::{Stream, StreamExt};
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use serde::Deserialize;
use serde_json::json;
use testkit::{Docker, Registry, SampleImage, Sluice};
use tokio::time::timeout;

use crate::{
    Bench,
    latency::quantile,
    row::{Row, Target, Unit},
};

/// Each has one stage and one repository.
const PROJECTS: usize = 8;
/// Of one kind, in one round.
const EACH: usize = 64;
const LIMIT_MS: f64 = 100.0;
const TAG: &str = "main";
const VERSIONS: [&str; 2] = ["1", "2"];
const MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const MESSAGE: &str = "application/vnd.docker.distribution.events.v1+json";
/// For one deployment. What takes longer is not late but lost.
const LOST: Duration = Duration::from_secs(60);

type Events = Pin<Box<dyn Stream<Item = Result<Recorded, eventlog::Error>> + Send>>;

pub(crate) async fn run(bench: &Bench) -> Result<Vec<Row>> {
    let docker = Docker::connect_or_start().await?;
    let registry = Registry::start().await?;
    let mut scene = Scene::start(bench, &docker, &registry).await?;
    // The first of each version pulls.
    for _ in VERSIONS {
        scene.measure(PROJECTS, true).await.context("warming up")?;
    }
    let (mut calm, mut busy) = (Vec::new(), Vec::new());
    for round in 1..=bench.rounds {
        calm.push(scene.measure(EACH, true).await?);
        busy.push(scene.measure(EACH, false).await?);
        let told = [&calm, &busy].map(|rounds| rounds.last().map_or(f64::NAN, |samples| quantile(samples, 990)));
        bench.say(&format!("round {round}: p99 {:.1} ms, while others roll out {:.1} ms", told[0], told[1]));
    }
    let flood = flood::run(bench, &mut scene).await?;
    scene.stop().await?;

    let mut rows = Vec::new();
    let limit = Target::AtMost { limit: LIMIT_MS };
    for (what, rounds, target) in
        [("push to deployment requested", &calm, Some(limit)), ("the same while other stages roll out", &busy, None)]
    {
        let all: Vec<Duration> = rounds.concat();
        for (name, permille) in [("p50", 500), ("p99", 990)] {
            let row = Row::new(format!("webhook: {what}, {name}"), Unit::Milliseconds)
                .ours(rounds.iter().map(|samples| quantile(samples, permille)).collect())
                .note(format!(
                    "from sending the message to its answer, which is given after the commit; {EACH} pushes a round to \
                     {PROJECTS} stages in turn; {name} of all {} together {:.1} ms, the slowest {:.1} ms",
                    all.len(),
                    quantile(&all, permille),
                    quantile(&all, 1000)
                ));
            rows.push(match target {
                Some(target) if name == "p99" => row.target(target),
                _ => row,
            });
        }
    }
    rows.extend(flood);
    Ok(rows)
}

struct Scene<'a> {
    installation: Sluice,
    registry: &'a Registry,
    http: reqwest::Client,
    hook: String,
    secret: String,
    stages: Vec<Followed>,
    log: EventLog,
    /// Of all stages.
    events: Events,
}

/// A stage that follows the tag of its repository.
struct Followed {
    repository: String,
    /// What the tag means in turn.
    manifests: Vec<Manifest>,
    moves: usize,
    /// The deployment that has not ended.
    running: Option<DeploymentId>,
}

struct Manifest {
    digest: HeaderValue,
    body: Vec<u8>,
}

/// The answer to a message.
#[derive(Deserialize)]
struct Received {
    stages: Vec<Heard>,
}

impl Scene<'_> {
    /// Every stage runs the first version.
    async fn start<'a>(bench: &Bench, docker: &Docker, registry: &'a Registry) -> Result<Scene<'a>> {
        let http = reqwest::Client::builder().no_proxy().build()?;
        for version in VERSIONS {
            SampleImage::new(version).load(docker, &format!("sluice-bench-webhook:{version}")).await?;
        }
        let mut stages = Vec::new();
        for project in 0..PROJECTS {
            let repository = format!("p{project}");
            let mut manifests = Vec::new();
            for version in VERSIONS {
                let local = format!("sluice-bench-webhook:{version}");
                registry.push(docker, &local, &format!("{repository}:{version}")).await?;
                manifests.push(manifest(&http, registry, &repository, version).await?);
            }
            stages.push(Followed { repository, manifests, moves: 0, running: None });
        }
        let mut installation = Sluice::prepare(&bench.sluice, docker.host())?;
        installation.set("LOG", "error");
        installation.start().await?;
        let host = registry.address();
        installation.run(&["registry", "set", host, "--poll", "0s"]).await?;
        let made = ["hook", "set", "images", "--source", "distribution", "--registry", host];
        let made = installation.json(&made).await?;
        let secret = made["secret"].as_str().context("a new hook shows its secret")?.to_owned();
        let hook = format!("http://{}/hooks/distribution/images", installation.api());
        let log = event_log(&installation).await?;
        let events = Box::pin(log.follow("sluice.events.stage.>", 0));
        let mut scene = Scene { installation, registry, http, hook, secret, stages, log, events };
        for project in 0..PROJECTS {
            scene.move_tag(project).await?;
            let repository = format!("{host}/{}", scene.stages[project].repository);
            let declaration = format!(
                "project: p{project}
stages:
  dev:
    image: {repository}
    policy: {{tag: {TAG}}}
    queue: supersede
    health: {{check: running, interval: 50ms, retries: 1}}
    stop_grace: 1s
    keep: 1
"
            );
            scene.installation.apply(&declaration).await?;
            let first = timeout(LOST, scene.requested()).await.context("the policy requests nothing")??;
            scene.stages[project].running = Some(first);
            scene.idle(project).await?;
        }
        Ok(scene)
    }

    async fn stop(mut self) -> Result<()> {
        for stage in 0..PROJECTS {
            self.idle(stage).await?;
        }
        self.log.close().await;
        self.installation.stop().await
    }

    /// So many pushes to the stages in turn. With `calm`, what each of them deploys has ended before the next; else
    /// only what runs on the same stage.
    async fn measure(&mut self, pushes: usize, calm: bool) -> Result<Vec<Duration>> {
        for stage in 0..PROJECTS {
            self.idle(stage).await?;
        }
        let mut samples = Vec::new();
        for push in 0..pushes {
            let stage = push % PROJECTS;
            self.idle(stage).await?;
            self.move_tag(stage).await?;
            samples.push(self.tell(stage).await?);
            if calm {
                self.idle(stage).await?;
            }
        }
        Ok(samples)
    }

    /// Gives the tag of a stage's repository its next meaning. The bytes are in the registry already.
    async fn move_tag(&mut self, stage: usize) -> Result<()> {
        let followed = &mut self.stages[stage];
        followed.moves += 1;
        let manifest = followed.current();
        let url = format!("http://{}/v2/{}/manifests/{TAG}", self.registry.address(), followed.repository);
        let put = self.http.put(url).header(CONTENT_TYPE, MANIFEST).body(manifest.body.clone());
        put.send().await?.error_for_status().context("moving a tag")?;
        Ok(())
    }

    /// What the registry would say of a moved tag.
    fn message(&self, stage: usize, secret: &str) -> Result<reqwest::Request> {
        let followed = &self.stages[stage];
        let (manifest, host) = (followed.current(), self.registry.address());
        let digest = manifest.digest.to_str().context("a digest")?;
        let (length, repository) = (manifest.body.len(), &followed.repository);
        let event = json!({
            "id": runtime::clock::new_id(),
            "timestamp": runtime::clock::now(),
            "action": "push",
            "target": {
                "mediaType": MANIFEST, "digest": digest, "size": length, "length": length, "repository": repository,
                "url": format!("http://{host}/v2/{repository}/manifests/{digest}"), "tag": TAG,
            },
            "request": {
                "id": runtime::clock::new_id(), "addr": "127.0.0.1:1", "host": host, "method": "PUT",
                "useragent": "docker/27",
            },
            "actor": {},
            "source": { "addr": host, "instanceID": runtime::clock::new_id() },
        });
        let body = serde_json::to_vec(&json!({ "events": [event] }))?;
        Ok(self.http.post(&self.hook).bearer_auth(secret).header(CONTENT_TYPE, MESSAGE).body(body).build()?)
    }

    /// Tells of the moved tag. Gives how long the request of a deployment took.
    async fn tell(&mut self, stage: usize) -> Result<Duration> {
        let message = self.message(stage, &self.secret)?;
        let sent = Instant::now();
        let answer = self.http.execute(message).await?.error_for_status()?.bytes().await?;
        let took = sent.elapsed();

        let Received { stages } = serde_json::from_slice(&answer).context("reading the answer to a message")?;
        let [Heard { finding: Finding::Requested { deployment, .. }, .. }] = stages.as_slice() else {
            bail!("a push was not deployed: {stages:?}");
        };
        self.stages[stage].running = Some(*deployment);
        Ok(took)
    }

    /// Waits until what runs on a stage has ended well, and so has been requested.
    async fn idle(&mut self, stage: usize) -> Result<()> {
        let end = async {
            while self.stages[stage].running.is_some() {
                let (deployment, succeeded) = match self.next().await? {
                    stage::Event::Succeeded { deployment } => (deployment, true),
                    stage::Event::Failed { deployment, .. }
                    | stage::Event::RolledBack { deployment, .. }
                    | stage::Event::Superseded { deployment, .. }
                    | stage::Event::Cancelled { deployment } => (deployment, false),
                    _ => continue,
                };
                ensure!(succeeded, "{deployment} did not succeed");
                let ended = self.stages.iter_mut().find(|followed| followed.running == Some(deployment));
                ended.with_context(|| format!("nobody pushed what {deployment} deployed"))?.running = None;
            }
            Ok(())
        };
        timeout(LOST, end).await.context("a deployment does not end")?
    }

    /// The next deployment that is requested anywhere.
    async fn requested(&mut self) -> Result<DeploymentId> {
        loop {
            if let stage::Event::Requested { deployment, .. } = self.next().await? {
                return Ok(deployment);
            }
        }
    }

    async fn next(&mut self) -> Result<stage::Event> {
        loop {
            if let Event::Stage(event) = self.events.next().await.context("the log ended")??.event {
                return Ok(event);
            }
        }
    }
}

impl Followed {
    /// What the tag means since its last move.
    fn current(&self) -> &Manifest {
        &self.manifests[self.moves % self.manifests.len()]
    }
}

async fn manifest(http: &reqwest::Client, registry: &Registry, repository: &str, tag: &str) -> Result<Manifest> {
    let url = format!("http://{}/v2/{repository}/manifests/{tag}", registry.address());
    let answer = http.get(url).header(ACCEPT, MANIFEST).send().await?.error_for_status().context("reading an image")?;
    let digest = answer.headers().get("docker-content-digest").context("a manifest has a digest")?.clone();
    Ok(Manifest { digest, body: answer.bytes().await?.to_vec() })
}

/// The log of an installation.
async fn event_log(installation: &Sluice) -> Result<EventLog> {
    #[derive(Deserialize)]
    struct Connection {
        nats_url: String,
    }
    let connection =
        std::fs::read(installation.data_dir().join("connection.json")).context("reading connection.json")?;
    let Connection { nats_url: url } = serde_json::from_slice(&connection).context("reading connection.json")?;
    let config = eventlog::Config { url, name: "bench".into(), master_key: None };
    EventLog::connect(&config).await.context("opening the event log")
}
