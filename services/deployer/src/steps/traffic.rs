//! The route: what the edges are told, and that they have done it.

use std::time::{Duration, Instant};

use domain::{
    DeploymentId, Span,
    settings::RouteSettings,
    stage::{Kind, Release, Spec},
    traffic::{DEPLOYMENT_HEADER, PROBE_HEADER, ROUTES, Route, Target, Upstream, UpstreamSet},
};
use futures::future::join_all;

use super::Job;
use crate::{
    Node, Place,
    docker::{Container, Engine},
    edges::Seen,
    failure::{Problem, StepError},
    health,
};

/// An edge has the route within milliseconds; one that is cut off is forgotten when its entry expires.
const CONFIRM: Duration = Duration::from_secs(30);
/// How long to wait for the first edge to show up.
const NO_EDGE: Duration = Duration::from_secs(10);
/// How long a probe through an edge may take.
const PROBE: Duration = Duration::from_secs(5);
/// After the drain limit the edge itself cuts what is left; this is for hearing of it.
const CUT: Duration = Duration::from_secs(10);
/// A release that is taken back gets no more time than this for its requests.
const DISCARD_DRAIN: Duration = Duration::from_secs(10);
const QUICKEST: Duration = Duration::from_millis(10);
const SLOWEST: Duration = Duration::from_millis(250);

/// What every edge must say before a change counts as made.
enum Expect<'a> {
    Held { revision: u64 },
    Live { revision: u64, route: &'a Route, deployment: DeploymentId },
    Gone,
}

pub(super) async fn hold(job: &Job) -> Result<(), StepError> {
    let settings = &job.rollout.spec.settings;
    let previous = job.previous().map(|release| &release.spec.settings);
    // Taking the new release back, its own route is the one to hold.
    let new = settings.route.as_ref().filter(|_| job.rollout.backward());
    let Some(host) = new.or_else(|| previous?.route.as_ref()) else { return Ok(()) };
    // Everything that has to happen before the route is live again.
    let limits = [Some(settings), previous].into_iter().flatten();
    let limit =
        limits.map(|s| s.drain.as_millis() + s.stop_grace.as_millis() + s.health.limit().as_millis()).sum::<u64>();
    let target = Target::Held { limit: Span::millis(limit + 60_000) };
    let route = route(&job.place, host, target, job.fence);
    let revision = write(&job.node, &job.engine, &route).await?;
    confirm(job, Expect::Held { revision }).await
}

pub(super) async fn switch(job: &Job) -> Result<(), StepError> {
    let rollout = &job.rollout;
    let host = match rollout.kind {
        Kind::Release => rollout.spec.settings.route.as_ref(),
        Kind::Removal => None,
    };
    let Some(host) = host else { return withdraw(job).await };
    let containers = job.containers(rollout.deployment).await?;
    for container in &containers {
        if !container.running {
            return Err(health::ended(job, container, None, "before the switch").await?.into());
        }
    }
    let upstreams = containers.iter().filter_map(upstream).collect();
    point(job, host, rollout.deployment, &rollout.spec, upstreams).await
}

pub(super) async fn revert(job: &Job) -> Result<(), StepError> {
    let Some((previous, host)) = job.previous().and_then(|p| Some((p, p.spec.settings.route.as_ref()?))) else {
        return withdraw(job).await;
    };
    let containers = job.containers(previous.deployment).await?;
    let mut upstreams: Vec<_> = containers.iter().filter(|c| c.running).filter_map(upstream).collect();
    if upstreams.is_empty() {
        // Better the last known addresses than those of the release that is about to go.
        let known = |instance: &domain::stage::Instance| {
            Some(Upstream { instance: instance.name.clone(), address: instance.address.clone()? })
        };
        upstreams = previous.instances.iter().filter_map(known).collect();
    }
    point(job, host, previous.deployment, &previous.spec, upstreams).await
}

