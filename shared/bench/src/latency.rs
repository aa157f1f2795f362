//! From the append of an event to its visibility: in an API read that asks for it, and on the stream of server-sent
//! events. Real `sluice api` and `sluice projector`. Beside it what any such chain must do at least: publish, consume,
//! write one row and the checkpoint in one transaction.

use std::{
    collections::HashMap,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use async_nats::jetstream::{self, consumer::pull, stream::StorageType};
use domain::{
    Key, Slug,
    project::{self, Declaration},
    settings::StageSettings,
    stage,
};
use eventlog::EventLog;
use futures::StreamExt;
use serde::Deserialize;
use sqlx::{Connection, PgConnection};
use testkit::{Nats, Postgres};
use tokio::{
    task::{JoinHandle, JoinSet},
    time::{MissedTickBehavior, interval, timeout},
};

use crate::{
    Bench,
    parts::{self, Api},
    row::{Row, Target, Unit},
};

const PROJECT: &str = "bench";
/// Enough that no two events of one stage are on their way at the same time.
const STAGES: usize = 100;
/// Whatever takes longer is not late but lost.
const LOST: Duration = Duration::from_secs(30);
const RAW_STREAM: &str = "RAW";

/// Events a second, seconds, and how many of the events are also read through the API: at the higher rate more reads
/// would measure the reads.
const CALM: Load = Load { rate: 100, seconds: 8, read_every: 1 };
const BUSY: Load = Load { rate: 2000, seconds: 3, read_every: 20 };

#[derive(Clone, Copy)]
pub(crate) struct Load {
    pub(crate) rate: usize,
    pub(crate) seconds: usize,
    pub(crate) read_every: usize,
}

pub(crate) async fn run(bench: &Bench) -> Result<Vec<Row>> {
    let nats = Nats::start().await?;
    let postgres = Postgres::start_like_sluice_up().await?;
    let database = parts::database(&postgres, "latency").await?;
    let data = tempfile::tempdir()?;
    let log = parts::event_log(&nats).await?;
    declare(&log).await?;

    let mut calm = Figures::default();
    let mut busy = Figures::default();
    {
        let mut projector = parts::sluice(&bench.sluice, &["projector"], &nats, &database, data.path())
            .spawn()
            .context("the projector")?;
        let ours = Ours::start(&bench.sluice, &nats, &log, &database, data.path()).await?;
        let raw = Raw::start(&nats, &database).await?;
        ours.measure(Load { seconds: 2, ..CALM }).await.context("warming up")?;
        raw.measure(Load { seconds: 1, ..CALM }).await.context("warming up")?;
        for round in 1..=bench.rounds {
            bench.say(&format!("latency, round {round}"));
            for (load, figures) in [(CALM, &mut calm), (BUSY, &mut busy)] {
                let seen = ours.measure(load).await?;
                figures.read.push(seen.read);
                figures.stream.push(seen.stream);
                figures.raw.push(raw.measure(load).await?);
            }
            ensure!(projector.try_wait()?.is_none(), "the projector has ended");
        }
        raw.stop().await?;
        ours.stop().await?;
    }
    log.close().await;

    let limit = Target::AtMost { limit: 15.0 };
    let bound = "two stores that flush to one disk: the event log for every event, PostgreSQL's log in the background";
    let mut rows = vec![];
    for (load, figures, target) in [(CALM, calm, Some(limit)), (BUSY, busy, None)] {
        for (what, ours) in [("API read", &figures.read), ("server-sent event", &figures.stream)] {
            for (name, permille) in [("p50", 500), ("p99", 990)] {
                let at = |rounds: &[Vec<Duration>]| rounds.iter().map(|samples| quantile(samples, permille)).collect();
                let mut row = Row::new(format!("append to {what}, {} events/s, {name}", load.rate), Unit::Milliseconds)
                    .ours(at(ours))
                    .peer("raw consume and transaction", at(&figures.raw))
                    .bound(bound);
                if let (Some(target), "p99") = (target, name) {
                    row = row.target(target);
                }
                rows.push(row);
            }
        }
    }
    Ok(rows)
}

/// Samples, round by round.
#[derive(Default)]
struct Figures {
    read: Vec<Vec<Duration>>,
    stream: Vec<Vec<Duration>>,
    raw: Vec<Vec<Duration>>,
}

/// In milliseconds: the least sample that so many of a thousand do not exceed.
pub(crate) fn quantile(samples: &[Duration], permille: usize) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    let at = (sorted.len() * permille).div_ceil(1000).clamp(1, sorted.len().max(1)) - 1;
    sorted.get(at).map_or(f64::NAN, |sample| sample.as_secs_f64() * 1000.0)
}

fn stage_name(n: usize) -> Result<Slug> {
    Ok(format!("stage-{}", n % STAGES).parse()?)
}

