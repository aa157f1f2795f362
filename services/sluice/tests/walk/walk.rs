//! An installation of its own, walked through: deployments on every lane, a kill at every moment of them, and the
//! verdict after each round.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path as File,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bollard::query_parameters::ListContainersOptions;
use eventlog::EventLog;
use serde::Serialize;
use storm::verdict::{Scene, Verdict, View};
use testkit::{Docker, Load, Registry, Report as Answers, Running, SampleImage, Sluice};
use tokio::{
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    board::Place,
    client::Client,
    lane::{self, Lane, PROJECT, Path},
    moments::{self, Moment, Seen},
    strike::Target,
};

/// For all deployments of a round to end, killed again and again.
const ROUND: Duration = Duration::from_secs(400);
/// For a moment that was not struck at once, since the part had not lived long enough.
const LOOK: Duration = Duration::from_millis(50);
/// A moment that should be struck alone and was missed is tried again.
const TRIES: usize = 10;

/// How the kills are spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spread {
    /// As [`Spread::Together`], on a few of the lanes; where a kill costs most time, only at every third moment.
    Brief,
    /// A deployment suffers one at each of its steps, and all lanes walk at the same time. What is missed in this crowd
    /// is struck alone.
    Together,
    /// Each deployment suffers one kill, and walks alone.
    Alone,
}

/// What came of it.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    pub(crate) target: &'static str,
    pub(crate) spread: String,
    /// By lane: the moments that were struck.
    pub(crate) struck: BTreeMap<String, Vec<String>>,
    /// By lane: how its deployments ended.
    pub(crate) outcomes: BTreeMap<String, BTreeMap<String, u64>>,
    pub(crate) kills: u64,
    pub(crate) deployments: u64,
    #[serde(flatten)]
    pub(crate) verdict: Verdict,
    pub(crate) http_requests: u64,
    pub(crate) http_failed: BTreeMap<String, u64>,
    pub(crate) seconds: u64,
    /// Everything that is not as it should be.
    pub(crate) wrong: Vec<String>,
}

struct Walk {
    target: Target,
    sluice: Sluice,
    docker: Docker,
    registry: Registry,
    client: Client,
    moments: UnboundedReceiver<Moment>,
    seen: Seen,
    _watching: JoinSet<()>,
    places: Vec<Place>,
    round: usize,
    /// The last time that the target was started again.
    back: Instant,
    outcome: Outcome,
}

pub(crate) async fn walk(target: Target, lanes: Vec<Lane>, spread: Spread) -> Result<Outcome> {
    let began = Instant::now();
    let mut walk = Walk::begin(target, &lanes, spread)
        .await
        .with_context(|| format!("preparing the walk of {}", target.name()))?;
    let loads: Vec<Running> = walk.places.iter().map(|place| load(&walk.sluice, place.lane)).collect();
    let all: Vec<usize> = (0..walk.places.len()).collect();
    // Undisturbed, to learn what there is to strike.
    walk.round(&all).await?;
    let each = if spread == Spread::Brief && target.stops_containers() { 3 } else { 1 };
    walk.places.iter_mut().for_each(|place| place.learn(each));
    if spread != Spread::Alone {
        walk.together().await?;
    }
    walk.alone().await?;
    for (place, load) in walk.places.iter().zip(loads) {
        // The last verdict has asked, so every load has been served since.
        let answers = load.stop().await;
        walk.outcome.wrong.extend(not_forgiven(target, place.lane, &answers));
        walk.outcome.http_requests += answers.requests;
        for (reason, count) in answers.failures {
            *walk.outcome.http_failed.entry(reason).or_default() += count;
        }
    }
    for place in &walk.places {
        let struck = place.expected.iter().filter(|name| place.struck.contains(*name)).cloned().collect();
        walk.outcome.struck.insert(place.lane.stage(), struck);
        if !place.left().is_empty() {
            let left = format!("{}: {} was not struck at {:?}", place.lane.stage(), target.name(), place.left());
            walk.outcome.wrong.push(left);
        }
    }
    walk.outcome.wrong.extend(walk.outcome.verdict.findings.iter().cloned());
    walk.outcome.seconds = began.elapsed().as_secs();
    if !walk.outcome.wrong.is_empty() {
        keep_logs(&walk.sluice, target);
    }
    Ok(walk.outcome)
}

