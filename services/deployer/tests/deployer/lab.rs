//! A deployer with a real NATS and a real Docker, and an edge that does nothing but what a deployer
//! can see of one.

use std::{collections::BTreeMap, pin::pin, sync::Arc, time::Duration};

use bollard::{
    models::ContainerSummary,
    query_parameters::{ListContainersOptionsBuilder, RemoveContainerOptionsBuilder},
};
use deployer::{Config, Deadlines};
use domain::{
    DeploymentId, Event, Key, Slug, Span,
    image::{Image, Source},
    node::{Resolve, Resolved, resolve_subject},
    settings::{Check, HealthCheck, RouteSettings, StageSettings},
    stage::{self, Command, Failure, Outcome, Spec, Stage},
    traffic::{ROUTES, Route, Target},
};
use eventlog::{EventLog, LogFilter};
use futures::{StreamExt, stream::BoxStream};
use tempfile::TempDir;
use testkit::{Docker, Nats, Relay, SampleImage};
use tokio::{
    task::JoinHandle,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::edge::FakeEdge;

/// No test waits longer for anything: what is late is lost.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Lab {
    pub(crate) docker: Arc<Docker>,
    pub(crate) log: EventLog,
    pub(crate) project: Slug,
    pub(crate) stage: Slug,
    pub(crate) edge: Option<FakeEdge>,
    pub(crate) nats: Nats,
    /// Of the deployers that are started from now on.
    pub(crate) deadlines: Deadlines,
    pub(crate) concurrency: usize,
    deployer: Option<Deployer>,
    directory: TempDir,
}

/// A deployer that runs in this process.
pub(crate) struct Deployer {
    shutdown: CancellationToken,
    running: JoinHandle<anyhow::Result<()>>,
}

impl Deployer {
    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        timeout(PATIENCE, self.running).await.expect("ends in time").expect("no panic").expect("ends well");
    }
}

impl Lab {
    /// Everything up, nothing deployed.
    pub(crate) async fn new() -> Lab {
        let mut lab = Lab::without_edge().await;
        lab.edge = Some(FakeEdge::start(&lab.log).await);
        lab.start_deployer().await;
        lab
    }

    /// Neither edge nor deployer run yet.
    pub(crate) async fn without_edge() -> Lab {
        let docker = Docker::connect_or_start().await.expect("an engine");
        Lab::on(docker).await
    }

    /// With an edge and the deadlines of an impatient deployer, which does not run yet.
    pub(crate) async fn impatient() -> Lab {
        let mut lab = Lab::without_edge().await;
        lab.make_impatient().await;
        lab
    }

    pub(crate) async fn make_impatient(&mut self) {
        self.edge = Some(FakeEdge::start(&self.log).await);
        self.deadlines = Deadlines {
            alive: Duration::from_secs(1),
            quick: Duration::from_secs(2),
            slow: Duration::from_secs(2),
            registry: Duration::from_secs(2),
            pull_silence: Duration::from_secs(2),
            spare: Duration::from_secs(2),
            sweep: Duration::from_secs(1),
            ..Deadlines::default()
        };
    }

    pub(crate) async fn on(docker: Docker) -> Lab {
        let nats = Nats::start().await.expect("nats-server starts");
        let directory = TempDir::new().expect("a directory");
        eventlog::vault::create_key(&directory.path().join("master.key")).expect("a master key");
        let log = connect(nats.url(), &directory).await;
        // Several tests share an engine: names must not meet.
        let project = format!("t{}", &log.installation().simple().to_string()[..12]).parse().expect("a good name");
        let stage = "dev".parse().expect("a good name");
        Lab {
            docker: Arc::new(docker),
            log,
            project,
            stage,
            edge: None,
            nats,
            deadlines: Deadlines::default(),
            concurrency: 4,
            deployer: None,
            directory,
        }
    }

    pub(crate) async fn start_deployer(&mut self) {
        self.start_deployer_on(self.docker.host().to_owned()).await;
    }

    /// `host` as in `DOCKER_HOST`.
    pub(crate) async fn start_deployer_on(&mut self, host: String) {
        self.deployer = Some(self.spawn_deployer(host, self.log.clone()).await);
    }

    /// A deployer beside the lab's own, with its own connections.
    pub(crate) async fn spawn_deployer(&self, host: String, log: EventLog) -> Deployer {
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(deployer::run(self.config(host), log, shutdown.clone()));
        self.deployer_answers().await;
        Deployer { shutdown, running }
    }

