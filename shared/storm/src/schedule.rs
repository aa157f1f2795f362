//! What happens when: faults and deployments, as a pure function of a seed and the number of kills.

use serde::Serialize;

use crate::{
    random::Random,
    stages::{Image, STAGES},
};

/// A process that is killed, hung or cut off. `Clients` stands for those who send requests through the edge: they can
/// only be cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    Nats,
    Postgres,
    Engine,
    Projector,
    Deployer,
    Watcher,
    Edge,
    Api,
    Clients,
}

impl Part {
    /// Those that run, in the order of their start.
    pub const RUNNING: [Part; 8] = [
        Part::Nats,
        Part::Postgres,
        Part::Engine,
        Part::Projector,
        Part::Deployer,
        Part::Watcher,
        Part::Edge,
        Part::Api,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Part::Nats => "nats",
            Part::Postgres => "postgres",
            Part::Engine => "engine",
            Part::Projector => "projector",
            Part::Deployer => "deployer",
            Part::Watcher => "watcher",
            Part::Edge => "edge",
            Part::Api => "api",
            Part::Clients => "clients",
        }
    }
}

/// Who talks to whom.
const LINKS: [(Part, Part); 11] = [
    (Part::Api, Part::Nats),
    (Part::Api, Part::Postgres),
    (Part::Projector, Part::Nats),
    (Part::Projector, Part::Postgres),
    (Part::Deployer, Part::Nats),
    (Part::Deployer, Part::Engine),
    (Part::Deployer, Part::Edge),
    (Part::Watcher, Part::Nats),
    (Part::Edge, Part::Nats),
    (Part::Edge, Part::Engine),
    (Part::Clients, Part::Edge),
];

/// Those whose clock can be stepped: nats-server and dockerd ask the kernel without the C library.
const CLOCKS: [Part; 6] = [Part::Postgres, Part::Projector, Part::Deployer, Part::Watcher, Part::Edge, Part::Api];

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "fault")]
pub enum Fault {
    /// SIGKILL, and a new start `down_ms` later.
    Kill { part: Part, down_ms: u64 },
    /// The same for everything at once.
    KillAll { down_ms: u64 },
    /// SIGSTOP, and SIGCONT `for_ms` later.
    Stop { part: Part, for_ms: u64 },
    /// Nothing that `from` sends arrives at `to`; with `both`, nor the other way.
    Cut { from: Part, to: Part, both: bool, for_ms: u64 },
    /// Not a byte fits on the disk that holds the event log.
    FullDisk { for_ms: u64 },
    /// PostgreSQL gets a seventh of the time.
    SlowDatabase { for_ms: u64 },
    /// The clock of `part` is off by so many seconds.
    Clock { part: Part, seconds: i64, for_ms: u64 },
}

/// A kind of fault, to be chosen or counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Kill,
    KillAll,
    Stop,
    Cut,
    FullDisk,
    SlowDatabase,
    Clock,
}

impl Kind {
    pub const ALL: [Kind; 7] =
        [Kind::Kill, Kind::KillAll, Kind::Stop, Kind::Cut, Kind::FullDisk, Kind::SlowDatabase, Kind::Clock];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Kill => "kill",
            Kind::KillAll => "kill_all",
            Kind::Stop => "stop",
            Kind::Cut => "cut",
            Kind::FullDisk => "full_disk",
            Kind::SlowDatabase => "slow_database",
            Kind::Clock => "clock",
        }
    }

    /// Out of a hundred faults.
    pub fn weight(self) -> u64 {
        match self {
            Kind::Kill => 58,
            Kind::KillAll => 2,
            Kind::Stop => 14,
            Kind::Cut => 14,
            Kind::FullDisk => 3,
            Kind::SlowDatabase => 4,
            Kind::Clock => 5,
        }
    }
}

/// Of a hundred kills of one part, how many are of this one. The deployer has the most to lose.
fn kill_weight(part: Part) -> u64 {
    match part {
        Part::Deployer => 24,
        Part::Nats => 14,
        Part::Api | Part::Projector | Part::Edge => 13,
        Part::Watcher => 6,
        Part::Postgres => 10,
        Part::Engine => 7,
        Part::Clients => 0,
    }
}

impl Fault {
    pub fn kind(&self) -> Kind {
        match self {
            Fault::Kill { .. } => Kind::Kill,
            Fault::KillAll { .. } => Kind::KillAll,
            Fault::Stop { .. } => Kind::Stop,
            Fault::Cut { .. } => Kind::Cut,
            Fault::FullDisk { .. } => Kind::FullDisk,
            Fault::SlowDatabase { .. } => Kind::SlowDatabase,
            Fault::Clock { .. } => Kind::Clock,
        }
    }

