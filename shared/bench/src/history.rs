//! A log as years of use would leave it: whole deployments with all their steps over many stages, some queued,
//! superseded, failed or cancelled, locks, containers that come and go. Written by the real aggregates, so that every
//! event is one that Sluice itself would write; the same seed gives the same log.

use std::collections::VecDeque;

use anyhow::{Context as _, Result};
use chrono::{DateTime, TimeDelta, Utc};
use domain::{
    Aggregate, Context, DeploymentId, Key, Slug, encode,
    image::{Image, Source},
    project::{self, Declaration, Project},
    registry::{self, Registry},
    route::{self, Host},
    settings::{QueuePolicy, RouteSettings, StageSettings, Strategy},
    stage::{Command, Failure, Instance, Observed, Spec, Stage, Step, next_step},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use uuid::Uuid;

const PROJECTS: usize = 200;
const STAGES: [&str; 3] = ["dev", "staging", "prod"];
const NODE: &str = "local";
/// Stages on which something goes on at the same time.
const BUSY: usize = 16;

/// An event as it is published.
pub(crate) struct Message {
    pub(crate) id: Uuid,
    pub(crate) subject: String,
    pub(crate) body: Vec<u8>,
}

/// An endless history.
pub(crate) struct History {
    random: StdRng,
    now: DateTime<Utc>,
    worker: String,
    projects: Vec<(Slug, Project)>,
    places: Vec<Place>,
    registry: Registry,
    /// Indexes of `places` with a deployment on its way.
    busy: Vec<usize>,
    written: VecDeque<Message>,
    /// Events that send a deployment to a node: the server copies each into the work queue.
    pub(crate) dispatched: u64,
}

/// A stage and what has happened to it.
struct Place {
    project: usize,
    slug: Slug,
    key: Key<Stage>,
    settings: StageSettings,
    state: Stage,
    releases: u32,
    /// Of the deployment on its way.
    correlation: Uuid,
}

impl History {
    pub(crate) fn new(seed: u64) -> Result<History> {
        let mut history = History {
            random: StdRng::seed_from_u64(seed),
            now: DateTime::from_timestamp(1_700_000_000, 0).context("a time")?,
            worker: String::new(),
            projects: Vec::new(),
            places: Vec::new(),
            registry: Registry::default(),
            busy: Vec::new(),
            written: VecDeque::new(),
            dispatched: 0,
        };
        history.worker = format!("{NODE}/{}", history.id());
        for n in 0..PROJECTS {
            history.declare(n)?;
        }
        Ok(history)
    }

    pub(crate) fn next(&mut self) -> Result<Message> {
        loop {
            if let Some(message) = self.written.pop_front() {
                return Ok(message);
            }
            self.happen()?;
        }
    }

    fn happen(&mut self) -> Result<()> {
        match self.random.random_range(0..1000) {
            0..40 => self.observe(),
            40..48 => self.lock(),
            48..50 => self.change_settings(),
            50 => self.sign_in(),
            _ if self.busy.len() < BUSY && (self.busy.is_empty() || self.chance(0.3)) => self.begin(),
            _ => self.advance(),
        }
    }

    fn declare(&mut self, n: usize) -> Result<()> {
        let project: Slug = format!("project-{n}").parse()?;
        let at = self.projects.len();
        self.projects.push((project.clone(), Project::default()));
        let mut stages = std::collections::BTreeMap::new();
        for name in STAGES {
            let slug: Slug = name.parse()?;
            let settings = self.settings(&project, name);
            let key = Key::stage(&project, &slug);
            stages.insert(slug.clone(), settings.clone());
            let (state, correlation) = (Stage::default(), self.id());
            self.places.push(Place { project: at, slug, key, settings, state, releases: 0, correlation });
        }
        let name = Some(format!("Project number {n}"));
        self.project(
            at,
            project::Command::Apply {
                slug: project.clone(),
                declaration: Declaration { name, stages, ..Declaration::default() },
                prune: false,
            },
        )?;
        for name in STAGES {
            let host = Key::<Host>::host(&host(&project, name));
            let claim = route::Command::Claim { path: "/".into(), project: project.clone(), stage: name.parse()? };
            let context = self.context("admin");
            self.decide(&host, &mut Host::default(), claim, &context)?;
        }
        Ok(())
    }

    fn settings(&mut self, project: &Slug, stage: &str) -> StageSettings {
        let recreate = self.chance(0.25);
        StageSettings {
            image: Some(format!("registry.example.com/{project}")),
            port: Some(8080),
            replicas: if stage == "prod" { 3 } else { 1 },
            env: [
                ("LOG".to_owned(), "info".into()),
                ("REGION".to_owned(), "eu-central-1".into()),
                ("STAGE".to_owned(), stage.into()),
            ]
            .into(),
            strategy: if recreate { Strategy::Recreate } else { Strategy::BlueGreen },
            queue: if self.chance(0.2) { QueuePolicy::Keep } else { QueuePolicy::Supersede },
            route: Some(RouteSettings { host: host(project, stage), path: "/".into(), proxy: None }),
            ..StageSettings::default()
        }
    }

    /// A new request on any stage; where another is on its way it waits.
    fn begin(&mut self) -> Result<()> {
        let at = self.random.random_range(0..self.places.len());
        self.request(at)?;
        if !self.busy.contains(&at) && self.places[at].state.active.is_some() {
            self.busy.push(at);
        }
        Ok(())
    }

    fn request(&mut self, at: usize) -> Result<()> {
        self.places[at].releases += 1;
        let (id, digest) = (self.id(), format!("{:032x}{:032x}", self.number(), self.number()));
        let place = &self.places[at];
        let repository = place.settings.image.clone().unwrap_or_default();
        let image = Image {
            requested: format!("{repository}:v1.{}.0", place.releases),
            digest: format!("sha256:{digest}"),
            source: Source::Registry,
        };
        let spec = Spec { image, settings: place.settings.clone() };
        if place.state.active.is_none() {
            self.places[at].correlation = id;
        }
        self.stage(
            at,
            "admin",
            Command::Request { deployment: DeploymentId(id), spec, node: NODE.into(), by: "ana".into() },
        )
    }

    /// The next thing to happen to a deployment on its way.
    fn advance(&mut self) -> Result<()> {
        let nth = self.random.random_range(0..self.busy.len());
        let at = self.busy[nth];
        let Some(active) = self.places[at].state.active.as_ref() else {
            self.busy.swap_remove(nth);
            return Ok(());
        };
        let (deployment, worker) = (active.deployment, self.worker.clone());
        let (started, step) = (active.worker.is_some(), next_step(active));
        let of = self.worker_name();
        match (started, step, self.random.random_range(0..1000)) {
            (_, _, 0..12) => self.request(at),
            (_, _, 12..16) => {
                let reason = Some("not this one, please".to_owned());
                self.stage(at, "admin", Command::Cancel { deployment, reason })
            }
            (false, _, _) | (true, None, _) => self.stage(at, &of, Command::Start { deployment, worker }),
            (true, Some(step), 16..36) => {
                let (elapsed_ms, failure) = (self.elapsed(), self.failure(step));
                self.stage(at, &of, Command::Fail { deployment, worker, elapsed_ms, failure })
            }
            (true, Some(step), _) => {
                let instances = if step == Step::Create { self.instances(at, deployment) } else { vec![] };
                let elapsed_ms = self.elapsed();
                self.stage(at, &of, Command::Complete { deployment, worker, step, elapsed_ms, instances })
            }
        }
    }

    fn failure(&mut self, step: Step) -> Failure {
        let line = |n| format!("2026-01-01T00:00:0{n}Z ERROR cannot connect to database: connection refused");
        Failure {
            step,
            code: "exited".into(),
            message: "the container ended with exit code 1 before it was healthy".into(),
            hint: "read its output below, correct the image or its environment, and deploy again".into(),
            log: (0..self.random.random_range(1..9)).map(line).collect(),
        }
    }

    fn instances(&mut self, at: usize, deployment: DeploymentId) -> Vec<Instance> {
        let place = &self.places[at];
        let (project, stage) = (&self.projects[place.project].0, &place.slug);
        let name = |n| format!("{project}-{stage}-{}-{n}", &deployment.0.simple().to_string()[..8]);
        let names: Vec<String> = (1..=place.settings.replicas).map(name).collect();
        let mut instance = |name| Instance {
            name,
            container: format!("{:032x}{:032x}", self.number(), self.number()),
            address: Some(format!(
                "172.17.{}.{}:8080",
                self.random.random_range(0..256),
                self.random.random_range(2..255)
            )),
        };
        names.into_iter().map(&mut instance).collect()
    }

    /// What the engine says about a container of a release that serves.
    fn observe(&mut self) -> Result<()> {
        let at = self.random.random_range(0..self.places.len());
        let Some(release) = &self.places[at].state.current else { return Ok(()) };
        let Some(instance) = release.instances.first() else { return Ok(()) };
        let (deployment, instance, address) = (release.deployment, instance.name.clone(), instance.address.clone());
        let story = match self.random.random_range(0..4) {
            0 => vec![Observed::HealthChanged { healthy: false }, Observed::HealthChanged { healthy: true }],
            1 => vec![Observed::OomKilled, Observed::Exited { exit_code: 137 }, Observed::Started { address }],
            _ => vec![
                Observed::Exited { exit_code: 1 },
                Observed::Started { address },
                Observed::HealthChanged { healthy: true },
            ],
        };
        let of = self.worker_name();
        for observed in story {
            self.stage(at, &of, Command::Observe { set: deployment, instance: instance.clone(), observed })?;
        }
        Ok(())
    }

    fn lock(&mut self) -> Result<()> {
        let at = self.random.random_range(0..self.places.len());
        let command = match &self.places[at].state.lock {
            Some(lock) => Command::Unlock { owner: lock.owner.clone(), force: false },
            None => Command::Lock { owner: "admin".into(), reason: "a migration runs until tomorrow".into() },
        };
        let unlocked_at_once = matches!(command, Command::Lock { .. });
        self.stage(at, "admin", command)?;
        if unlocked_at_once && self.chance(0.9) {
            self.stage(at, "admin", Command::Unlock { owner: "admin".into(), force: false })?;
        }
        Ok(())
    }

    fn change_settings(&mut self) -> Result<()> {
        let at = self.random.random_range(0..self.places.len());
        let version = self.random.random_range(0..1_000_000);
        let place = &mut self.places[at];
        place.settings.env.insert("FEATURES".into(), format!("set-{version}").as_str().into());
        let (project, stage, settings) = (place.project, place.slug.clone(), place.settings.clone());
        self.project(project, project::Command::ApplyStage { stage, settings: Box::new(settings) })
    }

    fn sign_in(&mut self) -> Result<()> {
        let (host, username) = ("registry.example.com".to_owned(), "ci".to_owned());
        let key = Key::registry(&host)?;
        let version = self.random.random_range(1..1_000_000);
        let set = registry::Command::SetCredentials { host, username, secret: key.secret(), version };
        let context = self.context("admin");
        let mut state = std::mem::take(&mut self.registry);
        let decided = self.decide(&key, &mut state, set, &context);
        self.registry = state;
        decided
    }

    fn project(&mut self, at: usize, command: project::Command) -> Result<()> {
        let context = self.context("admin");
        let (slug, mut state) = (self.projects[at].0.clone(), std::mem::take(&mut self.projects[at].1));
        let decided = self.decide(&Key::project(&slug), &mut state, command, &context);
        self.projects[at].1 = state;
        decided
    }

    fn stage(&mut self, at: usize, actor: &str, command: Command) -> Result<()> {
        let context = Context { correlation_id: self.places[at].correlation, ..self.context(actor) };
        let place = &mut self.places[at];
        let (key, mut state) = (place.key.clone(), std::mem::take(&mut place.state));
        let decided = self.decide(&key, &mut state, command, &context);
        self.places[at].state = state;
        decided
    }

    /// What is refused does not become history.
    fn decide<A: Aggregate>(
        &mut self,
        key: &Key<A>,
        state: &mut A,
        command: A::Command,
        context: &Context,
    ) -> Result<()> {
        for event in state.decide(command).unwrap_or_default() {
            state.evolve(&event);
            let id = self.id();
            let (subject, body) = encode(key, &event, id, context)?;
            self.dispatched += u64::from(subject.contains(".deployment.dispatched."));
            self.written.push_back(Message { id, subject, body });
        }
        Ok(())
    }

    fn context(&mut self, actor: &str) -> Context {
        self.now += TimeDelta::microseconds(self.random.random_range(1_000..2_000_000));
        let command_id = self.id();
        Context {
            time: self.now,
            actor: actor.to_owned(),
            correlation_id: command_id,
            causation_id: None,
            command_id,
            command_hash: None,
            request_id: (actor == "admin").then(|| command_id.to_string()),
            traceparent: None,
        }
    }

    fn worker_name(&self) -> String {
        format!("deployer/{NODE}")
    }

    fn elapsed(&mut self) -> u64 {
        self.random.random_range(1..3_000)
    }

    fn chance(&mut self, of_one: f64) -> bool {
        self.random.random_bool(of_one)
    }

    fn number(&mut self) -> u128 {
        self.random.random()
    }

    fn id(&mut self) -> Uuid {
        let millis = u64::try_from(self.now.timestamp_millis()).unwrap_or_default();
        uuid::Builder::from_unix_timestamp_millis(millis, &self.random.random()).into_uuid()
    }
}

fn host(project: &Slug, stage: &str) -> String {
    format!("{stage}.{project}.example.com")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn the_mix_holds_every_outcome_and_the_same_seed_gives_the_same_log() {
        let (mut one, mut two) = (History::new(7).expect("it begins"), History::new(7).expect("it begins"));
        let mut kinds: BTreeMap<String, u32> = BTreeMap::new();
        for sequence in 1..=20_000 {
            let (message, same) = (one.next().expect("it goes on"), two.next().expect("it goes on"));
            assert_eq!(message.body, same.body);
            let recorded = domain::decode(sequence, &message.subject, &message.body).expect("it decodes");
            *kinds.entry(recorded.kind.trim_start_matches("dev.sluice.").to_owned()).or_default() += 1;
        }
        for (kind, at_least) in [
            ("stage.deployment.succeeded.v1", 1_000),
            ("stage.deployment.failed.v1", 40),
            ("stage.deployment.cancelled.v1", 20),
            ("stage.deployment.superseded.v1", 1),
            ("stage.deployment.rolled_back.v1", 1),
            ("stage.deployment.held.v1", 100),
            ("stage.instance.oom_killed.v1", 40),
            ("stage.lock.acquired.v1", 100),
            ("project.stage.changed.v1", 5),
            ("registry.credentials.set.v1", 1),
            ("route.claimed.v1", 600),
        ] {
            assert!(kinds.get(kind).is_some_and(|count| *count >= at_least), "{kind}: {kinds:?}");
        }
    }
}
