//! Models that are written through a connection of their own, beside the others: the event index takes as long as all
//! the rest together.

use std::sync::Arc;

use domain::Recorded;
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};
use tokio::sync::mpsc;

use super::quickest;
use crate::{Error, Model, connection, writer};

/// Advisory lock that every lane shares, for as long as it can write.
const LANE: i64 = 0x51_0003;

pub(super) struct Lane<'a> {
    /// Looks at the schema `rebuild`.
    connection: PgConnection,
    models: Vec<&'a Model>,
    indexed: bool,
}

/// Waits, as long as the connection's `lock_timeout` allows, until no lane is left of an earlier rebuild.
pub(super) async fn await_none(connection: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query("select pg_advisory_lock($1)").bind(LANE).execute(&mut *connection).await?;
    sqlx::query("select pg_advisory_unlock($1)").bind(LANE).execute(connection).await.map(drop)
}

/// One for the models that are filled, one for those that are folded.
pub(super) async fn open<'a>(database: &PgPool, models: &'a [Model]) -> sqlx::Result<Vec<Lane<'a>>> {
    let (filled, folded): (Vec<_>, Vec<_>) = models.iter().partition(|model| model.fill.is_some());
    let mut lanes = vec![];
    for models in [filled, folded].into_iter().filter(|models: &Vec<_>| !models.is_empty()) {
        let mut connection = connection::dedicated(database).await?;
        sqlx::query("select pg_advisory_lock_shared($1)").bind(LANE).execute(&mut connection).await?;
        sqlx::raw_sql("set search_path to rebuild").execute(&mut connection).await?;
        lanes.push(Lane { connection, models, indexed: false });
    }
    Ok(lanes)
}

impl Lane<'_> {
    /// Applies every batch that comes.
    pub(super) async fn run(&mut self, mut batches: mpsc::Receiver<Arc<Vec<Recorded>>>) -> Result<(), Error> {
        while let Some(batch) = batches.recv().await {
            self.apply(&batch).await.map_err(Error::during("applying events to the rebuilt tables"))?;
        }
        if !self.indexed {
            self.index().await.map_err(Error::during("indexing the rebuilt tables"))?;
            self.indexed = true;
        }
        Ok(())
    }

    async fn apply(&mut self, batch: &[Recorded]) -> sqlx::Result<()> {
        let mut transaction = self.connection.begin().await?;
        writer::advance(&mut transaction, self.models.iter().copied(), batch, quickest).await?;
        transaction.commit().await
    }

    /// Makes up for the indexes that were left out.
    async fn index(&mut self) -> sqlx::Result<()> {
        let models = self.models.clone();
        for model in models {
            if model.fill.is_some() {
                self.index_one(model).await?;
            }
            // The first queries after the swap must not be planned as if the tables were empty.
            let statement = format!("analyze rebuild.{}", model.name);
            sqlx::query(AssertSqlSafe(statement)).execute(&mut self.connection).await?;
        }
        Ok(())
    }

    async fn index_one(&mut self, model: &Model) -> sqlx::Result<()> {
        let statements = sqlx::query_scalar!(
                    r#"select coalesce(
                        'alter table rebuild.' || $1 || ' add constraint ' || conname || ' ' || pg_get_constraintdef(c.oid),
                        replace(pg_get_indexdef(indexrelid), ' ON public.', ' ON rebuild.')
                    ) as "statement!"
                   from pg_index left join pg_constraint c on conindid = indexrelid
                   where indrelid = ('public.' || $1)::regclass"#,
            model.name
        )
        .fetch_all(&mut self.connection)
        .await?;
        for statement in statements {
            sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut self.connection).await?;
        }
        Ok(())
    }
}
