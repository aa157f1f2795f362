//! What becomes of requests that ask for an upgrade.

use super::*;

/// An application that says 101 as soon as it sees the first byte of a request; then it sends back what comes.
async fn hasty() -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            stream.read_u8().await.expect("a byte");
            let answer = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
            stream.write_all(answer).await.expect("answered");
            app::read_message(&mut stream).await.expect("a request");
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                tokio::io::copy(&mut from, &mut to).await.ok();
            });
        }
    });
    (address, tasks)
}

async fn upgrade(edge: &Edge, path: &str) -> Client {
    let mut client = edge.connect().await;
    let ask = format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    client.send(&ask).await;
    client
}

/// On several threads, for on one the answer is never seen too early.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_tunnel_ends_because_the_answer_came_early() {
    let (address, _app) = hasty().await;
    let edge = Edge::start().await;
    edge.live(1, &[address]);
    for turn in 0..200 {
        let mut socket = upgrade(&edge, "/socket").await;
        assert_eq!(socket.answer().await.status(), 101);
        let mut echo = [0; 4];
        socket.send("ping").await;
        timeout(DEADLINE, socket.0.read_exact(&mut echo))
            .await
            .expect("in time")
            .unwrap_or_else(|e| panic!("{turn}: {e}"));
        assert_eq!(&echo, b"ping");
    }
    assert_eq!(edge.routes.status("test").routes[0].counters.failed, 0);
}

#[tokio::test]
async fn a_refused_upgrade_is_an_answer_like_any_other() {
    let app = App::start("app").await;
    let edge = Edge::serving(&app).await;
    assert_eq!(upgrade(&edge, "/").await.answer().await.status(), 200);
}

#[tokio::test]
async fn an_upgrade_goes_to_another_upstream_where_one_is_dead() {
    let app = App::start("app").await;
    let edge = Edge::start().await;
    edge.live(1, &[nobody().await, app.address]);
    for _ in 0..4 {
        assert_eq!(upgrade(&edge, "/socket").await.answer().await.status(), 101);
    }
}