async fn declare(log: &EventLog) -> Result<()> {
    let slug: Slug = PROJECT.parse()?;
    let stages = (0..STAGES).map(|n| Ok((stage_name(n)?, StageSettings::default()))).collect::<Result<_>>()?;
    let command = project::Command::Apply {
        slug: slug.clone(),
        declaration: Declaration { stages, ..Declaration::default() },
        prune: false,
    };
    log.execute(&Key::project(&slug), command, &runtime::clock::context("admin")).await?;
    Ok(())
}

/// Calls `each` at the rate of `load`, whatever the earlier calls are at, and waits for all of them.
pub(crate) async fn paced<T: Send + 'static, F: Future<Output = Result<T>> + Send + 'static>(
    load: Load,
    each: impl Fn(usize) -> F,
) -> Result<Vec<T>> {
    let mut tasks = JoinSet::new();
    // A timer is not finer than a millisecond.
    let at_once = load.rate.div_ceil(1000);
    let mut ticks = interval(Duration::from_secs_f64(at_once as f64 / load.rate as f64));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for first in (0..load.rate * load.seconds).step_by(at_once) {
        ticks.tick().await;
        for n in first..first + at_once {
            tasks.spawn(each(n));
        }
    }
    let mut results = vec![];
    while let Some(result) = timeout(LOST, tasks.join_next()).await.context("an event was lost")? {
        results.push(result??);
    }
    Ok(results)
}

/// Arrivals of events by their positions in a log.
type Arrivals = tokio::sync::mpsc::UnboundedReceiver<(u64, Instant)>;

/// How long after `begun` each event arrived.
async fn arrived(arrivals: &tokio::sync::Mutex<Arrivals>, mut begun: HashMap<u64, Instant>) -> Result<Vec<Duration>> {
    let mut samples = vec![];
    let mut arrivals = arrivals.lock().await;
    while !begun.is_empty() {
        let arrival = timeout(LOST, arrivals.recv()).await.context("an event was lost")?;
        let (sequence, at) = arrival.context("the stream has ended")?;
        samples.extend(begun.remove(&sequence).map(|begun| at - begun));
    }
    Ok(samples)
}

struct Ours {
    log: EventLog,
    api: Arc<Api>,
    arrivals: tokio::sync::Mutex<Arrivals>,
    listening: JoinHandle<Result<()>>,
}

struct Seen {
    read: Vec<Duration>,
    stream: Vec<Duration>,
}

impl Ours {
    async fn start(program: &Path, nats: &Nats, log: &EventLog, database: &str, data: &Path) -> Result<Ours> {
        let api = Arc::new(Api::start(program, nats, database, data).await?);
        let response = api.client.get(format!("{}/events/stream", api.url)).send().await?.error_for_status()?;
        let (sender, arrivals) = tokio::sync::mpsc::unbounded_channel();
        let listening = tokio::spawn(async move {
            let mut bytes = response.bytes_stream();
            let mut text = Vec::new();
            while let Some(part) = bytes.next().await {
                let now = Instant::now();
                text.extend_from_slice(&part?);
                while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = text.drain(..=end).collect();
                    let id = line.strip_prefix(b"id: ").and_then(|id| std::str::from_utf8(id.trim_ascii()).ok());
                    if let Some(sequence) = id.and_then(|id| id.parse().ok()) {
                        // Nobody listens any more: the end of the measure.
                        let _ = sender.send((sequence, now));
                    }
                }
            }
            Ok(())
        });
        Ok(Ours { log: log.clone(), api, arrivals: arrivals.into(), listening })
    }

    async fn measure(&self, load: Load) -> Result<Seen> {
        let results = paced(load, |n| one(self.log.clone(), self.api.clone(), n, load.read_every)).await?;
        let begun = results.iter().map(|(sequence, begun, _)| (*sequence, *begun)).collect();
        let read = results.into_iter().filter_map(|(_, _, read)| read).collect();
        Ok(Seen { read, stream: arrived(&self.arrivals, begun).await? })
    }

    async fn stop(self) -> Result<()> {
        self.listening.abort();
        match self.listening.await {
            Err(error) if error.is_cancelled() => Ok(()),
            ended => ended?,
        }
    }
}