    pub fn is_kill(&self) -> bool {
        matches!(self, Fault::Kill { .. } | Fault::KillAll { .. })
    }

    /// From its beginning until the storm has taken it back, in milliseconds.
    pub fn lasts(&self) -> u64 {
        match self {
            Fault::Kill { down_ms, .. } | Fault::KillAll { down_ms } => *down_ms,
            Fault::Stop { for_ms, .. }
            | Fault::Cut { for_ms, .. }
            | Fault::FullDisk { for_ms }
            | Fault::SlowDatabase { for_ms }
            | Fault::Clock { for_ms, .. } => *for_ms,
        }
    }

    /// Two faults on the same things would undo each other.
    fn meets(&self, other: &Fault) -> bool {
        match (self, other) {
            (Fault::KillAll { .. }, _) | (_, Fault::KillAll { .. }) => false,
            (Fault::Clock { part, .. }, Fault::Clock { part: other, .. }) => part == other,
            (Fault::Clock { .. }, _) | (_, Fault::Clock { .. }) => false,
            (Fault::Cut { from, to, .. }, Fault::Cut { from: other_from, to: other_to, .. }) => {
                (from, to) == (other_from, other_to) || (from, to) == (other_to, other_from)
            }
            (Fault::FullDisk { .. }, Fault::FullDisk { .. }) => true,
            (one, other) => one.process().is_some() && one.process() == other.process(),
        }
    }

    /// The one that it kills or stops.
    fn process(&self) -> Option<Part> {
        match self {
            Fault::Kill { part, .. } | Fault::Stop { part, .. } => Some(*part),
            Fault::SlowDatabase { .. } => Some(Part::Postgres),
            Fault::KillAll { .. } | Fault::Cut { .. } | Fault::FullDisk { .. } | Fault::Clock { .. } => None,
        }
    }
}

/// A request to deploy or to go back, and perhaps to call it off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Deploy {
    /// Index in [`STAGES`].
    pub stage: usize,
    /// None: back to the release before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<Image>,
    /// From the answer to the request, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cancel_after_ms: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry<T> {
    /// From the beginning of the storm.
    pub at_ms: u64,
    #[serde(flatten)]
    pub what: T,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Schedule {
    pub faults: Vec<Entry<Fault>>,
    pub deployments: Vec<Entry<Deploy>>,
}

impl Schedule {
    /// Faults of the `kinds` given, until so many kills are among them; kills always are.
    pub fn new(seed: u64, kills: usize, kinds: &[Kind]) -> Schedule {
        // Each from a stream of its own, so that another choice of faults leaves the deployments as they are.
        let faults = faults(&mut Random::new(seed, 1), kills, kinds);
        let end = faults.iter().map(|entry| entry.at_ms + entry.what.lasts()).max().unwrap_or_default();
        Schedule { faults, deployments: deployments(&mut Random::new(seed, 2), end) }
    }

    pub fn kills_the_engine(&self) -> bool {
        let kill =
            |entry: &Entry<Fault>| matches!(entry.what, Fault::Kill { part: Part::Engine, .. } | Fault::KillAll { .. });
        self.faults.iter().any(kill)
    }
}

fn faults(random: &mut Random, kills: usize, kinds: &[Kind]) -> Vec<Entry<Fault>> {
    let weights: Vec<(Kind, u64)> = Kind::ALL
        .into_iter()
        .filter(|kind| *kind == Kind::Kill || kinds.contains(kind))
        .map(|kind| (kind, kind.weight()))
        .collect();
    let mut faults: Vec<Entry<Fault>> = Vec::new();
    let (mut killed, mut now) = (0, 0);
    while killed < kills {
        now += random.between(600, 5_000);
        let kind = *random.choice(&weights);
        let fault = fault(random, kind);
        // Where it would meet another of its like, it waits for its end.
        let busy = faults.iter().filter(|entry| entry.what.meets(&fault));
        let free = busy.map(|entry| entry.at_ms + entry.what.lasts() + 300).max().unwrap_or_default();
        now = now.max(free);
        killed += usize::from(fault.is_kill());
        faults.push(Entry { at_ms: now, what: fault });
    }
    faults
}

