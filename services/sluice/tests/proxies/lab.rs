//! A NATS, an edge, a proxy of the user's own, and the part of the deployer that switches them.

use std::{
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use deployer::{Permit, Problem, Proxies, StepError};
use domain::{
    DeploymentId, Key, Slug, Span,
    proxy::{Command as Declare, Credentials, Driver, Mode, Settings},
    settings::{HealthCheck, RouteSettings},
    traffic::{EDGES, ROUTES, Route, Target, Upstream, UpstreamSet},
};
use eventlog::{EventLog, Secret};
use runtime::outgoing::Outgoing;
use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::{Nats, NpmStandIn, UserProxy, free_port};
use tokio::{
    process::{Child, Command},
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::app::{App, PATIENCE};

pub(crate) const HOST: &str = "shop.test";

/// What stands in front, besides the edge.
pub(crate) enum Front {
    Nothing,
    Caddy(UserProxy),
    Traefik(UserProxy),
    Npm(NpmStandIn),
}

pub(crate) struct Lab {
    pub(crate) proxies: Proxies,
    pub(crate) front: Front,
    /// Where clients ask.
    pub(crate) address: String,
    pub(crate) log: EventLog,
    mode: Mode,
    edge: Option<Child>,
    edge_address: String,
    fence: AtomicU64,
    watching: JoinHandle<anyhow::Result<()>>,
    nats: Nats,
    data: TempDir,
}

impl Lab {
    pub(crate) async fn new(front: Front, mode: Mode) -> Lab {
        let nats = Nats::start().await.expect("nats-server starts");
        let data = TempDir::with_prefix("sluice-proxies-").expect("a directory");
        let master_key = data.path().join("master.key");
        eventlog::vault::create_key(&master_key).expect("a master key");
        let config = eventlog::Config { url: nats.url().into(), name: "test".into(), master_key: Some(master_key) };
        let log = EventLog::connect(&config).await.expect("connected");
        let (proxies, watching) = Proxies::new(log.clone(), "worker".into(), client(), here());
        let edge_address = format!("127.0.0.1:{}", free_port());
        let mut lab = Lab {
            address: match &front {
                Front::Nothing => edge_address.clone(),
                Front::Caddy(proxy) | Front::Traefik(proxy) => proxy.address(),
                Front::Npm(npm) => npm.address(),
            },
            proxies,
            front,
            log,
            mode,
            edge: None,
            edge_address,
            fence: AtomicU64::new(1),
            watching: tokio::spawn(watching),
            nats,
            data,
        };
        lab.declare().await;
        if mode == Mode::ViaEdge {
            lab.start_edge().await;
        }
        lab
    }

    /// As another process has it.
    pub(crate) fn another_deployer(&self) -> (Proxies, JoinHandle<anyhow::Result<()>>) {
        let (proxies, watching) = Proxies::new(self.log.clone(), "another".into(), client(), here());
        (proxies, tokio::spawn(watching))
    }

    fn edge(&self) -> Option<String> {
        (self.mode == Mode::ViaEdge).then(|| self.edge_address.clone())
    }

    async fn declare(&self) {
        let (driver, url) = match &self.front {
            Front::Nothing => return,
            Front::Caddy(proxy) => (Driver::Caddy, proxy.url()),
            Front::Traefik(proxy) => (Driver::Traefik, proxy.url()),
            Front::Npm(npm) => (Driver::Npm, npm.url()),
        };
        let (url, address) = (Some(url), Some(self.address.clone()));
        let settings = Settings { driver, mode: self.mode, url, address, edge: self.edge() };
        self.execute(Declare::Configure(settings)).await;
        if let Front::Npm(npm) = &self.front {
            self.sign_in(&npm.username, &npm.password).await;
        }
    }

    pub(crate) async fn sign_in(&self, username: &str, password: &str) {
        let secret = format!("{}/{}", Key::proxy(&name()).secret(), runtime::clock::new_id());
        let version = self.log.vault().put(&secret, &Secret::new(password)).await.expect("sealed");
        self.execute(Declare::SetCredentials(Credentials { username: username.into(), secret, version })).await;
    }

    async fn execute(&self, command: Declare) {
        let context = runtime::clock::context("test");
        self.log.execute(&Key::proxy(&name()), command, &context).await.expect("accepted");
    }

    /// Declares the proxy in another mode; what is deployed follows with its next switch.
    pub(crate) async fn redeclare(&mut self, mode: Mode) {
        self.mode = mode;
        self.declare().await;
    }

    /// The edge listens elsewhere from now on, and the proxy is declared so.
    pub(crate) async fn move_edge(&mut self) {
        self.kill_edge().await;
        self.edge_address = format!("127.0.0.1:{}", free_port());
        self.declare().await;
        self.start_edge().await;
    }

    /// A proxy host that the user has made in Nginx Proxy Manager.
    pub(crate) async fn own_host(&self, host: &str, mut fields: Value) {
        let Front::Npm(npm) = &self.front else { panic!("only Nginx Proxy Manager has hosts") };
        fields["domain_names"] = json!([host]);
        let identity = json!({ "identity": npm.username, "secret": npm.password });
        let signed = client().post(format!("{}/api/tokens", npm.url())).json(&identity).send().await.expect("asked");
        let signed: Value = signed.json().await.expect("a token");
        let made = client().post(format!("{}/api/nginx/proxy-hosts", npm.url())).json(&fields);
        let made = made.bearer_auth(signed["token"].as_str().expect("a token")).send().await.expect("asked");
        assert!(made.status().is_success(), "{made:?}");
    }

    pub(crate) async fn start_edge(&mut self) {
        let child = Command::new(env!("CARGO_BIN_EXE_sluice"))
            .arg("edge")
            .env("DATA_DIR", self.data.path())
            .env("EDGE_LISTEN", &self.edge_address)
            .env("NATS_URL", self.nats.url())
            .env_remove("NODE")
            .env_remove("EDGE_HANDOVER")
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("the edge starts");
        self.edge = Some(child);
        until("the edge is there", async || {
            self.log.bucket(EDGES).keys().await.is_ok_and(|keys| !keys.is_empty())
                && reqwest::get(format!("http://{}/", self.edge_address)).await.is_ok()
        })
        .await;
    }

    pub(crate) async fn kill_edge(&mut self) {
        self.edge.take().expect("an edge runs").kill().await.expect("killed");
    }

    /// Ends the proxy of the user's own; the edge where there is none.
    pub(crate) async fn down(&mut self) {
        match &mut self.front {
            Front::Nothing => self.kill_edge().await,
            Front::Caddy(proxy) | Front::Traefik(proxy) => proxy.down(),
            Front::Npm(npm) => npm.down().await,
        }
    }

    pub(crate) async fn up(&mut self) {
        match &mut self.front {
            Front::Nothing => self.start_edge().await,
            Front::Caddy(proxy) | Front::Traefik(proxy) => proxy.up().await.expect("starts again"),
            Front::Npm(npm) => npm.up().await.expect("starts again"),
        }
    }

    /// Somebody points the proxy's route for [`HOST`] at `elsewhere`.
    pub(crate) async fn edit(&self, elsewhere: &str) {
        let (host, port) = elsewhere.rsplit_once(':').expect("host:port");
        let port: u16 = port.parse().expect("a port");
        let id = match self.mode {
            Mode::Direct => "sluice-stage_shop_prod",
            Mode::ViaEdge => "sluice-edge_shop_test",
        };
        let client = client();
        match &self.front {
            Front::Nothing => panic!("nobody edits an edge"),
            Front::Caddy(proxy) => {
                let url = format!("{}/id/{id}", proxy.url());
                let mut route: Value = client.get(&url).send().await.expect("asked").json().await.expect("a route");
                let handlers = route["handle"].as_array_mut().expect("handlers");
                handlers.last_mut().expect("a handler")["upstreams"] = json!([{ "dial": elsewhere }]);
                let answer = client.patch(&url).json(&route).send().await.expect("changed");
                assert!(answer.status().is_success(), "{answer:?}");
            }
            Front::Traefik(proxy) => {
                let http = json!({ "http": {
                    "routers": { id: { "rule": format!("Host(`{HOST}`)"), "service": id } },
                    "services": { id: { "loadBalancer": { "servers": [{ "url": format!("http://{elsewhere}") }] } } },
                } });
                let url = format!("{}/api/providers/rest", proxy.url());
                let answer = client.put(url).json(&http).send().await.expect("changed");
                assert!(answer.status().is_success(), "{answer:?}");
            }
            Front::Npm(npm) => {
                let mut fields = json!({ "forward_host": host, "forward_port": port });
                let hosts = npm.hosts();
                let mut locations = hosts[0]["locations"].as_array().expect("locations").clone();
                for location in &mut locations {
                    location["forward_port"] = port.into();
                }
                fields["locations"] = locations.into();
                npm.edit(HOST, &fields).await.expect("edited");
            }
        }
    }

    /// A route of a new deployment to `app`.
    pub(crate) fn route(&self, app: &App) -> Route {
        self.route_of("prod", HOST, &app.address)
    }

    pub(crate) fn route_of(&self, stage: &str, host: &str, address: &str) -> Route {
        let target = Target::Live(UpstreamSet {
            deployment: DeploymentId(runtime::clock::new_id()),
            upstreams: vec![Upstream { instance: format!("shop-{stage}"), address: address.into() }],
            health: HealthCheck::default(),
            drain: Span::secs(5),
        });
        let front = match self.front {
            Front::Nothing => None,
            _ => Some(domain::traffic::Front { proxy: name(), mode: self.mode, edge: self.edge() }),
        };
        let fence = self.fence.fetch_add(1, Ordering::Relaxed);
        let (project, stage) = ("shop".parse().expect("a slug"), stage.parse().expect("a slug"));
        Route { project, stage, host: host.into(), path: "/".into(), target, fence, front }
    }

    pub(crate) async fn switch(&self, route: &Route) -> Result<(), StepError> {
        timeout(PATIENCE, self.proxies.switch(route, &Permit::always())).await.expect("a switch ends")
    }

    /// Switches to `app` and says which deployment it is.
    pub(crate) async fn switch_to(&self, app: &App) -> DeploymentId {
        let route = self.route(app);
        self.switch(&route).await.unwrap_or_else(|error| panic!("switching to {}: {error:?}", app.version));
        deployment(&route)
    }

    /// A switch that has to fail, and why it did.
    pub(crate) async fn refused(&self, route: &Route) -> Problem {
        match self.switch(route).await {
            Err(StepError::Failed(problem) | StepError::Transient(problem)) => problem,
            other => panic!("the switch did not fail: {other:?}"),
        }
    }

    pub(crate) async fn withdraw(&self) {
        let upto = self.fence.load(Ordering::Relaxed);
        let (project, stage) = ("shop".parse().expect("a slug"), "prod".parse().expect("a slug"));
        let permit = Permit::always();
        let gone = self.proxies.withdraw(&project, &stage, upto, &permit);
        timeout(PATIENCE, gone).await.expect("in time").expect("withdrawn");
        assert_eq!(self.log.bucket(ROUTES).keys().await.expect("readable"), Vec::<String>::new());
    }

    /// The route as the stage's settings have it.
    pub(crate) fn settings(&self) -> RouteSettings {
        let proxy = match self.front {
            Front::Nothing => None,
            _ => Some(name()),
        };
        RouteSettings { host: HOST.into(), path: "/".into(), proxy }
    }

    /// The version that a client sees, or the status where there is none.
    pub(crate) async fn version(&self, host: &str) -> String {
        self.version_at(host, "/").await
    }

    /// The same of a client who asks the edge.
    pub(crate) async fn version_by_edge(&self) -> String {
        version(&self.edge_address, HOST, "/").await
    }

    pub(crate) async fn version_at(&self, host: &str, path: &str) -> String {
        version(&self.address, host, path).await
    }

    /// Waits until a client sees `version`.
    pub(crate) async fn shows(&self, version: &str) {
        let shown = timeout(PATIENCE, async {
            while self.version(HOST).await != version {
                sleep(Duration::from_millis(20)).await;
            }
        });
        if shown.await.is_err() {
            panic!("{version} never answered, but {}", self.version(HOST).await);
        }
    }
}

async fn version(address: &str, host: &str, path: &str) -> String {
    let asked = client().get(format!("http://{address}{path}")).header("host", host).timeout(Duration::from_secs(5));
    match asked.send().await {
        Ok(answer) => match answer.headers().get("x-version") {
            Some(version) => version.to_str().expect("text").to_owned(),
            None => answer.status().as_u16().to_string(),
        },
        Err(error) => format!("{error}"),
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.watching.abort();
    }
}

pub(crate) fn name() -> Slug {
    "front".parse().expect("a slug")
}

pub(crate) fn deployment(route: &Route) -> DeploymentId {
    match &route.target {
        Target::Live(set) => set.deployment,
        Target::Held { .. } => panic!("a live route"),
    }
}

/// As the deployer's.
fn here() -> Arc<Outgoing> {
    Arc::new(Outgoing::default().with_this_machine())
}

fn client() -> reqwest::Client {
    let client = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none());
    client.pool_max_idle_per_host(0).user_agent("sluice").build().expect("a client")
}

pub(crate) async fn until(what: &str, is: impl AsyncFn() -> bool) {
    let waiting = timeout(PATIENCE, async {
        while !is().await {
            sleep(Duration::from_millis(20)).await;
        }
    });
    waiting.await.unwrap_or_else(|_| panic!("not in time: {what}"));
}
