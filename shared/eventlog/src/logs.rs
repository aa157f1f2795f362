//! Output of containers and of deployment steps: bounded on every side, and never in anybody's way.

use std::{
    collections::{HashMap, VecDeque},
    fmt::Display,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use chrono::{DateTime, Utc};
use domain::{DeploymentId, Slug};
use futures::{Stream, StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use crate::{
    EventLog,
    error::Error,
    nats::FAREWELL,
    pull::{Item, Ordered, Start},
};

const STREAM: &str = "LOGS";

/// Longer lines are cut.
const LONGEST_LINE: usize = 16 * 1024;
/// Lines that may wait to be written; more are counted and dropped.
const WAITING: usize = 4096;
/// Lines of one source are gathered for this long into one message.
const GATHER: Duration = Duration::from_millis(100);
/// A message is sent before it grows beyond this; with one line of nothing but escapes it stays below the stream's
/// `max_msg_size`.
const LARGEST_CHUNK: usize = 128 * 1024;

/// Where output comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LogRef {
    pub project: Slug,
    pub stage: Slug,
    pub deployment: DeploymentId,
    /// `step`, or the container's name.
    pub source: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogStream {
    Stdout,
    Stderr,
    /// What the deployer itself says about a step.
    Step,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    pub time: DateTime<Utc>,
    pub stream: LogStream,
    pub text: String,
}

/// Whose output to read.
#[derive(Debug, Clone)]
pub struct LogFilter {
    pub project: Slug,
    pub stage: Slug,
    /// Every deployment of the stage where it is left out.
    pub deployment: Option<DeploymentId>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// Of the message that brought the line; lines that came together share it.
    pub sequence: u64,
    /// The line's place in that message, from 0.
    pub index: usize,
    pub source: String,
    pub deployment: DeploymentId,
    pub line: LogLine,
}

/// Lines of one source, as one message.
#[derive(Serialize, Deserialize)]
struct Chunk<L> {
    deployment: DeploymentId,
    source: String,
    lines: Vec<L>,
}

#[derive(Clone)]
pub struct Logs {
    log: EventLog,
}

impl EventLog {
    pub fn logs(&self) -> Logs {
        Logs { log: self.clone() }
    }
}

impl Logs {
    /// Takes the lines and returns at once. Where they come faster than NATS takes them, some are dropped, and a line
    /// in their place says how many.
    pub fn append(&self, from: &LogRef, lines: Vec<LogLine>) {
        let writer = &self.log.inner.logs;
        let from = Arc::new(from.clone());
        for mut line in lines {
            truncate(&mut line.text);
            if let Err(refused) = writer.lines.try_send((from.clone(), line)) {
                let (from, line) = refused.into_inner();
                let mut dropped = writer.dropped.lock().unwrap_or_else(PoisonError::into_inner);
                let entry = dropped.entry(LogRef::clone(&from)).or_insert((0, line.time));
                *entry = (entry.0 + 1, line.time);
            }
        }
    }

    /// When the last line that was kept of `from`'s source, for whichever deployment, was written.
    pub async fn last(&self, from: &LogRef) -> Result<Option<DateTime<Utc>>, Error> {
        let subject = from.subject(&"*");
        let Some(stored) = self.log.inner.last_on(STREAM, &subject).await? else { return Ok(None) };
        Ok(entries(stored.sequence, &stored.message.payload)?.into_iter().map(|entry| entry.line.time).max())
    }

    /// The last `tail` lines, then, with `follow`, every line as it comes.
    pub fn read(
        &self,
        filter: LogFilter,
        tail: usize,
        follow: bool,
    ) -> impl Stream<Item = Result<LogEntry, Error>> + Send + use<> {
        let inner = self.log.inner.clone();
        let deployment = filter.deployment.map_or("*".to_owned(), |id| id.to_string());
        let subject = format!("sluice.logs.{}.{}.{deployment}.*", filter.project, filter.stage);
        let opened = async move {
            let mut kept = VecDeque::new();
            let mut last = 0;
            inner
                .scan(STREAM, &subject, 1, |stored| {
                    last = stored.sequence;
                    kept.extend(entries(stored.sequence, &stored.message.payload)?);
                    kept.drain(..kept.len().saturating_sub(tail));
                    Ok(())
                })
                .await?;
            let live = follow.then(|| live(Ordered::new(inner, STREAM.to_owned(), subject, Start::After(last))));
            Ok::<_, Error>(stream::iter(kept).map(Ok).chain(stream::iter(live).flatten()))
        };
        stream::once(opened).try_flatten()
    }
}

fn live(messages: Ordered) -> impl Stream<Item = Result<LogEntry, Error>> + Send {
    let chunks = stream::unfold(messages, |mut messages| async move {
        loop {
            if let Item::Message { message, sequence, .. } = messages.next().await? {
                return Some((entries(sequence, &message.payload), messages));
            }
        }
    });
    chunks.map_ok(|entries| stream::iter(entries).map(Ok)).try_flatten()
}

fn entries(sequence: u64, payload: &[u8]) -> Result<Vec<LogEntry>, Error> {
    let chunk: Chunk<LogLine> = serde_json::from_slice(payload)
        .map_err(|e| Error::Protocol { operation: "reading output", detail: e.to_string() })?;
    let Chunk { deployment, source, lines } = chunk;
    let entry = |(index, line)| LogEntry { sequence, index, source: source.clone(), deployment, line };
    Ok(lines.into_iter().enumerate().map(entry).collect())
}

fn truncate(text: &mut String) {
    if text.len() > LONGEST_LINE {
        let end = text.floor_char_boundary(LONGEST_LINE);
        text.truncate(end);
        text.push_str(" [cut]");
    }
}

impl LogRef {
    fn subject(&self, deployment: &impl Display) -> String {
        // A container's name may hold dots, which would make it several tokens.
        let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
        let source: String = self.source.chars().map(plain).take(128).collect();
        let source = if source.is_empty() { "_" } else { &source };
        format!("sluice.logs.{}.{}.{deployment}.{source}", self.project, self.stage)
    }
}

type Dropped = Arc<Mutex<HashMap<LogRef, (u64, DateTime<Utc>)>>>;

/// The way of lines into NATS: a bounded queue and the task behind it.
pub(crate) struct Writer {
    lines: mpsc::Sender<(Arc<LogRef>, LogLine)>,
    /// How many lines of whom, and when the last of them came.
    dropped: Dropped,
    stop: CancellationToken,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Writer {
    pub(crate) fn start(client: async_nats::Client) -> Self {
        let (lines, queue) = mpsc::channel(WAITING);
        let dropped = Dropped::default();
        let stop = CancellationToken::new();
        let task = tokio::spawn(write(client, queue, dropped.clone(), stop.clone()));
        Self { lines, dropped, stop, task: Mutex::new(Some(task)) }
    }

    /// Sends what waits, as far as NATS takes it.
    pub(crate) async fn finish(&self) {
        self.stop.cancel();
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut task) = task else { return };
        if tokio::time::timeout(FAREWELL, &mut task).await.is_err() {
            tracing::warn!("closing the event log: NATS did not take the output that waited");
            task.abort();
        }
    }
}

/// Lines gathered from one source.
struct Gathering {
    since: Instant,
    size: usize,
    lines: Vec<Box<serde_json::value::RawValue>>,
}

type Gathered = HashMap<Arc<LogRef>, Gathering>;

/// Ends when it is stopped, or when the last handle on the log is gone.
async fn write(
    client: async_nats::Client,
    mut queue: mpsc::Receiver<(Arc<LogRef>, LogLine)>,
    dropped: Dropped,
    stop: CancellationToken,
) {
    let mut gathered = Gathered::new();
    let mut tick = tokio::time::interval(GATHER / 4);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            line = queue.recv() => match line {
                Some((from, line)) => gather(&client, &mut gathered, from, &line).await,
                None => break,
            },
            _ = tick.tick(), if !gathered.is_empty() || !queue.is_empty() => {
                admit_losses(&client, &mut gathered, &dropped).await;
                let now = Instant::now();
                let due: Vec<_> = gathered.iter().filter(|(_, g)| now - g.since >= GATHER).map(|(f, _)| f.clone()).collect();
                for from in due {
                    send(&client, &mut gathered, &from).await;
                }
            }
            () = stop.cancelled(), if !queue.is_closed() => queue.close(),
        }
    }
    admit_losses(&client, &mut gathered, &dropped).await;
    let rest: Vec<_> = gathered.keys().cloned().collect();
    for from in rest {
        send(&client, &mut gathered, &from).await;
    }
}

