//! Reverse proxies: Sluice's own edges, and proxies of the user's own, each by its driver.
//!
//! A switch is made, confirmed by a probe that shows the new set's marker, and only then written down where it does not
//! itself come about by writing (the edges follow the `routes` bucket). Where it cannot be confirmed, what stood before
//! is put back.
//!
//! In mode `via_edge` the proxy is pointed at the edge with the first switch of a host, where an admin API was named;
//! after that it is only probed. In mode `direct` the driver changes the proxy, which adds the marker to its answers.

mod caddy;
mod direct;
mod edge;
mod npm;
mod probe;
mod routes;
mod traefik;
mod turn;

use std::{
    future::ready,
    sync::Arc,
    time::{Duration, Instant},
};

use domain::{
    DeploymentId, Key, Slug,
    proxy::{Driver as Kind, Mode, Proxy, Settings},
    settings::RouteSettings,
    traffic::{Front, Route, Target},
};
use eventlog::{EventLog, Secret};
use futures::future::BoxFuture;
use reqwest::Url;
use runtime::outgoing::Outgoing;
use serde_json::Value;

use crate::{
    docker::Engine,
    edges::{self, Edges},
    failure::{Problem, StepError},
};
use edge::Expect;
use turn::Turns;

/// How long a probe may take.
const PROBE: Duration = Duration::from_secs(5);
/// An answer of an admin API. Nginx Proxy Manager reloads before it answers.
const ADMIN: Duration = Duration::from_secs(15);
/// Bucket of the deployments that a proxy in mode `direct` has ceased to lead to.
const LEFT: &str = "left";
const QUICKEST: Duration = Duration::from_millis(10);
const SLOWEST: Duration = Duration::from_millis(250);

/// Asked before each change, for whoever makes it may have slept while another took over.
pub struct Permit<'a>(Option<&'a Engine>);

impl<'a> Permit<'a> {
    /// For one that nobody else takes over from.
    pub fn always() -> Self {
        Self(None)
    }

    /// By the engine's guard.
    pub(crate) fn of(engine: &'a Engine) -> Self {
        Self(Some(engine))
    }

    async fn ask(&self, operation: &str) -> Result<(), StepError> {
        match self.0 {
            Some(engine) => Ok(engine.allowed(operation).await?),
            None => Ok(()),
        }
    }
}

/// Everything that leads requests to containers.
pub struct Proxies {
    log: EventLog,
    /// Names this process among all that change proxies.
    holder: String,
    edges: Edges,
    turns: Turns,
    /// For probes and admin APIs: follows no redirect, uses no proxy, keeps no connection.
    http: reqwest::Client,
    outgoing: Arc<Outgoing>,
}

/// What a proxy is to hold for one route.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    /// Of letters, digits, `-` and, between names, `_`, which no name holds; the same for every release of a stage.
    id: String,
    host: String,
    path: String,
    /// `host:port`.
    upstreams: Vec<String>,
    /// To be told with every answer; none on the way to an edge, which tells it itself.
    marker: Option<DeploymentId>,
}

/// One kind of proxy, by its admin API. Each call fails as transient where the API does not answer.
trait Driver: Send + Sync {
    /// What the proxy holds for `entry`, in the driver's own terms; none where it holds nothing.
    fn standing<'a>(&'a self, entry: &'a Entry) -> BoxFuture<'a, Result<Option<Value>, StepError>>;

    /// Whether `standing` is what `entry` asks for.
    fn fits(&self, entry: &Entry, standing: &Value) -> bool;

    /// What of `standing` is shown to whoever may see the proxy: where it leads, and none of the rest, in which
    /// somebody's credentials may lie.
    fn shown(&self, standing: &Value) -> Value;

    /// Has the proxy hold `entry`, and waits until it says that it does. `all` is everything that it is to hold, with
    /// `entry`.
    fn put<'a>(&'a self, entry: &'a Entry, all: &'a [Entry]) -> BoxFuture<'a, Result<(), StepError>>;

    /// Brings back what stood before a `put`: with none, nothing of `entry` is left. `all` is everything that the proxy
    /// held before.
    fn restore<'a>(
        &'a self,
        entry: &'a Entry,
        before: Option<&'a Value>,
        all: &'a [Entry],
    ) -> BoxFuture<'a, Result<(), StepError>>;
}

impl Proxies {
    /// The proxies, and the work of watching the edges, which ends only with the log. `holder` names this process.
    pub fn new(
        log: EventLog,
        holder: String,
        http: reqwest::Client,
        outgoing: Arc<Outgoing>,
    ) -> (Self, impl Future<Output = anyhow::Result<()>> + Send) {
        let (edges, watching) = edges::watch(log.clone());
        (Self { log, holder, edges, turns: Turns::default(), http, outgoing }, watching)
    }

