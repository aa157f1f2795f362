//! Aggregates folded from their events, and the cache of them.

use std::{any::Any, collections::VecDeque, num::NonZeroUsize, sync::Arc};

use domain::{Aggregate, Context, Key};
use lru::LruCache;
use tokio::time::Instant;
use uuid::Uuid;

use crate::{
    EventLog,
    aggregate::PATIENCE,
    error::Error,
    nats::{EVENTS, Stored},
};

/// Aggregates kept in memory; one that was dropped is folded from its first event again.
const CACHED: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");

/// Commands an aggregate remembers. A repetition comes soon after the first, or never.
const REMEMBERED: usize = 1000;

pub(crate) struct Cache(LruCache<String, Arc<dyn Any + Send + Sync>>);

impl Default for Cache {
    fn default() -> Self {
        Self(LruCache::new(CACHED))
    }
}

/// An aggregate as it stood at one point of the log.
#[derive(Debug, Clone)]
pub struct Loaded<A> {
    pub state: A,
    /// Position of its last event; 0 when nothing ever happened to it.
    pub version: u64,
    commands: VecDeque<Seen>,
}

#[derive(Debug, Clone)]
struct Seen {
    command: Uuid,
    hash: Option<String>,
    /// Of the command's last event.
    sequence: u64,
}

/// What the aggregate knows of a command.
pub(crate) enum Known {
    New,
    Done {
        sequence: u64,
    },
    /// The same id was given to something else.
    Reused,
}

impl<A: Aggregate> Loaded<A> {
    fn new() -> Self {
        Self { state: A::default(), version: 0, commands: VecDeque::new() }
    }

    pub(crate) fn knows(&self, context: &Context) -> Known {
        match self.commands.iter().find(|seen| seen.command == context.command_id) {
            None => Known::New,
            Some(seen) if seen.hash == context.command_hash => Known::Done { sequence: seen.sequence },
            Some(_) => Known::Reused,
        }
    }

    fn apply(&mut self, sequence: u64, subject: &str, body: &[u8]) -> Result<(), Error> {
        let (context, event) = domain::decode_as::<A>(sequence, subject, body)?;
        self.evolve(&event, sequence, context.command_id, context.command_hash);
        Ok(())
    }

    fn evolve(&mut self, event: &A::Event, sequence: u64, command: Uuid, hash: Option<String>) {
        self.state.evolve(event);
        self.version = sequence;
        // All events of one decision stand side by side.
        if let Some(seen) = self.commands.back_mut().filter(|seen| seen.command == command) {
            seen.sequence = sequence;
        } else {
            self.commands.push_back(Seen { command, hash, sequence });
        }
        if self.commands.len() > REMEMBERED {
            self.commands.pop_front();
        }
    }
}

impl EventLog {
    /// The aggregate as it stands now.
    pub async fn load<A: Aggregate>(&self, key: &Key<A>) -> Result<Loaded<A>, Error> {
        self.fold(key).await.map(Arc::unwrap_or_clone)
    }

    /// Like `load`, without a copy.
    pub async fn fold<A: Aggregate>(&self, key: &Key<A>) -> Result<Arc<Loaded<A>>, Error> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.read(key).await {
                Err(Error::Unavailable { .. }) if Instant::now() < deadline && !self.inner.closed.is_cancelled() => {
                    self.inner.breathe().await;
                }
                done => return done,
            }
        }
    }

    /// The aggregate as this process saw it last, if it remembers: what never changes of it is true.
    pub fn remembered<A: Aggregate>(&self, key: &Key<A>) -> Option<Arc<Loaded<A>>> {
        self.cached(&key.filter())
    }

    /// Always asks the log for newer events: the cache only spares the older ones.
    async fn read<A: Aggregate>(&self, key: &Key<A>) -> Result<Arc<Loaded<A>>, Error> {
        let filter = key.filter();
        let mut folded = self.cached::<A>(&filter).unwrap_or_else(|| Arc::new(Loaded::new()));
        let known = folded.version;
        let mut apply = |stored: Stored| {
            Arc::make_mut(&mut folded).apply(stored.sequence, &stored.subject, &stored.message.payload)
        };
        let mut from = known + 1;
        if known > 0 {
            // Mostly nothing has happened since, which one answer tells faster than a scan.
            match self.inner.next_on(EVENTS, &filter, from).await? {
                None => return Ok(folded),
                Some(stored) => {
                    from = stored.sequence + 1;
                    apply(stored)?;
                }
            }
        }
        self.inner.scan(EVENTS, &filter, from, apply).await?;
        if folded.version > known {
            self.remember(filter, &folded);
        }
        Ok(folded)
    }

    /// Remembers `folded` with the `events` that were written behind it; the last of them lies at `sequence`.
    pub(crate) fn appended<A: Aggregate>(
        &self,
        key: &Key<A>,
        mut folded: Arc<Loaded<A>>,
        events: &[A::Event],
        sequence: u64,
        context: &Context,
    ) {
        if events.is_empty() {
            return;
        }
        let filter = key.filter();
        let mut cache = self.inner.cache.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let held = cache.0.pop(&filter).and_then(|held| held.downcast::<Loaded<A>>().ok());
        if let Some(newer) = held.filter(|held| held.version > folded.version) {
            // Another task has read what we wrote.
            folded = newer;
        } else {
            // The cache has let go of it, so that as a rule nothing needs to be copied.
            let loaded = Arc::make_mut(&mut folded);
            for (event, sequence) in events.iter().zip(sequence + 1 - events.len() as u64..) {
                loaded.evolve(event, sequence, context.command_id, context.command_hash.clone());
            }
        }
        cache.0.put(filter, folded);
    }

    /// The aggregate as it was last seen, if it was.
    pub(crate) fn cached<A: Aggregate>(&self, filter: &str) -> Option<Arc<Loaded<A>>> {
        let mut cache = self.inner.cache.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        cache.0.get(filter).cloned()?.downcast().ok()
    }

    fn remember<A: Aggregate>(&self, filter: String, folded: &Arc<Loaded<A>>) {
        let mut cache = self.inner.cache.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // Another task may have read further in the meantime.
        let newer = cache
            .0
            .peek(&filter)
            .and_then(|held| held.downcast_ref::<Loaded<A>>())
            .is_some_and(|held| held.version > folded.version);
        if !newer {
            cache.0.put(filter, folded.clone());
        }
    }
}
