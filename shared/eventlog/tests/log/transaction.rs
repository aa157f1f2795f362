use domain::{Key, registry, route};
use eventlog::{CommitError, Committed, Error, EventLog, ExecuteError};
use futures::future::join_all;

use crate::{claim, connect, context, host, release, soon, start};

fn credentials(version: u64) -> (Key<registry::Registry>, registry::Command) {
    let key = Key::registry("registry.test:5000").expect("a good host");
    let command = registry::Command::SetCredentials {
        host: "registry.test:5000".into(),
        username: "ci".into(),
        secret: key.secret(),
        version,
    };
    (key, command)
}

#[tokio::test]
async fn several_aggregates_change_together() {
    let (_nats, log) = start().await;
    let (registry, set) = credentials(1);
    let mut tx = log.transaction(&context());
    tx.decide(&host("a.test"), claim("/", "dev")).await.expect("decided");
    tx.decide(&registry, set).await.expect("decided");
    tx.decide(&host("b.test"), claim("/", "dev")).await.expect("decided");
    tx.decide(&host("a.test"), claim("/2", "dev")).await.expect("decided");
    let committed = tx.commit().await.expect("committed");
    let sequences: Vec<u64> = committed.events.iter().map(|event| event.sequence).collect();
    assert_eq!((sequences, committed.sequence), (vec![1, 2, 3, 4], 4));
    assert!(committed.events.is_sorted_by_key(|event| event.id), "ids follow the order of the decision");
    assert_eq!(log.load(&host("a.test")).await.expect("loads").version, 4);
    assert_eq!(log.load(&registry).await.expect("loads").version, 2);
}

#[tokio::test]
async fn a_decision_sees_what_the_transaction_decided_before() {
    let (_nats, log) = start().await;
    let key = host("a.test");
    let mut tx = log.transaction(&context());
    tx.decide(&key, claim("/", "dev")).await.expect("decided");
    let refused = tx.decide(&key, claim("/", "prod")).await;
    assert!(matches!(refused, Err(ExecuteError::Rejected(route::Rejection::Taken { .. }))));
    tx.decide(&key, release("/", "dev")).await.expect("decided");
    tx.decide(&key, claim("/", "prod")).await.expect("decided");
    assert_eq!(tx.commit().await.expect("committed").sequence, 3);
}

#[tokio::test]
async fn nothing_is_written_when_any_member_was_changed_by_another() {
    let (nats, log) = start().await;
    let other = connect(&nats).await;
    let hosts = [host("a.test"), host("b.test"), host("c.test")];
    for (round, changed) in hosts.iter().enumerate() {
        // In the first round the aggregates are new, which is a version like any other.
        let before = log.last_sequence().await.expect("answers");
        let mut tx = log.transaction(&context());
        for key in &hosts {
            tx.decide(key, claim(format!("/{round}"), "dev")).await.expect("decided");
        }
        other.execute(changed, claim(format!("/other-{round}"), "dev"), &context()).await.expect("claimed");
        let refused = tx.commit().await;
        assert!(matches!(refused, Err(CommitError::Conflict)), "{refused:?}");
        assert_eq!(log.last_sequence().await.expect("answers"), before + 1);
    }
}

#[derive(Debug)]
enum Failed {
    Commit,
    Decide,
}

impl From<CommitError> for Failed {
    fn from(_: CommitError) -> Self {
        Self::Commit
    }
}

async fn move_path(log: &EventLog, path: &str) -> Result<Committed, Failed> {
    log.transact(&context(), |mut tx| async move {
        tx.decide(&host("from.test"), release(path, "dev")).await.map_err(|_| Failed::Decide)?;
        tx.decide(&host("to.test"), claim(path, "dev")).await.map_err(|_| Failed::Decide)?;
        Ok(tx)
    })
    .await
}

