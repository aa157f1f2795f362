//! The work queue of one node. The server fills it from the dispatched events, so nothing is ever sent here.

use std::{sync::Arc, time::Duration};

use async_nats::jetstream::{AckKind, Message};
use domain::{Recorded, Slug};
use serde_json::{Value, json};

use crate::{
    EventLog, Inner,
    error::Error,
    nats,
    pull::{Broken, Pull, Pulled, nanos},
};

const STREAM: &str = "COMMANDS";
const OPERATION: &str = "opening the work queue";

/// A command whose worker was not heard of for this long goes to another.
const ACK_WAIT: Duration = Duration::from_secs(5);

/// Commands for one node; workers of the same node share its queue.
pub struct Commands {
    inner: Arc<Inner>,
    node: String,
    pull: Option<Pull>,
}

/// A command in this worker's hands until it is `done`, or until the server has heard nothing of it for
/// [`Delivery::LEASE`]: call `progress` every second. It may have been delivered before, so look first what has become
/// of it.
pub struct Delivery {
    pub project: Slug,
    pub stage: Slug,
    /// The dispatched event that the command is.
    pub recorded: Recorded,
    /// 1 at first; more after a worker was lost or asked for it later.
    pub attempt: u64,
    message: Box<Message>,
    inner: Arc<Inner>,
}

impl EventLog {
    /// The queue of `node`; made at the first call, and kept while no worker runs.
    pub async fn commands(&self, node: &str) -> Result<Commands, Error> {
        if node.is_empty() || !node.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
            let detail = format!("`{node}` is not a node's name: use letters, digits, - and _");
            return Err(Error::Protocol { operation: OPERATION, detail });
        }
        let mut commands = Commands { inner: self.inner.clone(), node: node.to_owned(), pull: None };
        commands.open().await?;
        Ok(commands)
    }
}

impl Commands {
    /// Waits for the next command, through any outage of NATS. Dropping a pending `next` loses nothing.
    pub async fn next(&mut self) -> Result<Delivery, Error> {
        while !self.inner.closed.is_cancelled() {
            match &mut self.pull {
                Some(pull) => match pull.next().await {
                    Ok(Pulled::Message(message)) => return delivery(message, self.inner.clone()),
                    Ok(Pulled::Idle) => {}
                    Err(Broken) => self.pull = None,
                },
                None => match self.open().await {
                    Ok(()) => {}
                    Err(Error::Unavailable { .. }) => self.inner.breathe().await,
                    Err(other) => return Err(other),
                },
            }
        }
        Err(Error::Closed)
    }

    /// Makes the consumer, or finds it as it was left.
    async fn open(&mut self) -> Result<(), Error> {
        let consumer = format!("deployer-{}", self.node);
        let body = json!({
            "stream_name": STREAM,
            "config": {
                "durable_name": consumer, "filter_subject": format!("sluice.commands.deploy.{}.>", self.node),
                "ack_policy": "explicit", "ack_wait": nanos(ACK_WAIT), "max_deliver": -1, "deliver_policy": "all",
            },
        });
        let subject = format!("CONSUMER.CREATE.{STREAM}.{consumer}");
        nats::api::<Value>(&self.inner.client, OPERATION, &subject, &body).await?.map_err(|e| e.refused(OPERATION))?;
        let pull = Pull::open(&self.inner, STREAM, &consumer, 1).await;
        let lost = |Broken| Error::Unavailable { operation: OPERATION, source: "the connection was lost".into() };
        self.pull = Some(pull.map_err(lost)?);
        Ok(())
    }
}

fn delivery(message: Box<Message>, inner: Arc<Inner>) -> Result<Delivery, Error> {
    let malformed = |detail: &str| Error::Protocol { operation: "reading a command", detail: detail.into() };
    let mut tokens = message.subject.as_str().split('.').skip(4);
    let mut slug = || tokens.next()?.parse::<Slug>().ok();
    let (Some(project), Some(stage)) = (slug(), slug()) else { return Err(malformed("a subject without a stage")) };
    let source = message.headers.as_ref().and_then(|h| h.get("Nats-Stream-Source"));
    // Stream, sequence, the transform's two sides, the original subject.
    let mut source = source.map_or("", |value| value.as_str()).split(' ').skip(1);
    let sequence = source.next().and_then(|text| text.parse().ok());
    let (Some(sequence), Some(subject)) = (sequence, source.nth(2)) else {
        return Err(malformed("a command that does not stem from EVENTS"));
    };
    let recorded = domain::decode(sequence, subject, &message.payload)?;
    let attempt = message.info().map_or(1, |info| u64::try_from(info.delivered).unwrap_or(1));
    Ok(Delivery { project, stage, recorded, attempt, message, inner })
}

impl Delivery {
    /// After this long without word the server gives the command to another.
    pub const LEASE: Duration = ACK_WAIT;

    /// Says that the work goes on; returns when the server has heard it. The lease counts from the call.
    pub async fn progress(&self) -> Result<(), Error> {
        const OPERATION: &str = "reporting progress on a command";
        let told = async {
            let heard = self.message.double_ack_with(AckKind::Progress).await;
            heard.map_err(|source| Error::Unavailable { operation: OPERATION, source })
        };
        self.inner.connected(OPERATION, told).await
    }

    /// Takes the command out of the queue; returns when the server has done so. On an error it comes again.
    pub async fn done(self) -> Result<(), Error> {
        let done = self.message.double_ack().await;
        done.map_err(|source| Error::Unavailable { operation: "finishing a command", source })
    }

    /// Gives the command back, to be delivered again after `delay`.
    pub async fn retry(self, delay: Duration) -> Result<(), Error> {
        let sent = self.message.ack_with(AckKind::Nak(Some(delay))).await;
        sent.map_err(|source| Error::Unavailable { operation: "giving a command back", source })
    }
}
