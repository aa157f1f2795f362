//! Looking at an installation from all sides.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::PathBuf,
    pin::pin,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use bollard::query_parameters::{ListContainersOptions, ListNetworksOptions, ListVolumesOptions};
use domain::{
    Recorded,
    traffic::{DEPLOYMENT_HEADER, EDGES, EdgePresence, PROBE_HEADER, ROUTES, Route},
};
use eventlog::{Change, EventLog};
use futures::StreamExt;
use readmodel::{Checksum, PgPool, deployments};
use serde::Deserialize;
use testkit::Sluice;
use tokio::time::{Instant, sleep, timeout};

use super::{
    Verdict,
    evidence::{Accepted, Container, Deployed, Evidence, Made, Network, key},
    judge,
};

/// For what was accepted to come to its end, with all the pauses and deadlines of those that work on it.
const QUIET: Duration = Duration::from_secs(180);
/// From the last outcome until everything is tidied up: what an engine that was killed left behind is put right by the
/// next sweep, a minute later at most, and a call that hangs in it is given up after another.
const SETTLED: Duration = Duration::from_secs(150);
/// For one answer of any part.
const ANSWER: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(200);

const INSTALLATION: &str = "dev.sluice.installation";
const PROJECT: &str = "dev.sluice.project";
const STAGE: &str = "dev.sluice.stage";
/// The label that names the deployment that made a container.
pub const DEPLOYMENT: &str = "dev.sluice.deployment";
pub(super) const REPLICA: &str = "dev.sluice.replica";

/// An installation with its engine, after the storm.
pub struct Scene<'a> {
    pub sluice: &'a Sluice,
    pub engine: &'a bollard::Docker,
    /// Whether nobody else uses the engine: then every volume is ours to explain.
    pub private: bool,
}

/// The same from outside: enough to look, and out of the way of whoever still kills parts of it.
#[derive(Clone)]
pub struct View {
    pub data_dir: PathBuf,
    /// Address and port that take traffic.
    pub edge: String,
    pub engine: bollard::Docker,
    /// See [`Scene::private`].
    pub private: bool,
}

/// Where the parts listen, as `sluice up` has written it down.
#[derive(Deserialize)]
struct Connection {
    nats_url: String,
    database_url: String,
}

/// Open ways to everything that is asked.
struct Ways {
    log: EventLog,
    pool: PgPool,
    nats: async_nats::Client,
    http: reqwest::Client,
}

impl Scene<'_> {
    /// Waits until everything is quiet, then judges. `accepted` and `made` are what was noted meanwhile. An error means
    /// that a part does not answer.
    pub async fn verdict(&self, accepted: Vec<Accepted>, made: Vec<Made>) -> Result<Verdict> {
        let view = View {
            data_dir: self.sluice.data_dir().to_owned(),
            edge: self.sluice.edge().to_owned(),
            engine: self.engine.clone(),
            private: self.private,
        };
        let ways = view.ways().await?;
        let mut evidence = Evidence { accepted, made, ..Evidence::default() };
        let judged = match view.settled(&ways, &mut evidence).await {
            Ok(()) => self.rebuilt(&ways, &mut evidence).await,
            Err(error) => Err(error),
        };
        ways.close().await;
        judged?;
        Ok(judge(&evidence))
    }

    /// Builds the read models anew; the checksums before and after, of the same position.
    async fn rebuilt(&self, ways: &Ways, evidence: &mut Evidence) -> Result<()> {
        let end = Instant::now() + SETTLED;
        loop {
            evidence.live = readmodel::checksum(&ways.pool).await?;
            self.sluice.run(&["projector", "rebuild"]).await?;
            evidence.rebuilt = readmodel::checksum(&ways.pool).await?;
            let positions = |sums: &[Checksum]| sums.iter().map(|sum| sum.sequence).collect::<Vec<_>>();
            // An observation of the engine may come in between.
            if positions(&evidence.live) == positions(&evidence.rebuilt) || Instant::now() > end {
                return Ok(());
            }
        }
    }
}

impl Ways {
    async fn close(self) {
        self.log.close().await;
        self.pool.close().await;
    }
}

impl View {
    /// Waits until everything is quiet, then judges what can be seen without building anything anew.
    pub async fn quiet(&self, accepted: Vec<Accepted>, made: Vec<Made>) -> Result<Verdict> {
        let ways = self.ways().await?;
        let mut evidence = Evidence { accepted, made, ..Evidence::default() };
        let settled = self.settled(&ways, &mut evidence).await;
        ways.close().await;
        settled?;
        Ok(judge(&evidence))
    }

