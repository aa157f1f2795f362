use std::time::{Duration, Instant};

use domain::Recorded;
use eventlog::{CommitError, Error, EventLog};
use futures::{StreamExt, TryStreamExt};

use crate::{bare, claim, connect, context, host, soon, start};

async fn claim_many(log: &EventLog, name: &str, paths: std::ops::Range<usize>) {
    for n in paths {
        log.execute(&host(name), claim(format!("/{n}"), "dev"), &context()).await.expect("claimed");
    }
}

fn sequences(events: &[Recorded]) -> Vec<u64> {
    events.iter().map(|event| event.sequence).collect()
}

#[tokio::test]
async fn what_has_been_and_what_comes_in_one_stream() {
    let (_nats, log) = start().await;
    claim_many(&log, "a.test", 0..3).await;
    let mut events = Box::pin(log.follow("sluice.events.>", 1));
    let replayed: Vec<_> = soon(events.by_ref().take(2).try_collect()).await.expect("readable");
    assert_eq!(sequences(&replayed), [2, 3]);
    claim_many(&log, "b.test", 0..2).await;
    let live: Vec<_> = soon(events.by_ref().take(2).try_collect()).await.expect("readable");
    assert_eq!(sequences(&live), [4, 5]);

    let only: Vec<_> =
        soon(log.follow("sluice.events.route.b_test.>", 0).take(2).try_collect()).await.expect("readable");
    assert_eq!(sequences(&only), [4, 5]);
}

#[tokio::test]
async fn an_event_arrives_soon_after_its_append() {
    let (_nats, log) = start().await;
    let mut events = Box::pin(log.follow("sluice.events.>", 0));
    claim_many(&log, "a.test", 0..1).await;
    soon(events.next()).await.expect("open").expect("readable");
    let mut delays = vec![];
    for n in 1..50 {
        let committed = log.execute(&host("a.test"), claim(format!("/{n}"), "dev"), &context()).await.expect("claimed");
        let acknowledged = Instant::now();
        let event = soon(events.next()).await.expect("open").expect("readable");
        assert_eq!(event.sequence, committed.sequence);
        delays.push(acknowledged.elapsed());
    }
    delays.sort_unstable();
    assert!(delays[25] < Duration::from_millis(20), "half of them took longer than {:?}", delays[25]);
}

#[tokio::test]
async fn a_restart_of_nats_leaves_no_gap_and_repeats_nothing() {
    let (mut nats, log) = start().await;
    claim_many(&log, "a.test", 0..20).await;
    let mut events = Box::pin(log.follow("sluice.events.>", 0));
    let before: Vec<_> = soon(events.by_ref().take(20).try_collect()).await.expect("readable");
    assert_eq!(sequences(&before), (1..=20).collect::<Vec<u64>>());
    for round in 0..2_u64 {
        if round == 0 {
            nats.kill();
        }
        nats.restart().await.expect("starts again");
        let writer = connect(&nats).await;
        let first = 20 + 10 * (round as usize);
        claim_many(&writer, "a.test", first..first + 10).await;
        let after: Vec<_> = soon(events.by_ref().take(10).try_collect()).await.expect("readable");
        assert_eq!(sequences(&after), (21 + round * 10..=30 + round * 10).collect::<Vec<u64>>());
    }
}

#[tokio::test]
async fn crashes_in_the_middle_of_writing_lose_nothing_and_double_nothing() {
    let (mut nats, log) = start().await;
    let reading = tokio::spawn(log.follow("sluice.events.>", 0).take(240).try_collect::<Vec<_>>());
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let log = log.clone();
            tokio::spawn(async move {
                for n in 0..30 {
                    // Two events each: a batch, which a crash may tear.
                    let (one, two) = (host(&format!("one-{writer}.test")), host("two.test"));
                    let (one, two) = (&one, &two);
                    log.transact(&context(), |mut tx| async move {
                        tx.decide(one, claim(format!("/{n}"), "dev")).await.expect("decided");
                        tx.decide(two, claim(format!("/{writer}/{n}"), "dev")).await.expect("decided");
                        Ok::<_, CommitError>(tx)
                    })
                    .await
                    .expect("committed");
                }
            })
        })
        .collect();
    for written in [30, 120] {
        let mut seen = Box::pin(log.follow("sluice.events.>", 0).skip(written));
        soon(seen.next()).await.expect("open").expect("readable");
        nats.kill();
        nats.restart().await.expect("starts again");
    }
    for writer in writers {
        soon(writer).await.expect("written");
    }
    let events = soon(reading).await.expect("no panic").expect("readable");
    assert_eq!(sequences(&events), (1..=240).collect::<Vec<u64>>());
    assert_eq!(log.last_sequence().await.expect("answers"), 240);
    let commands: std::collections::HashSet<_> = events.iter().map(|event| event.context.command_id).collect();
    assert_eq!(commands.len(), 120);
}

#[tokio::test]
async fn a_long_replay_comes_in_full_batches_and_then_at_once() {
    let (_nats, log) = start().await;
    for part in 0..6 {
        let mut tx = log.transaction(&context());
        for n in 0..900 {
            tx.decide(&host(&format!("h{part}.test")), claim(format!("/{n}"), "dev")).await.expect("decided");
        }
        tx.commit().await.expect("committed");
    }
    let mut batches = Box::pin(log.batches(100, 500));
    let (mut next, mut sizes) = (101, vec![]);
    while next <= 5400 {
        let batch = soon(batches.next()).await.expect("open").expect("readable");
        for event in &batch {
            assert_eq!(event.sequence, next);
            next += 1;
        }
        sizes.push(batch.len());
    }
    assert_eq!(sizes.iter().filter(|size| **size == 500).count(), 10, "{sizes:?}");
    claim_many(&log, "live.test", 0..1).await;
    assert_eq!(soon(batches.next()).await.expect("open").expect("readable").len(), 1);
}

#[tokio::test]
async fn an_event_that_cannot_be_read_ends_the_stream_and_is_named() {
    let (nats, log) = start().await;
    claim_many(&log, "a.test", 0..2).await;
    let client = bare(&nats).await;
    client.request("sluice.events.route.a_test.invented", "{}".into()).await.expect("stored");
    claim_many(&log, "b.test", 0..1).await;
    let events: Vec<_> = soon(log.follow("sluice.events.>", 0).collect()).await;
    assert_eq!(events.len(), 3);
    let error = events[2].as_ref().expect_err("unreadable");
    assert!(matches!(error, Error::Decode(source) if source.to_string().contains("event 3 ")), "{error:?}");
    // A projector gets what came before it.
    let batches: Vec<_> = soon(log.batches(0, 100).collect()).await;
    assert!(matches!(&batches[..], [Ok(good), Err(Error::Decode(_))] if good.len() == 2), "{batches:?}");
    assert!(matches!(log.load(&host("a.test")).await, Err(Error::Decode(_))));
}

#[tokio::test]
async fn a_position_beyond_the_log_is_refused() {
    let (_nats, log) = start().await;
    claim_many(&log, "a.test", 0..1).await;
    let first = soon(Box::pin(log.follow("sluice.events.>", 7)).next()).await.expect("open");
    assert!(matches!(first, Err(Error::Ahead { after: 7, last: 1 })), "{first:?}");
}

#[tokio::test]
async fn closing_the_log_ends_what_follows_it() {
    let (_nats, log) = start().await;
    let following = tokio::spawn(log.follow("sluice.events.>", 0).collect::<Vec<_>>());
    log.close().await;
    assert!(soon(following).await.expect("no panic").is_empty());
}
