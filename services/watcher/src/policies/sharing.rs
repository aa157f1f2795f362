//! Several watchers share the registries: each asks those that fall to it. Where two do for a moment, nothing happens
//! twice, for that is decided elsewhere.

use std::{collections::BTreeSet, time::Duration};

use domain::push::WATCHERS;
use eventlog::{Change, EventLog};
use tokio::time::{MissedTickBehavior, interval};
use uuid::Uuid;

/// A third of the time after which an entry ends.
const RENEW: Duration = Duration::from_secs(3);

pub(super) struct Sharing {
    me: Uuid,
    others: BTreeSet<Uuid>,
}

impl Sharing {
    pub(super) fn new(me: Uuid) -> Self {
        Self { me, others: BTreeSet::new() }
    }

    pub(super) fn note(&mut self, change: Change) {
        match change {
            Change::Put { key, .. } => self.others.extend(key.parse::<Uuid>().ok().filter(|id| *id != self.me)),
            Change::Deleted { key, .. } => {
                if let Ok(id) = key.parse::<Uuid>() {
                    self.others.remove(&id);
                }
            }
            Change::Ready => {}
        }
    }

    /// Whether this one is to ask the registry: every watcher gives the same answer, and when one comes or goes, only
    /// its share moves.
    pub(super) fn mine(&self, registry: &str) -> bool {
        let weight = |id: &Uuid| Uuid::new_v5(id, registry.as_bytes());
        let mine = weight(&self.me);
        self.others.iter().all(|other| weight(other) < mine)
    }
}

/// Tells the others that this one lives, for ever.
pub(super) async fn present(log: &EventLog, me: Uuid) {
    let mut ticks = interval(RENEW);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if let Err(error) = log.bucket(WATCHERS).put(&me.to_string(), "").await {
            tracing::debug!(%error, "the other watchers do not know of this one");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_registry_falls_to_exactly_one_and_few_move_when_one_goes() {
        let ids: Vec<Uuid> = (1..=4).map(Uuid::from_u128).collect();
        let hosts: Vec<String> = (0..200).map(|n| format!("r{n}.test")).collect();
        let owner = |host: &str, present: &[Uuid]| {
            let owners: Vec<Uuid> = present
                .iter()
                .copied()
                .filter(|me| {
                    Sharing { me: *me, others: present.iter().copied().filter(|id| id != me).collect() }.mine(host)
                })
                .collect();
            assert_eq!(owners.len(), 1, "{host}");
            owners[0]
        };
        for host in &hosts {
            let all = owner(host, &ids);
            let fewer = owner(host, &ids[..3]);
            assert!(all == ids[3] || all == fewer, "{host} moved without need");
        }
        for id in &ids {
            assert!(hosts.iter().filter(|host| owner(host, &ids) == *id).count() > 20, "{id} has too little to do");
        }
    }
}
