use std::time::Duration;

use eventlog::{Change, Entry, Error};
use futures::{Stream, StreamExt};

use crate::{connect, soon, start};

async fn next(changes: &mut (impl Stream<Item = Result<Change, Error>> + Unpin)) -> Change {
    soon(changes.next()).await.expect("open").expect("a change")
}

fn put(key: &str, value: &str, revision: u64) -> Change {
    Change::Put { key: key.into(), value: value.into(), revision }
}

#[tokio::test]
async fn a_value_changes_only_under_the_revision_it_was_read_at() {
    let (_nats, log) = start().await;
    let routes = log.bucket("routes");
    assert_eq!(routes.get("shop.dev").await.expect("answers"), None);
    let first = routes.create("shop.dev", "1").await.expect("created");
    let taken = routes.create("shop.dev", "x").await;
    assert!(matches!(taken, Err(Error::WrongRevision { .. })), "{taken:?}");
    let second = routes.update("shop.dev", "2", first).await.expect("updated");
    assert!(matches!(routes.update("shop.dev", "x", first).await, Err(Error::WrongRevision { .. })));
    assert_eq!(routes.get("shop.dev").await.expect("answers"), Some(Entry { value: "2".into(), revision: second }));

    assert!(matches!(routes.delete("shop.dev", Some(first)).await, Err(Error::WrongRevision { .. })));
    routes.delete("shop.dev", Some(second)).await.expect("deleted");
    assert_eq!(routes.get("shop.dev").await.expect("answers"), None);
    assert_eq!(routes.keys().await.expect("answers"), Vec::<String>::new());
    routes.create("shop.dev", "3").await.expect("created again");
    routes.put("shop.dev", "4").await.expect("put");
    assert_eq!(routes.keys().await.expect("answers"), ["shop.dev"]);
    routes.delete("shop.dev", None).await.expect("deleted");
}

#[tokio::test]
async fn a_key_cannot_break_out_of_its_bucket() {
    let (_nats, log) = start().await;
    for bad in ["", ".a", "a.", "a..b", "*", "a.>", "a b", "ä"] {
        assert!(matches!(log.bucket("routes").get(bad).await, Err(Error::BadKey { .. })), "{bad:?} passed");
    }
}

#[tokio::test]
async fn a_watch_tells_what_is_and_what_becomes() {
    let (_nats, log) = start().await;
    let routes = log.bucket("routes");
    let mut empty = Box::pin(routes.watch());
    assert_eq!(next(&mut empty).await, Change::Ready);
    for (key, value, revision) in [("a.dev", "1", 1), ("b.dev", "1", 2), ("a.dev", "2", 3)] {
        routes.put(key, value).await.expect("put");
        assert_eq!(next(&mut empty).await, put(key, value, revision));
    }
    let mut full = Box::pin(routes.watch());
    for expected in [put("b.dev", "1", 2), put("a.dev", "2", 3), Change::Ready] {
        assert_eq!(next(&mut full).await, expected);
    }
    routes.delete("b.dev", None).await.expect("deleted");
    assert_eq!(next(&mut full).await, Change::Deleted { key: "b.dev".into(), revision: 4 });
}

#[tokio::test]
async fn an_entry_that_is_not_renewed_ends_and_the_watch_says_so() {
    let (_nats, log) = start().await;
    let edges = log.bucket("edges");
    let mut changes = Box::pin(edges.watch());
    assert_eq!(next(&mut changes).await, Change::Ready);
    edges.put("one", "1").await.expect("put");
    assert_eq!(next(&mut changes).await, put("one", "1", 1));
    assert!(matches!(next(&mut changes).await, Change::Deleted { key, .. } if key == "one"));
    assert_eq!(edges.get("one").await.expect("answers"), None);
}

#[tokio::test]
async fn after_a_crash_of_nats_a_watch_begins_again() {
    let (mut nats, log) = start().await;
    let (routes, edges) = (log.bucket("routes"), log.bucket("edges"));
    routes.put("a.dev", "1").await.expect("put");
    routes.put("b.dev", "1").await.expect("put");
    edges.put("one", "1").await.expect("put");
    let (mut on_routes, mut on_edges) = (Box::pin(routes.watch()), Box::pin(edges.watch()));
    for expected in [put("a.dev", "1", 1), put("b.dev", "1", 2), Change::Ready] {
        assert_eq!(next(&mut on_routes).await, expected);
    }
    for expected in [put("one", "1", 1), Change::Ready] {
        assert_eq!(next(&mut on_edges).await, expected);
    }
    nats.kill();
    nats.restart().await.expect("starts again");
    connect(&nats).await.bucket("routes").delete("b.dev", None).await.expect("deleted");
    // Depending on who was faster the deletion comes with the rest or behind it.
    let mut seen = vec![];
    while seen.len() < 3 {
        seen.push(next(&mut on_routes).await);
        if seen.len() == 3 && seen.iter().any(|change| matches!(change, Change::Put { key, .. } if key == "b.dev")) {
            seen.push(next(&mut on_routes).await);
        }
    }
    assert!(seen.contains(&put("a.dev", "1", 1)) && seen.contains(&Change::Ready), "{seen:?}");
    assert!(seen.contains(&Change::Deleted { key: "b.dev".into(), revision: 3 }), "{seen:?}");
    // Edges live in memory: what they were is gone with the server.
    assert!(matches!(next(&mut on_edges).await, Change::Deleted { key, .. } if key == "one"));
    assert_eq!(next(&mut on_edges).await, Change::Ready);
    tokio::time::timeout(Duration::from_millis(50), on_edges.next()).await.expect_err("nothing more");
}

#[tokio::test]
async fn a_bucket_in_memory_is_there_again_after_a_crash_of_nats_though_nobody_connects_anew() {
    let (mut nats, log) = start().await;
    let edges = log.bucket("edges");
    edges.put("one", "1").await.expect("put");
    nats.kill();
    nats.restart().await.expect("starts again");
    // As one who lives says so again and again.
    let back = async {
        while edges.put("one", "1").await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), back).await.expect("it takes entries again");
    assert_eq!(edges.keys().await.expect("readable"), ["one"]);
}