    async fn ways(&self) -> Result<Ways> {
        let path = self.data_dir.join("connection.json");
        let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        let connection: Connection = serde_json::from_slice(&text).context("reading where the parts listen")?;
        let log = eventlog::Config { url: connection.nats_url.clone(), name: "verdict".into(), master_key: None };
        let end = Instant::now() + QUIET;
        let log = loop {
            match EventLog::connect(&log).await {
                Ok(log) => break log,
                Err(error) if Instant::now() > end => return Err(error).context("the event log does not answer"),
                Err(_) => sleep(PAUSE).await,
            }
        };
        let pool = loop {
            match readmodel::connect(&connection.database_url).await {
                Ok(pool) => break pool,
                Err(error) if Instant::now() > end => return Err(error).context("PostgreSQL does not answer"),
                Err(_) => sleep(PAUSE).await,
            }
        };
        let http = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).timeout(ANSWER).build()?;
        Ok(Ways { log, pool, nats: nats(&connection.nats_url).await?, http })
    }

    /// Looks until nothing is left to find fault with, or for as long as tidying up may take.
    async fn settled(&self, ways: &Ways, evidence: &mut Evidence) -> Result<()> {
        let quiet = Instant::now() + QUIET;
        let mut settled = None;
        loop {
            let looked = timeout(QUIET, self.look(ways, evidence)).await.context("a part hangs").flatten();
            let now = Instant::now();
            match looked {
                Ok(()) if judge(evidence).is_clean() => return Ok(()),
                Ok(()) => {
                    let rest = evidence.folded().values().all(|s| s.active.is_none() && s.queue.is_empty());
                    let end = if rest { *settled.get_or_insert(now + SETTLED) } else { quiet };
                    if now > end {
                        return Ok(());
                    }
                }
                Err(error) if now > quiet => return Err(error),
                Err(_) => {}
            }
            sleep(PAUSE).await;
        }
    }

    async fn look(&self, ways: &Ways, evidence: &mut Evidence) -> Result<()> {
        // The log last: whatever else is found was the case no later than what it says.
        self.engine(ways, evidence).await?;
        let streams = async_nats::jetstream::new(ways.nats.clone());
        let commands = timeout(ANSWER, streams.get_stream("COMMANDS")).await.context("asking for the commands")??;
        evidence.commands = commands.cached_info().state.messages;
        evidence.routes = routes(&ways.log).await?;
        evidence.answers = self.answers(ways, evidence).await?;
        read_models(&ways.pool, evidence).await?;
        evidence.events = events(&ways.log).await?;
        let seen = readmodel::state(&ways.pool).await?.sequence;
        let last = evidence.events.last().map_or(0, |recorded| recorded.sequence);
        ensure!(seen >= last, "the projector is at {seen} of {last}");
        Ok(())
    }

    async fn engine(&self, ways: &Ways, evidence: &mut Evidence) -> Result<()> {
        let ours = HashMap::from([("label".to_owned(), vec![format!("{INSTALLATION}={}", ways.log.installation())])]);
        let all = ListContainersOptions { all: true, filters: Some(ours.clone()), ..Default::default() };
        let found = timeout(ANSWER, self.engine.list_containers(Some(all))).await.context("listing containers")??;
        evidence.containers = found
            .into_iter()
            .map(|summary| {
                let labels = summary.labels.unwrap_or_default();
                let label = |name: &str| labels.get(name).cloned().unwrap_or_default();
                Container {
                    name: summary.names.into_iter().flatten().next().unwrap_or_default(),
                    stage: key(&label(PROJECT), &label(STAGE)),
                    set: label(DEPLOYMENT).parse().ok(),
                    replica: label(REPLICA).parse().unwrap_or_default(),
                    running: summary.state.is_some_and(|state| state.to_string() == "running"),
                }
            })
            .map(|container| Container { name: container.name.trim_start_matches('/').to_owned(), ..container })
            .collect();
        let networks = ListNetworksOptions { filters: Some(ours) };
        let found = timeout(ANSWER, self.engine.list_networks(Some(networks))).await.context("listing networks")??;
        evidence.networks = found
            .into_iter()
            .map(|network| Network {
                name: network.name.unwrap_or_default(),
                project: network.labels.unwrap_or_default().remove(PROJECT).unwrap_or_default(),
            })
            .collect();
        if self.private {
            let unused = HashMap::from([("dangling".to_owned(), vec!["true".to_owned()])]);
            let unused = ListVolumesOptions { filters: Some(unused) };
            let found = timeout(ANSWER, self.engine.list_volumes(Some(unused))).await.context("listing volumes")??;
            evidence.volumes = found.volumes.into_iter().flatten().map(|volume| volume.name).collect();
        }
        Ok(())
    }

    /// Asks as a client would, and then asks every edge who it was that answers.
    async fn answers(
        &self,
        ways: &Ways,
        evidence: &Evidence,
    ) -> Result<BTreeMap<String, Result<domain::DeploymentId, String>>> {
        let edges = edges(&ways.log).await?;
        let mut answers = BTreeMap::new();
        for (key, route) in &evidence.routes {
            let mut answer = Err("no edge is present".to_owned());
            for edge in &edges {
                answer = self.ask(ways, edge, route).await;
                if answer.is_err() {
                    break;
                }
            }
            answers.insert(key.clone(), answer);
        }
        Ok(answers)
    }

    async fn ask(&self, ways: &Ways, edge: &EdgePresence, route: &Route) -> Result<domain::DeploymentId, String> {
        let get = |address: &str| ways.http.get(format!("http://{address}{}", route.path)).header("host", &route.host);
        let plain = get(&self.edge).send().await.map_err(|error| format!("a request failed: {error}"))?;
        if !plain.status().is_success() {
            return Err(format!("a request was answered with {}", plain.status()));
        }
        let probe = get(&edge.address).header(PROBE_HEADER, &edge.probe_token).send().await;
        let probe = probe.map_err(|error| format!("a probe through edge {} failed: {error}", edge.id))?;
        let by = probe.headers().get(DEPLOYMENT_HEADER).and_then(|value| value.to_str().ok()).unwrap_or_default();
        by.parse().map_err(|_| format!("a probe through edge {} was answered by no deployment", edge.id))
    }
}

