use domain::{Event, route};
use eventlog::{Error, ExecuteError};
use futures::{StreamExt, future::join_all};

use crate::{claim, connect, context, host, release, soon, start};

#[tokio::test]
async fn what_was_decided_is_there_for_everybody() {
    let (nats, log) = start().await;
    let key = host("shop.test");
    let committed = log.execute(&key, claim("/", "dev"), &context()).await.expect("claimed");
    assert_eq!(committed.sequence, 1);
    assert_eq!(committed.events[0].subject, "sluice.events.route.shop_test.claimed");
    assert_eq!(committed.events[0].sequence, 1);

    let other = connect(&nats).await;
    let loaded = other.load(&key).await.expect("loads");
    assert_eq!(loaded.version, 1);
    let refused = other.execute(&key, claim("/", "prod"), &context()).await;
    assert!(matches!(refused, Err(ExecuteError::Rejected(route::Rejection::Taken { .. }))), "{refused:?}");

    let nothing = other.execute(&key, claim("/", "dev"), &context()).await.expect("already so");
    assert_eq!((nothing.sequence, nothing.events.len()), (1, 0));
    assert_eq!(other.load(&host("other.test")).await.expect("loads").version, 0);
}

#[tokio::test]
async fn event_ids_grow_with_time_and_place() {
    let (_nats, log) = start().await;
    let mut at = context();
    let first = log.execute(&host("a.test"), claim("/", "dev"), &at).await.expect("claimed");
    at = context();
    at.time += chrono::TimeDelta::milliseconds(1);
    let second = log.execute(&host("b.test"), claim("/", "dev"), &at).await.expect("claimed");
    assert!(first.events[0].id < second.events[0].id);
    assert_eq!(first.events[0].id.get_version_num(), 7);
}

#[tokio::test]
async fn each_of_many_at_once_is_decided_exactly_once() {
    let (nats, first) = start().await;
    let second = connect(&nats).await;
    let key = host("busy.test");
    let many = (0..40).map(|n| {
        let log = if n % 2 == 0 { first.clone() } else { second.clone() };
        let key = key.clone();
        async move { log.execute(&key, claim(format!("/{n}"), "dev"), &context()).await.expect("claimed") }
    });
    let mut sequences: Vec<u64> = soon(join_all(many)).await.iter().map(|committed| committed.sequence).collect();
    sequences.sort_unstable();
    assert_eq!(sequences, (1..=40).collect::<Vec<u64>>());

    // Of many who want the same, one gets it.
    let rivals = (0..16).map(|n| {
        let (log, key) = (if n % 2 == 0 { first.clone() } else { second.clone() }, key.clone());
        async move { log.execute(&key, claim("/one", &format!("stage-{n}")), &context()).await.is_ok() }
    });
    assert_eq!(soon(join_all(rivals)).await.iter().filter(|won| **won).count(), 1);
    assert_eq!(first.last_sequence().await.expect("answers"), 41);
}

/// A log decides on what it remembers of an aggregate, which another may have changed since.
#[tokio::test]
async fn what_another_did_meanwhile_is_looked_at_before_a_command_is_refused_or_found_needless() {
    let (nats, log) = start().await;
    let other = connect(&nats).await;
    let key = host("stale.test");
    log.execute(&key, claim("/", "dev"), &context()).await.expect("claimed");
    other.execute(&key, release("/", "dev"), &context()).await.expect("released");

    let allowed = log.execute(&key, claim("/", "prod"), &context()).await.expect("free again, whatever is remembered");
    assert_eq!((allowed.sequence, allowed.events.len()), (3, 1));

    other.execute(&key, release("/", "prod"), &context()).await.expect("released");
    let needed = log.execute(&key, claim("/", "prod"), &context()).await.expect("free again");
    assert_eq!((needed.sequence, needed.events.len()), (5, 1), "remembered as claimed already");

    other.execute(&key, release("/", "prod"), &context()).await.expect("released");
    other.execute(&key, claim("/", "dev"), &context()).await.expect("claimed");
    let needless = log.execute(&key, release("/", "prod"), &context()).await.expect("there is nothing to release");
    assert_eq!(needless.events.len(), 0, "remembered as claimed by prod, which it no longer is");
    let refused = log.execute(&key, claim("/", "prod"), &context()).await;
    assert!(matches!(refused, Err(ExecuteError::Rejected(route::Rejection::Taken { .. }))), "{refused:?}");
}

