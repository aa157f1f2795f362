//! Building read models anew, beside the live ones.
//!
//! The copy grows in the schema `rebuild`. Queries see the live tables until, in one transaction, the copy has
//! caught up with them and takes their place. Whatever interrupts it leaves the live tables as they are.

mod lane;

use std::{
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use domain::Recorded;
use futures::{
    Stream, StreamExt,
    future::{try_join, try_join_all},
};
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::{
    Apply, Error, MODELS, Model, connection,
    writer::{self, LOCK_NOT_AVAILABLE, is},
};
use lane::Lane;

/// Advisory lock of the one who rebuilds.
const REBUILD: i64 = 0x51_0002;
/// Batches that one lane may be ahead of another.
const AHEAD: usize = 1;
/// The log answers within this time, or the rebuild fails.
const BATCH_DEADLINE: Duration = Duration::from_secs(60);
/// No query lasts as long as all attempts together.
const SWAP_ATTEMPTS: usize = 120;

#[derive(Debug, thiserror::Error)]
pub enum RebuildError<E> {
    #[error(transparent)]
    Database(#[from] Error),
    #[error("a rebuild is under way already: wait for it, or end the process that does it")]
    Running,
    #[error("reading the event log")]
    Log(#[source] E),
    #[error("the event log gave no events for {}s, at {position} of {wanted}", BATCH_DEADLINE.as_secs())]
    Silent { position: u64, wanted: u64 },
    #[error("queries kept the new tables from taking their place; the old ones live on: try again when it is quieter")]
    Busy,
}

/// Builds `models` from `batches`, which must begin with the log's first event, and swaps them in once they have
/// reached `target` (the end of the log when the rebuild was asked for) and the live ones. Gives where they are then.
///
/// `installation` identifies the log. The projector may go on all the while, in any process.
pub async fn rebuild<E>(
    database: &PgPool,
    installation: Uuid,
    models: &[Model],
    target: u64,
    batches: impl Stream<Item = Result<Vec<Recorded>, E>>,
) -> Result<u64, RebuildError<E>> {
    let mut batches = pin!(batches);
    let mut shadow = Shadow::begin(database, installation, models).await?;
    shadow.catch_up(target, batches.as_mut()).await?;
    let live = shadow.live().await.map_err(Error::during("reading the live checkpoints"))?;
    shadow.catch_up(live, batches.as_mut()).await?;

    let mut rest = Vec::new();
    for _ in 0..SWAP_ATTEMPTS {
        if shadow.swap(&mut rest, batches.as_mut()).await? {
            return Ok(shadow.position);
        }
    }
    Err(RebuildError::Busy)
}

async fn next<E>(
    mut batches: Pin<&mut impl Stream<Item = Result<Vec<Recorded>, E>>>,
    position: u64,
    wanted: u64,
) -> Result<Vec<Recorded>, RebuildError<E>> {
    match tokio::time::timeout(BATCH_DEADLINE, batches.next()).await {
        Ok(Some(batch)) => batch.map_err(RebuildError::Log),
        Ok(None) | Err(_) => Err(RebuildError::Silent { position, wanted }),
    }
}

/// How a table that nobody reads yet is written.
fn quickest(model: &Model) -> Apply {
    model.fill.unwrap_or(model.apply)
}

fn end(batch: &[Recorded], otherwise: u64) -> u64 {
    batch.last().map_or(otherwise, |recorded| recorded.sequence)
}

/// The tables that are to become the live ones.
struct Shadow<'a> {
    /// Looks at the schema `rebuild`.
    connection: PgConnection,
    lanes: Vec<Lane<'a>>,
    installation: Uuid,
    models: &'a [Model],
    position: u64,
}

impl<'a> Shadow<'a> {
    async fn begin<E>(database: &PgPool, installation: Uuid, models: &'a [Model]) -> Result<Self, RebuildError<E>> {
        let during = || Error::during("beginning a rebuild");
        let mut connection = connection::dedicated(database).await.map_err(during())?;
        sqlx::query!("set lock_timeout = '1s'").execute(&mut connection).await.map_err(during())?;
        sqlx::query!("select pg_advisory_lock($1)", REBUILD).execute(&mut connection).await.map_err(|error| {
            if is(&error, LOCK_NOT_AVAILABLE) { RebuildError::Running } else { during()(error).into() }
        })?;
        // One whose process has lost the lock, and not yet noticed, must not write into our tables.
        lane::await_none(&mut connection).await.map_err(|error| {
            if is(&error, LOCK_NOT_AVAILABLE) { RebuildError::Running } else { during()(error).into() }
        })?;
        sqlx::query!("set lock_timeout = 0").execute(&mut connection).await.map_err(during())?;

        let built_from = sqlx::query_scalar!("select installation from projector")
            .fetch_one(&mut connection)
            .await
            .map_err(during())?;
        if let Some(built_from) = built_from.filter(|built_from| *built_from != installation)
            && models.len() < MODELS.len()
        {
            return Err(Error::OtherLog { built_from, given: installation }.into());
        }
        writer::begin_at_zero(&mut connection).await.map_err(during())?;
        let mut shadow = Self { connection, lanes: vec![], installation, models, position: 0 };
        shadow.create().await.map_err(during())?;
        shadow.lanes = lane::open(database, models).await.map_err(during())?;
        Ok(shadow)
    }

    async fn create(&mut self) -> sqlx::Result<()> {
        let table = |Model { name, fill, .. }: &Model| {
            let but = if fill.is_some() { "excluding indexes" } else { "" };
            format!(
                "create table rebuild.{name} (like public.{name} including all {but});
                 insert into rebuild.checkpoints values ('{name}', 0);"
            )
        };
        // What an interrupted rebuild left behind goes first.
        let schema = format!(
            "begin;
             drop schema if exists rebuild cascade;
             create schema rebuild;
             create table rebuild.checkpoints (like public.checkpoints including all);
             {tables}
             commit;
             set search_path to rebuild;",
            tables = self.models.iter().map(table).collect::<String>()
        );
        sqlx::raw_sql(AssertSqlSafe(schema)).execute(&mut self.connection).await.map(drop)
    }

    /// Applies events up to `target`, each lane at its own pace. The first time, each makes its indexes at the end.
    async fn catch_up<E>(
        &mut self,
        target: u64,
        mut batches: Pin<&mut impl Stream<Item = Result<Vec<Recorded>, E>>>,
    ) -> Result<(), RebuildError<E>> {
        let (senders, receivers): (Vec<_>, Vec<_>) = self.lanes.iter().map(|_| mpsc::channel(AHEAD)).unzip();
        let position = &mut self.position;
        let reading = async {
            while *position < target {
                let batch = Arc::new(next(batches.as_mut(), *position, target).await?);
                *position = end(&batch, *position);
                for lane in &senders {
                    // A lane that takes nothing more has failed, and says so itself.
                    let _ = lane.send(batch.clone()).await;
                }
            }
            drop(senders);
            Ok(())
        };
        let writing = self.lanes.iter_mut().zip(receivers).map(|(lane, batches)| lane.run(batches));
        let writing = async { try_join_all(writing).await.map_err(RebuildError::Database) };
        try_join(reading, writing).await.map(drop)
    }

    async fn live(&mut self) -> sqlx::Result<u64> {
        live(&mut self.connection, self.installation, self.models).await
    }

    /// Says whether the new tables are live now. If not, queries were in the way; `rest` keeps what was read meanwhile.
    async fn swap<E>(
        &mut self,
        rest: &mut Vec<Vec<Recorded>>,
        mut batches: Pin<&mut impl Stream<Item = Result<Vec<Recorded>, E>>>,
    ) -> Result<bool, RebuildError<E>> {
        let during = || Error::during("swapping in the rebuilt tables");
        let exchange = self.exchange();
        let public = self.tables("public");
        let mut transaction = self.connection.begin().await.map_err(during())?;
        // From here on the projector waits.
        let live = live(&mut transaction, self.installation, self.models).await.map_err(during())?;
        for batch in &*rest {
            writer::advance(&mut transaction, self.models, batch, quickest).await.map_err(during())?;
        }
        let mut position = rest.last().map_or(self.position, |batch| end(batch, self.position));
        while position < live {
            let batch = next(batches.as_mut(), position, live).await?;
            writer::advance(&mut transaction, self.models, &batch, quickest).await.map_err(during())?;
            position = end(&batch, position);
            rest.push(batch);
        }

        // How long new queries wait behind this lock while it waits for old ones. It is less than PostgreSQL's
        // `deadlock_timeout`, so that where the two wait for each other it is never the query that fails.
        sqlx::query!("set local lock_timeout = '500ms'").execute(&mut *transaction).await.map_err(during())?;
        let lock = sqlx::query(AssertSqlSafe(format!("lock table {public} in access exclusive mode")));
        if let Err(error) = lock.execute(&mut *transaction).await {
            if is(&error, LOCK_NOT_AVAILABLE) {
                transaction.rollback().await.map_err(during())?;
                return Ok(false);
            }
            return Err(during()(error).into());
        }
        sqlx::raw_sql(AssertSqlSafe(exchange)).execute(&mut *transaction).await.map_err(during())?;
        transaction.commit().await.map_err(during())?;
        self.position = position;
        Ok(true)
    }

    fn exchange(&self) -> String {
        let move_in = |model: &Model| format!("alter table rebuild.{} set schema public;", model.name);
        let owner = format!("update public.projector set installation = '{}', error = null;", self.installation);
        format!(
            "drop table {old};
             {moves}
             update public.checkpoints live set sequence = rebuilt.sequence
                from rebuild.checkpoints rebuilt where rebuilt.model = live.model;
             drop schema rebuild cascade;
             {owner}
             select pg_notify('sluice_projected', min(sequence)::text) from public.checkpoints;",
            old = self.tables("public"),
            moves = self.models.iter().map(move_in).collect::<String>(),
            owner = if self.models.len() == MODELS.len() { owner.as_str() } else { "" }
        )
    }

    fn tables(&self, schema: &str) -> String {
        self.models.iter().map(|model| format!("{schema}.{}", model.name)).collect::<Vec<_>>().join(", ")
    }
}

/// How far the live ones of `models` are. In a transaction they stay there until it ends.
async fn live(database: &mut PgConnection, installation: Uuid, models: &[Model]) -> sqlx::Result<u64> {
    let (built_from,): (Option<Uuid>,) =
        sqlx::query_as("select installation from public.projector for update").fetch_one(&mut *database).await?;
    let names: Vec<&str> = models.iter().map(|model| model.name).collect();
    let checkpoints: Vec<(i64,)> =
        sqlx::query_as("select sequence from public.checkpoints where model = any($1) order by model for update")
            .bind(&names)
            .fetch_all(database)
            .await?;
    // Those that were built from another log say nothing about this one.
    let comparable = built_from.is_none_or(|built_from| built_from == installation);
    let furthest = checkpoints.iter().map(|(sequence,)| sequence.cast_unsigned()).max();
    Ok(furthest.filter(|_| comparable).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures::stream;

    use super::*;
    use crate::{
        deployments, models,
        testing::{Happening, History, INSTALLATION, checksums, database, happen, slug, writer},
    };

    /// Long enough for many batches, with something for every model.
    fn long() -> Vec<Recorded> {
        let mut history = History::promoting(1);
        history.promote(1, "ada");
        history.approve(1, "bob");
        happen(&mut history, "prod", Happening::Token(true), &mut 0);
        happen(&mut history, "prod", Happening::Credentials(true), &mut 0);
        happen(&mut history, "prod", Happening::Hook(0), &mut 0);
        happen(&mut history, "prod", Happening::User(0), &mut 0);
        happen(&mut history, "prod", Happening::Session(1), &mut 0);
        happen(&mut history, "prod", Happening::Proxy(true), &mut 0);
        for n in 2..80 {
            history.deploy(if n % 3 == 0 { "prod" } else { "dev" }, n);
        }
        history.project("shop", domain::project::Command::ArchiveStage { stage: slug("prod") });
        history.events
    }

    fn batches(events: &[Recorded], size: usize) -> impl Stream<Item = Result<Vec<Recorded>, Infallible>> {
        stream::iter(events.chunks(size).map(|batch| Ok(batch.to_vec())).collect::<Vec<_>>())
    }

    async fn rebuild_all(pool: &PgPool, events: &[Recorded], size: usize) -> Result<u64, RebuildError<Infallible>> {
        rebuild(pool, INSTALLATION, &MODELS, events.len() as u64, batches(events, size)).await
    }

    async fn leftovers(pool: &PgPool) -> i64 {
        let count = sqlx::query_scalar("select count(*) from information_schema.tables where table_schema = 'rebuild'");
        count.fetch_one(pool).await.expect("counted")
    }

    #[tokio::test]
    async fn a_rebuild_comes_to_the_live_checksum() {
        let (_database, pool) = database().await;
        let events = long();
        let mut writer = writer(&pool).await;
        for batch in events.chunks(7) {
            writer.apply(batch).await.expect("applied");
        }
        let live = checksums(&pool).await;
        assert!(live.iter().all(|model| model.rows > 0), "{live:?}");
        assert_eq!(rebuild_all(&pool, &events, 100).await.expect("rebuilt"), events.len() as u64);
        assert_eq!(checksums(&pool).await, live);
        assert_eq!(leftovers(&pool).await, 0);
    }

    #[tokio::test]
    async fn the_new_tables_are_made_like_the_old_ones() {
        async fn schema(pool: &PgPool) -> Vec<String> {
            let names = "select indexdef from pg_indexes where schemaname = 'public'
                union select concat_ws(' ', table_name, ordinal_position, column_name, data_type, is_nullable)
                    from information_schema.columns where table_schema = 'public'
                union select concat_ws(' ', conrelid::regclass, conname, pg_get_constraintdef(oid)) from pg_constraint
                    where connamespace = 'public'::regnamespace
                order by 1";
            sqlx::query_scalar(names).fetch_all(pool).await.expect("read")
        }
        let (_database, pool) = database().await;
        let before = schema(&pool).await;
        for _ in 0..2 {
            rebuild_all(&pool, &History::released().events, 100).await.expect("rebuilt");
        }
        assert_eq!(schema(&pool).await, before);
    }

    #[tokio::test]
    async fn one_model_is_mended_without_touching_the_others() {
        let (_database, pool) = database().await;
        let events = long();
        let mut writer = writer(&pool).await;
        writer.apply(&events).await.expect("applied");
        let live = checksums(&pool).await;
        for damage in ["update deployments set status = 'failed'", "delete from events where sequence < 3"] {
            sqlx::query(damage).execute(&pool).await.expect("damaged");
        }
        let only = models(Some("deployments")).expect("there is one");
        let end = events.len() as u64;
        rebuild(&pool, INSTALLATION, only, end, batches(&events, 50)).await.expect("rebuilt");
        for (now, before) in checksums(&pool).await.iter().zip(&live) {
            assert_eq!(now == before, now.model != "events", "{}", now.model);
        }
        assert!(models(Some("nonsense")).is_err_and(|error| error.to_string().contains("deployments")));
    }

    #[tokio::test]
    async fn the_projector_goes_on_and_queries_never_see_less_than_before() {
        let (_database, pool) = database().await;
        let events = long();
        let mut live = writer(&pool).await;
        let (known, new) = events.split_at(events.len() / 2);
        live.apply(known).await.expect("applied");

        let reader = tokio::spawn({
            let pool = pool.clone();
            async move {
                let (mut seen, mut reads) = (0, 0);
                while seen < 79 {
                    let page = deployments::list(&pool, &deployments::Filter::default(), 500).await.expect("listed");
                    assert!(page.deployments.len() >= seen.max(30), "{} after {seen}", page.deployments.len());
                    seen = page.deployments.len();
                    reads += 1;
                }
                reads
            }
        });
        // The log as a rebuild sees it: what is there at first, and what comes while it works.
        let (log, end) = tokio::sync::watch::channel(known.len());
        let (all, end) = (&events, &end);
        let batches = || {
            stream::unfold((0, end.clone()), move |(from, mut end)| async move {
                let to = (*end.wait_for(|end| *end > from).await.ok()?).min(from + 40);
                Some((Ok::<_, Infallible>(all[from..to].to_vec()), (to, end)))
            })
        };
        let writing = async {
            for batch in new.chunks(3) {
                live.apply(batch).await.expect("applied, before, while and after tables are swapped");
                log.send_modify(|end| *end += batch.len());
            }
        };
        let rebuilding = async {
            for _ in 0..3 {
                rebuild(&pool, INSTALLATION, &MODELS, known.len() as u64, batches()).await.expect("rebuilt");
            }
        };
        tokio::join!(writing, rebuilding);
        let reads = tokio::time::timeout(Duration::from_secs(30), reader).await.expect("all shows").expect("no panic");
        assert!(reads > 1);

        let rebuilt = checksums(&pool).await;
        rebuild_all(&pool, &events, 1000).await.expect("rebuilt from zero");
        assert_eq!(checksums(&pool).await, rebuilt);
    }

    #[tokio::test]
    async fn an_interrupted_rebuild_leaves_the_live_tables_and_the_next_starts_clean() {
        let (_database, pool) = database().await;
        let events = long();
        writer(&pool).await.apply(&events).await.expect("applied");
        let live = checksums(&pool).await;
        // The log falls silent half way: the rebuild hangs there until it is dropped.
        let half = batches(&events[..events.len() / 2], 20).chain(stream::pending());
        let hanging = rebuild(&pool, INSTALLATION, &MODELS, events.len() as u64, half);
        assert!(tokio::time::timeout(Duration::from_secs(2), hanging).await.is_err());
        assert_ne!(leftovers(&pool).await, 0);
        assert_eq!(checksums(&pool).await, live);
        rebuild_all(&pool, &events, 100).await.expect("rebuilt");
        assert_eq!(checksums(&pool).await, live);
    }

    #[tokio::test]
    async fn a_long_query_delays_the_swap_and_does_not_fail() {
        let (_database, pool) = database().await;
        let events = long();
        writer(&pool).await.apply(&events).await.expect("applied");
        let mut query = pool.begin().await.expect("begun");
        let count = "select count(*) from events";
        sqlx::query(count).execute(&mut *query).await.expect("it holds the table");
        let (rebuilding, pool2) = (events.clone(), pool.clone());
        let rebuilding = tokio::spawn(async move { rebuild_all(&pool2, &rebuilding, 100).await });
        // The swap waits for the query, and gives way to others meanwhile.
        let waits = "select count(*) from pg_locks where mode = 'AccessExclusiveLock' and not granted";
        while sqlx::query_scalar::<_, i64>(waits).fetch_one(&pool).await.expect("asked") == 0 {
            assert!(!rebuilding.is_finished());
        }
        assert_eq!(checksums(&pool).await.len(), MODELS.len());
        query.commit().await.expect("it ends");
        rebuilding.await.expect("no panic").expect("rebuilt");
    }

    #[tokio::test]
    async fn one_rebuild_at_a_time_and_another_log_only_as_a_whole() {
        let (_database, pool) = database().await;
        let events = long();
        drop(writer(&pool).await);
        let copy = Shadow::begin::<Infallible>(&pool, INSTALLATION, &MODELS).await.expect("begun");
        assert!(matches!(rebuild_all(&pool, &events, 100).await, Err(RebuildError::Running)));
        drop(copy);

        let other = Uuid::from_u128(9);
        let one = models(Some("stages")).expect("there is one");
        let error = rebuild(&pool, other, one, 5, batches(&events, 100)).await.expect_err("the rest would not fit");
        assert!(matches!(error, RebuildError::Database(Error::OtherLog { .. })));
        rebuild(&pool, other, &MODELS, 5, batches(&events, 100)).await.expect("all of them fit together");
        assert!(crate::Writer::acquire(&pool, other).await.is_ok());
    }
}
