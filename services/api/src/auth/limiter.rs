//! Protection against guessing, shared by all processes of the API: what is known of an address lies in a bucket, and
//! is changed only by who has seen the newest. Where the bucket cannot be reached each process counts for itself.

use std::{
    hash::{BuildHasher, RandomState},
    num::NonZeroUsize,
    sync::{Mutex as Memory, MutexGuard, PoisonError},
    time::Duration,
};

use chrono::{DateTime, Utc};
use domain::{
    Key,
    address::Source,
    login::{self, Login},
    throttle::{Admission, Counter, Limits},
    user,
};
use eventlog::{Bucket, EventLog};
use lru::LruCache;
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};

use crate::problem::Error;

const BUCKET: &str = "logins";
/// How long the bucket may take.
const LIMIT: Duration = Duration::from_secs(2);
/// After it could not be reached it is not asked for as long.
const PAUSE: Duration = Duration::from_secs(5);
/// Others that may be faster, one after another, before they are many enough to be refused.
const TRIES: usize = 50;
/// Addresses that one process remembers.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(10_000).expect("not zero");
/// Attempts of one address are looked at one after another within a process.
const LANES: usize = 64;

/// Requests that one address may make without signing in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rate {
    pub(crate) requests: u64,
    pub(crate) window: Duration,
}

pub(crate) struct Limiter {
    log: EventLog,
    bucket: Bucket,
    limits: Limits,
    rate: Rate,
    known: Memory<LruCache<String, Counter>>,
    requests: Memory<LruCache<Source, (Instant, u64)>>,
    lanes: [Mutex<()>; LANES],
    hasher: RandomState,
    away_until: Memory<Option<Instant>>,
}

/// One that was let through: it has to be ended, and counts as a failure where it is given up.
#[must_use]
pub(crate) struct Attempt<'a> {
    limiter: &'a Limiter,
    id: String,
    source: Source,
    at: DateTime<Utc>,
    /// Where this is the last one: until when nothing more is looked at.
    last: Option<DateTime<Utc>>,
    request_id: String,
}

impl Limiter {
    pub(super) fn new(log: &EventLog, limits: Limits, rate: Rate) -> Self {
        Self {
            log: log.clone(),
            bucket: log.bucket(BUCKET),
            limits,
            rate,
            known: Memory::new(LruCache::new(REMEMBERED)),
            requests: Memory::new(LruCache::new(REMEMBERED)),
            lanes: std::array::from_fn(|_| Mutex::new(())),
            hasher: RandomState::new(),
            away_until: Memory::new(None),
        }
    }

