//! The loop that feeds every read model from the event log.
//!
//! Owns: the order of things: read a batch, apply it, read on. What an event means to a read model is `readmodel`'s.
//!
//! Must never import: sqlx, async-nats, another service. It never leaves an event out: on one that this version
//! cannot read it stops.

use std::time::Duration;

use anyhow::{Context, Result};
use domain::Recorded;
use eventlog::EventLog;
use futures::{Stream, StreamExt};
use readmodel::{Checksum, PgPool, Writer};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

/// Events applied in one transaction, at most: large enough to share its cost, small enough for a steady memory use.
const BATCH: usize = 4000;
/// Batches read while the database is busy with the one before.
const AHEAD: usize = 2;
/// After which a projector that has nothing to do looks whether its connection still stands.
const IDLE: Duration = Duration::from_secs(1);
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How often a rebuild tells how far it is.
const SAY_EVERY: Duration = Duration::from_secs(2);

/// Why a run of the loop ended.
enum Stop {
    /// Tried again: nothing is lost while the log keeps it.
    Database(readmodel::Error),
    /// An event cannot be read, or the log is not what it was. Trying again would end the same way.
    Log(eventlog::Error),
    LogClosed,
}

/// Feeds the read models until `shutdown`. Outlives outages of the database and of NATS. Where another process
/// feeds them already, waits to take its place.
///
/// Fails on an event that cannot be read; [`readmodel::state`] then tells which.
pub async fn run(log: EventLog, database: PgPool, shutdown: CancellationToken) -> Result<()> {
    let mut pause = FIRST_PAUSE;
    loop {
        let stop = tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            stop = project(&log, &database, &mut pause) => stop,
        };
        let error = match stop {
            Stop::Database(error) => error,
            Stop::Log(error) => {
                let error = anyhow::Error::new(error).context("the projector stopped");
                note(&database, &error).await;
                return Err(error);
            }
            Stop::LogClosed => anyhow::bail!("the projector stopped: the event log was closed"),
        };
        let outage = error.outage();
        let error = anyhow::Error::new(error);
        tracing::warn!(error = format!("{error:#}"), ?pause, "the read models do not advance; trying again");
        if !outage {
            note(&database, &error).await;
        }
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(LONGEST_PAUSE),
        }
    }
}

async fn project(log: &EventLog, database: &PgPool, pause: &mut Duration) -> Stop {
    let mut writer = match Writer::acquire(database, log.installation()).await {
        Ok(writer) => writer,
        Err(error) => return Stop::Database(error),
    };
    let position = match writer.position().await {
        Ok(position) => position,
        Err(error) => return Stop::Database(error),
    };
    tracing::info!(position, "feeding the read models");
    let mut batches = std::pin::pin!(read_ahead(log, position));
    loop {
        let Ok(batch) = timeout(IDLE, batches.next()).await else {
            // A crash of the database may have taken the last commits along, and no event tells of it.
            match writer.position().await {
                Ok(_) => continue,
                Err(error) => return Stop::Database(error),
            }
        };
        match batch {
            Some(Ok(batch)) => {
                if let Err(error) = writer.apply(&batch).await {
                    return Stop::Database(error);
                }
                *pause = FIRST_PAUSE;
            }
            Some(Err(error)) => return Stop::Log(error),
            None => return Stop::LogClosed,
        }
    }
}

/// Leaves word where the health check finds it.
async fn note(database: &PgPool, error: &anyhow::Error) {
    if let Err(failed) = readmodel::record_error(database, &format!("{error:#}")).await {
        tracing::warn!(error = &failed as &dyn std::error::Error, "cannot note why the projector stopped");
    }
}

/// Events behind `after`, read and decoded while the consumer is busy with earlier ones.
fn read_ahead(log: &EventLog, after: u64) -> impl Stream<Item = Result<Vec<Recorded>, eventlog::Error>> + use<> {
    let (sender, receiver) = mpsc::channel(AHEAD);
    let batches = log.batches(after, BATCH);
    let reader = AbortOnDropHandle::new(tokio::spawn(async move {
        let mut batches = std::pin::pin!(batches);
        while let Some(batch) = batches.next().await {
            if sender.send(batch).await.is_err() {
                return;
            }
        }
    }));
    futures::stream::unfold((receiver, reader), |(mut receiver, reader)| async move {
        Some((receiver.recv().await?, (receiver, reader)))
    })
}

/// Builds all read models, or the one named, from the first event, beside the live ones, and swaps them in. Gives
/// their position. The projector may go on meanwhile, in this process or another.
pub async fn rebuild(log: &EventLog, database: &PgPool, model: Option<&str>) -> Result<u64> {
    let models = readmodel::models(model)?;
    let target = log.last_sequence().await?;
    let batches = read_ahead(log, 0).inspect(progress(target));
    readmodel::rebuild(database, log.installation(), models, target, batches).await.context("rebuilding read models")
}

/// Says from time to time how far a long rebuild is.
fn progress(target: u64) -> impl FnMut(&Result<Vec<Recorded>, eventlog::Error>) {
    let begun = Instant::now();
    let mut said = begun;
    move |batch| {
        let Some(last) = batch.as_ref().ok().and_then(|batch| batch.last()) else { return };
        if said.elapsed() >= SAY_EVERY {
            said = Instant::now();
            let percent = last.sequence * 100 / target.max(1);
            let per_second = (last.sequence as f64 / begun.elapsed().as_secs_f64()).round();
            tracing::info!(events = last.sequence, of = target, percent, per_second, "rebuilding");
        }
    }
}

/// Of every read model: equal after a rebuild, or something is wrong.
pub async fn checksum(database: &PgPool) -> Result<Vec<Checksum>> {
    Ok(readmodel::checksum(database).await?)
}