async fn nats(url: &str) -> Result<async_nats::Client> {
    let (credentials, server) =
        url.trim_start_matches("nats://").rsplit_once('@').context("a NATS URL with user and password")?;
    let (user, password) = credentials.split_once(':').context("a NATS URL with a password")?;
    let options = async_nats::ConnectOptions::with_user_and_password(user.to_owned(), password.to_owned());
    options.name("verdict").connect(server).await.context("connecting to NATS")
}

async fn events(log: &EventLog) -> Result<Vec<Recorded>> {
    let last = log.last_sequence().await?;
    let mut events = Vec::new();
    let mut following = pin!(log.follow("sluice.events.>", 0));
    while events.last().map_or(0, |recorded: &Recorded| recorded.sequence) < last {
        let next = timeout(ANSWER, following.next()).await.context("reading the log")?;
        events.push(next.context("the log ended")??);
    }
    Ok(events)
}

async fn values(log: &EventLog, bucket: &str) -> Result<BTreeMap<String, Vec<u8>>> {
    let bucket = log.bucket(bucket);
    let mut changes = pin!(bucket.watch());
    let mut values = BTreeMap::new();
    loop {
        let change = timeout(ANSWER, changes.next()).await.context("reading a bucket")?;
        match change.context("the bucket ended")?? {
            Change::Put { key, value, .. } => values.insert(key, value),
            Change::Deleted { key, .. } => values.remove(&key),
            Change::Ready => return Ok(values),
        };
    }
}

async fn routes(log: &EventLog) -> Result<BTreeMap<String, Route>> {
    let values = values(log, ROUTES).await?;
    values
        .into_iter()
        .map(|(key, value)| Ok((key, serde_json::from_slice(&value).context("reading a route")?)))
        .collect()
}

async fn edges(log: &EventLog) -> Result<Vec<EdgePresence>> {
    let values = values(log, EDGES).await?;
    values.values().map(|value| serde_json::from_slice(value).context("reading an edge's presence")).collect()
}

async fn read_models(pool: &PgPool, evidence: &mut Evidence) -> Result<()> {
    let stages = readmodel::stages::list(pool, None).await?;
    evidence.stages = stages.into_iter().map(|stage| (key(&stage.project, &stage.stage), stage)).collect();
    evidence.deployments.clear();
    let mut filter = deployments::Filter::default();
    loop {
        let page = deployments::list(pool, &filter, 500).await?;
        let rows = page.deployments.into_iter();
        evidence
            .deployments
            .extend(rows.map(|row| Deployed { deployment: domain::DeploymentId(row.id), status: row.status }));
        filter.before = page.next;
        if page.next.is_none() {
            return Ok(());
        }
    }
}
