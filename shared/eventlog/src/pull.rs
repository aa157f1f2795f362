//! Consuming a stream by pull requests of our own.
//!
//! async-nats' own pull streams can stall for good: its `Batch` forgets to wake its task after an idle heartbeat, and
//! its `Stream` may stop asking in the middle of a long replay. Here one request stands at a time, heartbeats prove
//! that it does, and whatever is wrong leads to a new consumer after the last message seen.

use std::{sync::Arc, time::Duration};

use async_nats::{Subscriber, jetstream::Message};
use futures::StreamExt;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::{Inner, error::Error, nats};

/// How long one pull request stands before it is renewed.
const EXPIRES: Duration = Duration::from_secs(30);
/// The server speaks up this often while it has nothing to deliver.
const HEARTBEAT: Duration = Duration::from_secs(3);
/// Two heartbeats and some.
const SILENCE: Duration = Duration::from_secs(7);
/// A consumer that nobody asks ends; the server holds at most a thousand.
const INACTIVE: Duration = Duration::from_secs(60);

/// Messages one request asks for: enough for a fast replay.
const REPLAY: usize = 1000;

/// Pull requests to one consumer. Dropping a pending `next` loses nothing.
pub(crate) struct Pull {
    inner: Arc<Inner>,
    subject: String,
    inbox: String,
    replies: Subscriber,
    batch: usize,
    /// Messages the standing request may still bring.
    outstanding: usize,
    connections: watch::Receiver<u64>,
}

pub(crate) enum Pulled {
    Message(Box<Message>),
    /// Nothing waits at the server.
    Idle,
}

/// The consumer or the connection is gone, or not to be trusted.
pub(crate) struct Broken;

impl Pull {
    /// `batch` messages are asked for at a time.
    pub(crate) async fn open(inner: &Arc<Inner>, stream: &str, consumer: &str, batch: usize) -> Result<Self, Broken> {
        let mut connections = inner.connections.clone();
        connections.mark_unchanged();
        let inbox = inner.client.new_inbox();
        let replies = inner.client.subscribe(inbox.clone()).await.map_err(|_| Broken)?;
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}");
        Ok(Self { inner: inner.clone(), subject, inbox, replies, batch, outstanding: 0, connections })
    }

    pub(crate) async fn next(&mut self) -> Result<Pulled, Broken> {
        if self.outstanding == 0 {
            let ask = json!({
                "batch": self.batch, "expires": nanos(EXPIRES), "idle_heartbeat": nanos(HEARTBEAT),
            });
            let ask = ask.to_string().into();
            let sent = self.inner.client.publish_with_reply(self.subject.clone(), self.inbox.clone(), ask).await;
            sent.map_err(|_| Broken)?;
            self.outstanding = self.batch;
        }
        let reply = tokio::select! {
            biased;
            // A server that restarted knows nothing of the request.
            _ = self.connections.changed() => return Err(Broken),
            () = self.inner.closed.cancelled() => return Err(Broken),
            reply = tokio::time::timeout(SILENCE, self.replies.next()) => reply,
        };
        let Ok(Some(message)) = reply else { return Err(Broken) };
        match message.status.map(|status| status.as_u16()) {
            None => {
                self.outstanding -= 1;
                Ok(Pulled::Message(Box::new(Message { message, context: self.inner.jetstream.clone() })))
            }
            Some(100) => Ok(Pulled::Idle),
            Some(404 | 408) => {
                self.outstanding = 0;
                Ok(Pulled::Idle)
            }
            Some(_) => Err(Broken),
        }
    }
}

/// Where an ordered consumer begins.
#[derive(Clone, Copy)]
pub(crate) enum Start {
    After(u64),
    /// With the last message of every subject.
    LastOfEach,
}

/// All messages of a filter in order, none twice and none left out, for as long as the log is open.
pub(crate) struct Ordered {
    inner: Arc<Inner>,
    stream: String,
    filter: String,
    start: Start,
    session: Option<Session>,
    failures: u32,
}

struct Session {
    pull: Pull,
    /// Messages of this consumer so far: the server numbers them, so a loss on the way shows.
    delivered: u64,
}

pub(crate) enum Item {
    /// A consumer was made. `pending` messages lie before it.
    Opened {
        pending: u64,
    },
    /// `pending` more lie behind it.
    Message {
        message: Box<Message>,
        sequence: u64,
        pending: u64,
    },
    Idle,
}

#[derive(Deserialize)]
struct Created {
    name: String,
    #[serde(default)]
    num_pending: u64,
}

impl Ordered {
    pub(crate) fn new(inner: Arc<Inner>, stream: String, filter: String, start: Start) -> Self {
        Self { inner, stream, filter, start, session: None, failures: 0 }
    }

    /// `None` once the log was closed. Dropping a pending `next` loses nothing.
    pub(crate) async fn next(&mut self) -> Option<Item> {
        while !self.inner.closed.is_cancelled() {
            let Some(session) = &mut self.session else {
                match self.open().await {
                    Ok(opened) => return Some(opened),
                    Err(problem) => {
                        self.failures += 1;
                        // Once an outage is enough.
                        if self.failures == 1 {
                            tracing::warn!(
                                stream = self.stream,
                                filter = self.filter,
                                problem,
                                "cannot follow, trying again"
                            );
                        }
                        self.inner.breathe().await;
                    }
                }
                continue;
            };
            let message = match session.pull.next().await {
                Ok(Pulled::Message(message)) => message,
                Ok(Pulled::Idle) => return Some(Item::Idle),
                Err(Broken) => {
                    self.session = None;
                    continue;
                }
            };
            let position = message.info().ok().map(|info| (info.stream_sequence, info.consumer_sequence, info.pending));
            match position {
                Some((sequence, number, pending)) if number == session.delivered + 1 => {
                    session.delivered = number;
                    if let Start::After(seen) = &mut self.start {
                        *seen = sequence;
                    }
                    return Some(Item::Message { message, sequence, pending });
                }
                Some(_) | None => {
                    tracing::info!(
                        stream = self.stream,
                        filter = self.filter,
                        "a message was lost on the way, asking anew"
                    );
                    self.session = None;
                }
            }
        }
        None
    }

    async fn open(&mut self) -> Result<Item, String> {
        let policy = match self.start {
            Start::After(sequence) => json!({ "deliver_policy": "by_start_sequence", "opt_start_seq": sequence + 1 }),
            Start::LastOfEach => json!({ "deliver_policy": "last_per_subject" }),
        };
        let mut config = json!({
            "filter_subject": self.filter, "ack_policy": "none", "replay_policy": "instant",
            "mem_storage": true, "num_replicas": 1, "inactive_threshold": nanos(INACTIVE),
        });
        if let (Value::Object(config), Value::Object(policy)) = (&mut config, policy) {
            config.extend(policy);
        }
        let subject = format!("CONSUMER.CREATE.{}", self.stream);
        let body = json!({ "stream_name": self.stream, "config": config });
        let created: Created = nats::api(&self.inner.client, "following a stream", &subject, &body)
            .await
            .map_err(|error| chain(&error))?
            .map_err(|refused| refused.description)?;
        let pull = Pull::open(&self.inner, &self.stream, &created.name, REPLAY).await;
        let pull = pull.map_err(|Broken| "the connection was lost".to_owned())?;
        self.session = Some(Session { pull, delivered: 0 });
        self.failures = 0;
        Ok(Item::Opened { pending: created.num_pending })
    }
}

pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn chain(error: &Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
