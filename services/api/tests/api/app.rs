//! A whole API on real NATS and PostgreSQL, with a projector behind it and a stand-in for the
//! node's deployer, which knows the images that a test gives it.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use domain::{
    DeploymentId, Key, Slug,
    image::{Image, Reference, Source},
    node::{NodeHealth, Resolve, ResolveError, Resolved, health_subject, resolve_subject},
    stage::{self, Stage, Step},
};
use eventlog::EventLog;
use futures::StreamExt;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub(crate) const NODE: &str = "local";

/// Tag or digest as asked for, and what it means now.
type Images = Arc<Mutex<BTreeMap<String, Resolved>>>;

pub(crate) struct App {
    pub(crate) base: String,
    pub(crate) http: reqwest::Client,
    pub(crate) log: EventLog,
    images: Images,
    stop: CancellationToken,
    tasks: JoinSet<()>,
    pub(crate) nats: testkit::Nats,
    pub(crate) database: testkit::Database,
    pool: readmodel::PgPool,
    directory: tempfile::TempDir,
    pub(crate) identity: api::Identity,
    /// The administrator's own.
    pub(crate) token: String,
    /// Of the administrator, as events name them.
    pub(crate) admin: String,
    pub(crate) oidc: api::oidc::Config,
}

/// Of the first administrator.
pub(crate) const PASSWORD: &str = "the administrator's password";

/// Events by which the first administrator comes to be, and signs in for a token.
pub(crate) const FOUNDED: u64 = 6;

/// Settings that let a test try as often as it likes.
pub(crate) fn identity() -> api::Identity {
    api::Identity {
        admin_password: Some(PASSWORD.into()),
        login_max_failures: 1000,
        rate_limit_requests: 1_000_000,
        ..api::Identity::new("a key of at least 32 characters, 0123456789")
    }
}

/// No provider, but one on this machine may be declared.
pub(crate) fn oidc() -> api::oidc::Config {
    api::oidc::Config { outgoing: "127.0.0.0/8".parse().expect("addresses"), declared: None }
}

/// Parts that a test may leave out, to see what happens without them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Without {
    Nothing,
    Projector,
    Node,
}

impl App {
    pub(crate) async fn start() -> Self {
        Self::start_without(Without::Nothing).await
    }

    pub(crate) async fn start_without(without: Without) -> Self {
        Self::start_with(without, identity()).await
    }

    pub(crate) async fn start_with(without: Without, identity: api::Identity) -> Self {
        let nats = testkit::Nats::start().await.expect("NATS starts");
        let database = testkit::Postgres::database().await.expect("a database");
        let directory = tempfile::tempdir().expect("a directory");
        let pool = readmodel::connect(database.url()).await.expect("the database answers");
        readmodel::migrate(&pool).await.expect("the schema");
        let log = connect(&nats, directory.path()).await;
        let port = testkit::free_port();
        let mut app = Self {
            base: format!("http://127.0.0.1:{port}"),
            http: reqwest::Client::builder().no_proxy().build().expect("a client"),
            log,
            images: Images::default(),
            stop: CancellationToken::new(),
            tasks: JoinSet::new(),
            nats,
            database,
            pool,
            directory,
            identity,
            token: String::new(),
            admin: String::new(),
            oidc: oidc(),
        };
        if without != Without::Projector {
            app.start_projector().await;
        }
        if without != Without::Node {
            app.start_node().await;
        }
        app.start_api(port).await;
        app.sign_in().await;
        app
    }

    async fn sign_in(&mut self) {
        let who = json!({ "name": "admin", "password": PASSWORD, "token_name": "tests" });
        let made = Answer::of(self.http.post(format!("{}/api/v1/auth/token", self.base)).json(&who)).await;
        self.token = made.ok()["token"].as_str().expect("a token").to_owned();
        self.admin = self.get("/auth/me").await.ok()["actor"].as_str().expect("who it is").to_owned();
    }

    pub(crate) async fn start_projector(&mut self) {
        let log = connect(&self.nats, self.directory.path()).await;
        let (pool, stop) = (self.pool.clone(), self.stop.clone());
        self.tasks.spawn(async move { projector::run(log, pool, stop).await.expect("the projector ends in order") });
    }

