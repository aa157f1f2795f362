//! The way to PostgreSQL.

use std::time::Duration;

use sqlx::{
    ConnectOptions, PgConnection, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tracing::log::LevelFilter;

use crate::Error;

const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
const CONNECTIONS: u32 = 10;

#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The URL may hold a password, so neither it nor what the parser says about it is repeated.
    #[error("DATABASE_URL is not a PostgreSQL URL such as postgres://user:password@127.0.0.1:5432/sluice")]
    BadUrl,
    #[error("PostgreSQL at {host}:{port} (DATABASE_URL) cannot be used: check that it runs and who may sign in")]
    Unreachable { host: String, port: u16, source: sqlx::Error },
}

/// Connects within ten seconds; a server that starts at the same time is waited for.
pub async fn connect(database_url: &str) -> Result<PgPool, ConnectError> {
    if !["postgres://", "postgresql://"].iter().any(|scheme| database_url.starts_with(scheme)) {
        return Err(ConnectError::BadUrl);
    }
    let options =
        database_url.parse::<PgConnectOptions>().map_err(|_| ConnectError::BadUrl)?.application_name("sluice").options(
            [
                // What a crash takes away is replayed: the checkpoints go back with the rows they speak of.
                ("synchronous_commit", "off"),
                // Every statement is short, and compiling one takes longer than running it.
                ("jit", "off"),
                ("statement_timeout", "30s"),
                // Queries with optional filters are planned for the filters given.
                ("plan_cache_mode", "force_custom_plan"),
            ],
        );
    let (host, port) = (options.get_host().to_owned(), options.get_port());
    PgPoolOptions::new()
        .max_connections(CONNECTIONS)
        .acquire_timeout(CONNECT_DEADLINE)
        .connect_with(options)
        .await
        .map_err(|source| ConnectError::Unreachable { host, port, source })
}

/// A connection outside the pool, for work that may take longer than a query.
pub(crate) async fn dedicated(database: &PgPool) -> sqlx::Result<PgConnection> {
    (*database.connect_options())
        .clone()
        .options([("statement_timeout", "10min"), ("plan_cache_mode", "auto")])
        .log_slow_statements(LevelFilter::Debug, Duration::from_secs(1))
        .connect()
        .await
}

/// Brings the schema up to date. Several processes may do so at once: one migrates, the others wait for it.
pub async fn migrate(database: &PgPool) -> Result<(), Error> {
    let during = || Error::during("migrating the database");
    let mut connection = dedicated(database).await.map_err(during())?;
    // Rows that a crash takes away are projected again; tables are made only here.
    sqlx::raw_sql("set synchronous_commit = on").execute(&mut connection).await.map_err(during())?;
    sqlx::migrate!("../../migrations").run(&mut connection).await.map_err(|error| during()(error.into()))
}

/// A round trip.
pub async fn healthy(database: &PgPool) -> Result<(), Error> {
    sqlx::query!("select 1 as one").fetch_one(database).await.map(drop).map_err(Error::during("asking PostgreSQL"))
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use testkit::Postgres;

    use super::*;

    #[tokio::test]
    async fn several_roles_may_migrate_at_once() {
        let database = Postgres::database().await.expect("PostgreSQL starts");
        let pool = connect(database.url()).await.expect("it can be reached");
        let (one, two, three) = tokio::join!(migrate(&pool), migrate(&pool), migrate(&pool));
        one.and(two).and(three).expect("one migrates, the others wait");
        healthy(&pool).await.expect("it answers");
    }

    #[tokio::test]
    async fn a_database_that_cannot_be_used_is_named_without_its_password() {
        let database = Postgres::database().await.expect("PostgreSQL starts");
        let server = database.url().rsplit_once('@').map_or_else(|| panic!("a user"), |(_, server)| server);
        let error = connect(&format!("postgres://nobody:hunter2@{server}")).await.expect_err("not let in");
        let text = format!("{error} {:?}", error.source());
        assert!(text.contains("DATABASE_URL") && text.contains("127.0.0.1:"), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
        for bad in ["", "mysql://me:hunter2@127.0.0.1/x", "postgres://me:hunter2@127.0.0.1:port/x"] {
            let error = connect(bad).await.expect_err("not a URL for PostgreSQL");
            let text = format!("{error} {:?}", error.source());
            assert!(text.contains("DATABASE_URL") && !text.contains("hunter2"), "{text}");
        }
    }
}
