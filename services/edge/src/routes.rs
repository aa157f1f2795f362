//! The routes in force: what changes them, what requests look up, and what still drains.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use domain::traffic::{Counters, EdgeStatus, Route, RouteStatus, Target};
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, time::Instant};

use crate::{hold::Hold, set::Set, table::Table};

/// Every route, for any number of requests to look up and one writer at a time to change.
#[derive(Debug)]
pub(crate) struct Routes {
    /// What requests see. Replaced as a whole, never changed.
    table: ArcSwap<Table<Arc<Entry>>>,
    known: Mutex<Known>,
    /// Goes up with every change.
    version: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Known {
    placed: BTreeMap<String, Placed>,
    draining: Vec<Draining>,
}

#[derive(Debug)]
struct Placed {
    saved: Saved,
    entry: Arc<Entry>,
}

/// A route as it came, to be written to the snapshot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Saved {
    /// `<project>.<stage>`.
    pub(crate) key: String,
    pub(crate) revision: u64,
    pub(crate) route: Route,
}

#[derive(Debug)]
struct Draining {
    key: String,
    set: Arc<Set>,
    deadline: Instant,
}

/// One route in one table.
#[derive(Debug)]
pub(crate) struct Entry {
    /// The same in every table, as long as the route lives.
    pub(crate) shared: Arc<Shared>,
    pub(crate) aim: Aim,
}

#[derive(Debug)]
pub(crate) enum Aim {
    Live(Arc<Set>),
    Held { limit: Duration },
}

#[derive(Debug, Default)]
pub(crate) struct Shared {
    pub(crate) hold: Hold,
    pub(crate) count: Count,
}

/// [`Counters`], as they are counted.
#[derive(Debug, Default)]
pub(crate) struct Count {
    pub(crate) requests: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) upstream_errors: AtomicU64,
    pub(crate) websockets: AtomicU64,
}

/// What [`Routes::put`] did.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Put {
    Done,
    /// Already so.
    Same,
    /// The route in force was written by someone with a later right to do so.
    Fenced,
}

impl Routes {
    pub(crate) fn new() -> Self {
        Self { table: ArcSwap::from_pointee(Table::new([])), known: Mutex::default(), version: watch::Sender::new(0) }
    }

    /// What answers on `host` and `path` now.
    pub(crate) fn find(&self, host: &str, path: &str) -> Option<Arc<Entry>> {
        self.table.load().find(host, path).cloned()
    }

    /// Puts `route` in force. Requests already running stay where they are, up to the drain
    /// deadline of what is replaced.
    pub(crate) fn put(&self, key: &str, revision: u64, route: Route) -> Put {
        let mut known = self.known();
        let known = &mut *known;
        let old = known.placed.get_mut(key);
        if let Some(old) = old {
            if route.fence < old.saved.route.fence {
                return Put::Fenced;
            }
            if route == old.saved.route {
                old.saved.revision = revision;
                return Put::Same;
            }
        }
        let old = known.placed.get(key).map(|placed| placed.entry.clone());
        let aim = match &route.target {
            Target::Live(config) => {
                let current = old.as_ref().and_then(|entry| entry.set());
                let kept = current.filter(|set| set.config == *config).cloned();
                let set = kept.or_else(|| revive(&mut known.draining, key, config));
                Aim::Live(set.unwrap_or_else(|| Arc::new(Set::new(config.clone(), current.map(Arc::as_ref)))))
            }
            Target::Held { limit } => Aim::Held { limit: limit.duration() },
        };
        let shared = old.as_ref().map_or_else(Arc::default, |entry| entry.shared.clone());
        let entry = Arc::new(Entry { shared, aim });
        known.placed.insert(key.to_owned(), Placed { saved: Saved { key: key.to_owned(), revision, route }, entry });
        self.publish(known);
        if let Some(old) = old {
            known.retire(key, &old);
        }
        self.version.send_modify(|version| *version += 1);
        Put::Done
    }

    pub(crate) fn remove(&self, key: &str) {
        let mut known = self.known();
        let Some(gone) = known.placed.remove(key) else { return };
        self.publish(&known);
        known.retire(key, &gone.entry);
        self.version.send_modify(|version| *version += 1);
    }