/// Waits until the release that served before has no request in flight, as long as it is entitled to.
pub(super) async fn drain(job: &Job) -> Result<(), StepError> {
    let Some(previous) = job.previous() else { return Ok(()) };
    drained(job, previous.deployment, previous.spec.settings.drain.duration() + CUT).await
}

/// For a release that is taken back, which may not have had any traffic.
pub(super) async fn drain_discarded(job: &Job) -> Result<(), StepError> {
    let limit = job.rollout.spec.settings.drain.duration().min(DISCARD_DRAIN);
    drained(job, job.rollout.deployment, limit).await
}

async fn drained(job: &Job, deployment: DeploymentId, limit: Duration) -> Result<(), StepError> {
    let began = Instant::now();
    let mut pause = QUICKEST;
    loop {
        let seen = job.node.edges.ask(&job.node.log).await;
        let busy = in_flight(&seen, deployment);
        if busy == Some(0) {
            return Ok(());
        }
        if began.elapsed() >= limit {
            job.note(format!(
                "{} requests were still in flight after {}s and are cut off",
                busy.map_or("an unknown number of".to_owned(), |count| count.to_string()),
                limit.as_secs(),
            ));
            return Ok(());
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 3 / 2).min(SLOWEST);
    }
}

/// Requests on a set over all edges; `None` while one of them does not say.
fn in_flight(seen: &[Seen], deployment: DeploymentId) -> Option<u64> {
    let mut sum = 0;
    for Seen { status, .. } in seen {
        let status = status.as_ref()?;
        let live = status.routes.iter().filter_map(|route| route.live.as_ref());
        let sets = live.chain(&status.draining).filter(|set| set.deployment == deployment);
        sum += sets.map(|set| set.in_flight).sum::<u64>();
    }
    Some(sum)
}

fn upstream(container: &Container) -> Option<Upstream> {
    Some(Upstream { instance: container.name.clone(), address: container.address()? })
}

fn route(place: &Place, host: &RouteSettings, target: Target, fence: u64) -> Route {
    Route {
        project: place.project.clone(),
        stage: place.stage.clone(),
        host: host.host.clone(),
        path: host.path.clone(),
        target,
        fence,
        front: None,
    }
}

async fn point(
    job: &Job,
    host: &RouteSettings,
    deployment: DeploymentId,
    spec: &Spec,
    upstreams: Vec<Upstream>,
) -> Result<(), StepError> {
    let route = route(&job.place, host, live(deployment, spec, upstreams), job.fence);
    let revision = write(&job.node, &job.engine, &route).await?;
    confirm(job, Expect::Live { revision, route: &route, deployment }).await
}

fn live(deployment: DeploymentId, spec: &Spec, upstreams: Vec<Upstream>) -> Target {
    let settings = &spec.settings;
    Target::Live(UpstreamSet { deployment, upstreams, health: settings.health.clone(), drain: settings.drain })
}

