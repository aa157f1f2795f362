//! Watchers on a real log, a scripted registry, and a node that knows what the registry has.

use std::{path::PathBuf, pin::pin, sync::Arc};

use domain::{
    DeploymentId, Event, Key, Slug, Span,
    image::{Image, Reference, Source},
    node::{Resolve, ResolveError, resolve_subject},
    policy::TagPolicy,
    project::{self, Declaration, Project},
    push::{self, Answer, Finding, Heard, LOOKS, Look, Pushed, Told, What},
    registry::{self, RegistrySettings},
    settings::StageSettings,
    stage::{self, Command, Spec, Stage},
};
use eventlog::{Config, EventLog, Secret};
use futures::StreamExt;
use testkit::Nats;
use tokio::{task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::registry::{PASSWORD, PATIENCE, Registry, USER};

const NODE: &str = "local";

pub(crate) struct Lab {
    nats: Nats,
    directory: tempfile::TempDir,
    pub(crate) log: EventLog,
    pub(crate) registry: Arc<Registry>,
    tasks: JoinSet<()>,
}

pub(crate) fn slug(text: &str) -> Slug {
    text.parse().expect("a good name")
}

pub(crate) fn stage_key(stage: &str) -> Key<Stage> {
    Key::stage(&slug("shop"), &slug(stage))
}

pub(crate) fn follow(tag: &str) -> TagPolicy {
    TagPolicy { tag: Some(tag.into()), ..TagPolicy::default() }
}

pub(crate) fn semver(range: &str) -> TagPolicy {
    TagPolicy { semver: Some(range.into()), ..TagPolicy::default() }
}

impl Lab {
    pub(crate) async fn start(registry: Registry) -> Lab {
        let nats = Nats::start().await.expect("NATS starts");
        let directory = tempfile::tempdir().expect("a directory");
        let log = connect(&nats, directory.path().join("key")).await;
        let mut lab = Lab { nats, directory, log, registry: Arc::new(registry), tasks: JoinSet::new() };
        lab.serve_node().await;
        // As often as can be declared.
        lab.configure(RegistrySettings { poll: Span::secs(1), ..RegistrySettings::default() }).await;
        lab
    }

    /// Another watcher, and what ends it.
    pub(crate) async fn watch(&mut self) -> CancellationToken {
        let (log, stop) = (connect(&self.nats, self.directory.path().join("key")).await, CancellationToken::new());
        let (config, ended) = (watcher::Config { node: NODE.into(), outgoing: Default::default() }, stop.clone());
        self.tasks.spawn(async move { watcher::run(config, log, ended).await.expect("ends in order") });
        stop
    }

    /// Answers as a deployer does, out of the registry's own books.
    async fn serve_node(&mut self) {
        let mut questions = Box::pin(self.log.serve(&resolve_subject(NODE)).await.expect("served"));
        let registry = self.registry.clone();
        self.tasks.spawn(async move {
            while let Some(request) = questions.next().await {
                let Resolve { reference: text } = serde_json::from_slice(&request.payload).expect("a question");
                let reference = Reference::parse(&text).expect("a reference");
                let path = reference.repository.split_once('/').expect("with its registry").1;
                let meant = reference.tag.and_then(|tag| registry.digest(path, &tag));
                let answer = match reference.digest.or(meant) {
                    Some(digest) => Ok(Image { requested: text, digest, source: Source::Registry }),
                    None => Err(ResolveError { code: "image_not_found".into(), message: text, hint: String::new() }),
                };
                request.reply(serde_json::to_vec(&answer).expect("JSON")).await.expect("answered");
            }
        });
    }

    pub(crate) async fn configure(&self, settings: RegistrySettings) {
        let host = self.registry.address.to_string();
        self.on_registry(registry::Command::Configure { host, settings }).await;
    }

    pub(crate) async fn sign_in(&self, password: &str) {
        let version = self.log.vault().put("registry/test", &Secret::new(password)).await.expect("sealed");
        let (host, username) = (self.registry.address.to_string(), USER.to_owned());
        let secret = "registry/test".to_owned();
        self.on_registry(registry::Command::SetCredentials { host, username, secret, version }).await;
    }

    pub(crate) async fn sign_in_well(&self) {
        self.sign_in(PASSWORD).await;
    }

    async fn on_registry(&self, command: registry::Command) {
        let key = Key::registry(&self.registry.address.to_string()).expect("a registry");
        self.log.execute(&key, command, &runtime::clock::context("test")).await.expect("accepted");
    }

    /// Declares stages that follow `repository`.
    pub(crate) async fn declare(&self, repository: &str, stages: &[(&str, TagPolicy)]) {
        let settings = |policy: &TagPolicy| StageSettings {
            image: Some(self.registry.image(repository)),
            policy: Some(Box::new(policy.clone())),
            ..StageSettings::default()
        };
        let stages = stages.iter().map(|(stage, policy)| (slug(stage), settings(policy))).collect();
        let declaration = Declaration { stages, ..Declaration::default() };
        let command = project::Command::Apply { slug: slug("shop"), declaration, prune: false };
        let key = Key::<Project>::project(&slug("shop"));
        self.log.execute(&key, command, &runtime::clock::context("test")).await.expect("declared");
    }

    /// Deploys by hand.
    pub(crate) async fn deploy(&self, stage: &str, repository: &str, tag: &str) {
        let project = self.log.load(&Key::<Project>::project(&slug("shop"))).await.expect("loads").state;
        let image = Image {
            requested: format!("{}:{tag}", self.registry.image(repository)),
            digest: self.registry.digest(repository, tag).expect("pushed"),
            source: Source::Registry,
        };
        let spec = Spec { image, settings: project.release(&slug(stage)).expect("declared") };
        let deployment = DeploymentId(runtime::clock::new_id());
        self.run(stage, Command::Request { deployment, spec, node: NODE.into(), by: "ana".into() }).await;
    }

    pub(crate) async fn run(&self, stage: &str, command: Command) {
        self.log.execute(&stage_key(stage), command, &runtime::clock::context("test")).await.expect("accepted");
    }

    /// The tags that were requested on a stage so far.
    pub(crate) async fn requests(&self, stage: &str) -> Vec<String> {
        let mut requests = vec![];
        let each = |event: domain::Recorded| {
            if let Event::Stage(stage::Event::Requested { spec, .. }) = event.event {
                requests.push(spec.image.version().to_owned());
            }
        };
        self.log.each(&stage_key(stage).filter(), 0, each).await.expect("read");
        requests
    }

    /// Waits for the request of these bytes; gives their tag and who asked.
    pub(crate) async fn requested(&self, stage: &str, digest: &str) -> (String, String) {
        let mut events = pin!(self.log.follow(&stage_key(stage).filter(), 0));
        let found = async {
            loop {
                let recorded = events.next().await.expect("endless").expect("readable");
                if let Event::Stage(stage::Event::Requested { spec, .. }) = &recorded.event
                    && spec.image.digest == digest
                {
                    return (spec.image.version().to_owned(), recorded.context.actor);
                }
            }
        };
        timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("{digest} was not requested on {stage}"))
    }

    /// Waits until a look at a stage finds what `wanted` takes.
    pub(crate) async fn found(&self, stage: &str, wanted: impl Fn(&Finding) -> bool) -> Finding {
        let key = push::stage_key(&slug("shop"), &slug(stage));
        let bucket = self.log.bucket(LOOKS);
        let found = async {
            loop {
                let entry = bucket.get(&key).await.expect("read");
                let look = entry.map(|entry| serde_json::from_slice::<Look>(&entry.value).expect("a look"));
                if let Some(Look { finding, .. }) = look.filter(|look| wanted(&look.finding)) {
                    return finding;
                }
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("that was not found on {stage}"))
    }

    /// Waits until the registry was asked `more` times from now on.
    pub(crate) async fn asked(&self, more: usize) {
        let before = self.registry.counts().requests;
        let asked = async {
            while self.registry.counts().requests < before + more {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, asked).await.expect("the registry is asked");
    }

    /// From now on nobody answers those who write down what they have found.
    pub(crate) async fn keep_notes(&self) -> impl Sized + use<> {
        let ask = async |subject: &str, body: Vec<u8>| -> serde_json::Value {
            let answer = self.log.request(subject, body, PATIENCE).await.expect("the server answers");
            serde_json::from_slice(&answer).expect("JSON")
        };
        let stream = ask("$JS.API.STREAM.INFO.KV_looks", vec![]).await;
        let mut config = stream["config"].clone();
        config["subjects"] = serde_json::json!(["$KV.elsewhere.>"]);
        let updated = ask("$JS.API.STREAM.UPDATE.KV_looks", config.to_string().into_bytes()).await;
        assert!(updated["error"].is_null(), "{updated}");
        self.log.serve("$KV.looks.>").await.expect("served")
    }

    pub(crate) async fn tell(&self, what: What) -> Answer {
        let told = Told { context: runtime::clock::context("hook/test"), what };
        let question = serde_json::to_vec(&told).expect("JSON");
        let told = async {
            loop {
                // A watcher that starts cannot announce itself.
                match self.log.request(push::SUBJECT, question.clone(), PATIENCE).await {
                    Ok(answer) => return serde_json::from_slice(&answer).expect("an answer"),
                    Err(eventlog::Error::NobodyAnswers { .. }) => tokio::task::yield_now().await,
                    Err(error) => panic!("{error}"),
                }
            }
        };
        timeout(PATIENCE, told).await.expect("somebody listens")
    }

    pub(crate) fn pushed(&self, repository: &str, tag: &str) -> What {
        What::Pushed(vec![Pushed { repository: self.registry.image(repository), tag: tag.into() }])
    }

    /// What came of a push for the stages that follow it.
    pub(crate) async fn tell_of(&self, repository: &str, tag: &str) -> Vec<Heard> {
        match self.tell(self.pushed(repository, tag)).await {
            Answer::Heard(heard) => heard,
            Answer::Busy => panic!("nobody else tells of anything"),
        }
    }
}

async fn connect(nats: &Nats, key: PathBuf) -> EventLog {
    if !key.exists() {
        eventlog::vault::create_key(&key).expect("a key");
    }
    let config = Config { url: nats.url().into(), name: "test".into(), master_key: Some(key) };
    EventLog::connect(&config).await.expect("the log opens")
}
