//! Requests that fail while an application is deployed over and over, beside what people do with Docker alone.

mod namespace;
mod ours;
mod plain;
mod swarm;
mod traffic;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use chrono::{DateTime, TimeDelta, Utc};
use testkit::{Docker, SampleImage};

use crate::{
    Bench,
    row::{Row, Target, Unit},
};
use namespace::Namespace;
use ours::{Ours, Replaced};
use plain::Plain;
use swarm::Swarm;
use traffic::{RATE, Seen, Traffic, WEBSOCKETS};

const HOST: &str = "shop.localhost";
const BLUE_GREEN: usize = 20;
const RECREATE: usize = 10;
/// Two versions of the sample application, deployed in turn.
const IMAGES: [&str; 2] = ["sluice-bench:1", "sluice-bench:2"];
/// Far longer than the application needs for an answer. Websockets never end by themselves, so that every deployment
/// takes this long to let go of the old version.
const DRAIN: Duration = Duration::from_millis(500);
const STOP_GRACE: Duration = Duration::from_secs(2);
const SWARM: &str = "docker service update";
const PLAIN: &str = "docker stop, docker run";

#[derive(Clone, Copy)]
enum Strategy {
    BlueGreen,
    Recreate,
}

/// What one of those that deploy did in one round.
struct Round {
    seen: Seen,
    /// Websockets that could not be opened, or that ended before they had to.
    cut: usize,
    /// Seconds from one deployment's begin to its end, at the median.
    pace: f64,
}

pub(crate) async fn run(bench: &Bench) -> Result<Vec<Row>> {
    let docker = Docker::connect_or_start().await?;
    let namespace = Namespace::start().await.context("preparing an engine for the peers")?;
    for (version, image) in IMAGES.iter().enumerate() {
        let sample = SampleImage::new(&(version + 1).to_string()).with_healthcheck();
        sample.load(&docker, image).await?;
        sample.load(namespace.docker(), image).await?;
    }
    let ours = Ours::start(bench, &docker).await?;
    let swarm = Swarm::start(&namespace).await?;
    let plain = Plain::new(&namespace);

    let mut blue_green = (Vec::new(), Vec::new());
    let mut recreate = (Vec::new(), Vec::new());
    for round in 1..=bench.rounds {
        let say = |what: &str, done: &Round| {
            let Round { seen, cut, pace } = done;
            let (failed, requests) = (seen.kept.failed + seen.fresh.failed, seen.kept.requests + seen.fresh.requests);
            let why = reasons("requests", std::slice::from_ref(done));
            bench.say(&format!(
                "round {round}, {what}: {failed} of {requests} requests failed, {cut} websockets, {pace:.2} s each; {why}"
            ));
        };
        blue_green.0.push(of_ours(&ours, Strategy::BlueGreen, BLUE_GREEN).await?);
        say("blue-green", &blue_green.0[round - 1]);

        swarm.create().await?;
        let traffic = inside(&namespace, swarm.address());
        blue_green.1.push(of_peer(traffic, BLUE_GREEN, async |image| swarm.update(image).await).await?);
        swarm.remove().await?;
        say(SWARM, &blue_green.1[round - 1]);

        recreate.0.push(of_ours(&ours, Strategy::Recreate, RECREATE).await?);
        say("recreate", &recreate.0[round - 1]);

        plain.create().await?;
        let traffic = inside(&namespace, &plain.address());
        recreate.1.push(of_peer(traffic, RECREATE, async |image| plain.update(image).await).await?);
        plain.remove().await?;
        say(PLAIN, &recreate.1[round - 1]);
    }
    ours.stop().await?;
    let blue_green = rows(&format!("{BLUE_GREEN} blue-green deployments"), &blue_green.0, SWARM, &blue_green.1);
    let recreate = rows(&format!("{RECREATE} recreate deployments"), &recreate.0, PLAIN, &recreate.1);
    Ok(blue_green.into_iter().chain(recreate).collect())
}

async fn of_ours(ours: &Ours, strategy: Strategy, count: usize) -> Result<Round> {
    ours.create(strategy).await?;
    let traffic = Traffic::start(ours.address(), HOST);
    let mut replaced: Vec<Replaced> = Vec::new();
    let (seen, pace) = under(traffic, count, async |image| {
        replaced.push(ours.update(image).await?);
        Ok(())
    })
    .await?;
    let (clock, now) = (Instant::now(), runtime::clock::now());
    let at = |instant: Instant| -> DateTime<Utc> {
        now - TimeDelta::from_std(clock.duration_since(instant)).unwrap_or(TimeDelta::MAX)
    };
    let early = seen.chat.ended.iter().filter(|ended| !ours::was_due(ended, &replaced, at)).count();
    Ok(Round { cut: early + seen.chat.refused.len(), seen, pace })
}