    /// Counts an attempt from the source with this `id`.
    pub(super) async fn attempt(&self, id: String, source: Source, request_id: &str) -> Result<Attempt<'_>, Error> {
        let lane = self.hasher.hash_one(&id) as usize % LANES;
        let _turn = self.lanes[lane].lock().await;
        let now = runtime::clock::now();
        let admission = match self.shared(self.count(&id, now)).await {
            Some(admission) => admission,
            None => {
                let known = lock(&self.known).get(&id).cloned().unwrap_or_default();
                known.attempt(now, &self.limits)
            }
        };
        match admission {
            Admission::Blocked => Err(self.refusal()),
            Admission::Granted { counter, last } => {
                lock(&self.known).put(id.clone(), counter);
                Ok(Attempt { limiter: self, id, source, at: now, last, request_id: request_id.to_owned() })
            }
        }
    }

    /// What somebody is told whose attempt cannot be looked at now. Nothing is counted, and nothing written.
    pub(super) async fn busy(&self, id: &str) -> Error {
        let known = match self.shared(self.known(id)).await {
            Some((counter, _)) => counter,
            None => lock(&self.known).get(id).cloned().unwrap_or_default(),
        };
        if known.blocks(runtime::clock::now()) { self.refusal() } else { Error::TooManySignIns }
    }

    fn refusal(&self) -> Error {
        Error::LoginRateLimited { retry_after: self.limits.cooldown.num_seconds().unsigned_abs() }
    }

    /// None where the bucket cannot be reached.
    async fn shared<T>(&self, asking: impl Future<Output = Result<T, eventlog::Error>>) -> Option<T> {
        if lock(&self.away_until).is_some_and(|until| Instant::now() < until) {
            return None;
        }
        match timeout(LIMIT, asking).await {
            Ok(Ok(answer)) => Some(answer),
            failed => {
                let error = failed.map_or_else(
                    |_| "it did not answer in time".to_owned(),
                    |done| done.err().map_or_else(String::new, |error| error.to_string()),
                );
                tracing::warn!(error, "failed sign-ins are counted by this process alone for a while");
                *lock(&self.away_until) = Some(Instant::now() + PAUSE);
                None
            }
        }
    }

    async fn count(&self, id: &str, now: DateTime<Utc>) -> Result<Admission, eventlog::Error> {
        for _ in 0..TRIES {
            let (known, revision) = self.known(id).await?;
            let Admission::Granted { counter, last } = known.attempt(now, &self.limits) else {
                return Ok(Admission::Blocked);
            };
            if self.written(id, &counter, revision).await? {
                return Ok(Admission::Granted { counter, last });
            }
        }
        Ok(Admission::Blocked)
    }

    async fn uncount(&self, id: &str, at: DateTime<Utc>) -> Result<(), eventlog::Error> {
        for _ in 0..TRIES {
            let (known, revision) = self.known(id).await?;
            let counter = known.without(at, &self.limits);
            if counter == known || self.written(id, &counter, revision).await? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// What lies in the bucket, and its revision.
    async fn known(&self, id: &str) -> Result<(Counter, Option<u64>), eventlog::Error> {
        let Some(entry) = self.bucket.get(id).await? else { return Ok((Counter::default(), None)) };
        // What cannot be read was written by nobody who knows how.
        Ok((serde_json::from_slice(&entry.value).unwrap_or_default(), Some(entry.revision)))
    }

    /// False where another was faster.
    async fn written(&self, id: &str, counter: &Counter, revision: Option<u64>) -> Result<bool, eventlog::Error> {
        let value = serde_json::to_vec(counter).map_err(eventlog::Error::Encode)?;
        let written = match revision {
            Some(revision) => self.bucket.update(id, value, revision).await,
            None => self.bucket.create(id, value).await,
        };
        match written {
            Ok(_) => Ok(true),
            Err(eventlog::Error::WrongRevision { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether the address may come at all.
    pub(super) fn allowed(&self, source: Source) -> Result<(), Error> {
        self.requested(source, 0)
    }

    /// Counts a request of an address that did not sign in.
    pub(super) fn request(&self, source: Source) -> Result<(), Error> {
        self.requested(source, 1)
    }

    fn requested(&self, source: Source, more: u64) -> Result<(), Error> {
        let now = Instant::now();
        let mut requests = lock(&self.requests);
        let (began, count) = requests.get_or_insert_mut(source, || (now, 0));
        if now.duration_since(*began) >= self.rate.window {
            (*began, *count) = (now, 0);
        }
        *count += more;
        if *count > self.rate.requests {
            return Err(Error::RateLimited { retry_after: self.rate.window.as_secs() });
        }
        Ok(())
    }
}

impl Attempt<'_> {
    /// Ends as what it came to says.
    pub(crate) async fn ended<T>(self, came_to: Result<T, Error>) -> Result<T, Error> {
        match &came_to {
            Ok(_) => self.succeeded().await,
            Err(
                Error::BadCredentials | Error::BadCode | Error::WrongPassword | Error::User(user::Rejection::SetupOver),
            ) => self.failed().await,
            // Nothing was looked at, or what was looked at was right.
            Err(_) => self.taken_back().await,
        }
        came_to
    }

    /// Takes back everything that was counted.
    async fn succeeded(self) {
        lock(&self.limiter.known).pop(&self.id);
        let deleted = timeout(LIMIT, self.limiter.bucket.delete(&self.id, None)).await;
        if !matches!(deleted, Ok(Ok(()))) {
            tracing::warn!("failed sign-ins before this one could not be forgotten; they still count");
        }
    }

    /// As if it had not been; those before it still count.
    async fn taken_back(self) {
        let Self { limiter, id, at, .. } = self;
        if let Some(counter) = lock(&limiter.known).get_mut(&id) {
            *counter = counter.without(at, &limiter.limits);
        }
        limiter.shared(limiter.uncount(&id, at)).await;
    }

    /// Stands as it was counted.
    async fn failed(self) {
        let Self { limiter, id, source, at: _, last, request_id } = self;
        let source = source.to_string();
        let Some(key) = Key::<Login>::login(&id) else { return };
        let block = last.map(|until| {
            tracing::warn!(source, %until, "too many failed sign-ins: nothing more from there is looked at");
            login::Command::Block { source, until }
        });
        for command in [login::Command::Fail].into_iter().chain(block) {
            let mut context = runtime::clock::context("anonymous");
            context.request_id = Some(request_id.clone());
            if let Err(error) = limiter.log.execute(&key, command, &context).await {
                tracing::error!(error = &error as &dyn std::error::Error, "a failed sign-in could not be recorded");
            }
        }
    }
}

fn lock<T>(memory: &Memory<T>) -> MutexGuard<'_, T> {
    memory.lock().unwrap_or_else(PoisonError::into_inner)
}