fn fault(random: &mut Random, kind: Kind) -> Fault {
    match kind {
        Kind::Kill => {
            let part = *random.choice(&Part::RUNNING.map(|part| (part, kill_weight(part))));
            Fault::Kill { part, down_ms: random.between(0, 3_000) }
        }
        Kind::KillAll => Fault::KillAll { down_ms: random.between(0, 2_000) },
        Kind::Stop => {
            let part = *random.one_of(&Part::RUNNING);
            // Most hangs are short; some outlast every lease.
            let longest = *random.choice(&[(3_000, 2), (15_000, 1)]);
            Fault::Stop { part, for_ms: random.between(500, longest) }
        }
        Kind::Cut => {
            let (one, other) = *random.one_of(&LINKS);
            let (from, to) = if random.chance(50) { (one, other) } else { (other, one) };
            let longest = *random.choice(&[(4_000, 2), (15_000, 1)]);
            Fault::Cut { from, to, both: random.chance(60), for_ms: random.between(500, longest) }
        }
        Kind::FullDisk => Fault::FullDisk { for_ms: random.between(500, 6_000) },
        Kind::SlowDatabase => Fault::SlowDatabase { for_ms: random.between(2_000, 10_000) },
        Kind::Clock => {
            let part = *random.one_of(&CLOCKS);
            let size = *random.choice(&[(60, 1), (7_200, 2), (90_000, 1)]);
            let seconds = random.between(1, size) as i64;
            let seconds = if random.chance(50) { -seconds } else { seconds };
            Fault::Clock { part, seconds, for_ms: random.between(2_000, 12_000) }
        }
    }
}

fn deployments(random: &mut Random, end: u64) -> Vec<Entry<Deploy>> {
    let mut deployments = Vec::new();
    let mut now = random.between(0, 1_000);
    while now < end {
        let stage = random.below(STAGES.len() as u64) as usize;
        let image = *random.choice(&Image::weighted(STAGES[stage].bake_ms > 0));
        let image = (!random.chance(20)).then_some(image);
        let cancel_after_ms = random.chance(15).then(|| random.between(0, 1_500));
        deployments.push(Entry { at_ms: now, what: Deploy { stage, image, cancel_after_ms } });
        now += random.between(600, 4_000);
    }
    deployments
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn the_seed_replays_the_schedule() {
        let schedule = |seed| Schedule::new(seed, 50, &Kind::ALL);
        assert_eq!(schedule(7), schedule(7));
        assert_ne!(schedule(7), schedule(8));
        assert_eq!(schedule(7).faults.iter().filter(|entry| entry.what.is_kill()).count(), 50);
        // Of a longer one, it is the beginning.
        assert_eq!(schedule(7).faults[..], Schedule::new(7, 60, &Kind::ALL).faults[..schedule(7).faults.len()]);
    }

    #[test]
    fn every_kind_comes_as_often_as_declared() {
        let (mut kinds, mut parts, mut all) = (BTreeMap::<Kind, f64>::new(), BTreeMap::<Part, f64>::new(), 0.0);
        for seed in 0..200 {
            for entry in Schedule::new(seed, 100, &Kind::ALL).faults {
                *kinds.entry(entry.what.kind()).or_default() += 1.0;
                all += 1.0;
                if let Fault::Kill { part, .. } = entry.what {
                    *parts.entry(part).or_default() += 1.0;
                }
            }
        }
        for kind in Kind::ALL {
            let share = 100.0 * kinds[&kind] / all;
            assert!((share - kind.weight() as f64).abs() < 1.0, "{kind:?}: {share}");
        }
        let weights: u64 = Part::RUNNING.into_iter().map(kill_weight).sum();
        for part in Part::RUNNING {
            let share = parts[&part] / kinds[&Kind::Kill];
            assert!((share - kill_weight(part) as f64 / weights as f64).abs() < 0.02, "{part:?}: {share}");
        }
    }

    #[test]
    fn only_what_was_asked_for() {
        let schedule = Schedule::new(1, 30, &[Kind::Cut]);
        assert!(schedule.faults.iter().all(|entry| matches!(entry.what.kind(), Kind::Kill | Kind::Cut)));
        assert_eq!(schedule.deployments[..5], Schedule::new(1, 30, &Kind::ALL).deployments[..5]);
    }

    #[test]
    fn no_two_faults_undo_each_other() {
        for seed in 0..50 {
            let faults = Schedule::new(seed, 50, &Kind::ALL).faults;
            for (at, entry) in faults.iter().enumerate() {
                let met = faults[..at]
                    .iter()
                    .find(|before| before.what.meets(&entry.what) && before.at_ms + before.what.lasts() > entry.at_ms);
                assert_eq!(met, None, "{entry:?}");
            }
        }
    }
}
