//! How far the read models have come, for readers that want to see their own writes.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use sqlx::{PgPool, postgres::PgListener};
use tokio::sync::watch;
use utoipa::ToSchema;

use crate::{Error, fold};

const CHANNEL: &str = "sluice_projected";
const RETRY: Duration = Duration::from_millis(500);

/// How the projector fares.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = ProjectorState)]
pub struct State {
    /// No read model lacks an event up to here. The log's last sequence minus this is the lag.
    pub sequence: u64,
    /// Why it stopped; none while it works.
    pub error: Option<String>,
}

pub async fn state(database: &PgPool) -> Result<State, Error> {
    let row = sqlx::query!(
        r#"select coalesce((select min(sequence) from checkpoints), 0) as "sequence!", error from projector"#
    )
    .fetch_one(database)
    .await
    .map_err(Error::during("reading how far the read models have come"))?;
    Ok(State { sequence: row.sequence.cast_unsigned(), error: row.error })
}

/// Notes why the projector stopped. The next one to begin takes the note away.
pub async fn record_error(database: &PgPool, error: &str) -> Result<(), Error> {
    sqlx::query!("update projector set error = $1", fold::text(error))
        .execute(database)
        .await
        .map(drop)
        .map_err(Error::during("noting why the projector stopped"))
}

/// Tells when the read models have reached a position. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Progress {
    /// None while the database cannot be heard.
    position: watch::Receiver<Option<u64>>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the read models have not reached {wanted} yet (they are at {})", .position.map_or("an unknown position".to_owned(), |p| p.to_string()))]
pub struct NotYet {
    pub wanted: u64,
    pub position: Option<u64>,
}

impl Progress {
    /// The future does the listening: run it as a task, and drop it to end it. It never ends by itself.
    pub fn follow(database: PgPool) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (sender, position) = watch::channel(None);
        (Self { position }, listen(database, sender))
    }

    /// Waits, for at most `deadline`, until every event up to `wanted` shows in every query.
    pub async fn reached(&self, wanted: u64, deadline: Duration) -> Result<(), NotYet> {
        let mut position = self.position.clone();
        let reached = position.wait_for(|position| position.is_some_and(|position| position >= wanted));
        let reached = matches!(tokio::time::timeout(deadline, reached).await, Ok(Ok(_)));
        let position = *self.position.borrow();
        if reached { Ok(()) } else { Err(NotYet { wanted, position }) }
    }
}

async fn listen(database: PgPool, sender: watch::Sender<Option<u64>>) {
    loop {
        if let Err(error) = heard(&database, &sender).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot hear the projector; trying again");
        }
        // After a crash of the database the checkpoints may have gone back: what was heard no longer counts.
        sender.send_replace(None);
        tokio::time::sleep(RETRY).await;
    }
}

/// Ends when the connection does.
async fn heard(database: &PgPool, sender: &watch::Sender<Option<u64>>) -> Result<(), sqlx::Error> {
    let mut listener = PgListener::connect_with(database).await?;
    listener.eager_reconnect(false);
    listener.listen(CHANNEL).await?;
    // Read after listening began, so that nothing falls between.
    let position = sqlx::query_scalar!(r#"select coalesce(min(sequence), 0) as "position!" from checkpoints"#)
        .fetch_one(database)
        .await?;
    let known = |position: i64| Some(position.cast_unsigned());
    sender.send_replace(known(position));
    while let Some(notification) = listener.try_recv().await? {
        if let Ok(position) = notification.payload().parse() {
            sender.send_replace(known(position));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{History, database, writer};

    const SOON: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn a_reader_sees_its_own_write_as_soon_as_it_is_applied() {
        let (_database, pool) = database().await;
        let mut writer = writer(&pool).await;
        let events = History::released().events;
        writer.apply(&events[..2]).await.expect("applied");
        let (progress, listening) = Progress::follow(pool.clone());
        let listening = tokio::spawn(listening);
        progress.reached(2, SOON).await.expect("it was reached before");
        let waiting = tokio::spawn({
            let progress = progress.clone();
            async move { progress.reached(4, SOON).await }
        });
        assert_eq!(progress.reached(4, Duration::from_millis(50)).await, Err(NotYet { wanted: 4, position: Some(2) }));
        writer.apply(&events[..4]).await.expect("applied");
        waiting.await.expect("no panic").expect("it is reached now");
        listening.abort();
    }

    #[tokio::test]
    async fn listening_outlives_a_lost_connection() {
        let (_database, pool) = database().await;
        let mut writer = writer(&pool).await;
        let events = History::released().events;
        let (progress, listening) = Progress::follow(pool.clone());
        let listening = tokio::spawn(listening);
        progress.reached(0, SOON).await.expect("it listens");
        sqlx::query(
            "select pg_terminate_backend(pid) from pg_stat_activity
                where query like 'LISTEN%' and datname = current_database()",
        )
        .execute(&pool)
        .await
        .expect("its connection is cut");
        writer.apply(&events).await.expect("applied");
        progress.reached(events.len() as u64, SOON).await.expect("it listens again");
        listening.abort();
    }

    #[tokio::test]
    async fn the_note_of_a_stop_stays_until_the_projector_begins_again() {
        let (_database, pool) = database().await;
        assert_eq!(state(&pool).await.expect("read"), State { sequence: 0, error: None });
        record_error(&pool, "event 7 cannot be decoded").await.expect("noted");
        assert_eq!(state(&pool).await.expect("read").error.as_deref(), Some("event 7 cannot be decoded"));
        writer(&pool).await.apply(&History::released().events[..3]).await.expect("applied");
        assert_eq!(state(&pool).await.expect("read"), State { sequence: 3, error: None });
    }
}
