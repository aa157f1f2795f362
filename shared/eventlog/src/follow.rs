//! Reading events in order: what has been, then what comes.

use std::time::Duration;

use domain::Recorded;
use futures::Stream;
use serde::Deserialize;
use serde_json::json;

use crate::{
    EventLog,
    error::Error,
    nats::{self, EVENTS},
    pull::{Item, Ordered, Start},
};

/// The filter that holds every event.
const ALL: &str = "sluice.events.>";

/// How long a batch waits for messages that the server has already promised.
const PROMISED: Duration = Duration::from_millis(100);

impl EventLog {
    /// Every event on `filter` (a subject, wildcards allowed) behind position `after`, then live, within milliseconds
    /// of its append. Outlives any outage of NATS, leaves nothing out and repeats nothing. Ends after an error (an
    /// event that cannot be read, or a log that was damaged or replaced) and when the log is closed.
    pub fn follow(&self, filter: &str, after: u64) -> impl Stream<Item = Result<Recorded, Error>> + Send + use<> {
        let events = Events::new(self, filter, after);
        futures::stream::unfold(Some(events), |events| async move {
            let mut events = events?;
            match events.next().await? {
                Ok((event, _)) => Some((Ok(event), Some(events))),
                Err(error) => Some((Err(error), None)),
            }
        })
    }

    /// The same for all events, in batches of up to `max`: at least one, and more only while more have been
    /// written, so that a batch is large in a replay and immediate when live.
    pub fn batches(&self, after: u64, max: usize) -> impl Stream<Item = Result<Vec<Recorded>, Error>> + Send + use<> {
        let state = (Some(Events::new(self, ALL, after)), None);
        futures::stream::unfold(state, move |(events, failed)| async move {
            if let Some(error) = failed {
                return Some((Err(error), (None, None)));
            }
            let mut events = events?;
            let (first, mut pending) = match events.next().await? {
                Ok(next) => next,
                Err(error) => return Some((Err(error), (None, None))),
            };
            let mut batch = vec![first];
            let mut failed = None;
            while batch.len() < max && pending > 0 {
                match tokio::time::timeout(PROMISED, events.next()).await {
                    Ok(Some(Ok((event, behind)))) => {
                        batch.push(event);
                        pending = behind;
                    }
                    Ok(Some(Err(error))) => {
                        failed = Some(error);
                        break;
                    }
                    // The connection was lost: what has arrived need not wait for it.
                    Ok(None) | Err(_) => break,
                }
            }
            Some((Ok(batch), (Some(events), failed)))
        })
    }

    /// Hands every event on `filter` behind position `after` that stands in the log at this moment to `each`, in order.
    pub async fn each(&self, filter: &str, after: u64, mut each: impl FnMut(Recorded)) -> Result<(), Error> {
        self.inner
            .scan(EVENTS, filter, after + 1, |stored| {
                each(domain::decode(stored.sequence, &stored.subject, &stored.message.payload)?);
                Ok(())
            })
            .await
    }

    /// Position of the newest event; 0 in an empty log.
    pub async fn last_sequence(&self) -> Result<u64, Error> {
        #[derive(Deserialize)]
        struct Info {
            state: State,
        }
        #[derive(Deserialize)]
        struct State {
            last_seq: u64,
        }
        const OPERATION: &str = "asking for the end of the log";
        nats::api::<Info>(&self.inner.client, OPERATION, &format!("STREAM.INFO.{EVENTS}"), &json!({}))
            .await?
            .map(|info| info.state.last_seq)
            .map_err(|error| error.refused(OPERATION))
    }
}

struct Events {
    log: EventLog,
    messages: Ordered,
    after: u64,
    /// Whether positions must follow one another without a gap.
    all: bool,
}

impl Events {
    fn new(log: &EventLog, filter: &str, after: u64) -> Self {
        let messages = Ordered::new(log.inner.clone(), EVENTS.to_owned(), filter.to_owned(), Start::After(after));
        Self { log: log.clone(), messages, after, all: filter == ALL }
    }

    /// The next event, and how many are known to be behind it.
    async fn next(&mut self) -> Option<Result<(Recorded, u64), Error>> {
        loop {
            let (message, sequence, pending) = match self.messages.next().await? {
                Item::Message { message, sequence, pending } => (message, sequence, pending),
                Item::Opened { .. } => match self.log.last_sequence().await {
                    Ok(last) if last < self.after => return Some(Err(Error::Ahead { after: self.after, last })),
                    // Where the question itself fails, the next connection asks again.
                    Ok(_) | Err(_) => continue,
                },
                Item::Idle => continue,
            };
            if self.all && sequence != self.after + 1 {
                return Some(Err(Error::Gap { after: self.after, found: sequence }));
            }
            self.after = sequence;
            let decoded = domain::decode(sequence, &message.subject, &message.payload);
            return Some(decoded.map(|event| (event, pending)).map_err(Error::from));
        }
    }
}