/// Appends an event and reads the stage that it changed. Gives its position, when the append began, and how long after
/// that it had been read.
async fn one(log: EventLog, api: Arc<Api>, n: usize, read_every: usize) -> Result<(u64, Instant, Option<Duration>)> {
    #[derive(Deserialize)]
    struct Shown {
        sequence: u64,
    }
    let (project, name): (Slug, Slug) = (PROJECT.parse()?, stage_name(n)?);
    let reason = format!("a migration runs until {}", runtime::clock::new_id());
    let command = stage::Command::Lock { owner: "admin".into(), reason };
    let context = runtime::clock::context("admin");
    let begun = Instant::now();
    let sequence = log.execute(&Key::stage(&project, &name), command, &context).await?.sequence;
    if !n.is_multiple_of(read_every) {
        return Ok((sequence, begun, None));
    }
    let url = format!("{}/projects/{project}/stages/{name}?at_least={sequence}", api.url);
    let shown: Shown = api.client.get(url).send().await?.error_for_status()?.json().await?;
    ensure!(shown.sequence >= sequence, "the read shows {} and not {sequence}", shown.sequence);
    Ok((sequence, begun, Some(begun.elapsed())))
}

/// The same way without Sluice: a stream on the same server, a consumer, a table in the same database.
struct Raw {
    context: jetstream::Context,
    arrivals: tokio::sync::Mutex<Arrivals>,
    consuming: JoinHandle<Result<()>>,
}

impl Raw {
    async fn start(nats: &Nats, database: &str) -> Result<Raw> {
        parts::execute(
            database,
            "create schema raw;
             create table raw.events (sequence bigint primary key, subject text not null, event jsonb not null);
             create table raw.checkpoint (sequence bigint not null);
             insert into raw.checkpoint values (0)"
                .to_owned(),
        )
        .await?;
        let context = jetstream::new(parts::bare(nats).await?);
        let config = jetstream::stream::Config {
            name: RAW_STREAM.into(),
            subjects: vec!["raw.>".into()],
            storage: StorageType::File,
            ..Default::default()
        };
        let stream = context.create_stream(config).await?;
        let consumer = stream
            .create_consumer(pull::Config { ack_policy: jetstream::consumer::AckPolicy::None, ..Default::default() })
            .await?;
        let mut database = PgConnection::connect(database).await?;
        let (sender, arrivals) = tokio::sync::mpsc::unbounded_channel();
        let consuming = tokio::spawn(async move {
            // Whatever has arrived is written together, one event where there is only one.
            let mut messages = consumer.messages().await?.ready_chunks(500);
            while let Some(chunk) = messages.next().await {
                let (mut sequences, mut subjects, mut bodies) = (vec![], vec![], vec![]);
                for message in chunk {
                    let message = message?;
                    let sequence = message.info().map_err(|error| anyhow::anyhow!(error))?.stream_sequence;
                    sequences.push(sequence.cast_signed());
                    subjects.push(message.subject.to_string());
                    bodies.push(std::str::from_utf8(&message.payload)?.to_owned());
                }
                let mut transaction = database.begin().await?;
                sqlx::query(
                    "insert into raw.events select s, t, e::jsonb from unnest($1::bigint[], $2::text[], $3::text[]) as new (s, t, e)",
                )
                .bind(&sequences)
                .bind(subjects)
                .bind(bodies)
                .execute(&mut *transaction)
                .await?;
                sqlx::query("update raw.checkpoint set sequence = $1")
                    .bind(sequences.last())
                    .execute(&mut *transaction)
                    .await?;
                transaction.commit().await?;
                let now = Instant::now();
                for sequence in sequences {
                    // Nobody listens any more: the end of the measure.
                    let _ = sender.send((sequence.cast_unsigned(), now));
                }
            }
            Ok(())
        });
        Ok(Raw { context, arrivals: arrivals.into(), consuming })
    }

    async fn measure(&self, load: Load) -> Result<Vec<Duration>> {
        let publish = |n| {
            let context = self.context.clone();
            async move {
                let key = Key::stage(&PROJECT.parse()?, &stage_name(n)?);
                let reason = format!("a migration runs until {}", runtime::clock::new_id());
                let event = stage::Event::Locked { owner: "admin".into(), reason };
                let now = runtime::clock::context("admin");
                let (subject, body) = domain::encode(&key, &event, runtime::clock::new_id(), &now)?;
                let begun = Instant::now();
                let ack = context.publish(format!("raw.{subject}"), body.into()).await?.await?;
                anyhow::Ok((ack.sequence, begun))
            }
        };
        let begun = paced(load, publish).await?.into_iter().collect();
        arrived(&self.arrivals, begun).await
    }

    async fn stop(self) -> Result<()> {
        self.consuming.abort();
        match self.consuming.await {
            Err(error) if error.is_cancelled() => Ok(()),
            ended => ended?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_a_sample_that_so_many_do_not_exceed() {
        let samples: Vec<Duration> = (1..=200).rev().map(Duration::from_millis).collect();
        assert_eq!(quantile(&samples, 500), 100.0);
        assert_eq!(quantile(&samples, 990), 198.0);
        assert_eq!(quantile(&samples[..1], 990), 200.0);
    }
}