#[tokio::test]
async fn a_repeated_command_is_answered_with_its_first_outcome() {
    let (nats, log) = start().await;
    let key = host("again.test");
    let mut once = context();
    once.command_hash = Some("a".into());
    log.execute(&key, claim("/", "dev"), &once).await.expect("claimed");
    log.execute(&key, release("/", "dev"), &context()).await.expect("released");

    // Decided anew it would claim again.
    for log in [&log, &connect(&nats).await] {
        let repeated = log.execute(&key, claim("/", "dev"), &once).await.expect("known");
        assert_eq!((repeated.sequence, repeated.events.len()), (1, 0));
        let mut reused = once.clone();
        reused.command_hash = Some("b".into());
        let refused = log.execute(&key, claim("/x", "dev"), &reused).await;
        assert!(matches!(refused, Err(ExecuteError::KeyReused)), "{refused:?}");
    }
    assert_eq!(log.last_sequence().await.expect("answers"), 2);
}

#[tokio::test]
async fn the_same_command_from_two_at_once_takes_effect_once() {
    let (nats, first) = start().await;
    let second = connect(&nats).await;
    for round in 0..10 {
        let key = host(&format!("h{round}.test"));
        let once = context();
        let (a, b) =
            tokio::join!(first.execute(&key, claim("/", "dev"), &once), second.execute(&key, claim("/", "dev"), &once));
        let (a, b) = (a.expect("done"), b.expect("done"));
        assert_eq!(a.sequence, b.sequence);
        assert_eq!(a.events.len() + b.events.len(), 1);
    }
}

#[tokio::test]
async fn a_command_given_while_nats_restarts_is_carried_out_once() {
    let (mut nats, log) = start().await;
    let key = host("patient.test");
    log.execute(&key, claim("/", "dev"), &context()).await.expect("claimed");
    nats.kill();
    let waiting = tokio::spawn({
        let (log, key) = (log.clone(), key.clone());
        async move { log.execute(&key, claim("/2", "dev"), &context()).await }
    });
    nats.restart().await.expect("starts again");
    let committed = soon(waiting).await.expect("no panic").expect("claimed");
    assert_eq!(committed.sequence, 2);
    assert_eq!(log.last_sequence().await.expect("answers"), 2);
}

#[tokio::test]
async fn without_nats_a_command_ends_in_an_error_that_says_so() {
    let (mut nats, log) = start().await;
    nats.kill();
    let refused = soon(log.execute(&host("gone.test"), claim("/", "dev"), &context())).await;
    assert!(matches!(refused, Err(ExecuteError::Log(Error::Unavailable { .. }))), "{refused:?}");
    assert!(soon(log.healthy()).await.is_err());
}

#[tokio::test]
async fn a_long_history_is_folded_over_several_pages() {
    let (nats, log) = start().await;
    let key = host("long.test");
    // 1,100 claims in two transactions: more than one page of a direct read.
    for half in 0..2 {
        let mut tx = log.transaction(&context());
        for n in 0..550 {
            tx.decide(&key, claim(format!("/{half}/{n}"), "dev")).await.expect("decided");
        }
        tx.commit().await.expect("committed");
    }
    let loaded = connect(&nats).await.load(&key).await.expect("loads");
    assert_eq!(loaded.version, 1100);
    assert_eq!(loaded.state, log.load(&key).await.expect("loads").state);
    let events: Vec<_> = soon(log.follow(&key.filter(), 0).take(1100).collect()).await;
    assert!(matches!(&events[1099], Ok(event) if matches!(event.event, Event::Route(_)) && event.sequence == 1100));
}
