//! The projector that anyone would write first, as a peer.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use async_nats::jetstream::{
    self,
    consumer::{AckPolicy, pull},
};
use domain::Recorded;
use futures::StreamExt;
use readmodel::memory::ReadModels;
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgTransaction};
use testkit::Nats;

use crate::parts;

/// What it does, for the report.
pub(crate) const WHAT: &str = "naive: 1,000 events at a time, read by async-nats, decoded and folded by the same code \
    with every row held in memory (so that it never reads from the database), each row that a batch changed upserted \
    by UNNEST into the live tables with all their indexes, with the checkpoints, one transaction a batch";
const BATCH: usize = 1000;

/// Fills the read models of `database` from the first `events` events. Gives how long it took.
pub(crate) async fn build(nats: &Nats, database: &str, events: u64) -> Result<Duration> {
    parts::execute(database, "checkpoint".into()).await?;
    let began = Instant::now();
    let context = jetstream::new(parts::bare(nats).await?);
    let config = pull::Config { ack_policy: AckPolicy::None, ..Default::default() };
    let consumer = context.get_stream("EVENTS").await?.create_consumer(config).await?;
    let mut connection = PgConnection::connect(database).await?;
    let tables = Tables::read(&mut connection).await?;
    sqlx::raw_sql("set synchronous_commit = off; set jit = off").execute(&mut connection).await?;
    for table in tables.0.keys() {
        sqlx::query("insert into checkpoints values ($1, 0)").bind(table).execute(&mut connection).await?;
    }

    let mut models = ReadModels::default();
    let mut position = 0;
    while position < events {
        let mut batch: Vec<Recorded> = Vec::with_capacity(BATCH);
        let mut messages = consumer.batch().max_messages(BATCH).messages().await?;
        while let Some(message) = messages.next().await {
            let message = message.map_err(|error| anyhow::anyhow!(error))?;
            let sequence = message.info().map_err(|error| anyhow::anyhow!(error))?.stream_sequence;
            batch.push(domain::decode(sequence, &message.subject, &message.payload)?);
        }
        position = batch.last().context("the log has ended early")?.sequence;
        let mut transaction = connection.begin().await?;
        for (table, rows) in models.apply(&batch)? {
            tables.upsert(&mut transaction, table, &rows).await?;
        }
        sqlx::query("update checkpoints set sequence = $1")
            .bind(position.cast_signed())
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
    }
    Ok(began.elapsed())
}

/// The upsert of each table, and its columns.
struct Tables(BTreeMap<String, (String, Vec<String>)>);

impl Tables {
    async fn read(connection: &mut PgConnection) -> Result<Tables> {
        let columns: Vec<(String, String, String, bool)> = sqlx::query_as(
            "select c.relname::text, a.attname::text, format_type(a.atttypid, a.atttypmod), a.attnum = any(i.indkey)
             from pg_class c join pg_attribute a on a.attrelid = c.oid
                join pg_index i on i.indrelid = c.oid and i.indisprimary
             where c.relnamespace = 'public'::regnamespace and c.relkind = 'r' and a.attnum > 0
                and c.relname in ('projects', 'stages', 'deployments', 'instances', 'registries', 'events')
             order by c.relname, a.attnum",
        )
        .fetch_all(&mut *connection)
        .await?;
        let mut tables: BTreeMap<String, Vec<(String, String, bool)>> = BTreeMap::new();
        for (table, column, kind, key) in columns {
            tables.entry(table).or_default().push((column, kind, key));
        }
        Ok(Tables(tables.into_iter().map(|(table, columns)| (table.clone(), upsert(&table, &columns))).collect()))
    }

    async fn upsert(&self, to: &mut PgTransaction<'_>, table: &str, rows: &[Value]) -> Result<()> {
        let (statement, columns) = self.0.get(table).with_context(|| format!("there is no table {table}"))?;
        if rows.is_empty() {
            return Ok(());
        }
        let mut query = sqlx::query(AssertSqlSafe(statement.as_str()));
        for column in columns {
            query = query.bind(rows.iter().map(|row| text(&row[column])).collect::<Vec<Option<String>>>());
        }
        query.execute(&mut **to).await.with_context(|| format!("writing rows of {table}"))?;
        Ok(())
    }
}

/// Name, type, and whether it is part of the primary key.
type Column = (String, String, bool);

fn upsert(table: &str, columns: &[Column]) -> (String, Vec<String>) {
    let list = |one: &dyn Fn(usize, &Column) -> String| {
        columns.iter().enumerate().map(|(n, column)| one(n, column)).collect::<Vec<_>>().join(", ")
    };
    let keys: Vec<&str> = columns.iter().filter(|(.., key)| *key).map(|(name, ..)| name.as_str()).collect();
    let statement = format!(
        "insert into {table} ({names}) select {casts} from unnest({arrays}) as new ({names})
         on conflict ({keys}) do update set ({names}) = ({excluded})",
        names = list(&|_, (name, ..)| name.clone()),
        casts = list(&|_, (name, kind, _)| format!("{name}::{kind}")),
        arrays = list(&|n, _| format!("${}::text[]", n + 1)),
        excluded = list(&|_, (name, ..)| format!("excluded.{name}")),
        keys = keys.join(", "),
    );
    (statement, columns.iter().map(|(name, ..)| name.clone()).collect())
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}