    /// The proxy that `route` lies behind, as it is declared now.
    pub async fn front(&self, route: &RouteSettings) -> Result<Option<Front>, StepError> {
        let Some(proxy) = &route.proxy else { return Ok(None) };
        let (settings, _) = self.declared(proxy).await?;
        Ok(Some(Front { proxy: proxy.clone(), mode: settings.mode, edge: settings.edge }))
    }

    /// Points `route`, which is live, at its containers. A failure leaves what stood before.
    pub async fn switch(&self, route: &Route, may: &Permit<'_>) -> Result<(), StepError> {
        let Target::Live(set) = &route.target else { return self.hold(route, may).await };
        let before = routes::standing(&self.log, &routes::key(route)).await?.map(|(route, _)| route);
        match route.direct() {
            Some(proxy) => Box::pin(self.switch_direct(route, set, proxy, may)).await?,
            None => Box::pin(self.switch_edges(route, set.deployment, before.as_ref(), may)).await?,
        }
        // A stage that lay behind another proxy, or on another host, until now.
        if let Some(before) = before
            && let Some(left) = before.direct()
            && (route.direct() != Some(left) || route.host != before.host)
        {
            Box::pin(self.leave(&before, left, may, ready(Ok(())))).await?;
        }
        Ok(())
    }

    /// Has the edges hold back the requests of `route`.
    pub async fn hold(&self, route: &Route, may: &Permit<'_>) -> Result<(), StepError> {
        let before = routes::standing(&self.log, &routes::key(route)).await?.map(|(route, _)| route);
        // Only a switch points a proxy anywhere.
        let route = &Route { front: pointed(before.as_ref(), route), ..route.clone() };
        let write = routes::write(&self.log, may, route);
        let revision = match before.as_ref().and_then(|before| Some((before, before.direct()?))) {
            Some((before, _)) if before.fence > route.fence => return Err(StepError::Fenced),
            // What lay behind a proxy until now is about to stop.
            Some((before, left)) => Box::pin(self.leave(before, left, may, write)).await?,
            None => write.await?,
        };
        edge::confirm(self, &routes::key(route), Expect::Held { revision }).await
    }

    /// Takes the route of a stage away, unless someone with a right later than `upto` wrote it, and waits until nothing
    /// leads to the stage any more.
    pub async fn withdraw(&self, project: &Slug, stage: &Slug, upto: u64, may: &Permit<'_>) -> Result<(), StepError> {
        self.forget(project, stage, upto, may).await?;
        edge::confirm(self, &format!("{project}.{stage}"), Expect::Gone).await
    }

    /// Takes away what a switch to `route`, by the stage's settings, may have put at a proxy in mode `direct` and was
    /// cut off before it wrote it down.
    pub async fn abandon(&self, settings: &RouteSettings, route: Route, may: &Permit<'_>) -> Result<(), StepError> {
        let front = match self.front(settings).await {
            // Nobody knows any more where it was.
            Err(StepError::Failed(problem)) if problem.code == "unknown_proxy" => None,
            front => front?,
        };
        let route = Route { front, ..route };
        match route.direct() {
            Some(proxy) => Box::pin(self.leave(&route, proxy, may, ready(Ok(())))).await,
            None => Ok(()),
        }
    }

    /// Has the edges follow `route`, whether they have taken it up or not.
    pub(crate) async fn write(&self, route: &Route, may: &Permit<'_>) -> Result<(), StepError> {
        routes::write(&self.log, may, route).await.map(drop)
    }

    /// The same as [`Proxies::withdraw`], without waiting for the edges.
    pub(crate) async fn forget(
        &self,
        project: &Slug,
        stage: &Slug,
        upto: u64,
        may: &Permit<'_>,
    ) -> Result<(), StepError> {
        let key = format!("{project}.{stage}");
        if let Some((route, _)) = routes::standing(&self.log, &key).await?
            && let Some(proxy) = route.direct()
        {
            if route.fence > upto {
                return Err(StepError::Fenced);
            }
            return Box::pin(self.leave(&route, proxy, may, routes::remove(&self.log, may, &key, upto))).await;
        }
        routes::remove(&self.log, may, &key, upto).await
    }

    /// Waits until `deployment`, which `route` led to, has no request in flight, at most for `limit`; then the edges cut
    /// what is left, for which they have `cut`. Answers how many that is, none where one does not say.
    ///
    /// Behind a proxy that is in mode `direct`, or was when it led there, nobody counts them: they have all of `limit`.
    pub async fn drain(
        &self,
        route: Option<&RouteSettings>,
        deployment: DeploymentId,
        limit: Duration,
        cut: Duration,
    ) -> Result<Option<Option<u64>>, StepError> {
        let declared = match route {
            // Where it is not declared any more, it is the edges that lead there, or nobody.
            Some(route) => self.front(route).await.is_ok_and(|f| f.is_some_and(|front| front.mode == Mode::Direct)),
            None => false,
        };
        if declared || self.log.bucket(LEFT).get(&deployment.to_string()).await?.is_some() {
            tokio::time::sleep(limit).await;
            return Ok(None);
        }
        let began = Instant::now();
        let mut pause = QUICKEST;
        loop {
            let busy = edge::in_flight(&self.edges.ask(&self.log).await, deployment);
            if busy == Some(0) {
                return Ok(None);
            }
            if began.elapsed() >= limit + cut {
                return Ok(Some(busy));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 3 / 2).min(SLOWEST);
        }
    }