async fn withdraw(job: &Job) -> Result<(), StepError> {
    let bucket = job.node.log.bucket(ROUTES);
    let key = job.place.to_string();
    while let Some(entry) = bucket.get(&key).await? {
        if fence(&entry.value) > job.fence {
            return Err(StepError::Fenced);
        }
        job.engine.allowed("withdrawing the route").await?;
        match bucket.delete(&key, Some(entry.revision)).await {
            Ok(()) | Err(eventlog::Error::WrongRevision { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    confirm(job, Expect::Gone).await
}

/// Writes `route` unless it stands already; returns the revision under which it does. The fence keeps an earlier worker
/// from overwriting a later one's route; `allowed` keeps it from bringing back one that a later worker has withdrawn.
async fn write(node: &Node, allowed: &Engine, route: &Route) -> Result<u64, StepError> {
    let bucket = node.log.bucket(ROUTES);
    let key = format!("{}.{}", route.project, route.stage);
    // A route is made of texts and numbers, which always become JSON.
    let value = serde_json::to_vec(route).unwrap_or_default();
    loop {
        let standing = bucket.get(&key).await?;
        allowed.allowed("writing the route").await?;
        let written = match standing {
            Some(entry) if entry.value == value => return Ok(entry.revision),
            Some(entry) if fence(&entry.value) > route.fence => return Err(StepError::Fenced),
            Some(entry) => bucket.update(&key, value.clone(), entry.revision).await,
            None => bucket.create(&key, value.clone()).await,
        };
        match written {
            Ok(revision) => return Ok(revision),
            // Another was faster: look again who it was.
            Err(eventlog::Error::WrongRevision { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn fence(value: &[u8]) -> u64 {
    serde_json::from_slice::<Route>(value).map_or(0, |route| route.fence)
}

/// Ends well when every edge that lives has done what it was told.
async fn confirm(job: &Job, expect: Expect<'_>) -> Result<(), StepError> {
    let began = Instant::now();
    let mut pause = QUICKEST;
    loop {
        let seen = job.node.edges.ask(&job.node.log).await;
        let open = match (&expect, seen.is_empty()) {
            (Expect::Gone, true) => return Ok(()),
            (Expect::Held { .. } | Expect::Live { .. }, true) if began.elapsed() >= NO_EDGE => {
                return Err(Problem::new(
                    "no_edge",
                    "no edge is running, so nothing could take this stage's requests",
                    "start one with `sluice edge` (`sluice up` runs one), then deploy again",
                )
                .into());
            }
            (Expect::Held { .. } | Expect::Live { .. }, true) => Some("no edge has shown up".to_owned()),
            (Expect::Held { .. } | Expect::Live { .. } | Expect::Gone, false) => {
                join_all(seen.iter().map(|seen| missing(job, seen, &expect))).await.into_iter().flatten().next()
            }
        };
        let Some(open) = open else { return Ok(()) };
        if began.elapsed() >= CONFIRM {
            return Err(Problem::new(
                "not_confirmed",
                format!("the change of the route was not confirmed within {}s: {open}", CONFIRM.as_secs()),
                "look at that edge's log, and whether it reaches NATS and the containers' network; then deploy again",
            )
            .into());
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 3 / 2).min(SLOWEST);
    }
}

/// What is still missing at one edge; none when it has done what it was told.
async fn missing(job: &Job, Seen { edge, status }: &Seen, expect: &Expect<'_>) -> Option<String> {
    let id = &edge.id;
    let Some(status) = status else { return Some(format!("edge {id} does not answer")) };
    let key = job.place.to_string();
    let found = status.routes.iter().find(|route| route.key == key);
    match expect {
        Expect::Gone => found.map(|_| format!("edge {id} still has the route")),
        Expect::Held { revision } => {
            let held = found.is_some_and(|route| route.revision >= *revision && route.held);
            (!held).then(|| format!("edge {id} does not hold the route yet"))
        }
        Expect::Live { revision, route, deployment } => {
            if !found.is_some_and(|route| route.revision >= *revision && !route.held) {
                return Some(format!("edge {id} has not taken up the route yet"));
            }
            // What counts is what a client would see.
            let url = format!("http://{}{}", edge.address, route.path);
            let probe = job.node.http.head(url).header("host", &route.host).header(PROBE_HEADER, &edge.probe_token);
            match probe.timeout(PROBE).send().await {
                Ok(answer) => {
                    let by = answer.headers().get(DEPLOYMENT_HEADER).and_then(|value| value.to_str().ok());
                    (by != Some(deployment.to_string().as_str())).then(|| match by {
                        Some(other) => format!("a probe through edge {id} was answered by deployment {other}"),
                        None => {
                            format!(
                                "a probe through edge {id} was answered {} by no deployment",
                                answer.status().as_u16()
                            )
                        }
                    })
                }
                Err(error) => {
                    let error = crate::failure::chain(&error.without_url());
                    Some(format!("a probe through edge {id} failed: {error}"))
                }
            }
        }
    }
}

/// Brings the route to what the stage's events say, as far as no rollout is at work on it: written anew where it was
/// lost or left behind by a rollout that could not undo it, withdrawn where nothing serves. The addresses of what it
/// points to change with every restart of a container and are always kept current.
pub(crate) async fn refresh_route(node: &Node, place: &Place) -> Result<(), StepError> {
    let bucket = node.log.bucket(ROUTES);
    let key = place.to_string();
    loop {
        let loaded = node.log.fold(&place.key()).await?;
        let entry = bucket.get(&key).await?;
        let stands = entry.as_ref().map(|entry| serde_json::from_slice::<Route>(&entry.value));
        let (stands, revision) = match (stands, &entry) {
            (Some(Ok(route)), Some(entry)) => (Some(route), entry.revision),
            // Of a version that we cannot judge.
            (Some(Err(_)), _) => return Ok(()),
            (_, _) => (None, 0),
        };
        if loaded.state.active.is_none() {
            let wanted = loaded.state.current.as_ref().filter(|current| current.spec.settings.route.is_some());
            let right = match (&stands, wanted) {
                (Some(Route { target: Target::Live(set), .. }), Some(current)) => set.deployment == current.deployment,
                (Some(Route { target: Target::Held { .. }, .. }), Some(_)) | (None, Some(_)) | (Some(_), None) => false,
                (None, None) => true,
            };
            // A route of a later rollout than this log holds is not ours to judge.
            let ours = stands.as_ref().is_none_or(|route| route.fence <= loaded.version);
            if !right && ours && loaded.state.node() == Some(&node.name) {
                return match wanted {
                    Some(current) => rewrite_route(node, place, current, loaded.version).await,
                    None => match bucket.delete(&key, Some(revision)).await {
                        Ok(()) | Err(eventlog::Error::WrongRevision { .. }) => Ok(()),
                        Err(error) => Err(error.into()),
                    },
                };
            }
        }
        let Some(mut stands) = stands else { return Ok(()) };
        if !with_present_addresses(node, place, &mut stands).await? {
            return Ok(());
        }
        let value = serde_json::to_vec(&stands).unwrap_or_default();
        match bucket.update(&key, value, revision).await {
            Err(eventlog::Error::WrongRevision { .. }) => {}
            other => return Ok(other.map(drop)?),
        }
    }
}

/// Whether an address of what `route` points to has changed; then it has the present one.
async fn with_present_addresses(node: &Node, place: &Place, route: &mut Route) -> Result<bool, StepError> {
    let Target::Live(set) = &mut route.target else { return Ok(false) };
    let owner = node.labels();
    let containers = node.engine.containers(owner, owner.of_deployment(place, set.deployment)).await?;
    let mut changed = false;
    for upstream in &mut set.upstreams {
        let container = containers.iter().find(|c| c.running && c.name == upstream.instance);
        if let Some(address) = container.and_then(Container::address).filter(|now| *now != upstream.address) {
            upstream.address = address;
            changed = true;
        }
    }
    Ok(changed)
}

async fn rewrite_route(node: &Node, place: &Place, current: &Release, version: u64) -> Result<(), StepError> {
    let Some(host) = &current.spec.settings.route else { return Ok(()) };
    let owner = node.labels();
    let containers = node.engine.containers(owner, owner.of_deployment(place, current.deployment)).await?;
    let upstreams: Vec<_> = containers.iter().filter(|c| c.running).filter_map(upstream).collect();
    if upstreams.is_empty() {
        return Ok(());
    }
    let target = live(current.deployment, &current.spec, upstreams);
    // Any rollout begun since then has a larger fence.
    match write(node, &node.engine, &route(place, host, target, version)).await {
        Ok(_) | Err(StepError::Fenced) => Ok(()),
        Err(error) => Err(error),
    }
}
