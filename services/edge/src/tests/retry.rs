//! What goes wrong between the edge and an upstream, and which requests must not notice.

use super::{app::After, *};
use crate::health;

#[tokio::test]
async fn a_dead_upstream_costs_no_request_with_or_without_a_body() {
    let app = App::start("app").await;
    let edge = Edge::start().await;
    edge.live(1, &[nobody().await, app.address, nobody().await]);
    for turn in 0..6 {
        let answer = match turn % 2 {
            0 => edge.get("/").await,
            _ => edge.connect().await.post("/body", "precious").await,
        };
        assert_eq!(answer.status(), 200, "{answer:?}");
        assert!(turn % 2 == 0 || answer.body == "precious");
    }
    let status = edge.routes.status("test");
    let healthy: Vec<_> = status.routes[0].live.as_ref().expect("live").upstreams.iter().map(|u| u.healthy).collect();
    assert_eq!(healthy, [false, true, false]);
    assert_eq!((status.routes[0].counters.failed, app.requests()), (0, 6));
}

#[tokio::test]
async fn when_all_are_dead_the_answer_is_503_until_one_is_back() {
    let address = nobody().await;
    let edge = Edge::start().await;
    edge.live(1, &[address, nobody().await]);
    let mut client = edge.connect().await;
    let answer = client.get("/").await;
    assert_eq!((answer.status(), answer.header("retry-after")), (503, Some("1")));
    assert_eq!(edge.in_flight(), 0);
    let _app = App::at(address, "back", After::KeepOpen).await;
    assert_eq!(edge.get("/").await.status(), 200, "a mark is no reason to give up");
    edge.live(2, &[]);
    assert_eq!(edge.get("/").await.status(), 503);
}

#[tokio::test]
async fn probes_take_upstreams_out_and_bring_them_back() {
    let address = nobody().await;
    let edge = Edge::start().await;
    let _probes = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(health::probe_all(edge.routes.clone())));
    let mut config = set(1, &[address], Span::secs(1));
    config.health.interval = Span::millis(100);
    edge.put(1, Target::Live(config));
    let healthy = || edge.routes.live_sets()[0].upstreams()[0].is_healthy();
    until("it is marked down", || !healthy()).await;
    let app = App::at(address, "app", After::KeepOpen).await;
    until("it is found healthy", healthy).await;
    drop(app);
    until("it is marked down again", || !healthy()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_application_that_closes_kept_connections_fails_no_request() {
    let app = App::with("sloppy", After::Close).await;
    let edge = Edge::serving(&app).await;
    let load = testkit::Load::new(&edge.address.to_string(), HOST).start();
    let mut client = edge.connect().await;
    for turn in 0..300 {
        let body = turn.to_string();
        let answer = client.post("/body", &body).await;
        assert_eq!((answer.status(), answer.body), (200, body));
    }
    load.more(500).await;
    let report = load.stop().await;
    assert_eq!(report.failed, 0, "{report:?}");
}

#[tokio::test]
async fn an_upstream_that_breaks_off_is_replaced_only_where_repeating_is_safe() {
    let app = App::start("app").await;
    let edge = Edge::start().await;
    edge.live(1, &[app.address, app.address]);
    assert_eq!(edge.get("/abort").await.status(), 502);
    assert_eq!(app.requests(), 2, "GET is tried on each upstream once");
    assert_eq!(edge.connect().await.post("/abort", "x").await.status(), 502);
    assert_eq!(app.requests(), 3, "POST is not repeated");
    assert_eq!(edge.get("/nonsense").await.status(), 502);
    assert_eq!(edge.routes.status("test").routes[0].counters.failed, 3);
}

#[tokio::test]
async fn half_an_answer_is_seen_to_break_off() {
    let app = App::start("app").await;
    let edge = Edge::serving(&app).await;
    let mut client = edge.connect().await;
    client.send(&format!("GET /half HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    let all = client.rest().await;
    assert!(all.starts_with("HTTP/1.1 200") && all.ends_with("half"), "{all}");
}

#[tokio::test]
async fn an_upstream_that_never_answers_is_given_up() {
    let app = App::start("app").await;
    let edge = Edge::with_limits(Duration::ZERO, Duration::from_millis(200)).await;
    edge.live(1, &[app.address, app.address]);
    let mut client = edge.connect().await;
    assert_eq!(client.get("/slow/60000").await.status(), 504);
    assert_eq!((app.requests(), edge.in_flight()), (1, 0), "tried once, and its place is free");
    assert_eq!(client.get("/").await.status(), 200, "the client's connection is still good");

    // The time begins with the end of the request.
    client.send(&format!("POST /body HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 8\r\n\r\n")).await;
    for byte in ["s", "l", "o", "w", "n", "e", "s", "s"] {
        tokio::time::sleep(Duration::from_millis(50)).await;
        client.send(byte).await;
    }
    assert_eq!(client.answer().await.body, "slowness");
}