    async fn switch_edges(
        &self,
        route: &Route,
        deployment: DeploymentId,
        before: Option<&Route>,
        may: &Permit<'_>,
    ) -> Result<(), StepError> {
        let key = routes::key(route);
        let switched = async {
            // The front is written down when the proxy is pointed at the edge, so that a switch that was cut off in
            // between makes up for it.
            let first = Route { front: pointed(before, route), ..route.clone() };
            let revision = routes::write(&self.log, may, &first).await?;
            edge::confirm(self, &key, Expect::Live { revision, route: &first, deployment }).await?;
            let Some(front) = &route.front else { return Ok(()) };
            let (settings, credentials) = self.declared(&front.proxy).await?;
            if first.front != route.front {
                self.point_at_edge(route, &front.proxy, &settings, credentials, may).await?;
                routes::write(&self.log, may, route).await?;
            }
            let Some(address) = &settings.address else { return Ok(()) };
            probe::through_edge(self, address, route, deployment).await
        };
        let switched = switched.await;
        let failed = matches!(switched, Err(StepError::Failed(_) | StepError::Transient(_)));
        if let (true, Some(Route { target: Target::Live(_), .. })) = (failed, before) {
            // The undoing of the rollout confirms it; until then, rather the old than none.
            let back = before.map(|before| Route { fence: route.fence, ..before.clone() });
            if let Some(back) = back.filter(|back| back.direct().is_none())
                && let Err(error) = routes::write(&self.log, may, &back).await
            {
                tracing::warn!(?error, route = key, "the route before could not be put back at once");
            }
        }
        switched
    }

    /// The proxy as it is declared, with the password for its admin API.
    async fn declared(&self, name: &Slug) -> Result<(Settings, Option<(String, Secret)>), StepError> {
        let folded = self.log.fold(&Key::<Proxy>::proxy(name)).await?;
        let proxy = &folded.state;
        let Some(settings) = proxy.settings.clone() else {
            return Err(Problem::new(
                "unknown_proxy",
                format!("the stage's route names the proxy {name}, which is not declared"),
                format!("declare it with `sluice proxy set {name}`, or take `proxy` out of the stage's route"),
            )
            .into());
        };
        let Some(known) = &proxy.credentials else { return Ok((settings, None)) };
        let Some(secret) = self.log.vault().get(&known.secret).await? else {
            return Err(Problem::new(
                "credentials_missing",
                format!("the password for the proxy {name} is not in the vault"),
                format!("store it again: `sluice proxy login {name} --username NAME`"),
            )
            .into());
        };
        Ok((settings, Some((known.username.clone(), secret))))
    }

    /// Refuses an address to which nobody may be sent. What a name stands for is looked at with each connection.
    fn permitted(&self, name: &Slug, url: &str) -> Result<(), StepError> {
        match url.parse::<Url>() {
            Ok(url) if self.outgoing.refuses(&url) => Err(Problem::new(
                "proxy_address_refused",
                format!("the proxy {name} is declared at {url}, an address of this node's surroundings"),
                format!("declare another, or, if that is meant, allow it in {} of the deployer", Outgoing::VARIABLE),
            )
            .into()),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// The driver of a proxy whose admin API is declared.
    fn driver(
        &self,
        name: &Slug,
        settings: &Settings,
        credentials: Option<(String, Secret)>,
    ) -> Result<Option<Box<dyn Driver>>, StepError> {
        let Some(url) = &settings.url else { return Ok(None) };
        self.permitted(name, url)?;
        let api = direct::Api::new(self.http.clone(), name, url);
        Ok(Some(match settings.driver {
            Kind::Caddy => Box::new(caddy::Caddy::new(api, settings.address.as_deref())),
            Kind::Traefik => Box::new(traefik::Traefik::new(api)),
            Kind::Npm => {
                let Some((username, password)) = credentials else {
                    return Err(Problem::new(
                        "no_credentials",
                        format!("no password is stored for the proxy {name}, and Nginx Proxy Manager asks for one"),
                        format!("store it: `sluice proxy login {name} --username NAME`"),
                    )
                    .into());
                };
                Box::new(npm::Npm::new(api, username, password))
            }
        }))
    }
}

/// The front of `route` as far as a proxy is known to be pointed at the edge for its host.
fn pointed(before: Option<&Route>, route: &Route) -> Option<Front> {
    let before = before.filter(|before| before.direct().is_none() && before.host == route.host)?;
    route.front.as_ref().and(before.front.clone())
}
