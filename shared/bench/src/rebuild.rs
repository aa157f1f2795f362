//! Building all read models anew from the first event: `sluice projector rebuild`, beside the way anyone would write it
//! first. Both read the same log and end with the same rows in the same tables under the same indexes.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use async_nats::jetstream;
use readmodel::Checksum;
use testkit::{Nats, Postgres};

use crate::{
    Bench,
    history::History,
    naive, parts,
    row::{Row, Target, Unit},
};

const EVENTS: usize = 1_000_000;
const SEED: u64 = 20_261_123;
/// Events of one batch while the log is prepared.
const WRITTEN_AT_ONCE: usize = 1000;
const COPIED: Duration = Duration::from_secs(300);
/// No rebuild takes longer.
const LONGEST: Duration = Duration::from_secs(600);
const NAIVE: &str = "naive batched upsert";

pub(crate) async fn run(bench: &Bench) -> Result<Vec<Row>> {
    let events = runtime::env::parse("EVENTS", EVENTS)?;
    let nats = Nats::start().await?;
    let postgres = Postgres::start_like_sluice_up().await?;
    bench.say(&format!("rebuild: writing {events} events"));
    prepare(&nats, events).await?;

    let (mut ours, mut peer, mut memory) = (vec![], vec![], vec![]);
    for round in 1..=bench.rounds {
        bench.say(&format!("rebuild, round {round}: {NAIVE}"));
        let database = parts::database(&postgres, &format!("naive_{round}")).await?;
        let took = naive::build(&nats, &database, events as u64).await?;
        peer.push(events as f64 / took.as_secs_f64());
        let expected = checksums(&database).await?;
        parts::execute(postgres.url(), format!("drop database naive_{round}")).await?;

        bench.say(&format!("rebuild, round {round}: sluice projector rebuild"));
        let database = parts::database(&postgres, &format!("ours_{round}")).await?;
        let (took, peak) = rebuild(&bench.sluice, &nats, &database).await?;
        ours.push(events as f64 / took.as_secs_f64());
        memory.push(peak);
        let built = checksums(&database).await?;
        parts::execute(postgres.url(), format!("drop database ours_{round}")).await?;
        ensure!(built == expected, "the two came to different rows:\n{built:?}\n{expected:?}");
    }
    Ok(vec![
        Row::new(format!("rebuild of all read models, {events} events"), Unit::PerSecond)
            .ours(ours)
            .peer(NAIVE, peer)
            .target(Target::AtLeast { peer: NAIVE, ratio: 1.0 })
            .bound("the processors: reading and decoding, PostgreSQL parsing JSON and building indexes")
            .note(naive::WHAT),
        Row::new("peak memory of the rebuilding process", Unit::Megabytes).ours(memory),
    ])
}

/// Writes the log. Setup: not measured.
async fn prepare(nats: &Nats, events: usize) -> Result<()> {
    // Declares the streams.
    parts::event_log(nats).await?.close().await;
    let client = parts::bare(nats).await?;
    let (sender, mut batches) = tokio::sync::mpsc::channel(8);
    let writing = tokio::task::spawn_blocking(move || {
        let mut history = History::new(SEED)?;
        let mut left = events;
        while left > 0 {
            let size = left.min(WRITTEN_AT_ONCE);
            let batch = (0..size).map(|_| history.next()).collect::<Result<Vec<_>>>()?;
            sender.blocking_send(batch).context("the server takes no more")?;
            left -= size;
        }
        anyhow::Ok(history.dispatched)
    });
    while let Some(batch) = batches.recv().await {
        parts::publish_batch(&client, &batch).await?;
    }
    let dispatched = writing.await??;
    // The server copies what was dispatched into the work queue, and must be done with that before anything is measured.
    let context = jetstream::new(client);
    let copied = async {
        // A few that were decided have not been written: the last decision may have been cut in two.
        while context.get_stream("COMMANDS").await?.get_info().await?.state.messages + 10 < dispatched {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(COPIED, copied).await.context("the work queue does not fill")?
}

/// How long it took, and the most memory the process had, in megabytes.
async fn rebuild(program: &Path, nats: &Nats, database: &str) -> Result<(Duration, f64)> {
    let data = tempfile::tempdir()?;
    parts::execute(database, "checkpoint".into()).await?;
    let began = Instant::now();
    let mut process = parts::sluice(program, &["projector", "rebuild", "--json"], nats, database, data.path())
        .stdout(std::process::Stdio::null())
        .spawn()
        .context("starting sluice projector rebuild")?;
    let status = format!("/proc/{}/status", process.id().context("a process id")?);
    let mut peak = 0.0;
    let ended = async {
        loop {
            tokio::select! {
                ended = process.wait() => return ended,
                () = tokio::time::sleep(Duration::from_millis(20)) => peak = high_water(&status).unwrap_or(peak),
            }
        }
    };
    let status = tokio::time::timeout(LONGEST, ended).await.context("the rebuild does not end")??;
    let took = began.elapsed();
    ensure!(status.success(), "sluice projector rebuild ended with {status}");
    Ok((took, peak))
}

/// The most resident memory so far, in megabytes.
fn high_water(status: &str) -> Option<f64> {
    let text = fs::read_to_string(status).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: f64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kibibytes * 1024.0 / 1e6)
}

async fn checksums(database: &str) -> Result<Vec<Checksum>> {
    let pool = readmodel::connect(database).await?;
    let checksums = readmodel::checksum(&pool).await?;
    pool.close().await;
    ensure!(checksums.iter().all(|model| model.rows > 0), "a read model is empty: {checksums:?}");
    Ok(checksums)
}