    async fn start_node(&mut self) {
        let mut resolves = Box::pin(self.log.serve(&resolve_subject(NODE)).await.expect("served"));
        let mut healths = Box::pin(self.log.serve(&health_subject(NODE)).await.expect("served"));
        let images = self.images.clone();
        self.tasks.spawn(async move {
            loop {
                let (request, answer) = tokio::select! {
                    Some(request) = resolves.next() => {
                        let Resolve { reference } = serde_json::from_slice(&request.payload).expect("a question");
                        let known = images.lock().expect("unpoisoned").get(&reference).cloned();
                        let answer = serde_json::to_vec(&known.unwrap_or_else(|| Err(unknown(&reference))));
                        (request, answer)
                    }
                    Some(request) = healths.next() => {
                        (request, serde_json::to_vec(&NodeHealth { docker: Some("20.10".into()), error: None }))
                    }
                    else => return,
                };
                request.reply(answer.expect("JSON")).await.expect("answered");
            }
        });
    }

    /// As a watcher says it; what it says ends after ten seconds.
    pub(crate) async fn watcher_lives(&self) {
        let watchers = self.log.bucket(domain::push::WATCHERS);
        watchers.put("00000000-0000-0000-0000-000000000001", "").await.expect("written");
    }

    /// Another API on the same log; gives where it is.
    pub(crate) async fn another_api(&mut self) -> String {
        let port = testkit::free_port();
        self.start_api(port).await;
        format!("http://127.0.0.1:{port}")
    }

    async fn start_api(&mut self, port: u16) {
        let config = api::Config {
            listen: ([127, 0, 0, 1], port).into(),
            node: NODE.into(),
            identity: self.identity.clone(),
            oidc: self.oidc.clone(),
        };
        let log = connect(&self.nats, self.directory.path()).await;
        let (pool, stop) = (self.pool.clone(), self.stop.clone());
        self.tasks.spawn(async move { api::run(config, log, pool, stop).await.expect("the API ends in order") });
        let health = format!("http://127.0.0.1:{port}/api/v1/health");
        eventually("the API answers", async || self.http.get(&health).send().await.is_ok()).await;
    }

    /// Ends everything as a signal would; fails where something does not end.
    pub(crate) async fn stop(mut self) {
        self.stop.cancel();
        let ended = async {
            // The stand-in for the node ends with the log.
            self.log.clone().close().await;
            while let Some(ended) = self.tasks.join_next().await {
                ended.expect("no task panicked");
            }
        };
        tokio::time::timeout(Duration::from_secs(20), ended).await.expect("everything ends");
    }

    pub(crate) fn stop_token(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// From now on `reference` means the image with this digest.
    pub(crate) fn image(&self, reference: &str, digest: char) -> Image {
        let digest = format!("sha256:{}", digest.to_string().repeat(64));
        let image = Image { requested: reference.into(), digest, source: Source::Registry };
        self.images.lock().expect("unpoisoned").insert(reference.into(), Ok(image.clone()));
        image
    }

    pub(crate) fn no_image(&self, reference: &str, code: &str) {
        let error = ResolveError { code: code.into(), message: "it is so".into(), hint: "do this".into() };
        self.images.lock().expect("unpoisoned").insert(reference.into(), Err(error));
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}/api/v1{path}", self.base)).bearer_auth(&self.token)
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        Answer::of(self.request(Method::GET, path)).await
    }

    pub(crate) async fn put(&self, path: &str, body: Value) -> Answer {
        Answer::of(self.request(Method::PUT, path).body(body.to_string()).header("content-type", "application/json"))
            .await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        Answer::of(self.request(Method::POST, path).body(body.to_string()).header("content-type", "application/json"))
            .await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        Answer::of(self.request(Method::DELETE, path)).await
    }

    /// The same with an `Idempotency-Key`.
    pub(crate) async fn keyed(&self, method: Method, path: &str, body: Value, key: &str) -> Answer {
        let request = self.request(method, path).header("idempotency-key", key);
        Answer::of(request.header("content-type", "application/json").body(body.to_string())).await
    }

    /// A project `slug` with the stages `dev` and `prod`, which deploy from `registry.test/<slug>`.
    pub(crate) async fn project(&self, slug: &str) -> u64 {
        let image = format!("registry.test/{slug}");
        let stages = json!({ "dev": { "image": image }, "prod": { "image": image } });
        self.put(&format!("/projects/{slug}"), json!({ "stages": stages })).await.accepted()
    }

    /// Takes a deployment through all its steps, as a deployer would; returns the last sequence.
    pub(crate) async fn work(&self, project: &str, stage: &str, deployment: DeploymentId) -> u64 {
        let slug = |text: &str| text.parse::<Slug>().expect("a slug");
        let key = Key::<Stage>::stage(&slug(project), &slug(stage));
        let worker = "test".to_owned();
        let run = async |command| {
            let context = runtime::clock::context("deployer/test");
            self.log.execute(&key, command, &context).await.expect("a step").sequence
        };
        let mut sequence = run(stage::Command::Start { deployment, worker: worker.clone() }).await;
        while let Some(step) = self.next_step(&key, deployment).await {
            let worker = worker.clone();
            sequence =
                run(stage::Command::Complete { deployment, worker, step, elapsed_ms: 1, instances: vec![] }).await;
        }
        sequence
    }

