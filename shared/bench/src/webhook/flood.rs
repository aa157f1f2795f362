//! A thousand messages a second: about tags that have moved once, again and again, one in ten of them forged.

use std::{
    ops::AddAssign,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use domain::{Event, stage};
use reqwest::StatusCode;
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};

use super::{LOST, PROJECTS, Scene};
use crate::{
    Bench,
    procfs::peak_memory,
    row::{Row, Target, Unit},
};

const LENGTH: Duration = Duration::from_secs(30);
const TICK: Duration = Duration::from_millis(10);
const A_TICK: usize = 10;
/// One in so many carries a wrong secret.
const FORGED: usize = 10;
/// Messages without an answer yet; a sender with as many gives up on the next.
const OPEN: usize = 4_000;

/// What one round came to.
struct Flood {
    seconds: f64,
    answers: Answers,
    /// Deployments beyond the one that each moved tag is worth.
    doubled: f64,
    /// Of the process so far, in megabytes.
    api: f64,
    watcher: f64,
}

/// How many messages were answered how.
#[derive(Default, Clone, Copy)]
struct Answers {
    taken: u32,
    turned_away: u32,
    refused: u32,
    wrong: u32,
    unsent: u32,
}

pub(super) async fn run(bench: &Bench, scene: &mut Scene<'_>) -> Result<Vec<Row>> {
    let mut floods = Vec::new();
    for round in 1..=bench.rounds {
        let flood = scene.flood().await?;
        let Answers { taken, turned_away, refused, wrong, unsent } = flood.answers;
        bench.say(&format!(
            "round {round}: in {:.0} s {taken} taken, {turned_away} told to come again, {refused} refused, {wrong} \
             without a proper answer, {unsent} not sent; {} deployed twice; API {:.1} MB, watcher {:.1} MB",
            flood.seconds, flood.doubled, flood.api, flood.watcher
        ));
        floods.push(flood);
    }
    let each = |figure: fn(&Flood) -> f64| floods.iter().map(figure).collect::<Vec<f64>>();
    let scene = format!(
        "{PROJECTS} tags that moved at the beginning, for {} s a round; one message in {FORGED} carries a wrong secret",
        LENGTH.as_secs()
    );
    Ok(vec![
        Row::new("flood of webhooks: messages answered", Unit::PerSecond)
            .ours(each(|flood| f64::from(flood.answers.answered()) / flood.seconds))
            .note(scene),
        Row::new("flood of webhooks: good ones refused, forged ones taken, or no answer", Unit::Count)
            .ours(each(|flood| f64::from(flood.answers.wrong)))
            .target(Target::Zero),
        Row::new("flood of webhooks: deployments that were requested twice", Unit::Count)
            .ours(each(|flood| flood.doubled))
            .target(Target::Zero),
        Row::new("flood of webhooks: peak memory of the API", Unit::Megabytes).ours(each(|flood| flood.api)),
        Row::new("flood of webhooks: peak memory of the watcher", Unit::Megabytes).ours(each(|flood| flood.watcher)),
    ])
}

impl Scene<'_> {
    async fn flood(&mut self) -> Result<Flood> {
        for stage in 0..PROJECTS {
            self.idle(stage).await?;
        }
        let before = self.requests().await?;
        for stage in 0..PROJECTS {
            self.move_tag(stage).await?;
        }
        let begun = Instant::now();
        let answers = self.pour().await?;
        let seconds = begun.elapsed().as_secs_f64();
        // Each tag was told of once at least, and what the flood has left to be looked at comes before this.
        for stage in 0..PROJECTS {
            let message = self.message(stage, &self.secret)?;
            self.http.execute(message).await?.error_for_status().context("after the flood")?;
        }
        let settled = async {
            let mut succeeded = 0;
            while succeeded < PROJECTS {
                succeeded += usize::from(matches!(self.next().await?, stage::Event::Succeeded { .. }));
            }
            anyhow::Ok(())
        };
        timeout(LOST, settled).await.context("what the flood told of is not deployed")??;
        let requested = self.requests().await? - before;
        ensure!(requested >= PROJECTS, "{requested} deployments of {PROJECTS} moved tags");
        Ok(Flood {
            seconds,
            answers,
            doubled: f64::from(u32::try_from(requested - PROJECTS)?),
            api: peak_memory(self.installation.pid("api")?)?,
            watcher: peak_memory(self.installation.pid("watcher")?)?,
        })
    }

    /// Sends at the rate, whatever the answers take.
    async fn pour(&self) -> Result<Answers> {
        let (open, mut senders) = (Arc::new(Semaphore::new(OPEN)), JoinSet::new());
        let (mut answers, mut sent) = (Answers::default(), 0);
        let mut ticks = interval(TICK);
        // What was missed is made up for.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let end = Instant::now() + LENGTH;
        while Instant::now() < end {
            ticks.tick().await;
            for _ in 0..A_TICK {
                sent += 1;
                let forged = sent % FORGED == 0;
                let Ok(one) = open.clone().try_acquire_owned() else {
                    answers.unsent += 1;
                    continue;
                };
                let secret = if forged { "a secret that nobody gave out" } else { &self.secret };
                let message = self.message(sent % PROJECTS, secret)?;
                let http = self.http.clone();
                senders.spawn(async move {
                    let status = http.execute(message).await.map(|answer| answer.status());
                    drop(one);
                    Answers::of(forged, status.ok())
                });
            }
            while let Some(answer) = senders.try_join_next() {
                answers += answer?;
            }
        }
        while let Some(answer) = timeout(LOST, senders.join_next()).await.context("a message has no answer")? {
            answers += answer?;
        }
        Ok(answers)
    }

    /// Deployments that were ever requested.
    async fn requests(&self) -> Result<usize> {
        let mut requested = 0;
        let each = |recorded: domain::Recorded| {
            requested += usize::from(matches!(recorded.event, Event::Stage(stage::Event::Requested { .. })));
        };
        self.log.each("sluice.events.stage.>", 0, each).await?;
        Ok(requested)
    }
}

impl Answers {
    fn of(forged: bool, status: Option<StatusCode>) -> Self {
        let mut one = Self::default();
        match (forged, status) {
            (false, Some(StatusCode::ACCEPTED)) => one.taken = 1,
            // Who sends much is told so before anybody looks who it is.
            (_, Some(StatusCode::SERVICE_UNAVAILABLE)) => one.turned_away = 1,
            (true, Some(StatusCode::UNAUTHORIZED)) => one.refused = 1,
            (true | false, _) => one.wrong = 1,
        }
        one
    }

    fn answered(&self) -> u32 {
        self.taken + self.turned_away + self.refused
    }
}

impl AddAssign for Answers {
    fn add_assign(&mut self, other: Self) {
        self.taken += other.taken;
        self.turned_away += other.turned_away;
        self.refused += other.refused;
        self.wrong += other.wrong;
        self.unsent += other.unsent;
    }
}