/// A little of it on every lane, for as long as it takes.
fn load(sluice: &Sluice, lane: Lane) -> Running {
    Load::new(sluice.edge(), &lane.host()).connections(1).rate(4).deadline(Duration::from_secs(600)).start()
}

/// A request fails only together with what carries it.
fn not_forgiven(target: Target, lane: Lane, answers: &Answers) -> Vec<String> {
    let forgiven = |reason: &str| {
        let cut = ["connecting", "awaiting the answer", "reading the answer"].iter().any(|cut| reason.starts_with(cut));
        let nobody = ["status 502", "status 503", "status 504"].iter().any(|status| reason.starts_with(status));
        cut && target.cuts_connections() || nobody && target.stops_containers()
    };
    let failures = answers.failures.iter().filter(|(reason, _)| !forgiven(reason));
    failures
        .map(|(reason, count)| format!("{}: {count} of {} requests failed: {reason}", lane.stage(), answers.requests))
        .collect()
}

fn keep_logs(sluice: &Sluice, target: Target) {
    let path = std::env::temp_dir().join(format!("sluice-walk-{}.log", target.name()));
    let nats = std::fs::read_to_string(sluice.data_dir().join("nats.log")).unwrap_or_default();
    let postgres = std::fs::read_to_string(sluice.data_dir().join("postgres.log")).unwrap_or_default();
    let text = format!("{}\n--- nats:\n{nats}\n--- postgres:\n{postgres}", sluice.log_text());
    // Only to help whoever reads about the failure.
    let _ = std::fs::write(path, text);
}

impl Walk {
    async fn begin(target: Target, lanes: &[Lane], spread: Spread) -> Result<Walk> {
        let docker = Docker::start_private().await?;
        let registry = Registry::start().await?;
        let images = [
            (lane::FIRST, SampleImage::new(lane::FIRST)),
            (lane::GOOD, SampleImage::new(lane::GOOD)),
            (lane::SLOW, SampleImage::new(lane::SLOW).env("START_DELAY_MS", 3_600_000)),
            (lane::BROKEN, SampleImage::new(lane::BROKEN).broken()),
        ];
        for (tag, image) in images {
            let local = format!("{PROJECT}:{tag}");
            image.load(&docker, &local).await?;
            registry.push(&docker, &local, &local).await?;
        }
        let program = File::new(env!("CARGO_BIN_EXE_sluice"));
        let mut sluice = Sluice::prepare(program, docker.host())?;
        sluice.set("DEPLOYER_CONCURRENCY", "16");
        sluice.start().await?;
        let client = Client::new(&sluice).await?;
        sluice.apply(&lane::project(lanes, true)).await?;
        let (to, moments) = unbounded_channel();
        let (watching, seen) = moments::watch(log(&sluice).await?, docker.client().clone(), to);
        let outcome = Outcome {
            target: target.name(),
            spread: format!("{spread:?}"),
            struck: BTreeMap::new(),
            outcomes: BTreeMap::new(),
            kills: 0,
            deployments: 0,
            verdict: Verdict::default(),
            http_requests: 0,
            http_failed: BTreeMap::new(),
            seconds: 0,
            wrong: vec![],
        };
        let places: Vec<Place> = lanes.iter().copied().map(Place::new).collect();
        let mut walk = Walk {
            target,
            sluice,
            docker,
            registry,
            client,
            moments,
            seen,
            _watching: watching,
            places,
            round: 0,
            back: Instant::now(),
            outcome,
        };
        walk.first().await?;
        walk.sluice.apply(&lane::project(lanes, false)).await?;
        Ok(walk)
    }

    /// A release on every lane, to be replaced.
    async fn first(&mut self) -> Result<()> {
        let all: Vec<usize> = (0..self.places.len()).collect();
        self.deploy_all(&all, Some(lane::FIRST)).await?;
        let ended: Vec<_> = self.places.iter().map(|place| place.outcome.as_deref()).collect();
        ensure!(ended.iter().all(|outcome| *outcome == Some("succeeded")), "the first releases: {ended:?}");
        Ok(())
    }