async fn of_peer(traffic: Traffic, count: usize, update: impl AsyncFnMut(&str) -> Result<()>) -> Result<Round> {
    let (seen, pace) = under(traffic, count, update).await?;
    Ok(Round { cut: seen.chat.ended.len() + seen.chat.refused.len(), seen, pace })
}

fn inside(namespace: &Namespace, address: &str) -> Traffic {
    let _inside = namespace.enter();
    Traffic::start(address, HOST)
}

/// Deploys `count` times under load; what the load saw, and the median of the seconds a deployment took.
async fn under(traffic: Traffic, count: usize, mut update: impl AsyncFnMut(&str) -> Result<()>) -> Result<(Seen, f64)> {
    traffic.settle().await;
    let mut paces = Vec::new();
    for number in 1..=count {
        let began = Instant::now();
        update(IMAGES[number % IMAGES.len()]).await?;
        paces.push(began.elapsed().as_secs_f64());
    }
    traffic.settle().await;
    let pace = crate::row::Spread::of(&paces).map_or(0.0, |spread| spread.median);
    Ok((traffic.stop().await, pace))
}

fn rows(what: &str, ours: &[Round], peer: &'static str, theirs: &[Round]) -> Vec<Row> {
    let row = |name: String, unit: Unit, value: &dyn Fn(&Round) -> f64| {
        Row::new(name, unit).ours(ours.iter().map(value).collect()).peer(peer, theirs.iter().map(value).collect())
    };
    let milliseconds = |duration: Duration| duration.as_secs_f64() * 1000.0;
    let kept = row(format!("requests failed in {what}, connections kept"), Unit::Failed, &|round| {
        round.seen.kept.failed as f64
    });
    let fresh = row(format!("requests failed in {what}, a connection each"), Unit::Failed, &|round| {
        round.seen.fresh.failed as f64
    });
    let cut = row(format!("websockets refused or cut early in {what}"), Unit::Failed, &|round| round.cut as f64);
    let requests = row(format!("requests during {what}"), Unit::PerSecond, &|round| {
        (round.seen.kept.requests + round.seen.fresh.requests) as f64 / round.seen.seconds
    });
    let worst = row(format!("slowest request during {what}"), Unit::Milliseconds, &|round| {
        milliseconds(round.seen.kept.latency(1.0).max(round.seen.fresh.latency(1.0)))
    });
    let usual = row(format!("p99 of requests during {what}"), Unit::Milliseconds, &|round| {
        milliseconds(round.seen.kept.latency(0.99).max(round.seen.fresh.latency(0.99)))
    });
    let pace = row(format!("time of one of {what}"), Unit::Seconds, &|round| round.pace);
    vec![
        kept.target(Target::Zero).note(format!("{RATE} requests/s in all, half of them over kept connections")).note(reasons("ours", ours)).note(reasons(peer, theirs)),
        fresh.target(Target::Zero),
        cut.target(Target::Zero).note(format!(
            "{WEBSOCKETS} are open; ours end at the drain deadline of {} ms and not before; the peer knows no drain, so each that ends counts",
            DRAIN.as_millis()
        )),
        requests,
        usual,
        worst,
        pace.note(format!("ours waits out the drain of {} ms each time", DRAIN.as_millis())),
    ]
}

/// The failures by reason, all rounds together.
fn reasons(whose: &str, rounds: &[Round]) -> String {
    let mut reasons: BTreeMap<&str, u64> = BTreeMap::new();
    for seen in rounds.iter().flat_map(|round| [&round.seen.kept, &round.seen.fresh]) {
        for (reason, count) in &seen.failures {
            *reasons.entry(reason).or_default() += count;
        }
    }
    let mut sorted: Vec<_> = reasons.into_iter().collect();
    sorted.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let told: Vec<String> = sorted.iter().take(3).map(|(reason, count)| format!("{count} x {reason}")).collect();
    format!("{whose}: {}", if told.is_empty() { "no failure".to_owned() } else { told.join(", ") })
}
