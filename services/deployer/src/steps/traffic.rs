//! The route: what leads requests to the stage, and that it has been told.

use std::time::Duration;

use domain::{
    DeploymentId, Span,
    settings::RouteSettings,
    stage::{Instance, Kind, Release, Spec},
    traffic::{Front, ROUTES, Route, Target, Upstream, UpstreamSet},
};

use crate::{
    Node, Place,
    docker::Container,
    failure::{Problem, StepError},
    health,
    job::Job,
    proxy::Permit,
};

/// After the drain limit the edge itself cuts what is left; this is for hearing of it.
const CUT: Duration = Duration::from_secs(10);
/// A release that is taken back gets no more time than this for its requests.
const DISCARD_DRAIN: Duration = Duration::from_secs(10);

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
    let front = job.node.proxies.front(host).await?;
    let route = route(&job.place, host, front, target, job.fence);
    match route.direct() {
        Some(proxy) if job.rollout.backward() => {
            job.note(format!("the proxy {proxy} cannot hold requests back: some will fail until the release is back"));
            Ok(())
        }
        Some(proxy) => Err(Problem::new(
            "cannot_hold",
            format!("the stage recreates its containers, and the proxy {proxy} cannot hold requests back meanwhile"),
            "use the strategy blue-green, or the proxy in mode via_edge",
        )
        .into()),
        None => job.node.proxies.hold(&route, &Permit::of(&job.engine)).await,
    }
}

pub(super) async fn switch(job: &Job) -> Result<(), StepError> {
    let rollout = &job.rollout;
    let host = match rollout.kind {
        Kind::Release => rollout.spec.settings.route.as_ref(),
        Kind::Removal => None,
    };
    let Some(host) = host else { return withdraw(job).await };
    let containers = job.containers(rollout.set).await?;
    health::all_run(job, &containers, "before the switch").await?;
    let upstreams = containers.iter().filter_map(upstream).collect();
    point(job, host, rollout.deployment, &rollout.spec, upstreams).await
}

pub(super) async fn revert(job: &Job) -> Result<(), StepError> {
    let Some((previous, host)) = job.previous().and_then(|p| Some((p, p.spec.settings.route.as_ref()?))) else {
        withdraw(job).await?;
        return abandon(job).await;
    };
    // Better the last known addresses than those of the release that is about to go.
    let upstreams = last_known(job, previous.set, &previous.instances).await?;
    point(job, host, previous.deployment, &previous.spec, upstreams).await?;
    match abandon(job).await {
        // What serves is right again, and the reason why it could not be left may be why the switch failed.
        Err(StepError::Failed(problem) | StepError::Transient(problem)) => {
            job.note(format!("what the switch may have left at the proxy is still there: {}", problem.message));
            Ok(())
        }
        other => other,
    }
}

/// Takes away what a switch that was cut off may have put at a proxy before it wrote the route.
async fn abandon(job: &Job) -> Result<(), StepError> {
    let rollout = &job.rollout;
    let (Kind::Release, Some(host)) = (rollout.kind, &rollout.spec.settings.route) else { return Ok(()) };
    let upstreams = last_known(job, rollout.set, &rollout.instances).await?;
    let route = route(&job.place, host, None, live(rollout.deployment, &rollout.spec, upstreams), job.fence);
    job.node.proxies.abandon(host, route, &Permit::of(&job.engine)).await
}

/// Where the containers of `set` answer, or did while they ran.
async fn last_known(job: &Job, set: DeploymentId, instances: &[Instance]) -> Result<Vec<Upstream>, StepError> {
    let containers = job.containers(set).await?;
    let running: Vec<_> = containers.iter().filter(|c| c.running).filter_map(upstream).collect();
    if !running.is_empty() {
        return Ok(running);
    }
    let known =
        |instance: &Instance| Some(Upstream { instance: instance.name.clone(), address: instance.address.clone()? });
    Ok(instances.iter().filter_map(known).collect())
}

/// Waits until the release that served before has no request in flight, as long as it is entitled to.
pub(super) async fn drain(job: &Job) -> Result<(), StepError> {
    let Some(previous) = job.previous() else { return Ok(()) };
    drained(job, previous.deployment, &previous.spec, previous.spec.settings.drain.duration(), CUT).await
}