#[tokio::test]
async fn rivals_start_over_until_each_has_been_heard() {
    let (nats, log) = start().await;
    let other = connect(&nats).await;
    let mut tx = log.transaction(&context());
    for n in 0..12 {
        tx.decide(&host("from.test"), claim(format!("/{n}"), "dev")).await.expect("decided");
    }
    tx.commit().await.expect("committed");
    // Spawned, so that a future which cannot move between threads would not compile.
    let moves = (0..12).map(|n| {
        let log = if n % 2 == 0 { log.clone() } else { other.clone() };
        tokio::spawn(async move { move_path(&log, &format!("/{n}")).await })
    });
    for moved in soon(join_all(moves)).await {
        moved.expect("no panic").expect("moved");
    }
    assert_eq!(log.last_sequence().await.expect("answers"), 12 + 2 * 12);
}

#[tokio::test]
async fn a_repeated_transaction_is_answered_with_its_first_outcome() {
    let (nats, log) = start().await;
    let once = context();
    for (log, written) in [(&log, 2), (&connect(&nats).await, 0)] {
        let mut tx = log.transaction(&once);
        tx.decide(&host("a.test"), claim("/", "dev")).await.expect("decided");
        tx.decide(&host("b.test"), claim("/", "dev")).await.expect("decided");
        let committed = tx.commit().await.expect("committed");
        assert_eq!((committed.sequence, committed.events.len()), (2, written));
    }
    let mut reused = once.clone();
    reused.command_hash = Some("other".into());
    let refused = log.transaction(&reused).decide(&host("b.test"), claim("/x", "dev")).await;
    assert!(matches!(refused, Err(ExecuteError::KeyReused)));
    assert_eq!(log.last_sequence().await.expect("answers"), 2);
}

#[tokio::test]
async fn a_decision_beyond_what_the_server_takes_at_once_is_refused_whole() {
    let (_nats, log) = start().await;
    let mut tx = log.transaction(&context());
    for n in 0..1001 {
        tx.decide(&host("a.test"), claim(format!("/{n}"), "dev")).await.expect("decided");
    }
    assert!(matches!(tx.commit().await, Err(CommitError::Log(Error::Protocol { .. }))));
    assert_eq!(log.last_sequence().await.expect("answers"), 0);
}

#[tokio::test]
async fn an_empty_transaction_commits_to_what_it_has_seen() {
    let (_nats, log) = start().await;
    log.execute(&host("a.test"), claim("/", "dev"), &context()).await.expect("claimed");
    let mut tx = log.transaction(&context());
    assert_eq!(tx.load(&host("a.test")).await.expect("loads").version, 1);
    let committed = tx.commit().await.expect("committed");
    assert_eq!((committed.sequence, committed.events.len()), (1, 0));
}

#[tokio::test]
async fn nothing_is_written_when_what_was_to_stand_still_has_changed() {
    let (nats, log) = start().await;
    let other = connect(&nats).await;
    // The last was never written to.
    let watched = [host("a.test"), host("b.test")];
    log.execute(&watched[0], claim("/", "dev"), &context()).await.expect("claimed");
    for (round, changed) in watched.iter().enumerate() {
        let mut tx = log.transaction(&context());
        for key in &watched {
            tx.still(key).await.expect("loaded");
        }
        for path in 0..3 {
            tx.decide(&host("c.test"), claim(format!("/{round}-{path}"), "dev")).await.expect("decided");
        }
        other.execute(changed, claim(format!("/other-{round}"), "dev"), &context()).await.expect("claimed");
        let before = log.last_sequence().await.expect("answers");
        assert!(matches!(tx.commit().await, Err(CommitError::Conflict)), "round {round}");
        assert_eq!(log.last_sequence().await.expect("answers"), before);
    }
}

#[tokio::test]
async fn what_stood_still_lets_a_decision_pass_and_is_not_written_to() {
    let (_nats, log) = start().await;
    log.execute(&host("a.test"), claim("/", "dev"), &context()).await.expect("claimed");
    let mut tx = log.transaction(&context());
    assert_eq!(tx.still(&host("a.test")).await.expect("loaded").version, 1);
    assert_eq!(tx.still(&host("b.test")).await.expect("loaded").version, 0);
    for path in ["/1", "/2", "/3"] {
        tx.decide(&host("c.test"), claim(path, "dev")).await.expect("decided");
    }
    assert_eq!(tx.commit().await.expect("committed").sequence, 4);
    assert_eq!(log.load(&host("a.test")).await.expect("loads").version, 1);
}
