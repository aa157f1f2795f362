//! One deployment's containers as the edge sees them: who is healthy, who is busy, who may still
//! take requests.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};

use domain::traffic::{SetStatus, UpstreamSet, UpstreamStatus};
use tokio_util::sync::CancellationToken;

/// Never given twice, so that a pooled connection to one container is never taken for another
/// that has the same address.
static NEXT_KEY: AtomicU64 = AtomicU64::new(1);

#[derive(Debug)]
pub(crate) struct Set {
    pub(crate) id: u64,
    pub(crate) config: UpstreamSet,
    upstreams: Box<[Upstream]>,
    /// Replaced: takes no new requests. See [`Set::claim`] for the order that makes this safe.
    draining: AtomicBool,
    /// Ends the requests that are still in flight at the drain deadline.
    cut: CancellationToken,
    /// Where the next search for an upstream begins.
    turn: AtomicUsize,
}

#[derive(Debug)]
pub(crate) struct Upstream {
    pub(crate) instance: String,
    pub(crate) address: SocketAddr,
    /// Under which its idle connections are kept.
    pub(crate) key: u64,
    healthy: AtomicBool,
    in_flight: AtomicU64,
}

/// One request's place on an upstream; counted until dropped.
#[derive(Debug)]
pub(crate) struct Claim {
    set: Arc<Set>,
    index: usize,
}

/// Why a set gave no [`Claim`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Replaced meanwhile: the table holds a newer answer.
    Draining,
    /// No upstream that was not tried yet.
    Exhausted,
}

impl Set {
    /// `previous` lends what it knows of the health of containers that are in both.
    pub(crate) fn new(config: UpstreamSet, previous: Option<&Set>) -> Self {
        let upstreams = config.upstreams.iter().filter_map(|upstream| {
            let Ok(address) = upstream.address.parse() else {
                tracing::warn!(
                    instance = upstream.instance,
                    address = upstream.address,
                    "upstream address is not ip:port, ignored"
                );
                return None;
            };
            let known = previous
                .and_then(|set| set.upstreams.iter().find(|u| u.instance == upstream.instance && u.address == address));
            Some(Upstream {
                instance: upstream.instance.clone(),
                address,
                key: next_key(),
                healthy: AtomicBool::new(known.is_none_or(Upstream::is_healthy)),
                in_flight: AtomicU64::new(0),
            })
        });
        Self {
            id: next_key(),
            upstreams: upstreams.collect(),
            config,
            draining: AtomicBool::new(false),
            cut: CancellationToken::new(),
            turn: AtomicUsize::new(0),
        }
    }

    /// A place on the upstream with the fewest requests in flight, healthy ones first; round robin
    /// among equals. When all are marked down one is tried nevertheless: the mark may be stale,
    /// and a failed try costs no more than giving up.
    ///
    /// `tried` has a bit per upstream that this request need not try again.
    ///
    /// The count goes up *before* the drain flag is read, and the flag is set *after* the new
    /// table is in place, all in one total order: a claim either is seen by whoever drains, or
    /// sees the flag and finds the new table.
    pub(crate) fn claim(self: &Arc<Self>, tried: u64) -> Result<Claim, Refused> {
        if self.draining.load(Ordering::SeqCst) {
            return Err(Refused::Draining);
        }
        let index = self.choose(tried).ok_or(Refused::Exhausted)?;
        self.upstreams[index].in_flight.fetch_add(1, Ordering::SeqCst);
        let claim = Claim { set: self.clone(), index };
        if self.draining.load(Ordering::SeqCst) { Err(Refused::Draining) } else { Ok(claim) }
    }

    fn choose(&self, tried: u64) -> Option<usize> {
        let count = self.upstreams.len();
        if count == 1 {
            return (tried & 1 == 0).then_some(0);
        }
        let start = self.turn.fetch_add(1, Ordering::Relaxed);
        (0..count).map(|offset| start.wrapping_add(offset) % count).filter(|index| tried & bit(*index) == 0).min_by_key(
            |index| {
                let upstream = &self.upstreams[*index];
                (!upstream.is_healthy(), upstream.in_flight.load(Ordering::Relaxed))
            },
        )
    }

    pub(crate) fn upstreams(&self) -> &[Upstream] {
        &self.upstreams
    }

    /// Requests and websockets that have not ended yet.
    pub(crate) fn in_flight(&self) -> u64 {
        self.upstreams.iter().map(|upstream| upstream.in_flight.load(Ordering::SeqCst)).sum()
    }

    /// Call after the table no longer leads here.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
    }

    /// Call before the table leads here again. A set that was cut cannot come back.
    pub(crate) fn revive(&self) {
        self.draining.store(false, Ordering::SeqCst);
    }

    /// Ends what is still in flight.
    pub(crate) fn cut(&self) {
        self.cut.cancel();
    }

    pub(crate) fn was_cut(&self) -> bool {
        self.cut.is_cancelled()
    }

    pub(crate) fn status(&self) -> SetStatus {
        let upstreams = self.upstreams.iter().map(|upstream| UpstreamStatus {
            instance: upstream.instance.clone(),
            address: upstream.address.to_string(),
            healthy: upstream.is_healthy(),
            in_flight: upstream.in_flight.load(Ordering::SeqCst),
        });
        SetStatus { deployment: self.config.deployment, in_flight: self.in_flight(), upstreams: upstreams.collect() }
    }
}