async fn gather(client: &async_nats::Client, gathered: &mut Gathered, from: Arc<LogRef>, line: &LogLine) {
    // Text, time and an enum always become JSON.
    let Ok(line) = serde_json::value::to_raw_value(line) else { return };
    let size = line.get().len();
    if gathered.get(&from).is_some_and(|waiting| waiting.size + size > LARGEST_CHUNK) {
        send(client, gathered, &from).await;
    }
    let waiting = gathered.entry(from).or_insert_with(|| Gathering { since: Instant::now(), size: 0, lines: vec![] });
    waiting.size += size;
    waiting.lines.push(line);
}

async fn send(client: &async_nats::Client, gathered: &mut Gathered, from: &Arc<LogRef>) {
    let Some(waiting) = gathered.remove(from) else { return };
    let chunk = Chunk { deployment: from.deployment, source: from.source.clone(), lines: waiting.lines };
    let sent = match serde_json::to_vec(&chunk) {
        Ok(payload) => client.publish(from.subject(&from.deployment), payload.into()).await.map_err(|e| e.to_string()),
        Err(e) => Err(e.to_string()),
    };
    if let Err(problem) = sent {
        tracing::debug!(problem, "output was not kept");
    }
}

/// Says in the output itself how much of it is missing.
async fn admit_losses(client: &async_nats::Client, gathered: &mut Gathered, dropped: &Dropped) {
    let losses = std::mem::take(&mut *dropped.lock().unwrap_or_else(PoisonError::into_inner));
    for (from, (count, time)) in losses {
        let text = format!("[{count} lines dropped: they came faster than they could be kept]");
        gather(client, gathered, Arc::new(from), &LogLine { time, stream: LogStream::Step, text }).await;
    }
}
