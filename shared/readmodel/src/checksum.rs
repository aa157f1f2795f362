//! Proof that two builds of the read models are equal.

use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, PgPool, Row, postgres::PgRow};
use utoipa::ToSchema;

use crate::{Error, MODELS};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Checksum {
    pub model: String,
    /// Every event up to here is in it.
    pub sequence: u64,
    pub rows: u64,
    /// Over all rows, whatever their order. Equal rows give equal checksums on any machine.
    pub checksum: String,
}

/// One statement, so that all read models are seen at one moment, even if a rebuild swaps them in the next.
pub async fn checksum(database: &PgPool) -> Result<Vec<Checksum>, Error> {
    let of_model = |name: &str| {
        format!(
            "select '{name}' as model, (select sequence from checkpoints where model = '{name}') as sequence,
                count(*) as rows, coalesce(sum(hashtextextended(t::text, 0)::numeric), 0)::text as checksum from {name} t"
        )
    };
    let statement = MODELS.each_ref().map(|model| of_model(model.name)).join(" union all ");
    let decoded = run(database, statement).await.and_then(|rows| {
        rows.iter()
            .map(|row| {
                Ok(Checksum {
                    model: row.try_get("model")?,
                    sequence: row.try_get::<Option<i64>, _>("sequence")?.unwrap_or_default().cast_unsigned(),
                    rows: row.try_get::<i64, _>("rows")?.cast_unsigned(),
                    checksum: row.try_get("checksum")?,
                })
            })
            .collect()
    });
    decoded.map_err(Error::during("computing the checksums of the read models"))
}

async fn run(database: &PgPool, statement: String) -> sqlx::Result<Vec<PgRow>> {
    let mut transaction = database.begin().await?;
    // It reads everything there is.
    sqlx::query!("set local statement_timeout = '10min'").execute(&mut *transaction).await?;
    let rows = sqlx::query(AssertSqlSafe(statement)).fetch_all(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(rows)
}