    /// Removes every route whose key is not in `keys`.
    pub(crate) fn retain(&self, keys: &BTreeSet<String>) {
        let gone: Vec<String> = self.known().placed.keys().filter(|key| !keys.contains(*key)).cloned().collect();
        gone.iter().for_each(|key| self.remove(key));
    }

    /// Every route as it came.
    pub(crate) fn saved(&self) -> Vec<Saved> {
        self.known().placed.values().map(|placed| placed.saved.clone()).collect()
    }

    /// Every set that requests are routed to.
    pub(crate) fn live_sets(&self) -> Vec<Arc<Set>> {
        self.known().placed.values().filter_map(|placed| placed.entry.set().cloned()).collect()
    }

    /// Sees each change once, or several at once.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    pub(crate) fn status(&self, id: &str) -> EdgeStatus {
        let known = self.known();
        let routes = known.placed.values().map(|Placed { saved, entry }| RouteStatus {
            key: saved.key.clone(),
            revision: saved.revision,
            host: saved.route.host.clone(),
            path: saved.route.path.clone(),
            held: matches!(entry.aim, Aim::Held { .. }),
            waiting: entry.shared.hold.waiting(),
            live: entry.set().map(|set| set.status()),
            counters: entry.shared.count.read(),
        });
        EdgeStatus {
            id: id.to_owned(),
            routes: routes.collect(),
            draining: known
                .draining
                .iter()
                .map(|draining| draining.set.status())
                .filter(|set| set.in_flight > 0)
                .collect(),
        }
    }

    /// Cuts what is past its drain deadline and forgets what has drained, for as long as it runs.
    pub(crate) async fn enforce_deadlines(self: Arc<Self>) {
        let mut changes = self.changes();
        loop {
            match self.cut_overdue(Instant::now()) {
                Some(next) => tokio::select! {
                    () = tokio::time::sleep_until(next) => {}
                    changed = changes.changed() => if changed.is_err() { return },
                },
                None => {
                    if changes.changed().await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// When the next deadline is. A set that was cut is forgotten: its requests' futures are woken
    /// and dropped at once.
    fn cut_overdue(&self, now: Instant) -> Option<Instant> {
        let mut known = self.known();
        known.draining.retain(|draining| {
            let overdue = draining.deadline <= now;
            if overdue {
                let in_flight = draining.set.in_flight();
                if in_flight > 0 {
                    tracing::info!(route = draining.key, deployment = %draining.set.config.deployment, in_flight, "drain deadline reached, closing what is left");
                }
                draining.set.cut();
            }
            !overdue && draining.set.in_flight() > 0
        });
        known.draining.iter().map(|draining| draining.deadline).min()
    }

    fn publish(&self, known: &Known) {
        let routes = known.placed.values().map(|Placed { saved, entry }| {
            (saved.route.host.as_str(), saved.route.path.as_str(), saved.route.fence, entry.clone())
        });
        self.table.store(Arc::new(Table::new(routes)));
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // A panic while it was held leaves whole routes behind at worst, never half of one.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// After the table was published: whatever `old` served drains unless it is still in use, and
    /// requests that wait look again.
    fn retire(&mut self, key: &str, old: &Entry) {
        let current = self.placed.get(key).and_then(|placed| placed.entry.set());
        if let Some(set) = old.set().filter(|old| current.is_none_or(|set| set.id != old.id)) {
            set.drain();
            let deadline = Instant::now() + set.config.drain.duration();
            self.draining.push(Draining { key: key.to_owned(), set: set.clone(), deadline });
        }
        old.shared.hold.release();
    }
}

/// A rollback within the drain time finds its set as it left it, pooled connections and all.
fn revive(draining: &mut Vec<Draining>, key: &str, config: &domain::traffic::UpstreamSet) -> Option<Arc<Set>> {
    let index = draining.iter().position(|d| d.key == key && d.set.config == *config && !d.set.was_cut())?;
    let set = draining.swap_remove(index).set;
    set.revive();
    Some(set)
}

impl Entry {
    fn set(&self) -> Option<&Arc<Set>> {
        match &self.aim {
            Aim::Live(set) => Some(set),
            Aim::Held { .. } => None,
        }
    }
}

impl Count {
    pub(crate) fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn read(&self) -> Counters {
        Counters {
            requests: self.requests.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            upstream_errors: self.upstream_errors.load(Ordering::Relaxed),
            websockets: self.websockets.load(Ordering::Relaxed),
        }
    }
}
