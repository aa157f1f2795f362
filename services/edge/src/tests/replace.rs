//! Switch, hold and drain: one set takes over from another.

use domain::{Span, traffic::Target};
use testkit::Load;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, timeout},
};

use super::*;

fn load(edge: &Edge) -> Load {
    Load::new(&edge.address.to_string(), HOST)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_while_sets_are_switched_under_load() {
    let apps = [App::start("one").await, App::start("two").await];
    let edge = Edge::serving(&apps[0]).await;
    let kept = load(&edge).start();
    let single = load(&edge).connections(2).without_keep_alive().start();
    for number in 2..30 {
        kept.more(30).await;
        edge.live(number, &[apps[number as usize % 2].address]);
    }
    kept.more(100).await;
    let mut report = kept.stop().await;
    report.add(single.stop().await);
    assert_eq!(report.failed, 0, "{report:?}");
    assert!(report.versions.keys().eq(["one", "two"]), "{report:?}");
    until("nothing left in flight", || edge.draining() + edge.in_flight() == 0).await;
}

#[tokio::test]
async fn after_a_switch_new_requests_go_to_the_new_set_and_running_ones_finish_on_the_old() {
    let (old, new) = (App::start("old").await, App::start("new").await);
    let edge = Edge::serving(&old).await;
    let mut kept = edge.connect().await;
    assert_eq!(kept.get("/").await.header("x-version"), Some("old"));
    let mut slow = edge.connect().await;
    slow.send(&format!("GET /slow/400 HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    until("the slow request is in flight", || edge.in_flight() == 1).await;

    edge.live(2, &[new.address]);
    assert_eq!(kept.get("/").await.header("x-version"), Some("new"), "also on a connection that is kept alive");
    assert_eq!(edge.draining(), 1);
    assert_eq!(slow.answer().await.header("x-version"), Some("old"));
    until("the old set has drained", || edge.draining() == 0).await;
}

#[tokio::test]
async fn a_websocket_lives_on_its_old_set_until_the_drain_deadline() {
    let (old, new) = (App::start("old").await, App::start("new").await);
    let edge = Edge::start().await;
    edge.put(1, Target::Live(set(1, &[old.address], Span::millis(600))));
    let mut socket = edge.connect().await;
    socket
        .send(&format!("GET /socket HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"))
        .await;
    assert_eq!(socket.answer().await.status(), 101);
    assert_eq!(edge.in_flight(), 1);

    let switched = Instant::now();
    edge.live(2, &[new.address]);
    let mut echo = [0; 4];
    socket.send("ping").await;
    socket.0.read_exact(&mut echo).await.expect("the socket lives on");
    assert_eq!(&echo, b"ping");
    assert_eq!(edge.draining(), 1);

    let end = timeout(DEADLINE, socket.0.read(&mut echo)).await.expect("the socket ends");
    assert!(matches!(end, Ok(0) | Err(_)));
    let lived = switched.elapsed();
    assert!(lived >= Duration::from_millis(600), "cut too early, after {lived:?}");
    until("nothing is left in flight", || edge.draining() == 0).await;
    assert_eq!(edge.routes.status("test").routes[0].counters.websockets, 1);
}

#[tokio::test]
async fn a_rollback_within_the_drain_time_saves_what_runs_on_the_old_set() {
    let (old, new) = (App::start("old").await, App::start("new").await);
    let edge = Edge::start().await;
    let first = |fence| edge.put(fence, Target::Live(set(1, &[old.address], Span::millis(300))));
    first(1);
    let mut slow = edge.connect().await;
    slow.send(&format!("GET /slow/900 HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    until("the slow request is in flight", || edge.in_flight() == 1).await;
    edge.live(2, &[new.address]);
    first(3);
    assert_eq!((edge.in_flight(), edge.draining()), (1, 0), "it is live again with all it had");
    assert_eq!(edge.get("/").await.header("x-version"), Some("old"));
    assert_eq!(slow.answer().await.status(), 200, "the old deadline no longer holds");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_wait_while_a_route_is_held_and_then_all_succeed() {
    let (old, new) = (App::start("old").await, App::start("new").await);
    let edge = Edge::serving(&old).await;
    let load = load(&edge).connections(3).start();
    load.more(50).await;
    edge.held(2, Span::secs(10));
    until("the old set has drained and all clients wait", || edge.draining() == 0 && edge.waiting() == 3).await;
    drop(old);
    edge.live(3, &[new.address]);
    load.more(50).await;
    let report = load.stop().await;
    assert_eq!(report.failed, 0, "{report:?}");
    assert_eq!(edge.waiting(), 0);
    assert!(edge.routes.status("test").routes[0].live.is_some());
}

#[tokio::test]
async fn a_held_route_times_out_with_504_and_takes_only_so_many() {
    let app = App::start("app").await;
    let edge = Edge::serving(&app).await;
    edge.held(2, Span::millis(400));
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = edge.connect().await;
        client.send(&format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
        clients.push(client);
    }
    until("three wait", || edge.waiting() == 3).await;
    let refused = edge.get("/").await;
    assert_eq!((refused.status(), refused.header("retry-after")), (503, Some("1")));
    for client in &mut clients {
        assert_eq!(client.answer().await.status(), 504);
    }
    assert_eq!((edge.waiting(), app.requests()), (0, 0));
    assert_eq!(edge.routes.status("test").routes[0].counters.failed, 4);
    edge.live(3, &[app.address]);
    assert_eq!(clients[0].get("/").await.status(), 200, "the connection is still good");
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_seat() {
    let edge = Edge::start().await;
    edge.held(1, Span::secs(60));
    let mut client = edge.connect().await;
    client.send(&format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    until("it waits", || edge.waiting() == 1).await;
    drop(client);
    until("its seat is free", || edge.waiting() == 0).await;
}

#[tokio::test]
async fn a_body_sent_while_the_route_is_held_arrives_whole() {
    let app = App::start("app").await;
    let edge = Edge::start().await;
    edge.held(1, Span::secs(60));
    let mut client = edge.connect().await;
    client.send(&format!("POST /body HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 5\r\n\r\n")).await;
    until("it waits", || edge.waiting() == 1).await;
    client.0.write_all(b"hello").await.expect("sent");
    edge.live(2, &[app.address]);
    assert_eq!(client.answer().await.body, "hello");
}

#[tokio::test]
async fn a_route_that_goes_away_drains_and_lets_nobody_wait() {
    let app = App::start("app").await;
    let edge = Edge::serving(&app).await;
    let mut slow = edge.connect().await;
    slow.send(&format!("GET /slow/300 HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    until("the slow request is in flight", || edge.in_flight() == 1).await;
    edge.routes.remove(KEY);
    assert_eq!(edge.get("/").await.status(), 404);
    assert_eq!(edge.draining(), 1);
    assert_eq!(slow.answer().await.status(), 200);

    edge.held(1, Span::secs(60));
    let mut waiting = edge.connect().await;
    waiting.send(&format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    until("it waits", || edge.waiting() == 1).await;
    edge.routes.remove(KEY);
    assert_eq!(waiting.answer().await.status(), 404);
}

#[tokio::test]
async fn an_older_fence_changes_nothing() {
    let (old, new) = (App::start("old").await, App::start("new").await);
    let edge = Edge::start().await;
    edge.live(5, &[new.address]);
    edge.live(4, &[old.address]);
    edge.held(4, Span::secs(1));
    assert_eq!(edge.get("/").await.header("x-version"), Some("new"));
    assert_eq!(edge.routes.status("test").routes[0].revision, 5);
}
