//! Key-value buckets: the newest value per key, with its revision.

use std::collections::{HashSet, VecDeque};

use async_nats::{Message, header::HeaderMap};
use bytes::Bytes;
use futures::Stream;
use serde::Deserialize;

use crate::{
    EventLog,
    append::WRONG_SEQUENCE,
    error::Error,
    nats::{ApiError, DEADLINE, request},
    pull::{Item, Ordered, Start},
    streams,
};

/// One bucket of `nats/streams.json`.
#[derive(Clone)]
pub struct Bucket {
    log: EventLog,
    name: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub value: Vec<u8>,
    /// Grows with every change in the bucket.
    pub revision: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Put {
        key: String,
        value: Vec<u8>,
        revision: u64,
    },
    /// Deleted, or not renewed in time.
    Deleted {
        key: String,
        revision: u64,
    },
    /// Everything that existed has been delivered.
    Ready,
}

impl EventLog {
    /// The bucket `name` (`routes`, `edges`), which must be declared in `nats/streams.json`.
    pub fn bucket(&self, name: &str) -> Bucket {
        Bucket { log: self.clone(), name: name.to_owned() }
    }
}

impl Bucket {
    pub async fn get(&self, key: &str) -> Result<Option<Entry>, Error> {
        let stored = self.log.inner.last_on(&self.stream(), &self.subject(key)?).await?;
        Ok(stored
            .filter(|stored| !is_deletion(&stored.message))
            .map(|stored| Entry { revision: stored.sequence, value: stored.message.payload.to_vec() }))
    }

    /// Every key that has a value.
    pub async fn keys(&self) -> Result<Vec<String>, Error> {
        Ok(self.revisions().await?.into_iter().map(|(key, _)| key).collect())
    }

    /// The same, each with its newest revision.
    pub async fn revisions(&self) -> Result<Vec<(String, u64)>, Error> {
        let prefix = format!("$KV.{}.", self.name);
        let mut keys = Vec::new();
        self.log
            .inner
            .scan(&self.stream(), &format!("{prefix}>"), 1, |stored| {
                if !is_deletion(&stored.message) {
                    let key = stored.subject.strip_prefix(&prefix);
                    keys.extend(key.map(|key| (key.to_owned(), stored.sequence)));
                }
                Ok(())
            })
            .await?;
        Ok(keys)
    }

    /// Writes `value` whatever was there; returns its revision.
    pub async fn put(&self, key: &str, value: impl Into<Bytes>) -> Result<u64, Error> {
        self.write(key, value.into(), None, false).await
    }

    /// Writes `value` where there is none; else [`Error::WrongRevision`].
    pub async fn create(&self, key: &str, value: impl Into<Bytes>) -> Result<u64, Error> {
        let value = value.into();
        match self.write(key, value.clone(), Some(0), false).await {
            Err(Error::WrongRevision { bucket, key }) => {
                // What looks taken may be the mark of a deletion.
                let last = self.log.inner.last_on(&self.stream(), &self.subject(&key)?).await?;
                match last.filter(|stored| is_deletion(&stored.message)) {
                    Some(mark) => self.write(&key, value, Some(mark.sequence), false).await,
                    None => Err(Error::WrongRevision { bucket, key }),
                }
            }
            other => other,
        }
    }

    /// Writes `value` where the newest revision is `revision`; else [`Error::WrongRevision`].
    pub async fn update(&self, key: &str, value: impl Into<Bytes>, revision: u64) -> Result<u64, Error> {
        self.write(key, value.into(), Some(revision), false).await
    }

    /// Deletes the key, where `revision` is given only if it is the newest.
    pub async fn delete(&self, key: &str, revision: Option<u64>) -> Result<(), Error> {
        self.write(key, Bytes::new(), revision, true).await.map(drop)
    }

    /// Every value, then [`Change::Ready`], then every change. After an outage again every value, a deletion for
    /// each key that is gone, and [`Change::Ready`]. Ends only when the log is closed.
    pub fn watch(&self) -> impl Stream<Item = Result<Change, Error>> + Send + use<> {
        let prefix = format!("$KV.{}.", self.name);
        let messages = Ordered::new(self.log.inner.clone(), self.stream(), format!("{prefix}>"), Start::LastOfEach);
        let watch = Watch {
            messages,
            prefix,
            known: HashSet::new(),
            gone: HashSet::new(),
            ready: false,
            queue: VecDeque::new(),
        };
        futures::stream::unfold(watch, |mut watch| async move {
            let change = watch.next().await?;
            Some((Ok(change), watch))
        })
    }

