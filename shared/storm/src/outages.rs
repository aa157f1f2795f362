//! When a request may fail without anybody's fault but the storm's.
//!
//! A failed request counts against Sluice, unless its time, from its start to its end, touches one of these spans:
//!
//! - the edge was killed: from the kill until its port takes connections again;
//! - the edge hung: from SIGSTOP to SIGCONT;
//! - clients and edge, or edge and containers, were cut off from each other: from the cut until it was healed;
//! - the engine was killed: its new start ends all containers and starts them anew, at new addresses. From that start
//!   until the stage answers again, ten times in a row, but no longer than [`REPAIR`] after the last moment at which
//!   deployer, NATS, engine and edge were not all left in peace: without them nobody can tell the edge of the new
//!   addresses.
//!
//! Nothing excuses an answer by the wrong application, and nothing else excuses a failure: not the end of NATS, PostgreSQL, api, projector or deployer, nor a full disk, a
//! wrong clock, or a hanging engine.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::{schedule::Part, stages::STAGES};

/// For deployer and edge to find the containers at their new addresses.
const REPAIR: Duration = Duration::from_secs(10);

/// Why requests may fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Cause {
    Killed(Part),
    Stopped(Part),
    Cut(Part, Part),
    /// All containers, of the stage of this index.
    ContainersEnded(usize),
}

#[derive(Clone, Default)]
pub(crate) struct Outages(Arc<Mutex<Spans>>);

#[derive(Default)]
struct Spans {
    open: BTreeMap<Cause, Instant>,
    closed: Vec<Span>,
    /// Faults under way on those who repair routes.
    disturbing: u32,
    peaceful_since: Option<Instant>,
}

struct Span {
    cause: Cause,
    from: Instant,
    until: Instant,
}

impl Outages {
    pub(crate) fn begin(&self, cause: Cause) {
        self.lock().open.entry(cause).or_insert_with(Instant::now);
    }

    pub(crate) fn over(&self, cause: Cause) {
        let spans = &mut *self.lock();
        if let Some(from) = spans.open.remove(&cause) {
            spans.closed.push(Span { cause, from, until: Instant::now() });
        }
    }

    /// All containers are about to end and to come back.
    pub(crate) fn containers_end(&self) {
        (0..STAGES.len()).for_each(|stage| self.begin(Cause::ContainersEnded(stage)));
        let spans = &mut *self.lock();
        spans.peaceful_since = spans.peaceful_since.map(|_| Instant::now());
    }

    /// One of those who repair routes is hindered.
    pub(crate) fn disturb(&self) {
        let spans = &mut *self.lock();
        spans.disturbing += 1;
        spans.peaceful_since = None;
    }

    /// The hindrance is over.
    pub(crate) fn leave_in_peace(&self) {
        let spans = &mut *self.lock();
        spans.disturbing -= 1;
        if spans.disturbing == 0 {
            spans.peaceful_since = Some(Instant::now());
        }
    }

    /// The stages whose containers have ended and not yet been seen again.
    pub(crate) fn waiting(&self) -> Vec<usize> {
        let open = self.lock();
        let stage = |cause: &Cause| match cause {
            Cause::ContainersEnded(stage) => Some(*stage),
            Cause::Killed(_) | Cause::Stopped(_) | Cause::Cut(..) => None,
        };
        open.open.keys().filter_map(stage).collect()
    }

    /// Whether everything had the time to repair the routes.
    pub(crate) fn repaired(&self) -> bool {
        self.lock().peaceful_since.is_some_and(|since| since.elapsed() > REPAIR)
    }

    /// Whether a request for the stage `stage` that was under way at that time may have failed without fault.
    pub(crate) fn excuse(&self, stage: usize, began: Instant, ended: Instant) -> bool {
        let spans = self.lock();
        let concerns = |cause: &Cause| match cause {
            Cause::ContainersEnded(other) => *other == stage,
            Cause::Killed(_) | Cause::Stopped(_) | Cause::Cut(..) => true,
        };
        spans.open.iter().any(|(cause, from)| concerns(cause) && *from <= ended)
            || spans.closed.iter().any(|span| concerns(&span.cause) && span.from <= ended && span.until >= began)
    }

    /// Seconds in which requests of one stage or of all might fail, added up by cause: what the storm did not look at.
    pub(crate) fn excused(&self) -> BTreeMap<&'static str, f64> {
        let spans = self.lock();
        let mut sums = BTreeMap::new();
        for span in &spans.closed {
            let (name, share) = match span.cause {
                Cause::Killed(_) => ("edge_killed", 1),
                Cause::Stopped(_) => ("edge_stopped", 1),
                Cause::Cut(..) => ("edge_cut_off", 1),
                Cause::ContainersEnded(_) => ("containers_ended", STAGES.len()),
            };
            *sums.entry(name).or_default() += (span.until - span.from).as_secs_f64() / share as f64;
        }
        sums
    }

    fn lock(&self) -> MutexGuard<'_, Spans> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_what_touches_an_outage_is_excused() {
        let outages = Outages::default();
        let second = Duration::from_secs(1);
        let before = Instant::now();
        tokio::time::advance(second).await;
        outages.begin(Cause::Killed(Part::Edge));
        let during = Instant::now();
        tokio::time::advance(second).await;
        outages.over(Cause::Killed(Part::Edge));
        tokio::time::advance(second).await;
        let after = Instant::now();
        assert!(!outages.excuse(0, before, before));
        assert!(
            outages.excuse(0, before, during) && outages.excuse(0, during, after) && outages.excuse(0, before, after)
        );
        assert!(!outages.excuse(0, after, after));
        outages.begin(Cause::ContainersEnded(1));
        assert!(!outages.excuse(0, after, after) && outages.excuse(1, after, after));
    }

    #[tokio::test(start_paused = true)]
    async fn repairs_have_their_time_once_nobody_is_hindered() {
        let outages = Outages::default();
        outages.disturb();
        outages.disturb();
        outages.leave_in_peace();
        tokio::time::advance(REPAIR * 2).await;
        assert!(!outages.repaired());
        outages.leave_in_peace();
        assert!(!outages.repaired());
        tokio::time::advance(REPAIR * 2).await;
        assert!(outages.repaired());
        outages.containers_end();
        assert!(!outages.repaired());
        assert_eq!(outages.waiting().len(), STAGES.len());
    }
}
