//! Decisions on several aggregates that come true together or not at all.

use std::{any::Any, collections::HashMap, sync::Arc};

use domain::{Aggregate, Context, Key};
use tokio::time::Instant;

use crate::{
    Committed, EventLog, Loaded,
    aggregate::PATIENCE,
    append::{AppendError, Staged, stage},
    error::{CommitError, Error, ExecuteError},
    fold::Known,
};

/// Commands on several aggregates, written as one atomic batch.
///
/// Guards every aggregate that gets an event, and those that [`Transaction::still`] was asked about. Any other that was
/// only looked at may have changed by the time of the commit.
pub struct Transaction {
    log: EventLog,
    context: Context,
    staged: Vec<Staged>,
    /// Filter and position of aggregates that must stand at the commit as they were seen.
    still: Vec<(String, u64)>,
    /// By filter: each aggregate as this transaction sees it, its own events folded in.
    aggregates: HashMap<String, Box<dyn Any + Send + Sync>>,
    /// The furthest position seen.
    sequence: u64,
    /// Where the command had been carried out before.
    done: Option<u64>,
}

struct Member<A> {
    loaded: Arc<Loaded<A>>,
    staged: bool,
}

impl EventLog {
    /// Begins a transaction. [`EventLog::transact`] also repeats it where another was faster.
    pub fn transaction(&self, context: &Context) -> Transaction {
        Transaction {
            log: self.clone(),
            context: context.clone(),
            staged: vec![],
            still: vec![],
            aggregates: HashMap::new(),
            sequence: 0,
            done: None,
        }
    }

    /// Runs `decide` on a transaction and commits what it gives back, again and again until nobody else interferes
    /// (for at most ten seconds). `decide` must have no effect but on its transaction:
    ///
    /// ```ignore
    /// let (a, b) = (&a, &b);
    /// log.transact(context, |mut tx| async move {
    ///     tx.decide(a, First).await?;
    ///     tx.decide(b, Second).await?;
    ///     Ok(tx)
    /// })
    /// ```
    ///
    /// The transaction goes by value because a future that borrows it could not move between threads.
    pub async fn transact<E, F, D>(&self, context: &Context, decide: D) -> Result<Committed, E>
    where
        E: From<CommitError>,
        F: Future<Output = Result<Transaction, E>>,
        D: Fn(Transaction) -> F,
    {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let transaction = decide(self.transaction(context)).await?;
            match transaction.commit().await {
                Ok(committed) => return Ok(committed),
                Err(error) if Instant::now() >= deadline || self.inner.closed.is_cancelled() => {
                    return Err(error.into());
                }
                Err(CommitError::Conflict) => {}
                Err(CommitError::Log(Error::Unavailable { .. })) => self.inner.breathe().await,
                Err(error @ CommitError::Log(_)) => return Err(error.into()),
            }
        }
    }
}

impl Transaction {
    /// The aggregate as it stands, with what this transaction has decided so far.
    pub async fn load<A: Aggregate>(&mut self, key: &Key<A>) -> Result<Loaded<A>, Error> {
        self.member(key).await.map(|member| Loaded::clone(&member.loaded))
    }

    /// The aggregate as it stands, and as it must still stand at the commit. Every event carries one condition: a
    /// decision with fewer events than aggregates to guard keeps those of the first.
    pub async fn still<A: Aggregate>(&mut self, key: &Key<A>) -> Result<Loaded<A>, Error> {
        let loaded = self.load(key).await?;
        let filter = key.filter();
        if !self.still.iter().any(|(known, _)| *known == filter) {
            self.still.push((filter, loaded.version));
        }
        Ok(loaded)
    }

    /// Decides `command` and keeps its events for the commit. The first decision should be the one that always
    /// has an event: by it a repetition of the whole transaction is noticed before anything is decided anew.
    pub async fn decide<A: Aggregate>(
        &mut self,
        key: &Key<A>,
        command: A::Command,
    ) -> Result<(), ExecuteError<A::Rejection>> {
        let offset = self.staged.len();
        let context = self.context.clone();
        let member = self.member(key).await?;
        // What was done before is judged by the log, not by what this transaction has staged itself.
        let known = member.loaded.knows(&context);
        let version = (!member.staged).then_some(member.loaded.version);
        match known {
            Known::New => {}
            Known::Done { sequence } => self.done = self.done.max(Some(sequence)),
            Known::Reused => return Err(ExecuteError::KeyReused),
        }
        if self.done.is_some() {
            return Ok(());
        }
        let member = self.member(key).await?;
        let events = member.loaded.state.decide(command).map_err(ExecuteError::Rejected)?;
        let staged = stage(key, version, &events, offset, &context)?;
        if !events.is_empty() {
            member.staged = true;
            let loaded = Arc::make_mut(&mut member.loaded);
            events.iter().for_each(|event| loaded.state.evolve(event));
        }
        self.staged.extend(staged);
        Ok(())
    }

    /// Writes everything that was decided.
    pub async fn commit(mut self) -> Result<Committed, CommitError> {
        if let Some(sequence) = self.done {
            return Ok(Committed { sequence, events: vec![] });
        }
        let guarded = |filter: &String| {
            let expected = self.staged.iter().filter_map(|event| event.expected.as_ref());
            expected.map(|(known, _)| known).any(|known| known == filter)
        };
        let open: Vec<_> = self.still.iter().filter(|(filter, _)| !guarded(filter)).cloned().collect();
        for (event, expected) in self.staged.iter_mut().filter(|event| event.expected.is_none()).zip(open) {
            event.expected = Some(expected);
        }
        let events = self.log.append(&self.staged).await.map_err(|error| match error {
            AppendError::Conflict => CommitError::Conflict,
            AppendError::Lost(error) | AppendError::Failed(error) => CommitError::Log(error),
        })?;
        Ok(Committed { sequence: events.last().map_or(self.sequence, |event| event.sequence), events })
    }

    pub(crate) fn log(&self) -> &EventLog {
        &self.log
    }

    /// Of the events that this decision will write.
    pub(crate) fn context(&self) -> &Context {
        &self.context
    }

    async fn member<A: Aggregate>(&mut self, key: &Key<A>) -> Result<&mut Member<A>, Error> {
        let filter = key.filter();
        if !self.aggregates.contains_key(&filter) {
            let loaded = self.log.fold(key).await?;
            self.sequence = self.sequence.max(loaded.version);
            self.aggregates.insert(filter.clone(), Box::new(Member { loaded, staged: false }));
        }
        // A filter names its aggregate, so the type behind it is always the same.
        self.aggregates
            .get_mut(&filter)
            .and_then(|member| member.downcast_mut())
            .ok_or(Error::Protocol { operation: "loading an aggregate", detail: "two types share one name".into() })
    }
}
