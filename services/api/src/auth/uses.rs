//! When each API token was last used. Not an event a request: it is noted in memory and written off the request's road,
//! for each token at most once a minute by each process.

use std::{
    collections::HashMap,
    num::NonZeroUsize,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use chrono::{DateTime, Utc};
use domain::TokenId;
use eventlog::{Bucket, EventLog};
use lru::LruCache;
use tokio::{sync::Notify, time::Instant};

use crate::problem::Error;

const BUCKET: &str = "uses";
/// Between two notes of one token.
const PAUSE: Duration = Duration::from_secs(60);
/// Tokens whose last note one process remembers.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(10_000).expect("not zero");

pub(crate) struct Uses {
    bucket: Bucket,
    memory: Mutex<Memory>,
    waiting: Notify,
}

struct Memory {
    noted: LruCache<TokenId, Instant>,
    /// Not yet written; as many as are remembered at most.
    due: HashMap<TokenId, DateTime<Utc>>,
}

impl Uses {
    pub(super) fn new(log: &EventLog) -> Self {
        let memory = Memory { noted: LruCache::new(REMEMBERED), due: HashMap::new() };
        Self { bucket: log.bucket(BUCKET), memory: Mutex::new(memory), waiting: Notify::new() }
    }

    pub(super) fn note(&self, id: TokenId, now: DateTime<Utc>) {
        let mut memory = self.memory();
        if memory.noted.get(&id).is_some_and(|at| at.elapsed() < PAUSE) || memory.due.len() >= REMEMBERED.get() {
            return;
        }
        memory.noted.put(id, Instant::now());
        memory.due.insert(id, now);
        self.waiting.notify_one();
    }

    /// Writes what is due, until the process ends.
    pub(super) async fn keep(&self) {
        loop {
            self.waiting.notified().await;
            let due = std::mem::take(&mut self.memory().due);
            for (id, at) in due {
                if let Err(error) = self.bucket.put(&id.to_string(), at.to_rfc3339()).await {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        token = %id,
                        "when a token was used could not be noted"
                    );
                }
            }
        }
    }

    /// To the minute. None where nobody has used it.
    pub(crate) async fn last(&self, id: TokenId) -> Result<Option<DateTime<Utc>>, Error> {
        let entry = self.bucket.get(&id.to_string()).await?;
        let time =
            |value: Vec<u8>| Some(DateTime::parse_from_rfc3339(std::str::from_utf8(&value).ok()?).ok()?.to_utc());
        Ok(entry.and_then(|entry| time(entry.value)))
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