    pub(crate) fn config(&self, host: String) -> Config {
        let worker = runtime::clock::new_id().to_string();
        let (concurrency, deadlines) = (self.concurrency, self.deadlines.clone());
        Config {
            node: "local".into(),
            docker: Some(host),
            concurrency,
            worker,
            deadlines,
            outgoing: Default::default(),
        }
    }

    /// It answers when it is there.
    pub(crate) async fn deployer_answers(&self) {
        let subject = domain::node::health_subject("local");
        timeout(PATIENCE, async {
            // One that was killed may still be subscribed in the server's eyes.
            while self.log.request(&subject, vec![], Duration::from_secs(1)).await.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await
        .expect("the deployer answers");
    }

    /// As a crash of its process would, but for the connection to NATS.
    pub(crate) fn kill_deployer(&mut self) {
        self.deployer.take().expect("a deployer runs").running.abort();
    }

    pub(crate) async fn stop_deployer(&mut self) {
        self.deployer.take().expect("a deployer runs").stop().await;
    }

    /// A relay in front of this lab's NATS.
    pub(crate) async fn nats_relay(&self) -> Relay {
        let (_, address) = self.nats.url().rsplit_once('@').expect("an address");
        Relay::tcp(address).await.expect("a relay")
    }

    /// The log through `relay`.
    pub(crate) async fn connect(&self, relay: &Relay) -> EventLog {
        self.connector(relay).await
    }

    /// Connects wherever it is awaited.
    pub(crate) fn connector(&self, relay: &Relay) -> impl Future<Output = EventLog> + Send + use<> {
        let (credentials, _) = self.nats.url().rsplit_once('@').expect("an address");
        connect(&format!("{credentials}@{}", relay.address()), &self.directory)
    }

    /// A relay in front of the engine.
    pub(crate) async fn engine_relay(&self) -> Relay {
        Relay::unix(self.docker.host()).await.expect("a relay")
    }

    /// Loads a sample image under a name of this test's own, and answers what a resolver would.
    pub(crate) async fn image(&self, tag: &str, image: SampleImage) -> Image {
        let reference = format!("{}:{tag}", self.project);
        image.load(&self.docker, &reference).await.expect("the image loads");
        let found = self.docker.client().inspect_image(&reference).await.expect("the image is there");
        Image { requested: reference, digest: found.id.expect("an id"), source: Source::Local }
    }

    /// Settings whose every wait is short.
    pub(crate) fn settings(&self) -> StageSettings {
        let health = HealthCheck {
            check: Check::Http,
            path: Some("/healthz".into()),
            interval: Span::millis(100),
            timeout: Span::secs(2),
            retries: 2,
            start_period: Span::millis(500),
            ..HealthCheck::default()
        };
        let route = Some(RouteSettings { host: format!("{}.test", self.project), path: "/".into(), proxy: None });
        StageSettings { health, route, stop_grace: Span::secs(2), drain: Span::secs(3), ..StageSettings::default() }
    }

    pub(crate) fn key(&self) -> Key<Stage> {
        Key::stage(&self.project, &self.stage)
    }

    pub(crate) async fn execute(&self, command: Command) {
        self.log.execute(&self.key(), command, &runtime::clock::context("test")).await.expect("accepted");
    }

    pub(crate) async fn state(&self) -> Stage {
        self.log.load(&self.key()).await.expect("loads").state
    }

    pub(crate) async fn request(&self, image: Image, settings: StageSettings) -> DeploymentId {
        let deployment = DeploymentId(runtime::clock::new_id());
        self.execute(Command::Request {
            deployment,
            spec: Spec { image, settings },
            node: "local".into(),
            by: "ana".into(),
        })
        .await;
        deployment
    }

    /// Requests it and waits for its end.
    pub(crate) async fn deploy(&self, image: Image, settings: StageSettings) -> Run {
        let deployment = self.request(image, settings).await;
        self.end(deployment).await
    }

    /// Waits until `relay` holds back the request that it was told to.
    pub(crate) async fn stalled(&self, relay: &Relay, what: &str) {
        if timeout(PATIENCE, relay.stalled()).await.is_err() {
            panic!("nobody asked for {what}, but: {:#?}", relay.requests());
        }
    }

    /// Cancels it; answers when that was accepted.
    pub(crate) async fn cancel(&self, deployment: DeploymentId) -> Instant {
        self.execute(Command::Cancel { deployment, reason: None }).await;
        Instant::now()
    }

    /// Waits until a step of `deployment` has said something that contains `text`.
    pub(crate) async fn noted(&self, deployment: DeploymentId, text: &str) {
        self.said(deployment, text, |source| source == "step").await;
    }

    /// Waits until a container of `deployment` has written something that contains `text`.
    pub(crate) async fn printed(&self, deployment: DeploymentId, text: &str) {
        self.said(deployment, text, |source| source != "step").await;
    }

    async fn said(&self, deployment: DeploymentId, text: &str, by: impl Fn(&str) -> bool) {
        let filter =
            LogFilter { project: self.project.clone(), stage: self.stage.clone(), deployment: Some(deployment) };
        let mut said = Vec::new();
        let waited = timeout(PATIENCE, async {
            let mut lines = pin!(self.log.logs().read(filter, 1000, true));
            loop {
                let entry = lines.next().await.expect("no end").expect("readable");
                said.push(entry.line.text);
                if by(&entry.source) && said.last().is_some_and(|last| last.contains(text)) {
                    return;
                }
            }
        });
        if waited.await.is_err() {
            panic!("never said: {text}; but: {said:#?}");
        }
    }

    /// The stage's events from the first on.
    pub(crate) fn events(&self) -> BoxStream<'static, stage::Event> {
        let filter = self.key().filter();
        self.log
            .follow(&filter, 0)
            .map(|recorded| match recorded.expect("readable").event {
                Event::Stage(event) => event,
                other => panic!("a stage's subject holds {other:?}"),
            })
            .boxed()
    }

    /// Waits for an event of the stage, from the first on.
    pub(crate) async fn saw(&self, what: &str, mut is: impl FnMut(&stage::Event) -> bool) -> stage::Event {
        let mut events = self.events();
        timeout(PATIENCE, async {
            loop {
                let event = events.next().await.expect("the log does not end");
                if is(&event) {
                    return event;
                }
            }
        })
        .await
        .unwrap_or_else(|_| panic!("never happened: {what}"))
    }

    /// Waits for an event of `deployment`.
    pub(crate) async fn saw_of(&self, deployment: DeploymentId, what: &str, is: impl Fn(&stage::Event) -> bool) {
        let id = deployment.to_string();
        let of = |event: &stage::Event| {
            serde_json::to_value(event).is_ok_and(|json| json["data"]["deployment"].as_str() == Some(&id))
        };
        self.saw(what, |event| is(event) && of(event)).await;
    }

    /// How `deployment` went.
    pub(crate) async fn end(&self, deployment: DeploymentId) -> Run {
        let mut run = Run { deployment, outcome: Outcome::Succeeded, failure: None, names: vec![] };
        let mut seen = Vec::new();
        let waited = timeout(PATIENCE, async {
            let mut events = pin!(self.events());
            loop {
                let event = events.next().await.expect("the log does not end");
                seen.push(name(&event));
                if run.take(event) {
                    return;
                }
            }
        });
        if waited.await.is_err() {
            panic!("the deployment did not end; seen: {seen:#?}");
        }
        // What follows the last event has followed when the command has left the queue.
        run
    }

    /// Asks as the API does.
    pub(crate) async fn resolve(&self, reference: &str) -> Resolved {
        let question = serde_json::to_vec(&Resolve { reference: reference.into() }).expect("JSON");
        let answer = self.log.request(&resolve_subject("local"), question, PATIENCE).await.expect("an answer");
        serde_json::from_slice(&answer).expect("readable")
    }

    pub(crate) async fn route(&self) -> Option<Route> {
        let entry = self.log.bucket(ROUTES).get(&format!("{}.{}", self.project, self.stage)).await.expect("readable");
        entry.map(|entry| serde_json::from_slice(&entry.value).expect("a route"))
    }

    /// The deployment that the route points to, and where.
    pub(crate) async fn live(&self) -> Option<(DeploymentId, Vec<String>)> {
        match self.route().await?.target {
            Target::Live(set) => Some((set.deployment, set.upstreams.into_iter().map(|u| u.address).collect())),
            Target::Held { .. } => None,
        }
    }

    /// Waits until the route points to `deployment`.
    pub(crate) async fn live_is(&self, deployment: DeploymentId) {
        let waited = timeout(PATIENCE, async {
            while self.live().await.is_none_or(|(live, _)| live != deployment) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        if waited.await.is_err() {
            panic!("the route never pointed to {deployment}: {:?}", self.route().await);
        }
    }

    /// This test's containers with their deployment, running or not.
    pub(crate) async fn containers(&self) -> Vec<(DeploymentId, ContainerSummary)> {
        let label = format!("dev.sluice.installation={}", self.log.installation());
        let filters = std::collections::HashMap::from([("label", vec![label])]);
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        let listed = self.docker.client().list_containers(Some(options)).await.expect("listed");
        let id = |c: &ContainerSummary| c.labels.as_ref()?.get("dev.sluice.deployment")?.parse().ok();
        listed.into_iter().map(|c| (id(&c).expect("labelled"), c)).collect()
    }

    /// The name of the project's network.
    pub(crate) fn network(&self) -> String {
        format!("sluice-{}-{}", self.project, &self.log.installation().simple().to_string()[24..])
    }

    /// Of this test's containers, by name.
    pub(crate) async fn addresses(&self) -> BTreeMap<String, String> {
        let address = |container: ContainerSummary| {
            let name = container.names?.first()?.trim_start_matches('/').to_owned();
            let network = container.network_settings?.networks?.into_values().next()?;
            Some((name, network.ip_address?))
        };
        self.containers().await.into_iter().filter_map(|(_, container)| address(container)).collect()
    }

    /// Deployments with their number of running and of all containers.
    pub(crate) async fn standing(&self) -> BTreeMap<DeploymentId, (usize, usize)> {
        let mut standing = BTreeMap::new();
        for (deployment, container) in self.containers().await {
            let (running, all) = standing.entry(deployment).or_insert((0, 0));
            *running += usize::from(container.state.is_some_and(|state| state.to_string() == "running"));
            *all += 1;
        }
        standing
    }

    /// Waits until `is` holds of [`Lab::standing`].
    pub(crate) async fn stands(&self, what: &str, is: impl Fn(&BTreeMap<DeploymentId, (usize, usize)>) -> bool) {
        let waited = timeout(PATIENCE, async {
            while !is(&self.standing().await) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        if waited.await.is_err() {
            panic!("never so: {what}; standing: {:?}", self.standing().await);
        }
    }

    /// Ends the deployer and leaves the shared engine as it was found.
    pub(crate) async fn close(mut self) {
        if self.deployer.is_some() {
            self.stop_deployer().await;
        }
        let client = self.docker.client();
        for (_, container) in self.containers().await {
            let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
            match client.remove_container(&container.id.expect("an id"), Some(options)).await {
                // A call that a deployer had begun may reach the engine after its end.
                Ok(()) | Err(bollard::errors::Error::DockerResponseServerError { status_code: 404, .. }) => {}
                Err(error) => panic!("not removed: {error}"),
            }
        }
        // Gone already where the stage was removed.
        let _ = client.remove_network(&self.network()).await;
    }
}

fn connect(url: &str, directory: &TempDir) -> impl Future<Output = EventLog> + Send + use<> {
    let master_key = Some(directory.path().join("master.key"));
    let config = eventlog::Config { url: url.to_owned(), name: "test".into(), master_key };
    async move { EventLog::connect(&config).await.expect("the log opens") }
}

/// What became of a deployment.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) deployment: DeploymentId,
    pub(crate) outcome: Outcome,
    pub(crate) failure: Option<Failure>,
    /// Its events by name, as stored.
    pub(crate) names: Vec<String>,
}

impl Run {
    /// Whether `event` ended it.
    fn take(&mut self, event: stage::Event) -> bool {
        let json = serde_json::to_value(&event).expect("an event");
        if json["data"]["deployment"] != self.deployment.to_string() {
            return false;
        }
        let name = name(&event);
        if !name.starts_with("instance.") {
            self.names.push(name);
        }
        let (outcome, failure) = match event {
            stage::Event::Succeeded { .. } => (Outcome::Succeeded, None),
            stage::Event::Failed { failure, .. } => (Outcome::Failed, Some(failure)),
            stage::Event::RolledBack { failure, .. } => (Outcome::RolledBack, Some(failure)),
            stage::Event::Cancelled { .. } => (Outcome::Cancelled, None),
            stage::Event::Superseded { .. } => (Outcome::Superseded, None),
            _ => return false,
        };
        self.outcome = outcome;
        self.failure = failure;
        true
    }

    /// Its failure; panics where it went well.
    pub(crate) fn failure(&self) -> &Failure {
        self.failure.as_ref().unwrap_or_else(|| panic!("it did not fail: {self:?}"))
    }
}

fn name(event: &stage::Event) -> String {
    let json = serde_json::to_value(event).expect("an event");
    let name = json["type"].as_str().expect("a type").trim_end_matches(".v1");
    name.trim_start_matches("deployment.").to_owned()
}
