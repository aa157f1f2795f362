//! The one writer of the live read models.

use std::time::Duration;

use domain::Recorded;
use sqlx::{Connection, PgConnection, PgPool};
use uuid::Uuid;

use crate::{Apply, Error, MODELS, Model, connection};

/// Advisory lock of the one who writes. Any number will do that nothing else in this database uses.
const WRITER: i64 = 0x51_0001;
/// SQLSTATE of a wait that was given up.
pub(crate) const LOCK_NOT_AVAILABLE: &str = "55P03";
/// A batch that takes longer never ends.
const APPLY_DEADLINE: Duration = Duration::from_secs(120);
/// One row for each read model, which nobody locks for longer.
const POSITION_DEADLINE: Duration = Duration::from_secs(30);

/// The right to write, bound to the connection through which everything is written: whoever loses
/// the connection loses the right in the same moment.
pub struct Writer {
    connection: PgConnection,
}

impl Writer {
    /// Waits as long as another process writes. `installation` identifies the log that the events come from.
    pub async fn acquire(database: &PgPool, installation: Uuid) -> Result<Self, Error> {
        let during = || Error::during("becoming the writer of the read models");
        let mut connection = connection::dedicated(database).await.map_err(during())?;
        // A standby waits this long at a time, so that it notices a lost connection.
        sqlx::query!("set lock_timeout = '5s'").execute(&mut connection).await.map_err(during())?;
        while let Err(error) = sqlx::query!("select pg_advisory_lock($1)", WRITER).execute(&mut connection).await {
            if !is(&error, LOCK_NOT_AVAILABLE) {
                return Err(during()(error));
            }
            tracing::debug!("another projector writes; standing by");
        }
        sqlx::query!("set lock_timeout = 0").execute(&mut connection).await.map_err(during())?;
        let mut writer = Self { connection };
        writer.begin(installation).await?;
        Ok(writer)
    }

    async fn begin(&mut self, installation: Uuid) -> Result<(), Error> {
        let during = || Error::during("reading which log the read models were built from");
        let known = sqlx::query_scalar!(
            r#"update projector set installation = coalesce(installation, $1), error = null returning installation as "known!""#,
            installation
        )
        .fetch_one(&mut self.connection)
        .await
        .map_err(during())?;
        if known != installation {
            return Err(Error::OtherLog { built_from: known, given: installation });
        }
        begin_at_zero(&mut self.connection).await.map_err(Error::during("preparing the checkpoints"))
    }

    /// Where to read on: no read model lacks an event up to here.
    pub async fn position(&mut self) -> Result<u64, Error> {
        let read = tokio::time::timeout(POSITION_DEADLINE, position(&mut self.connection));
        read.await.map_err(late).flatten().map_err(Error::during("reading the checkpoints"))
    }

    /// Applies a batch to every read model that has not seen it yet: all of it, or, on an error, nothing.
    pub async fn apply(&mut self, events: &[Recorded]) -> Result<(), Error> {
        let applied = tokio::time::timeout(APPLY_DEADLINE, async {
            let mut transaction = self.connection.begin().await?;
            advance(&mut transaction, &MODELS, events, |model| model.apply).await?;
            sqlx::query!("select pg_notify('sluice_projected', min(sequence)::text) from checkpoints")
                .execute(&mut *transaction)
                .await?;
            transaction.commit().await
        });
        applied.await.map_err(late).flatten().map_err(Error::during("applying events to the read models"))
    }
}

fn late(_: tokio::time::error::Elapsed) -> sqlx::Error {
    sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())
}

/// Gives every read model that has none a checkpoint.
pub(crate) async fn begin_at_zero(database: &mut PgConnection) -> sqlx::Result<()> {
    let names = MODELS.each_ref().map(|model| model.name.to_owned());
    sqlx::query!("insert into checkpoints select unnest($1::text[]), 0 on conflict do nothing", &names)
        .execute(database)
        .await
        .map(drop)
}

/// Applies `events` to those of `models` that have a checkpoint in the schema the connection looks at, in the `way`
/// that it names, and moves these checkpoints. To be called in a transaction.
pub(crate) async fn advance<'a>(
    to: &mut PgConnection,
    models: impl IntoIterator<Item = &'a Model>,
    events: &[Recorded],
    way: fn(&Model) -> Apply,
) -> sqlx::Result<()> {
    let Some(last) = events.last() else { return Ok(()) };
    let models: Vec<&Model> = models.into_iter().collect();
    let names: Vec<String> = models.iter().map(|model| model.name.to_owned()).collect();
    // A rebuild that is about to swap holds these rows: the batch then waits, and counts from where the swap ended.
    let checkpoints: Vec<(String, i64)> =
        sqlx::query_as("select model, sequence from checkpoints where model = any($1) order by model for update")
            .bind(&names)
            .fetch_all(&mut *to)
            .await?;
    let mut moved = Vec::with_capacity(checkpoints.len());
    for (model, checkpoint) in models.into_iter().filter_map(|model| {
        let (_, checkpoint) = checkpoints.iter().find(|(name, _)| name == model.name)?;
        Some((model, checkpoint.cast_unsigned()))
    }) {
        let fresh = events.partition_point(|recorded| recorded.sequence <= checkpoint);
        if fresh < events.len() {
            way(model)(to, &events[fresh..]).await?;
            moved.push(model.name.to_owned());
        }
    }
    sqlx::query!("update checkpoints set sequence = $1 where model = any($2)", last.sequence.cast_signed(), &moved)
        .execute(to)
        .await?;
    Ok(())
}