    /// Until a round strikes nothing new.
    async fn together(&mut self) -> Result<()> {
        let struck = |walk: &Self| walk.places.iter().map(|place| place.struck.len()).sum::<usize>();
        loop {
            let open: Vec<usize> = (0..self.places.len()).filter(|at| !self.places[*at].left().is_empty()).collect();
            let before = struck(self);
            if open.is_empty() || !self.outcome.verdict.is_clean() {
                return Ok(());
            }
            self.round(&open).await?;
            if struck(self) == before {
                return Ok(());
            }
        }
    }

    /// Whatever was not struck yet, each in a deployment that nothing else happens to.
    async fn alone(&mut self) -> Result<()> {
        for at in 0..self.places.len() {
            let left: Vec<String> = self.places[at].left().into_iter().map(str::to_owned).collect();
            for moment in left {
                for _ in 0..TRIES {
                    if !self.outcome.verdict.is_clean() {
                        return Ok(());
                    }
                    // The first moments of a deployment come at once: by then it must have lived long enough.
                    sleep(self.target.life().saturating_sub(self.back.elapsed())).await;
                    // Only this one is left to be struck.
                    let all: Vec<String> = self.places[at].expected.clone();
                    let struck = self.places[at].struck.clone();
                    self.places[at].struck = all.into_iter().filter(|name| *name != moment).collect();
                    self.round(&[at]).await?;
                    let met = self.places[at].struck.contains(&moment);
                    self.places[at].struck = struck;
                    if met {
                        self.places[at].struck.insert(moment.clone());
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    /// A deployment on each of the places, and the verdict afterwards.
    async fn round(&mut self, places: &[usize]) -> Result<()> {
        self.deploy_all(places, None).await?;
        let scene = Scene { sluice: &self.sluice, engine: self.docker.client(), private: true };
        let verdict = scene.verdict(self.client.accepted(), self.made()).await;
        let verdict = verdict.with_context(|| self.told("no verdict"))?;
        // It is about everything so far: the last one counts, unless an earlier one was worse.
        if self.outcome.verdict.is_clean() {
            self.outcome.verdict = verdict;
        }
        Ok(())
    }

    async fn deploy_all(&mut self, places: &[usize], tag: Option<&str>) -> Result<()> {
        self.round += 1;
        self.places.iter_mut().for_each(Place::rest);
        let mut asking = JoinSet::new();
        for at in places {
            let lane = self.places[*at].lane;
            let image = format!("{}/{PROJECT}:{}", self.registry.address(), tag.unwrap_or(lane.tag()));
            let key = format!("{}-{}", lane.stage(), self.round);
            asking.spawn(self.client.clone().deploy(lane.stage(), image, key));
        }
        let end = Instant::now() + ROUND;
        // Ended by being dropped.
        let mut spoiling = JoinSet::new();
        let mut settling: Option<tokio::task::JoinHandle<Result<Verdict>>> = None;
        loop {
            let open = places.iter().any(|at| self.places[*at].outcome.is_none());
            if !open && asking.is_empty() && settling.is_none() {
                settling = Some(self.settle());
            }
            ensure!(Instant::now() < end, self.told("the deployments do not come to their end"));
            tokio::select! {
                Some(asked) = asking.join_next(), if !asking.is_empty() => asked.context("a request panicked")??,
                settled = async { settling.as_mut().expect("asked before").await }, if settling.is_some() => {
                    settled.context("looking panicked").flatten().with_context(|| self.told("it does not come to rest"))?;
                    break;
                }
                Some(moment) = self.moments.recv() => {
                    self.absorb(moment, tag.is_none(), &mut asking, &mut spoiling)?;
                }
                () = sleep(LOOK) => {}
            }
            if self.strike().await?
                && let Some(settling) = settling.take()
            {
                settling.abort();
            }
        }
        for at in places {
            let place = &self.places[*at];
            self.outcome.deployments += 1;
            let outcomes = self.outcome.outcomes.entry(place.lane.stage()).or_default();
            *outcomes.entry(place.outcome.clone().unwrap_or_default()).or_default() += 1;
        }
        Ok(())
    }

    /// Takes in everything that has happened by now.
    fn absorb(
        &mut self,
        first: Moment,
        turn: bool,
        asking: &mut JoinSet<Result<()>>,
        spoiling: &mut JoinSet<()>,
    ) -> Result<()> {
        let mut next = Some(first);
        while let Some(moment) = next {
            let place = self.places.iter_mut().find(|place| place.lane.stage() == moment.stage);
            let place = place.with_context(|| format!("an unknown stage: {moment:?}"))?;
            if let Some(name) = place.absorb(&moment)
                && turn
                && !place.turned
                && place.lane.turns_at() == Some(name.as_str())
            {
                place.turned = true;
                let deployment = moment.deployment.to_string();
                match place.lane.path {
                    Path::CancelledInHealth | Path::CancelledInBake => {
                        let key = format!("cancel-{deployment}");
                        asking.spawn(self.client.clone().cancel(deployment, key));
                    }
                    Path::FailsInBake => {
                        spoiling.spawn(spoil(self.docker.client().clone(), deployment));
                    }
                    Path::Succeeds | Path::FailsInHealth => {}
                }
            }
            next = self.moments.try_recv().ok();
        }
        Ok(())
    }

    /// Kills, if there is a deployment at a moment that was not struck yet.
    async fn strike(&mut self) -> Result<bool> {
        if self.back.elapsed() < self.target.life() || !self.places.iter().any(|place| place.wants().is_some()) {
            return Ok(false);
        }
        let when = Instant::now();
        self.places.iter_mut().for_each(|place| place.strike(when));
        self.outcome.kills += 1;
        let struck = self.target.strike(&mut self.sluice, &mut self.docker).await;
        struck.with_context(|| self.told("it does not come back"))?;
        self.back = Instant::now();
        Ok(true)
    }

    /// Looks from outside until all is tidied up: what that does may be struck as well.
    fn settle(&self) -> tokio::task::JoinHandle<Result<Verdict>> {
        let view = View {
            data_dir: self.sluice.data_dir().to_owned(),
            edge: self.sluice.edge().to_owned(),
            engine: self.docker.client().clone(),
            private: true,
        };
        let (accepted, made) = (self.client.accepted(), self.made());
        tokio::spawn(async move { view.quiet(accepted, made).await })
    }

    fn made(&self) -> Vec<storm::verdict::Made> {
        self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner).made(self.target.stops_containers())
    }

    fn told(&self, what: &str) -> String {
        keep_logs(&self.sluice, self.target);
        let stand: Vec<String> = self
            .places
            .iter()
            .filter(|place| place.current.is_some())
            .map(|place| format!("{} {:?} {:?}", place.lane.stage(), place.outcome, place.last()))
            .collect();
        format!(
            "{what} after {} kills of {}, in round {}: {stand:#?}",
            self.outcome.kills,
            self.target.name(),
            self.round
        )
    }
}

/// Never ends: the new release's containers say that they are ill, and one that was started again is told anew.
async fn spoil(engine: bollard::Docker, deployment: String) {
    let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(1)).build().expect("a client");
    let filters = HashMap::from([("label".to_owned(), vec![format!("dev.sluice.deployment={deployment}")])]);
    loop {
        let options = ListContainersOptions { filters: Some(filters.clone()), ..Default::default() };
        let found = engine.list_containers(Some(options)).await.unwrap_or_default();
        let networks = found.into_iter().filter_map(|container| container.network_settings?.networks);
        for ip in networks.flat_map(HashMap::into_values).filter_map(|network| network.ip_address) {
            // It may be gone by now, which serves as well.
            let _ = http.get(format!("http://{ip}:8080/break")).send().await;
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// A connection of our own, which outlives every kill.
async fn log(sluice: &Sluice) -> Result<EventLog> {
    let text = std::fs::read(sluice.data_dir().join("connection.json")).context("reading connection.json")?;
    let connection: serde_json::Value = serde_json::from_slice(&text)?;
    let url = connection["nats_url"].as_str().context("connection.json names no NATS")?.to_owned();
    let config = eventlog::Config { url, name: "walk".into(), master_key: None };
    Ok(timeout(Duration::from_secs(30), EventLog::connect(&config)).await.context("connecting to NATS")??)
}