    async fn write(&self, key: &str, value: Bytes, revision: Option<u64>, delete: bool) -> Result<u64, Error> {
        const OPERATION: &str = "writing a key";
        #[derive(Deserialize)]
        struct Ack {
            #[serde(default)]
            seq: u64,
            error: Option<ApiError>,
        }
        let mut headers = HeaderMap::new();
        if let Some(revision) = revision {
            headers.insert("Nats-Expected-Last-Subject-Sequence", revision.to_string());
        }
        if delete {
            headers.insert("KV-Operation", "DEL");
        }
        let subject = self.subject(key)?;
        let client = &self.log.inner.client;
        let ask = || request(client, OPERATION, &subject, headers.clone(), value.clone(), DEADLINE);
        let reply = match self.log.inner.connected(OPERATION, ask()).await {
            // A bucket in memory is gone with the server that held it: whoever writes makes it anew.
            Err(error) if error.nobody_there() => {
                Box::pin(self.log.inner.connected(OPERATION, streams::restore(client, OPERATION))).await?;
                self.log.inner.connected(OPERATION, ask()).await
            }
            reply => reply,
        }?;
        let ack: Ack = serde_json::from_slice(&reply.payload)
            .map_err(|e| Error::Protocol { operation: OPERATION, detail: e.to_string() })?;
        match ack.error {
            None => Ok(ack.seq),
            Some(error) if WRONG_SEQUENCE.contains(&error.err_code) => {
                Err(Error::WrongRevision { bucket: self.name.clone(), key: key.to_owned() })
            }
            Some(error) => Err(error.refused(OPERATION)),
        }
    }

    fn stream(&self) -> String {
        format!("KV_{}", self.name)
    }

    fn subject(&self, key: &str) -> Result<String, Error> {
        let good = !key.is_empty()
            && !key.starts_with('.')
            && !key.ends_with('.')
            && !key.contains("..")
            && key.bytes().all(|b| b.is_ascii_alphanumeric() || b"-/_=.".contains(&b));
        match good {
            true => Ok(format!("$KV.{}.{key}", self.name)),
            false => Err(Error::BadKey { key: key.chars().take(80).collect() }),
        }
    }
}

struct Watch {
    messages: Ordered,
    prefix: String,
    /// Keys with a value.
    known: HashSet<String>,
    /// Keys that had a value before an outage and have not been seen since.
    gone: HashSet<String>,
    ready: bool,
    queue: VecDeque<Change>,
}

impl Watch {
    async fn next(&mut self) -> Option<Change> {
        loop {
            if let Some(change) = self.queue.pop_front() {
                return Some(change);
            }
            match self.messages.next().await? {
                Item::Opened { pending } => {
                    self.ready = false;
                    self.gone = self.known.clone();
                    if pending == 0 {
                        self.become_ready(0);
                    }
                }
                // Nothing waits any more, even where the last of what was promised has expired on the way.
                Item::Idle => self.become_ready(0),
                Item::Message { message, sequence, pending } => {
                    let key = message.subject.strip_prefix(&self.prefix).unwrap_or_default().to_owned();
                    self.gone.remove(&key);
                    if is_deletion(&message) {
                        self.known.remove(&key);
                        self.queue.push_back(Change::Deleted { key, revision: sequence });
                    } else {
                        self.known.insert(key.clone());
                        self.queue.push_back(Change::Put { key, value: message.payload.to_vec(), revision: sequence });
                    }
                    if pending == 0 {
                        self.become_ready(sequence);
                    }
                }
            }
        }
    }

    fn become_ready(&mut self, revision: u64) {
        if !std::mem::replace(&mut self.ready, true) {
            for key in std::mem::take(&mut self.gone) {
                self.known.remove(&key);
                self.queue.push_back(Change::Deleted { key, revision });
            }
            self.queue.push_back(Change::Ready);
        }
    }
}

/// A mark that stands for "no value": written by `delete`, or by the server when a value expires.
fn is_deletion(message: &Message) -> bool {
    let header = |name: &str| message.headers.as_ref().and_then(|headers| headers.get(name));
    header("KV-Operation").is_some_and(|operation| operation.as_str() != "PUT")
        || header("Nats-Marker-Reason").is_some()
}
