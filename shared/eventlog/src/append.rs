//! Writing the events of one decision: all of them or none, and only if nothing else happened.

use async_nats::header::HeaderMap;
use domain::{Aggregate, Context, Key, Recorded};
use serde::Deserialize;
use uuid::Uuid;

use crate::{
    EventLog,
    error::Error,
    nats::{ApiError, DEADLINE, EVENTS, request},
};

const OPERATION: &str = "appending events";

/// More than a decision has ever needed, less than the server refuses.
const MOST: usize = 1000;

/// The server's codes for an aggregate that stands elsewhere than expected: by subject, and as a constant.
pub(crate) const WRONG_SEQUENCE: [u64; 2] = [10071, 10164];

/// Its codes for a batch that lost a member on the way, and for one too many at once. It gives room again when the
/// batches of a writer that died have been silent for ten seconds.
const TORN: [u64; 2] = [10176, 10210];

/// An event that waits to be written.
pub(crate) struct Staged {
    id: Uuid,
    subject: String,
    body: Vec<u8>,
    /// The subjects of an aggregate, and the position of its last event so far. On the first event of each aggregate
    /// its own; on others that of one that must not have changed.
    pub(crate) expected: Option<(String, u64)>,
}

pub(crate) enum AppendError {
    /// Nothing was written, because something else was.
    Conflict,
    /// It was not written, or nobody knows whether it was.
    Lost(Error),
    Failed(Error),
}

/// Makes `events` ready to be written after `version` of their aggregate; none where the decision has staged
/// events for it before. `offset` is how many events the decision holds already.
pub(crate) fn stage<A: Aggregate>(
    key: &Key<A>,
    version: Option<u64>,
    events: &[A::Event],
    offset: usize,
    context: &Context,
) -> Result<Vec<Staged>, Error> {
    let mut expected = version.map(|version| (key.filter(), version));
    events
        .iter()
        .enumerate()
        .map(|(index, event)| {
            let id = event_id(context, offset + index);
            let (subject, body) = domain::encode(key, event, id, context).map_err(Error::Encode)?;
            Ok(Staged { id, subject, body, expected: expected.take() })
        })
        .collect()
}

/// A UUIDv7: the decision's time, then the event's place in the decision, then chance.
fn event_id(context: &Context, index: usize) -> Uuid {
    let millis = u64::try_from(context.time.timestamp_millis()).unwrap_or_default();
    let mut bytes: [u8; 10] = rand::random();
    // The first twelve bits sort; `MOST` fits in them.
    bytes[0] = (index >> 8) as u8;
    bytes[1] = index as u8;
    uuid::Builder::from_unix_timestamp_millis(millis, &bytes).into_uuid()
}

#[derive(Deserialize)]
struct Ack {
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    count: Option<usize>,
    #[serde(default)]
    error: Option<ApiError>,
}

impl Staged {
    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("Content-Type", "application/cloudevents+json");
        headers.insert("Nats-Msg-Id", self.id.to_string());
        headers.insert("Nats-Expected-Stream", EVENTS);
        if let Some((filter, version)) = &self.expected {
            headers.insert("Nats-Expected-Last-Subject-Sequence", version.to_string());
            // Without it the server would look at this one subject, and not at the aggregate's other events.
            headers.insert("Nats-Expected-Last-Subject-Sequence-Subject", filter.as_str());
        }
        headers
    }
}

impl EventLog {
    /// Writes `staged` in one piece and returns the events with their positions.
    pub(crate) async fn append(&self, staged: &[Staged]) -> Result<Vec<Recorded>, AppendError> {
        let Some((last, rest)) = staged.split_last() else { return Ok(vec![]) };
        if staged.len() > MOST {
            let detail = format!("a decision of {} events, where {MOST} are allowed", staged.len());
            return Err(AppendError::Failed(Error::Protocol { operation: OPERATION, detail }));
        }
        // A single event goes without batch: a batch costs several times the disk flushes.
        let batch = (!rest.is_empty()).then(|| last.id.to_string());
        for (event, number) in rest.iter().zip(1_u64..) {
            let mut headers = event.headers();
            join(&mut headers, batch.as_deref(), number);
            self.inner
                .client
                .publish_with_headers(event.subject.clone(), headers, event.body.clone().into())
                .await
                .map_err(|e| AppendError::Lost(Error::Unavailable { operation: OPERATION, source: Box::new(e) }))?;
        }
        let mut headers = last.headers();
        join(&mut headers, batch.as_deref(), staged.len() as u64);
        if batch.is_some() {
            headers.insert("Nats-Batch-Commit", "1");
        }
        let body = last.body.clone().into();
        let reply = request(&self.inner.client, OPERATION, &last.subject, headers, body, DEADLINE);
        let reply = self.inner.connected(OPERATION, reply).await.map_err(|error| match error {
            Error::Unavailable { .. } => AppendError::Lost(error),
            other => AppendError::Failed(other),
        })?;
        let ack: Ack = serde_json::from_slice(&reply.payload)
            .map_err(|e| AppendError::Lost(Error::Protocol { operation: OPERATION, detail: e.to_string() }))?;
        if let Some(error) = ack.error {
            return Err(match error.err_code {
                code if WRONG_SEQUENCE.contains(&code) => AppendError::Conflict,
                code if TORN.contains(&code) => {
                    AppendError::Lost(Error::Unavailable { operation: OPERATION, source: error.description.into() })
                }
                _ => AppendError::Failed(error.refused(OPERATION)),
            });
        }
        // An older server ignores the batch headers and stores message by message, without a word.
        if batch.is_some() && ack.count != Some(staged.len()) {
            let detail = format!("a batch of {} events was answered as {:?}", staged.len(), ack.count);
            return Err(AppendError::Failed(Error::Protocol { operation: OPERATION, detail }));
        }
        let first = ack.seq + 1 - staged.len() as u64;
        staged
            .iter()
            .zip(first..)
            .map(|(event, sequence)| domain::decode(sequence, &event.subject, &event.body))
            .collect::<Result<_, _>>()
            .map_err(|e| AppendError::Failed(e.into()))
    }
}

fn join(headers: &mut HeaderMap, batch: Option<&str>, number: u64) {
    if let Some(batch) = batch {
        headers.insert("Nats-Batch-Id", batch);
        headers.insert("Nats-Batch-Sequence", number.to_string());
    }
}
