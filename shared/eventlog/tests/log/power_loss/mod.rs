//! Loss of power in the middle of everything: what was not synced is gone, nats-server with it, at the same instant.
//!
//! The disk is `testkit::LossyDisk`. What it keeps is what ext4, XFS and btrfs keep: the synced content of files, and
//! the names of synced files. `SEED=...` plays other moments and other luck.

mod load;

use std::{collections::BTreeSet, path::PathBuf, pin::pin, sync::Arc, time::Duration};

use domain::{DeploymentId, Event, Recorded, stage};
use eventlog::EventLog;
use futures::StreamExt;
use load::{Load, Told};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tempfile::TempDir;
use testkit::{LossyDisk, Luck, Names, Nats};

use crate::{connect_with, soon};

const LOSSES: usize = 3;

struct World {
    nats: Nats,
    disk: Arc<LossyDisk>,
    /// Of the vault, on another disk.
    key: PathBuf,
    _directory: TempDir,
}

impl World {
    async fn start() -> World {
        let disk = Arc::new(LossyDisk::mount(Names::Journaled).expect("mounts"));
        let nats = Nats::start_on(&disk).await.expect("nats-server starts");
        let directory = tempfile::tempdir().expect("a directory");
        let key = directory.path().join("master.key");
        eventlog::vault::create_key(&key).expect("created");
        World { nats, disk, key, _directory: directory }
    }

    async fn connect(&self) -> EventLog {
        connect_with(self.nats.url(), Some(&self.key)).await
    }

    async fn load(&self) -> Load {
        Load::start([self.connect().await, self.connect().await, self.connect().await])
    }

    fn lose_power(&self, luck: Luck) {
        self.disk.power_loss(&self.nats.processes(), luck).expect("the power comes back");
    }
}

/// The seed of a run: other moments, other luck.
fn seeded(default: u64) -> (u64, StdRng) {
    let seed = std::env::var("SEED").map_or(default, |seed| seed.parse().expect("SEED is a number"));
    (seed, StdRng::seed_from_u64(seed))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost() {
    // Nothing but what was synced survives.
    lose_power_again_and_again(1, |_| Luck::None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_or_torn_where_other_writes_survive() {
    lose_power_again_and_again(2, |random| Luck::Seeded(random.random())).await;
}

async fn lose_power_again_and_again(seed: u64, luck: impl Fn(&mut StdRng) -> Luck) {
    let (seed, mut random) = seeded(seed);
    let mut world = World::start().await;
    let load = world.load().await;
    for loss in 0..LOSSES {
        load.acknowledged(random.random_range(20..150)).await;
        world.lose_power(luck(&mut random));
        world.nats.restart().await.expect("starts on what is left");
        let missing = missing(&load.told(), &world.connect().await).await;
        assert!(missing.is_empty(), "seed {seed}, loss {loss}: {missing:#?}");
    }
    load.acknowledged(20).await;
    let log = world.connect().await;
    let told = soon(load.finish(async || dispatched(&log).await)).await;
    let missing = missing(&told, &log).await;
    assert!(missing.is_empty(), "seed {seed}, at the end: {missing:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_default_sync_interval_would_lose_what_was_acknowledged() {
    let (seed, mut random) = seeded(3);
    let mut world = World::start().await;
    // The log refuses such a server when it connects, so it becomes one under its eyes.
    let load = world.load().await;
    load.acknowledged(20).await;
    world.nats.sync_by_default().expect("configured");
    world.nats.restart().await.expect("starts again");
    load.acknowledged(random.random_range(20..150)).await;
    world.lose_power(Luck::None);
    let told = load.abort().await;
    world.nats.sync_always().expect("configured");
    world.nats.restart().await.expect("starts on what is left");
    let missing = missing(&told, &world.connect().await).await;
    assert!(missing.iter().any(|what| what.starts_with("event ")), "seed {seed}: nothing was lost: {missing:#?}");
}

async fn events(log: &EventLog) -> Vec<Recorded> {
    let last = log.last_sequence().await.expect("answers");
    let mut stream = pin!(log.follow("sluice.events.>", 0));
    // Stops at a gap.
    let events: Vec<_> = soon(stream.by_ref().take(usize::try_from(last).expect("few")).collect()).await;
    let mut events: Vec<Recorded> = events.into_iter().map(|event| event.expect("read")).collect();
    // The server counts the events of a batch while it writes them: of a decision at the very end, the rest may be on
    // its way. Where it is not, nothing comes.
    while let Some(decision) = events.chunk_by(same_decision).next_back()
        && decision.len() < whole(&decision[0])
        && let Ok(Some(event)) = tokio::time::timeout(Duration::from_secs(2), stream.next()).await
    {
        events.push(event.expect("read"));
    }
    events
}

fn same_decision(one: &Recorded, next: &Recorded) -> bool {
    one.context.command_id == next.context.command_id
}

/// How many events its decision has.
fn whole(event: &Recorded) -> usize {
    match event.key[0].split('-').next() {
        Some("single") => 1,
        Some("batch") => load::BATCH,
        _ => 2,
    }
}

async fn dispatched(log: &EventLog) -> BTreeSet<DeploymentId> {
    let dispatched = events(log).await.into_iter().filter_map(|event| match event.event {
        Event::Stage(stage::Event::Dispatched { deployment, .. }) => Some(deployment),
        _ => None,
    });
    dispatched.collect()
}

/// What clients were told and is not so, in words.
async fn missing(told: &Told, log: &EventLog) -> Vec<String> {
    let events = events(log).await;
    let mut missing = Vec::new();
    for (sequence, event) in &told.events {
        let kept = usize::try_from(*sequence).ok().and_then(|sequence| events.get(sequence - 1));
        if kept != Some(event) {
            missing.push(format!("event {sequence} ({}): {:?}", event.subject, kept.map(|kept| &kept.subject)));
        }
    }
    for decision in events.chunk_by(same_decision) {
        let first = &decision[0];
        let whole = whole(first);
        if decision.len() != whole {
            missing.push(format!("{} of {whole} events of the decision at {}", decision.len(), first.sequence));
        }
    }
    let decided: Vec<_> = events.iter().map(|event| event.context.command_id).collect();
    for (command, count) in &told.commands {
        let found = decided.iter().filter(|id| *id == command).count();
        if found != *count {
            missing.push(format!("command {command}: {found} of {count} events"));
        }
    }
    for ((bucket, name), number) in &told.values {
        let value = match *bucket {
            "vault" => log.vault().get(name).await.expect("answers").map(|secret| secret.expose().to_vec()),
            _ => log.bucket(bucket).get(name).await.expect("answers").map(|entry| entry.value),
        };
        let kept = value.and_then(|value| String::from_utf8(value).ok()?.parse().ok()).unwrap_or(0_u64);
        if kept < *number {
            missing.push(format!("{name} in {bucket}: {kept} where {number} was acknowledged"));
        }
    }
    missing
}