impl Upstream {
    pub(crate) fn is_healthy(&self) -> bool {
        self.healthy.load(Ordering::Relaxed)
    }

    /// Whether this changes what was known.
    pub(crate) fn mark(&self, healthy: bool) -> bool {
        self.healthy.swap(healthy, Ordering::Relaxed) != healthy
    }
}

impl Claim {
    pub(crate) fn set(&self) -> &Set {
        &self.set
    }

    pub(crate) fn upstream(&self) -> &Upstream {
        &self.set.upstreams[self.index]
    }

    /// This upstream's bit among those tried.
    pub(crate) fn bit(&self) -> u64 {
        bit(self.index)
    }

    pub(crate) fn cut_token(&self) -> &CancellationToken {
        &self.set.cut
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.upstream().in_flight.fetch_sub(1, Ordering::SeqCst);
    }
}

fn next_key() -> u64 {
    NEXT_KEY.fetch_add(1, Ordering::Relaxed)
}

/// Settings allow at most 50 replicas, so a word has a bit for each; more would share the last.
fn bit(index: usize) -> u64 {
    1 << index.min(63)
}

#[cfg(test)]
pub(crate) mod tests {
    use domain::{DeploymentId, Span, settings::HealthCheck, traffic};
    use uuid::Uuid;

    use super::*;

    pub(crate) fn config(deployment: u128, addresses: &[&str]) -> UpstreamSet {
        let upstreams = addresses
            .iter()
            .enumerate()
            .map(|(i, address)| traffic::Upstream { instance: format!("c{i}"), address: (*address).into() });
        UpstreamSet {
            deployment: DeploymentId(Uuid::from_u128(deployment)),
            upstreams: upstreams.collect(),
            health: HealthCheck::default(),
            drain: Span::secs(30),
        }
    }

    fn set_of(count: usize) -> Arc<Set> {
        let addresses: Vec<String> = (1..=count).map(|port| format!("127.0.0.1:{port}")).collect();
        Arc::new(Set::new(config(1, &addresses.iter().map(String::as_str).collect::<Vec<_>>()), None))
    }

    #[test]
    fn requests_spread_evenly_and_are_given_back() {
        let set = set_of(3);
        let claims: Vec<_> = (0..9).map(|_| set.claim(0).expect("an upstream")).collect();
        assert!(set.status().upstreams.iter().all(|upstream| upstream.in_flight == 3));
        assert_eq!(set.in_flight(), 9);
        drop(claims);
        assert_eq!(set.in_flight(), 0);
    }

    #[test]
    fn idle_upstreams_take_turns() {
        let set = set_of(2);
        let turns: Vec<_> = (0..4).map(|_| set.claim(0).expect("an upstream").bit()).collect();
        assert_eq!(turns, [1, 2, 1, 2]);
    }

    #[test]
    fn a_healthy_upstream_is_preferred_and_a_downed_one_tried_last() {
        let set = set_of(2);
        set.upstreams()[0].mark(false);
        let claims: Vec<_> = (0..5).map(|_| set.claim(0).expect("an upstream")).collect();
        assert!(claims.iter().all(|claim| claim.bit() == 2), "only the healthy one, however busy");
        assert_eq!(set.claim(2).expect("the one marked down").bit(), 1);
        assert_eq!(set.claim(3).err(), Some(Refused::Exhausted));
    }

    #[test]
    fn a_replaced_set_takes_nothing_until_it_is_revived() {
        let set = set_of(1);
        set.drain();
        assert_eq!(set.claim(0).err(), Some(Refused::Draining));
        assert_eq!(set.in_flight(), 0);
        set.revive();
        assert!(set.claim(0).is_ok());
    }

    #[test]
    fn an_upstream_without_a_usable_address_is_left_out() {
        let set = Arc::new(Set::new(config(1, &["nonsense", "127.0.0.1:1"]), None));
        assert_eq!(set.upstreams().len(), 1);
        assert_eq!(Arc::new(Set::new(config(1, &[]), None)).claim(0).err(), Some(Refused::Exhausted));
    }

    #[test]
    fn connections_are_never_shared_between_containers_of_one_address() {
        let (old, new) = (set_of(1), set_of(1));
        assert_ne!(old.upstreams()[0].key, new.upstreams()[0].key);
    }

    #[test]
    fn a_claim_that_races_with_the_drain_is_counted_or_refused() {
        for _ in 0..200 {
            let set = set_of(2);
            std::thread::scope(|scope| {
                let claimed = scope.spawn(|| set.claim(0));
                set.drain();
                let seen = set.in_flight();
                let claimed = claimed.join().expect("no panic");
                assert!(claimed.is_err() || seen == 1, "a claim slipped past the drain");
            });
        }
    }
}
