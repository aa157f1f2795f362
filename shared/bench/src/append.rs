//! Appends, durable and acknowledged: `eventlog` deciding and writing, beside async-nats alone publishing the same
//! bytes to the same stream.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use async_nats::header::HeaderMap;
use domain::{Key, Slug, stage};
use eventlog::EventLog;
use futures::{StreamExt, TryStreamExt, stream};
use serde::Deserialize;
use testkit::Nats;
use uuid::Uuid;

use crate::{
    Bench,
    history::Message,
    parts,
    row::{Row, Target, Unit},
};

/// Each round takes turns between ours and the peer, so that a hiccup of the disk hits both.
const TURNS: usize = 4;
const ONE_AT_A_TIME: usize = 600;
const TASKS: usize = 64;
const PER_TASK: usize = 24;
const BATCHES: usize = 120;
const BOUND: &str = "the server's fdatasync of each message";

pub(crate) async fn run(bench: &Bench) -> Result<Vec<Row>> {
    let nats = Nats::start().await?;
    let lab = Lab { log: parts::event_log(&nats).await?, client: parts::bare(&nats).await? };
    lab.one_at_a_time(100).await?;
    lab.raw_one_at_a_time(100).await?;

    let mut one = Series::default();
    // What the server itself takes for the same guarantees: a message id, and the position of the aggregate.
    let mut guarded = Series::default();
    let mut many = Series::default();
    let mut two = Series::default();
    let mut ten = Series::default();
    for round in 1..=bench.rounds {
        bench.say(&format!("append, round {round}"));
        for _ in 0..TURNS {
            one.ours(lab.one_at_a_time(ONE_AT_A_TIME).await?);
            one.raw(lab.raw_one_at_a_time(ONE_AT_A_TIME).await?);
            guarded.ours(lab.raw_guarded(ONE_AT_A_TIME).await?);
            many.ours(lab.at_once().await?);
            many.raw(lab.raw_at_once().await?);
            two.ours(lab.batches(2).await?);
            two.raw(lab.raw_batches(2).await?);
            ten.ours(lab.batches(10).await?);
            ten.raw(lab.raw_batches(10).await?);
        }
        for series in [&mut one, &mut guarded, &mut many, &mut two, &mut ten] {
            series.end_of_round();
        }
    }
    lab.log.close().await;
    let at_least = Target::AtLeast { peer: "async-nats", ratio: 0.9 };
    Ok(vec![
        one.row("append, one at a time")
            .peer("async-nats with our headers", guarded.ours)
            .target(at_least)
            .bound(BOUND),
        many.row(format!("append, {TASKS} tasks, each on an aggregate of its own")).bound(BOUND),
        two.row("append, decisions of 2 events").bound("the flushes of an atomic batch"),
        ten.row("append, decisions of 10 events").bound("the flushes of an atomic batch"),
    ])
}

/// Events and the time they took.
type Turn = (usize, Duration);

#[derive(Default)]
struct Series {
    ours: Vec<f64>,
    raw: Vec<f64>,
    round: [Turn; 2],
}

impl Series {
    fn ours(&mut self, (events, time): Turn) {
        self.round[0].0 += events;
        self.round[0].1 += time;
    }

    fn raw(&mut self, (events, time): Turn) {
        self.round[1].0 += events;
        self.round[1].1 += time;
    }

    fn end_of_round(&mut self) {
        let [ours, raw] = std::mem::take(&mut self.round).map(|(events, time)| events as f64 / time.as_secs_f64());
        self.ours.push(ours);
        self.raw.push(raw);
    }

    fn row(self, name: impl Into<String>) -> Row {
        Row::new(name, Unit::PerSecond).ours(self.ours).peer("async-nats", self.raw)
    }
}

struct Lab {
    log: EventLog,
    client: async_nats::Client,
}

impl Lab {
    async fn one_at_a_time(&self, count: usize) -> Result<Turn> {
        let key = key("alone")?;
        let began = Instant::now();
        for _ in 0..count {
            self.lock(&key).await?;
        }
        Ok((count, began.elapsed()))
    }

    async fn raw_one_at_a_time(&self, count: usize) -> Result<Turn> {
        let messages = messages("raw-alone", count)?;
        let began = Instant::now();
        for message in messages {
            self.publish(message, HeaderMap::new()).await?;
        }
        Ok((count, began.elapsed()))
    }