    async fn next_step(&self, key: &Key<Stage>, deployment: DeploymentId) -> Option<Step> {
        let stage = self.log.load(key).await.expect("loaded").state;
        stage.active.filter(|active| active.deployment == deployment).and_then(|active| stage::next_step(&active))
    }

    /// All that the database holds, as text.
    pub(crate) async fn rows(&self) -> String {
        let tables = readmodel::models(None).expect("all").iter().map(|model| model.name);
        let mut text = String::new();
        for table in tables {
            text += &self.database.dump(table).await.expect("dumped");
        }
        text
    }

    /// Subjects of all events behind `after`, as the log has them, in order.
    pub(crate) async fn subjects(&self, after: u64) -> Vec<String> {
        let last = self.log.last_sequence().await.expect("an end");
        let events = self.log.follow("sluice.events.>", after).take((last - after) as usize);
        events.map(|event| event.expect("readable").subject).collect().await
    }
}

pub(crate) async fn connect(nats: &testkit::Nats, directory: &std::path::Path) -> EventLog {
    let key: PathBuf = directory.join("vault.key");
    eventlog::vault::create_key(&key).expect("a key");
    let config = eventlog::Config { url: nats.url().into(), name: "test".into(), master_key: Some(key) };
    EventLog::connect(&config).await.expect("NATS takes us")
}

fn unknown(reference: &str) -> ResolveError {
    // What is asked for is always a whole reference.
    Reference::parse(reference).expect("a reference");
    ResolveError {
        code: "image_not_found".into(),
        message: format!("{reference} does not exist"),
        hint: "push it first".into(),
    }
}

/// Waits for `probe` to answer true.
pub(crate) async fn eventually(what: &str, probe: impl AsyncFn() -> bool) {
    let waited = async {
        while !probe().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waited).await.unwrap_or_else(|_| panic!("in vain: {what}"));
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) body: Value,
}

impl Answer {
    pub(crate) async fn of(request: RequestBuilder) -> Self {
        let response = request.send().await.expect("an answer");
        let (status, headers) = (response.status(), response.headers().clone());
        let body = response.bytes().await.expect("a body");
        Self { status, headers, body: serde_json::from_slice(&body).unwrap_or(Value::Null) }
    }

    /// The body of a 200.
    #[track_caller]
    pub(crate) fn ok(self) -> Value {
        assert_eq!(self.status, 200, "{:#}", self.body);
        self.body
    }

    /// The sequence of a 202.
    #[track_caller]
    pub(crate) fn accepted(&self) -> u64 {
        assert_eq!(self.status, 202, "{:#}", self.body);
        self.body["sequence"].as_u64().expect("a sequence")
    }

    /// Asserts a problem with this status and code, complete in form.
    #[track_caller]
    pub(crate) fn problem(self, status: u16, code: &str) -> Value {
        let problem = self.body;
        assert_eq!((self.status.as_u16(), problem["code"].as_str()), (status, Some(code)), "{problem:#}");
        assert_eq!(self.headers["content-type"], "application/problem+json");
        assert_eq!(problem["status"], status);
        assert_eq!(problem["type"], "about:blank");
        assert!(problem["title"].is_string() && problem["detail"].is_string(), "{problem:#}");
        assert_eq!(problem["request_id"].as_str(), self.headers["x-request-id"].to_str().ok());
        problem
    }

    /// The fields that a problem names.
    #[track_caller]
    pub(crate) fn fields(self, status: u16, code: &str) -> Vec<String> {
        let problem = self.problem(status, code);
        let errors = problem["errors"].as_array().cloned().unwrap_or_default();
        errors.iter().map(|error| error["field"].as_str().expect("a field").to_owned()).collect()
    }
}

/// What this process logs while the guard lives.
pub(crate) fn capture_logs() -> (Logs, tracing::subscriber::DefaultGuard) {
    let logs = Logs::default();
    let writer = logs.clone();
    let subscriber =
        tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).with_writer(move || writer.clone());
    (logs, tracing::subscriber::set_default(subscriber.finish()))
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Logs(Arc<Mutex<Vec<u8>>>);

impl Logs {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().expect("unpoisoned")).into_owned()
    }
}

impl std::io::Write for Logs {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("unpoisoned").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
