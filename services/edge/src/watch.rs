//! The edge's side of NATS: routes in, presence and status out. Requests are served without it.

use std::{collections::BTreeSet, pin::pin, sync::Arc, time::Duration};

use domain::traffic::{EDGES, EdgePresence, ROUTES, Route, status_subject};
use eventlog::{Change, EventLog};
use futures::StreamExt;
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval, sleep, timeout},
};

use crate::routes::{Put, Routes};

/// The presence expires five times later.
const PRESENCE_INTERVAL: Duration = Duration::from_secs(2);

/// Between two tries to get at NATS.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// An answer that this takes longer for is not worth waiting for.
const FAREWELL_LIMIT: Duration = Duration::from_secs(1);

/// As what this edge shows itself to the deployer. Two processes never use one id at the same time: who takes an answer
/// for the whole truth would miss the other's.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) presence: EdgePresence,
    /// Gone with this process: nobody takes it over.
    pub(crate) temporary: bool,
}

/// How far it got.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Reached {
    /// Every route that NATS held is in force.
    pub(crate) routes: bool,
    /// The id under which questions are answered at present.
    pub(crate) answers_as: Option<String>,
}

/// Follows the routes, and answers as what `identity` says, for as long as it runs, however long NATS is away.
pub(crate) async fn run(
    config: eventlog::Config,
    routes: Arc<Routes>,
    identity: watch::Receiver<Option<Identity>>,
    reached: watch::Sender<Reached>,
) {
    let log = connect(&config).await;
    tokio::join!(follow(&log, &routes, &reached), speak(&log, identity, &routes, &reached));
}

async fn connect(config: &eventlog::Config) -> EventLog {
    let mut told = false;
    loop {
        match EventLog::connect(config).await {
            Ok(log) => return log,
            Err(error) if !told => {
                tracing::warn!(%error, "no connection to NATS yet, serving from the snapshot and trying on")
            }
            Err(error) => tracing::debug!(%error, "still no connection to NATS"),
        }
        told = true;
        sleep(RETRY_PAUSE).await;
    }
}

async fn follow(log: &EventLog, routes: &Routes, reached: &watch::Sender<Reached>) {
    loop {
        let bucket = log.bucket(ROUTES);
        let mut changes = pin!(bucket.watch());
        // Of the values that exist, those that came since the watch (re)began.
        let mut seen = BTreeSet::new();
        while let Some(change) = changes.next().await {
            match change {
                Ok(Change::Put { key, value, revision }) => {
                    apply(routes, &key, &value, revision);
                    seen.insert(key);
                }
                Ok(Change::Deleted { key, .. }) => {
                    tracing::info!(route = key, "route removed");
                    routes.remove(&key);
                    seen.remove(&key);
                }
                Ok(Change::Ready) => {
                    routes.retain(&std::mem::take(&mut seen));
                    reached.send_modify(|reached| reached.routes = true);
                }
                Err(error) => {
                    tracing::warn!(%error, "following the routes failed, beginning again");
                    break;
                }
            }
        }
        sleep(RETRY_PAUSE).await;
    }
}

/// A value that cannot be read changes nothing: what was in force stays.
fn apply(routes: &Routes, key: &str, value: &[u8], revision: u64) {
    let route: Route = match serde_json::from_slice(value) {
        Ok(route) => route,
        Err(error) => {
            return tracing::error!(%error, route = key, revision, "route cannot be read, keeping the one before");
        }
    };
    if let Some(proxy) = route.direct() {
        routes.remove(key);
        return tracing::info!(route = key, revision, %proxy, "route left to a proxy that serves it itself");
    }
    let (fence, host, path) = (route.fence, route.host.clone(), route.path.clone());
    match routes.put(key, revision, route) {
        Put::Done => tracing::info!(route = key, revision, fence, host, path, "route in force"),
        Put::Same => {}
        Put::Fenced => tracing::warn!(route = key, revision, fence, "route ignored: a later writer has set it already"),
    }
}

async fn speak(
    log: &EventLog,
    mut identity: watch::Receiver<Option<Identity>>,
    routes: &Routes,
    reached: &watch::Sender<Reached>,
) {
    loop {
        let me = identity.borrow_and_update().clone();
        let Some(Identity { presence, temporary }) = me else {
            if identity.changed().await.is_err() {
                return;
            }
            continue;
        };
        tokio::select! {
            _ = async { tokio::join!(present(log, &presence), answer(log, &presence.id, routes, reached)) } => {}
            changed = identity.changed() => if changed.is_err() { return },
        }
        if temporary {
            // Else the deployer would wait for its answers until the entry expires.
            let gone = timeout(FAREWELL_LIMIT, log.bucket(EDGES).delete(&presence.id, None)).await;
            tracing::debug!(?gone, id = presence.id, "no longer present");
        }
        reached.send_modify(|reached| reached.answers_as = None);
    }
}

async fn present(log: &EventLog, me: &EdgePresence) {
    let bucket = log.bucket(EDGES);
    let value = serde_json::to_vec(me).unwrap_or_default();
    let mut ticks = interval(PRESENCE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut present = true;
    loop {
        ticks.tick().await;
        let put = bucket.put(&me.id, value.clone()).await;
        match &put {
            Ok(_) if !present => tracing::info!("NATS is back"),
            Err(error) if present => tracing::warn!(%error, "NATS is away, serving on"),
            Ok(_) | Err(_) => {}
        }
        present = put.is_ok();
    }
}

async fn answer(log: &EventLog, id: &str, routes: &Routes, reached: &watch::Sender<Reached>) {
    loop {
        match log.serve(&status_subject(id)).await {
            Ok(requests) => {
                reached.send_modify(|reached| reached.answers_as = Some(id.to_owned()));
                let mut requests = pin!(requests);
                while let Some(request) = requests.next().await {
                    let status = serde_json::to_vec(&routes.status(id)).unwrap_or_default();
                    if let Err(error) = request.reply(status).await {
                        tracing::debug!(%error, "the status could not be sent");
                    }
                }
            }
            Err(error) => tracing::debug!(%error, "cannot answer status requests yet"),
        }
        sleep(RETRY_PAUSE).await;
    }
}