/// The smallest checkpoint; zero where there is none.
pub(crate) async fn position(of: &mut PgConnection) -> sqlx::Result<u64> {
    sqlx::query_scalar!(r#"select coalesce(min(sequence), 0) as "position!" from checkpoints"#)
        .fetch_one(of)
        .await
        .map(i64::cast_unsigned)
}

pub(crate) fn is(error: &sqlx::Error, state: &str) -> bool {
    error.as_database_error().and_then(|error| error.code()).is_some_and(|code| code == state)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        checksum,
        testing::{History, INSTALLATION, checksums, database, histories, writer},
    };

    /// What the history comes to when it is applied in these pieces.
    async fn folded<'a>(pieces: impl Iterator<Item = &'a [Recorded]>) -> Vec<checksum::Checksum> {
        let (_database, pool) = database().await;
        let mut writer = writer(&pool).await;
        for piece in pieces {
            writer.apply(piece).await.expect("it is applied");
        }
        checksums(&pool).await
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn a_batch_comes_to_the_same_as_its_events_one_by_one(history in histories(), size in 2..20_usize) {
            let events = &history.events;
            let runtime = tokio::runtime::Runtime::new().expect("a runtime");
            let (whole, pieces, single) = runtime.block_on(async {
                tokio::join!(
                    folded(std::iter::once(events.as_slice())),
                    folded(events.chunks(size)),
                    folded(events.chunks(1)),
                )
            });
            prop_assert_eq!(&whole, &single);
            prop_assert_eq!(&whole, &pieces);
        }
    }

    #[tokio::test]
    async fn what_was_applied_is_not_applied_again() {
        let (_database, pool) = database().await;
        let mut writer = writer(&pool).await;
        let events = History::released().events;
        writer.apply(&events[..5]).await.expect("applied");
        assert_eq!(writer.position().await.expect("read"), 5);
        writer.apply(&events).await.expect("applied");
        let once = checksums(&pool).await;
        writer.apply(&events).await.expect("applied");
        assert_eq!(checksums(&pool).await, once);
        assert_eq!(once.last().map(|events| events.rows), Some(events.len() as u64));
    }

    #[tokio::test]
    async fn a_batch_that_fails_leaves_nothing_behind() {
        let (_database, pool) = database().await;
        let mut writer = writer(&pool).await;
        let events = History::released().events;
        writer.apply(&events[..3]).await.expect("applied");
        let before = checksums(&pool).await;
        sqlx::query("alter table events add constraint until_five check (sequence < 5)")
            .execute(&pool)
            .await
            .expect("a trap");
        let error = writer.apply(&events).await.expect_err("the last model cannot take the fifth event");
        assert!(!error.outage());
        assert_eq!(checksums(&pool).await, before);
        sqlx::query("alter table events drop constraint until_five").execute(&pool).await.expect("the trap is gone");
        writer.apply(&events).await.expect("the same writer goes on");
    }

    #[tokio::test]
    async fn a_second_writer_waits_until_the_first_is_gone() {
        let (_database, pool) = database().await;
        let mut first = writer(&pool).await;
        let second = tokio::spawn({
            let pool = pool.clone();
            async move { Writer::acquire(&pool, INSTALLATION).await }
        });
        first.apply(&History::released().events).await.expect("applied");
        assert!(!second.is_finished());
        drop(first);
        let mut second = tokio::time::timeout(Duration::from_secs(20), second)
            .await
            .expect("its turn comes")
            .expect("no panic")
            .expect("no error");
        assert_eq!(second.position().await.expect("read"), History::released().events.len() as u64);
    }

    #[tokio::test]
    async fn a_writer_that_lost_its_connection_cannot_write() {
        let (_database, pool) = database().await;
        let mut writer = writer(&pool).await;
        sqlx::query(
            "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory'
                and database = (select oid from pg_database where datname = current_database())",
        )
        .execute(&pool)
        .await
        .expect("its connection is cut");
        let error = writer.apply(&History::released().events).await.expect_err("it lost the right");
        assert!(error.outage(), "{error:?}");
        assert_eq!(crate::state(&pool).await.expect("read").sequence, 0);
    }

    #[tokio::test]
    async fn events_of_another_log_are_refused() {
        let (_database, pool) = database().await;
        drop(writer(&pool).await);
        let error = Writer::acquire(&pool, Uuid::from_u128(8)).await.err().expect("another log");
        assert!(matches!(error, Error::OtherLog { .. }));
        assert!(!error.outage());
    }
}
