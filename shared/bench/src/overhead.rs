//! What a deployment takes beside what its container takes: the same application brought up through the bare Engine
//! API, in turns.

mod bare;
mod ours;

use std::time::Duration;

use anyhow::Result;
use testkit::{Docker, Registry, SampleImage};

use crate::{
    Bench,
    row::{Row, Spread, Target, Unit},
};
use bare::{Bare, Brought};
use ours::{Ours, Served};

const HOST: &str = "shop.localhost";
const EACH: usize = 10;
/// Even, as the other one: every round begins with the same version.
const PULLED_EACH: usize = 6;
const BARE: &str = "bare Engine API";
const HEALTH_PATH: &str = "/healthz";
const LIMIT_MS: f64 = 150.0;

/// One round: every deployment of ours and, right after it, the same by hand.
struct Round {
    ours: Vec<Served>,
    bare: Vec<Brought>,
}

pub(crate) async fn run(bench: &Bench) -> Result<Vec<Row>> {
    let docker = Docker::connect_or_start().await?;
    let registry = Registry::start().await?;
    let local = ["sluice-bench:1", "sluice-bench:2"].map(str::to_owned);
    for (version, image) in local.iter().enumerate() {
        SampleImage::new(&(version + 1).to_string()).load(&docker, image).await?;
    }
    let mut remote = Vec::new();
    for name in ["shop:1", "shop:2", "bare:1"] {
        // Its own bytes, so that a layer is pulled and not only a manifest.
        let image = format!("sluice-bench-{name}");
        let version = name.rsplit(':').next().unwrap_or_default();
        SampleImage::new(version).ballast(1).load(&docker, &image).await?;
        let pushed = registry.push(&docker, &image, name).await?;
        for name in [&image, &pushed] {
            bare::remove_image(&docker, name).await?;
        }
        remote.push(pushed);
    }
    let ours = Ours::start(bench, &docker).await?;
    let bare = Bare::start(&docker).await?;
    ours.deploy("present", &local[0]).await?;
    ours.deploy("pulled", &remote[0]).await?;

    let (mut present, mut pulled) = (Vec::new(), Vec::new());
    for round in 1..=bench.rounds {
        let mut in_turns = Round { ours: Vec::new(), bare: Vec::new() };
        for number in 1..=EACH {
            in_turns.ours.push(ours.deploy("present", &local[number % 2]).await?);
            in_turns.bare.push(ours.watching("present", bare.bring_up(&local[0])).await?);
        }
        present.push(in_turns);
        let mut in_turns = Round { ours: Vec::new(), bare: Vec::new() };
        for number in 1..=PULLED_EACH {
            // Ours, which keeps no earlier release, has removed the image before this one.
            in_turns.ours.push(ours.deploy("pulled", &remote[number % 2]).await?);
            in_turns.bare.push(ours.watching("pulled", bare.pull_and_bring_up(&remote[2])).await?);
        }
        pulled.push(in_turns);
        let told = [&present, &pulled].map(|rounds| rounds.last().map_or(0.0, overhead));
        bench.say(&format!("round {round}: overhead {:.0} ms, with a pull {:.0} ms", told[0], told[1]));
    }
    bare.stop().await?;
    ours.stop().await?;
    Ok(rows("image present", &present).into_iter().chain(rows("image pulled", &pulled)).collect())
}

/// Milliseconds from the answer to the request until the new version serves, less what the container takes by hand.
fn overhead(round: &Round) -> f64 {
    of(&round.ours, |served| served.serves) - of(&round.bare, Brought::whole)
}

/// The median over a round's deployments, in milliseconds.
fn of<T>(all: &[T], value: impl Fn(&T) -> Duration) -> f64 {
    let values: Vec<f64> = all.iter().map(|one| value(one).as_secs_f64() * 1000.0).collect();
    Spread::of(&values).map_or(f64::NAN, |spread| spread.median)
}

fn rows(what: &str, rounds: &[Round]) -> Vec<Row> {
    let each = |value: &dyn Fn(&Round) -> f64| rounds.iter().map(value).collect::<Vec<_>>();
    let row = |name: &str| Row::new(format!("{name}, {what}"), Unit::Milliseconds);
    let mut rows = vec![
        row("deployment overhead")
            .ours(each(&overhead))
            .target(Target::AtMost { limit: LIMIT_MS })
            .bound("the engine: create beside a container that serves, and `docker update` of the restart policy")
            .note("from the 202 to the first answer of the new version through the edge, less the same container by hand: create, start, first healthy probe, and the pull where there is one; medians of a round"),
        row("accepted -> serves")
            .ours(each(&|round| of(&round.ours, |served| served.serves)))
            .peer(BARE, each(&|round| of(&round.bare, Brought::whole))),
        row("requested -> accepted").ours(each(&|round| of(&round.ours, |served| served.accepted))),
        row("accepted -> first step").ours(each(&|round| of(&round.ours, |served| served.dispatched))),
        row("step pull")
            .ours(each(&|round| of(&round.ours, |served| served.pull)))
            .peer(BARE, each(&|round| of(&round.bare, |brought| brought.pull))),
        row("step create")
            .ours(each(&|round| of(&round.ours, |served| served.create)))
            .peer(BARE, each(&|round| of(&round.bare, |brought| brought.create + brought.start))),
        row("step await_healthy")
            .ours(each(&|round| of(&round.ours, |served| served.await_healthy)))
            .peer(BARE, each(&|round| of(&round.bare, |brought| brought.healthy))),
        row("step switch").ours(each(&|round| of(&round.ours, |served| served.switch))),
    ];
    rows.push(row("between the steps").ours(each(&|round| of(&round.ours, |served| served.between))));
    rows
}
