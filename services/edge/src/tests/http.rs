//! The protocol: hosts, headers, versions, odd requests, and an orderly end.

use domain::traffic::{DEPLOYMENT_HEADER, PROBE_HEADER};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{app::header, *};

#[tokio::test]
async fn only_known_hosts_are_served() {
    let app = App::start("app").await;
    let edge = Edge::serving(&app).await;
    let mut client = edge.connect().await;
    for (host, status) in
        [(HOST, 200), ("SHOP.TEST:8080", 200), ("other.test", 404), ("", 404), ("shop.test.evil", 404)]
    {
        client.send(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        let answer = client.answer().await;
        assert_eq!(answer.status(), status, "{host}: {answer:?}");
    }
    client.send(&format!("HEAD / HTTP/1.1\r\nHost: other.test\r\n\r\nGET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        head.push(client.0.read_u8().await.expect("an answer") as char);
    }
    assert!(head.starts_with("HTTP/1.1 404"), "{head}");
    assert_eq!(client.answer().await.status(), 200, "a pipelined request is served as well");
}

#[tokio::test]
async fn the_application_learns_the_truth_about_the_client() {
    let app = App::start("app").await;
    let edge = Edge::serving(&app).await;
    let mut client = edge.connect().await;
    client
        .send(&format!(
            "GET /head?a=1 HTTP/1.1\r\nHost: Shop.test:81\r\nX-Forwarded-For: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\n\
             X-Forwarded-Proto: https\r\nX-Forwarded-Prefix: /x\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nTE: trailers\r\nKeep-Alive: 5\r\n\
             Cookie: a=b\r\n{PROBE_HEADER}: wrong\r\n\r\n"
        ))
        .await;
    // `/head?a=1` is not `/head`, so the application names itself; ask again without the query.
    assert_eq!(client.answer().await.header(DEPLOYMENT_HEADER), None, "a wrong token learns nothing");
    client
        .send(&format!(
            "GET /head HTTP/1.1\r\nHost: Shop.test:81\r\nX-Forwarded-For: 6.6.6.6\r\nX-Hop: 1\r\nConnection: x-hop\r\nCookie: a=b\r\n{PROBE_HEADER}: {TOKEN}\r\n\r\n"
        ))
        .await;
    let answer = client.answer().await;
    assert_eq!(answer.header(DEPLOYMENT_HEADER), Some("00000000-0000-0000-0000-000000000001"));
    assert_eq!(answer.header("keep-alive"), None);
    let seen = |name| header(&answer.body, name);
    assert_eq!(seen("host"), Some("Shop.test:81"));
    assert_eq!(seen("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(seen("x-real-ip"), Some("127.0.0.1"));
    assert_eq!(seen("x-forwarded-proto"), Some("http"));
    assert_eq!(seen("x-forwarded-host"), Some("Shop.test:81"));
    assert_eq!(seen("x-forwarded-port"), Some("81"));
    assert_eq!(seen("cookie"), Some("a=b"));
    assert_eq!((seen(PROBE_HEADER), seen("x-hop"), seen("x-forwarded-prefix")), (None, None, None));
    assert!(answer.body.matches("6.6.6.6").next().is_none());
}

#[tokio::test]
async fn http2_without_tls_is_served_many_at_once() {
    let app = App::start("app").await;
    let edge = Edge::serving(&app).await;
    let client = reqwest::Client::builder()
        .http2_prior_knowledge()
        .no_proxy()
        .resolve(HOST, edge.address)
        .build()
        .expect("a client");
    let url = |path| format!("http://{HOST}:{}{path}", edge.address.port());
    let all = futures::future::join_all((0..20).map(|_| client.get(url("/slow/100")).send())).await;
    for answer in all {
        let answer = answer.expect("an answer");
        assert_eq!((answer.status(), answer.version()), (reqwest::StatusCode::OK, reqwest::Version::HTTP_2));
        assert_eq!(answer.headers().get("connection"), None);
    }
    let head = client.get(url("/head")).send().await.expect("an answer").text().await.expect("a body");
    assert_eq!(header(&head, "host"), Some(&*format!("{HOST}:{}", edge.address.port())));
    let echoed = client.post(url("/body")).body("hello").send().await.expect("an answer").text().await.expect("a body");
    assert!(echoed.contains("hello"), "{echoed}");
    let missing = client.get(format!("http://127.0.0.1:{}/", edge.address.port())).send().await.expect("an answer");
    assert_eq!(missing.status(), 404);
}

#[tokio::test]
async fn on_stop_a_request_on_http2_finishes() {
    let app = App::start("app").await;
    let edge = Edge::serving(&app).await;
    let client = reqwest::Client::builder()
        .http2_prior_knowledge()
        .no_proxy()
        .resolve(HOST, edge.address)
        .build()
        .expect("a client");
    let url = format!("http://{HOST}:{}/slow/400", edge.address.port());
    let slow = tokio::spawn(client.get(url).send());
    until("it is in flight", || edge.in_flight() == 1).await;
    edge.stop();
    let answer = slow.await.expect("no panic").expect("an answer");
    assert_eq!(answer.status(), 200);
    timeout(Duration::from_secs(2), edge.serving).await.expect("it ends at once").expect("in order");
}

#[tokio::test]
async fn a_request_in_absolute_form_goes_by_the_host_in_it() {
    let app = App::start("app").await;
    let edge = Edge::serving(&app).await;
    let mut client = edge.connect().await;
    client.send(&format!("GET http://{HOST}/head HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    let answer = client.answer().await;
    assert_eq!((answer.status(), header(&answer.body, "host")), (200, Some(HOST)), "{answer:?}");
}

#[tokio::test]
async fn an_upgrade_to_anything_but_a_websocket_is_just_a_request() {
    let app = App::start("app").await;
    let edge = Edge::serving(&app).await;
    let mut client = edge.connect().await;
    client
        .send(&format!(
            "GET /head HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n"
        ))
        .await;
    let answer = client.answer().await;
    assert_eq!((answer.status(), header(&answer.body, "upgrade")), (200, None), "{answer:?}");
    assert_eq!(client.get("/").await.status(), 200);
}

#[tokio::test]
async fn a_client_that_waits_for_leave_to_send_its_body_gets_it() {
    let app = App::start("app").await;
    let edge = Edge::serving(&app).await;
    let mut client = edge.connect().await;
    client
        .send(&format!("POST /leave HTTP/1.1\r\nHost: {HOST}\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"))
        .await;
    assert_eq!(client.answer().await.status(), 100);
    client.send("hello").await;
    assert_eq!(client.answer().await.status(), 200);
}

#[tokio::test]
async fn an_old_client_gets_no_chunks() {
    let app = App::start("app").await;
    let edge = Edge::serving(&app).await;
    let mut client = edge.connect().await;
    client.send(&format!("GET /chunked HTTP/1.0\r\nHost: {HOST}\r\n\r\n")).await;
    let all = client.rest().await;
    assert!(all.ends_with("\r\n\r\nhello"), "{all}");
    let mut client = edge.connect().await;
    client.send("GET / HTTP/1.0\r\n\r\n").await;
    assert!(client.rest().await.starts_with("HTTP/1.0 404"), "the shortest request gets an answer, too");
    assert_eq!(edge.connect().await.get("/chunked").await.body, "5\r\nhello\r\n0\r\n\r\n");
}

#[tokio::test]
async fn odd_requests_get_a_clear_answer_and_reach_no_application() {
    let app = App::start("app").await;
    let edge = Edge::serving(&app).await;
    let long = "x".repeat(2 << 20);
    for (request, status) in [
        ("nonsense\r\n\r\n".to_owned(), "HTTP/1.1 400"),
        (format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nHost: other.test\r\n\r\n"), "HTTP/1.1 400"),
        (format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx"), "HTTP/1.1 400"),
        (format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: gzip\r\n\r\n"), "HTTP/1.1 400"),
        (format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: x-forwarded-for\r\n\r\n"), "HTTP/1.1 400"),
        (format!("CONNECT {HOST}:80 HTTP/1.1\r\nHost: {HOST}\r\n\r\n"), "HTTP/1.1 405"),
        (format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nX-Long: {long}\r\n\r\n"), ""),
    ] {
        let mut client = edge.connect().await;
        // The edge may hang up before all of a request that is too long was sent.
        let _ = client.0.write_all(request.as_bytes()).await;
        let answer = client.rest().await;
        assert!(answer.starts_with(status), "{:.80}: {answer}", request);
    }
    assert_eq!(app.requests(), 0);
    assert_eq!(edge.get("/").await.status(), 200);
}

#[tokio::test]
async fn a_body_is_as_long_for_the_application_as_it_is_for_the_edge() {
    let app = App::start("app").await;
    let edge = Edge::serving(&app).await;
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n";
    for lengths in
        ["Content-Length: 4\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nContent-Length: 4"]
    {
        let mut client = edge.connect().await;
        let size = smuggled.len();
        client
            .send(&format!(
                "POST /head HTTP/1.1\r\nHost: {HOST}\r\n{lengths}\r\n\r\n{size:x}\r\n{smuggled}\r\n0\r\n\r\n"
            ))
            .await;
        let answer = client.answer().await;
        let seen = |name| header(&answer.body, name);
        assert_eq!((answer.status(), seen("content-length"), seen("transfer-encoding")), (200, None, Some("chunked")));
    }
    assert_eq!(app.requests(), 2, "what is in a body is no request");
}

#[tokio::test]
async fn a_large_body_passes_both_ways() {
    let app = App::start("app").await;
    let edge = Edge::serving(&app).await;
    let body = "0123456789".repeat(300_000);
    let mut client = edge.connect().await;
    assert_eq!(client.post("/body", &body).await.body.len(), body.len());
}

#[tokio::test]
async fn errors_of_the_application_are_counted_and_passed_on() {
    let app = App::start("app").await;
    let edge = Edge::serving(&app).await;
    assert_eq!(edge.get("/error").await.body, "broken");
    edge.get("/").await;
    let counters = edge.routes.status("test").routes[0].counters;
    assert_eq!((counters.requests, counters.upstream_errors, counters.failed, counters.websockets), (2, 1, 0, 0));
}

#[tokio::test]
async fn on_stop_idle_connections_close_at_once_and_running_requests_finish() {
    let app = App::start("app").await;
    let edge = Edge::serving(&app).await;
    let (mut idle, mut silent, mut slow) = (edge.connect().await, edge.connect().await, edge.connect().await);
    idle.get("/").await;
    slow.send(&format!("GET /slow/500 HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    until("the slow request is in flight", || edge.in_flight() == 1).await;
    edge.stop();
    assert_eq!(idle.rest().await, "");
    assert_eq!(silent.rest().await, "");
    assert!(TcpStream::connect(edge.address).await.is_err(), "no new connections");
    assert_eq!(slow.answer().await.status(), 200);
    timeout(Duration::from_secs(2), edge.serving).await.expect("it ends at once").expect("in order");
}

#[tokio::test]
async fn on_stop_a_websocket_lasts_as_long_as_the_grace_time() {
    let app = App::start("app").await;
    let edge = Edge::with(Duration::from_millis(300)).await;
    edge.live(1, &[app.address]);
    let mut socket = edge.connect().await;
    socket
        .send(&format!("GET /socket HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"))
        .await;
    assert_eq!(socket.answer().await.status(), 101);
    edge.stop();
    timeout(Duration::from_secs(3), edge.serving).await.expect("it ends").expect("in order");
}

#[tokio::test]
async fn a_taken_port_names_the_variable_to_set() {
    let taken = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = taken.local_addr().expect("an address");
    let error = listen::bind(address).await.expect_err("taken");
    assert!(error.to_string().contains("EDGE_LISTEN") && error.to_string().contains(&address.to_string()), "{error}");
}

#[test]
fn as_many_connections_may_be_open_as_the_machine_allows() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: Some(64), maximum }).expect("less than before");
    crate::raise_open_files();
    assert_eq!(getrlimit(Resource::Nofile).current, maximum);
}
