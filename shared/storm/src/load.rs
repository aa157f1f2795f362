//! Requests through the edge all the time, each of which must be answered, and by the right stage.

use std::{collections::BTreeMap, convert::Infallible, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{
    Request,
    client::conn::http1::{self, SendRequest},
    header::HOST,
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpStream,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    net,
    outages::{Cause, Outages},
    parts::{EDGE_PORT, ENGINE_PORT},
    schedule::Part,
    stages::{STAGES, Stage},
};

/// Of each client.
const PAUSE: Duration = Duration::from_millis(80);
/// Longer than a route may be held: a request that waits for it is answered in the end.
const LIMIT: Duration = Duration::from_secs(150);
/// Of a look whether a stage is back.
const QUICK: Duration = Duration::from_secs(1);
/// Good answers in a row after which a stage is back.
const BACK: u32 = 10;
/// Failures that are kept word by word.
const KEPT: usize = 100;

/// Clients of every stage: one that keeps its connection, one that does not.
pub(crate) struct Load {
    stop: CancellationToken,
    clients: JoinSet<Tally>,
    watch: JoinSet<Infallible>,
}

/// What became of the requests.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) requests: u64,
    pub(crate) failed: Vec<Failed>,
    /// The slowest answer.
    pub(crate) slowest: Duration,
}

pub(crate) struct Failed {
    /// Answered, and by the wrong application: there is no excuse for that.
    pub(crate) misdirected: bool,
    pub(crate) stage: usize,
    pub(crate) began: Instant,
    pub(crate) ended: Instant,
    pub(crate) why: String,
}

#[derive(Debug, thiserror::Error)]
#[error("answered by another stage: {0}")]
struct Misdirected(String);

impl Load {
    pub(crate) fn start(outages: Outages) -> Load {
        let stop = CancellationToken::new();
        let clients = (0..STAGES.len()).flat_map(|stage| [true, false].map(|keep| (stage, keep)));
        let clients = clients.map(|(stage, keep)| client(stage, keep, stop.clone())).collect();
        let mut watch = JoinSet::new();
        watch.spawn(look_for_stages(outages));
        Load { stop, clients, watch }
    }

    pub(crate) async fn stop(mut self) -> Result<Tally> {
        self.stop.cancel();
        self.watch.shutdown().await;
        let mut all = Tally::default();
        while let Some(tally) = self.clients.join_next().await {
            let Tally { requests, failed, slowest } = tally.context("a client panicked")?;
            all.requests += requests;
            all.failed.extend(failed);
            all.slowest = all.slowest.max(slowest);
        }
        Ok(all)
    }
}

impl Tally {
    /// Failures that nothing excuses, and how many there are of each sort.
    pub(crate) fn unexcused(&self, outages: &Outages) -> Vec<&Failed> {
        let unexcused =
            |failed: &&Failed| failed.misdirected || !outages.excuse(failed.stage, failed.began, failed.ended);
        self.failed.iter().filter(unexcused).collect()
    }
}

/// The first of them, with their time since `start`.
pub(crate) fn told(failed: &[&Failed], start: Instant) -> Vec<String> {
    let line = |failed: &&Failed| {
        let at = |moment: Instant| moment.saturating_duration_since(start).as_secs_f64();
        let stage = STAGES[failed.stage].key();
        format!("{:.3}s to {:.3}s, {stage}: {}", at(failed.began), at(failed.ended), failed.why)
    };
    failed.iter().take(KEPT).map(line).collect()
}

/// How often each reason occurs.
pub(crate) fn reasons<'a>(failed: impl IntoIterator<Item = &'a Failed>) -> BTreeMap<String, u64> {
    let mut reasons = BTreeMap::new();
    for failed in failed {
        *reasons.entry(failed.why.clone()).or_default() += 1;
    }
    reasons
}

/// Whether the stage of this index answers.
pub(crate) async fn serves(stage: usize) -> bool {
    matches!(timeout(QUICK, ask(&STAGES[stage], &mut None)).await, Ok(Ok(())))
}

async fn client(stage: usize, keep: bool, stop: CancellationToken) -> Tally {
    let mut tally = Tally::default();
    let mut connection = None;
    let mut ticks = interval(PAUSE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return tally,
            _ = ticks.tick() => {}
        }
        let began = Instant::now();
        let answer = timeout(LIMIT, ask(&STAGES[stage], &mut connection)).await;
        let answer = answer.context("no answer in time").flatten();
        let ended = Instant::now();
        tally.requests += 1;
        tally.slowest = tally.slowest.max(ended - began);
        if let Err(error) = answer {
            let misdirected = error.is::<Misdirected>();
            tally.failed.push(Failed { misdirected, stage, began, ended, why: format!("{error:#}") });
            connection = None;
        }
        if !keep {
            connection = None;
        }
    }
}

/// Asks the application which stage it belongs to.
async fn ask(stage: &Stage, kept: &mut Option<SendRequest<Empty<Bytes>>>) -> Result<()> {
    // A server may close an idle connection; only one that breaks under a request is a failure.
    let mut idle = kept.take();
    if let Some(connection) = &mut idle
        && connection.ready().await.is_err()
    {
        idle = None;
    }
    let mut connection = match idle {
        Some(connection) => connection,
        None => connect(Part::Edge, EDGE_PORT).await?,
    };
    let request = Request::get("/env?name=STAGE").header(HOST, stage.host()).body(Empty::new())?;
    let response = connection.send_request(request).await.context("awaiting the answer")?;
    let status = response.status();
    let body = response.into_body().collect().await.context("reading the answer")?.to_bytes();
    let body = String::from_utf8_lossy(&body);
    ensure!(status.is_success(), "answered with {status}: {}", body.trim());
    ensure!(body == stage.key(), Misdirected(body.into_owned()));
    *kept = Some(connection);
    Ok(())
}

async fn engine_answers() -> Result<()> {
    let mut connection = connect(Part::Engine, ENGINE_PORT).await?;
    let ping = Request::get("/_ping").header(HOST, "engine").body(Empty::new())?;
    ensure!(connection.send_request(ping).await?.status().is_success(), "the engine is not ready");
    Ok(())
}

async fn connect(part: Part, port: u16) -> Result<SendRequest<Empty<Bytes>>> {
    let stream = TcpStream::connect((net::address(part), port)).await.context("connecting")?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.context("connecting")?;
    // Ends when the sender is dropped; its errors reach the request.
    tokio::spawn(connection);
    Ok(sender)
}

/// Ends the outage of each stage whose containers were ended, once it answers again or had its time to.
async fn look_for_stages(outages: Outages) -> Infallible {
    let outages = Arc::new(outages);
    let mut good = [0; STAGES.len()];
    let mut ticks = interval(PAUSE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let waiting = outages.waiting();
        // Until it answers, the engine has not ended what it found.
        if waiting.is_empty() || !matches!(timeout(QUICK, engine_answers()).await, Ok(Ok(()))) {
            good = [0; STAGES.len()];
            continue;
        }
        for stage in waiting {
            good[stage] = if serves(stage).await { good[stage] + 1 } else { 0 };
            if good[stage] >= BACK || outages.repaired() {
                good[stage] = 0;
                outages.over(Cause::ContainersEnded(stage));
            }
        }
    }
}