    /// With the headers of `eventlog`, which make the server look at the aggregate's last event.
    async fn raw_guarded(&self, count: usize) -> Result<Turn> {
        let messages = messages("raw-guarded", count)?;
        let stage = key("raw-guarded")?.filter();
        let mut last = self.log.load(&key("raw-guarded")?).await?.version;
        let began = Instant::now();
        for message in messages {
            let mut headers = HeaderMap::new();
            headers.insert("Content-Type", "application/cloudevents+json");
            headers.insert("Nats-Msg-Id", message.id.to_string());
            headers.insert("Nats-Expected-Stream", "EVENTS");
            headers.insert("Nats-Expected-Last-Subject-Sequence", last.to_string());
            headers.insert("Nats-Expected-Last-Subject-Sequence-Subject", stage.as_str());
            last = self.publish(message, headers).await?;
        }
        Ok((count, began.elapsed()))
    }

    async fn at_once(&self) -> Result<Turn> {
        let keys = (0..TASKS).map(|n| key(&format!("task-{n}"))).collect::<Result<Vec<_>>>()?;
        let began = Instant::now();
        stream::iter(keys)
            .map(|key| async move {
                for _ in 0..PER_TASK {
                    self.lock(&key).await?;
                }
                anyhow::Ok(())
            })
            .buffer_unordered(TASKS)
            .try_collect::<()>()
            .await?;
        Ok((TASKS * PER_TASK, began.elapsed()))
    }

    async fn raw_at_once(&self) -> Result<Turn> {
        let tasks = (0..TASKS).map(|n| messages(&format!("raw-task-{n}"), PER_TASK)).collect::<Result<Vec<_>>>()?;
        let began = Instant::now();
        stream::iter(tasks)
            .map(|messages| async move {
                for message in messages {
                    self.publish(message, HeaderMap::new()).await?;
                }
                anyhow::Ok(())
            })
            .buffer_unordered(TASKS)
            .try_collect::<()>()
            .await?;
        Ok((TASKS * PER_TASK, began.elapsed()))
    }

    async fn batches(&self, size: usize) -> Result<Turn> {
        let key = key("batches")?;
        let began = Instant::now();
        for _ in 0..BATCHES {
            let mut transaction = self.log.transaction(&runtime::clock::context("admin"));
            for _ in 0..size {
                transaction.decide(&key, lock()).await?;
            }
            let committed = transaction.commit().await?;
            ensure!(committed.events.len() == size, "a lock was not taken");
        }
        Ok((BATCHES * size, began.elapsed()))
    }

    async fn raw_batches(&self, size: usize) -> Result<Turn> {
        let messages = messages("raw-batches", BATCHES * size)?;
        let began = Instant::now();
        for batch in messages.chunks(size) {
            parts::publish_batch(&self.client, batch).await?;
        }
        Ok((BATCHES * size, began.elapsed()))
    }

    async fn lock(&self, key: &Key<stage::Stage>) -> Result<()> {
        let committed = self.log.execute(key, lock(), &runtime::clock::context("admin")).await?;
        ensure!(committed.events.len() == 1, "the lock was not taken");
        Ok(())
    }

    /// Waits for the server's word that the message is stored. Gives its position.
    async fn publish(&self, message: Message, headers: HeaderMap) -> Result<u64> {
        #[derive(Deserialize)]
        struct Ack {
            seq: Option<u64>,
        }
        let Message { subject, body, .. } = message;
        let reply = self.client.request_with_headers(subject, headers, body.into()).await?;
        let ack: Ack = serde_json::from_slice(&reply.payload).context("reading an acknowledgement")?;
        ack.seq.with_context(|| format!("not stored: {:?}", reply.payload))
    }
}

/// The same lock with another reason each time: one event.
fn lock() -> stage::Command {
    let reason = format!("a migration runs until {}", runtime::clock::new_id());
    stage::Command::Lock { owner: "admin".into(), reason }
}

fn key(stage: &str) -> Result<Key<stage::Stage>> {
    Ok(Key::stage(&"bench".parse::<Slug>()?, &stage.parse::<Slug>()?))
}

/// What `eventlog` writes for as many locks.
fn messages(stage: &str, count: usize) -> Result<Vec<Message>> {
    let key = key(stage)?;
    (0..count)
        .map(|_| {
            let stage::Command::Lock { owner, reason } = lock() else { anyhow::bail!("a lock") };
            let id: Uuid = runtime::clock::new_id();
            let event = stage::Event::Locked { owner, reason };
            let (subject, body) = domain::encode(&key, &event, id, &runtime::clock::context("admin"))?;
            Ok(Message { id, subject, body })
        })
        .collect()
}