/// For a release that is taken back, which may not have had any traffic.
pub(super) async fn drain_discarded(job: &Job) -> Result<(), StepError> {
    let spec = &job.rollout.spec;
    let limit = spec.settings.drain.duration().min(DISCARD_DRAIN);
    drained(job, job.rollout.deployment, spec, limit, Duration::ZERO).await
}

async fn drained(
    job: &Job,
    deployment: DeploymentId,
    spec: &Spec,
    limit: Duration,
    cut: Duration,
) -> Result<(), StepError> {
    let busy = job.node.proxies.drain(spec.settings.route.as_ref(), deployment, limit, cut).await?;
    if let Some(busy) = busy {
        job.note(format!(
            "{} requests were still in flight after {}s and are cut off",
            busy.map_or("an unknown number of".to_owned(), |count| count.to_string()),
            (limit + cut).as_secs(),
        ));
    }
    Ok(())
}

fn upstream(container: &Container) -> Option<Upstream> {
    Some(Upstream { instance: container.name.clone(), address: container.address()? })
}

fn route(place: &Place, host: &RouteSettings, front: Option<Front>, target: Target, fence: u64) -> Route {
    Route {
        project: place.project.clone(),
        stage: place.stage.clone(),
        host: host.host.clone(),
        path: host.path.clone(),
        target,
        fence,
        front,
    }
}

async fn point(
    job: &Job,
    host: &RouteSettings,
    deployment: DeploymentId,
    spec: &Spec,
    upstreams: Vec<Upstream>,
) -> Result<(), StepError> {
    let front = job.node.proxies.front(host).await?;
    let route = route(&job.place, host, front, live(deployment, spec, upstreams), job.fence);
    job.node.proxies.switch(&route, &Permit::of(&job.engine)).await
}

fn live(deployment: DeploymentId, spec: &Spec, upstreams: Vec<Upstream>) -> Target {
    let settings = &spec.settings;
    Target::Live(UpstreamSet { deployment, upstreams, health: settings.health.clone(), drain: settings.drain })
}

async fn withdraw(job: &Job) -> Result<(), StepError> {
    let Place { project, stage } = &job.place;
    job.node.proxies.withdraw(project, stage, job.fence, &Permit::of(&job.engine)).await
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
                    None => {
                        let Place { project, stage } = place;
                        let upto = stands.map_or(loaded.version, |route| route.fence);
                        unfenced(node.proxies.forget(project, stage, upto, &Permit::of(&node.engine)).await)
                    }
                };
            }
        }
        let Some(mut stands) = stands else { return Ok(()) };
        if !with_present_addresses(node, place, &mut stands).await? {
            return Ok(());
        }
        if stands.direct().is_some() {
            // What a rollout does with it comes to the present addresses by itself.
            if loaded.state.active.is_some() {
                return Ok(());
            }
            return unfenced(node.proxies.switch(&stands, &Permit::of(&node.engine)).await);
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
    let containers = node.engine.containers(owner, owner.of_stage(place)).await?;
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
    let containers = node.engine.containers(owner, owner.of_set(place, current.set)).await?;
    let upstreams: Vec<_> = containers.iter().filter(|c| c.running).filter_map(upstream).collect();
    if upstreams.is_empty() {
        return Ok(());
    }
    let target = live(current.deployment, &current.spec, upstreams);
    let front = node.proxies.front(host).await?;
    let route = route(place, host, front, target, version);
    unfenced(match route.direct() {
        Some(_) => node.proxies.switch(&route, &Permit::of(&node.engine)).await,
        None => node.proxies.write(&route, &Permit::of(&node.engine)).await,
    })
}

/// Any rollout begun since then has a larger fence. A proxy that is away is no reason to leave the other stages alone.
fn unfenced(outcome: Result<(), StepError>) -> Result<(), StepError> {
    match outcome {
        Err(StepError::Fenced) => Ok(()),
        Err(StepError::Transient(problem)) if problem.code.starts_with("proxy_") => Err(StepError::Failed(problem)),
        other => other,
    }
}
