//! The edge as the others see it: routes through NATS, presence, status, and life without NATS.

use std::{future::Future, net::SocketAddr, path::Path, time::Duration};

use domain::{
    DeploymentId, Span,
    settings::HealthCheck,
    traffic::{
        DEPLOYMENT_HEADER, EDGES, EdgePresence, EdgeStatus, PROBE_HEADER, ROUTES, Route, Target, Upstream, UpstreamSet,
        status_subject,
    },
};
use eventlog::{Bucket, EventLog};
use reqwest::{Client, Response};
use testkit::Nats;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const HOST: &str = "shop.test";
const KEY: &str = "shop.prod";
const DEADLINE: Duration = Duration::from_secs(20);

struct Edge {
    address: SocketAddr,
    stop: CancellationToken,
    serving: JoinHandle<anyhow::Result<()>>,
}

impl Edge {
    async fn start(url: &str, snapshot: &Path) -> Edge {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let config = edge::Config::new(snapshot.to_owned(), log_config(url));
        let stop = CancellationToken::new();
        let serving = tokio::spawn(edge::serve_on(listener, config, stop.clone()));
        Edge { address, stop, serving }
    }

    async fn get(&self, probe: &str) -> Response {
        let client = Client::builder().no_proxy().resolve(HOST, self.address).build().expect("a client");
        let url = format!("http://{HOST}:{}/", self.address.port());
        client.get(url).header(PROBE_HEADER, probe).send().await.expect("the edge answers")
    }

    async fn answers(&self, status: u16, body: &str) {
        let what = format!("the edge answers {status} {body}");
        until(&what, async || {
            let answer = self.get("").await;
            (answer.status() == status && answer.text().await.ok()?.contains(body)).then_some(())
        })
        .await;
    }

    async fn stop(self) {
        self.stop.cancel();
        let ended = timeout(DEADLINE, self.serving).await.expect("the edge stops in time");
        ended.expect("no panic").expect("in order");
    }
}

fn log_config(url: &str) -> eventlog::Config {
    eventlog::Config { url: url.into(), name: "edge-test".into(), master_key: None }
}

/// Asks again and again until there is an answer.
async fn until<T, F: Future<Output = Option<T>>>(what: &str, ask: impl Fn() -> F) -> T {
    let asked = timeout(DEADLINE, async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    asked.await.unwrap_or_else(|_| panic!("not within {DEADLINE:?}: {what}"))
}

/// An application that says `name` and hangs up.
async fn app(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 4096];
            if stream.read(&mut request).await.is_ok_and(|read| read > 0) {
                let answer =
                    format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{name}", name.len());
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        }
    });
    address
}

async fn put(bucket: &Bucket, fence: u64, address: SocketAddr) -> u64 {
    let name = |text: &str| text.parse().expect("a name");
    let target = Target::Live(UpstreamSet {
        deployment: DeploymentId(Uuid::from_u128(fence.into())),
        upstreams: vec![Upstream { instance: "c".into(), address: address.to_string() }],
        health: HealthCheck::default(),
        drain: Span::secs(1),
    });
    let route = Route {
        project: name("shop"),
        stage: name("prod"),
        host: HOST.into(),
        path: "/".into(),
        target,
        fence,
        front: None,
    };
    let value = serde_json::to_vec(&route).expect("serializable");
    until("NATS takes the route", async || bucket.put(KEY, value.clone()).await.ok()).await
}

async fn status(log: &EventLog) -> EdgeStatus {
    until("the edge tells its status", async || {
        let reply = log.request(&status_subject("local"), vec![], Duration::from_secs(2)).await.ok()?;
        serde_json::from_slice(&reply).ok()
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn routes_come_through_nats_and_outlive_it() {
    let mut nats = Nats::start().await.expect("nats-server starts");
    let folder = tempfile::tempdir().expect("a folder");
    let snapshot = folder.path().join("edge/routes.json");
    let log = EventLog::connect(&log_config(nats.url())).await.expect("connected");
    let routes = log.bucket(ROUTES);

    let edge = Edge::start(nats.url(), &snapshot).await;
    let revision = put(&routes, 1, app("one").await).await;
    edge.answers(200, "one").await;
    let told = status(&log).await;
    assert_eq!((told.routes[0].key.as_str(), told.routes[0].revision, told.draining.len()), (KEY, revision, 0));

    let presence: EdgePresence = until("the edge is present", async || {
        let entry = log.bucket(EDGES).get("local").await.ok()??;
        serde_json::from_slice(&entry.value).ok()
    })
    .await;
    assert_eq!(presence.address, edge.address.to_string());
    let answer = edge.get(&presence.probe_token).await;
    let deployment = answer.headers().get(DEPLOYMENT_HEADER).expect("the probe is answered");
    assert_eq!(deployment, &Uuid::from_u128(1).to_string());

    // A value that cannot be read changes nothing.
    routes.put(KEY, b"{}".to_vec()).await.expect("put");
    put(&routes, 2, app("two").await).await;
    edge.answers(200, "two").await;

    nats.kill();
    edge.answers(200, "two").await;
    nats.restart().await.expect("nats-server starts again");
    put(&routes, 3, app("three").await).await;
    edge.answers(200, "three").await;
    let told = status(&log).await;
    assert_eq!(told.routes[0].live.as_ref().expect("live").deployment, DeploymentId(Uuid::from_u128(3)));

    // A second edge begins where the first one ended, without NATS.
    until("the snapshot is written", async || {
        std::fs::read_to_string(&snapshot).ok()?.contains("\"fence\":3").then_some(())
    })
    .await;
    edge.stop().await;
    nats.kill();
    let edge = Edge::start(nats.url(), &snapshot).await;
    edge.answers(200, "three").await;
    nats.restart().await.expect("nats-server starts again");
    put(&routes, 4, app("four").await).await;
    edge.answers(200, "four").await;
    until("NATS takes the deletion", async || routes.delete(KEY, None).await.ok()).await;
    edge.answers(404, "").await;
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_that_went_away_while_the_edge_was_down_is_removed() {
    let mut nats = Nats::start().await.expect("nats-server starts");
    let folder = tempfile::tempdir().expect("a folder");
    let snapshot = folder.path().join("routes.json");
    let log = EventLog::connect(&log_config(nats.url())).await.expect("connected");
    put(&log.bucket(ROUTES), 1, app("one").await).await;
    let edge = Edge::start(nats.url(), &snapshot).await;
    edge.answers(200, "one").await;
    until("the snapshot is written", async || std::fs::read_to_string(&snapshot).ok()?.contains(KEY).then_some(()))
        .await;
    edge.stop().await;

    log.bucket(ROUTES).delete(KEY, None).await.expect("deleted");
    nats.kill();
    let edge = Edge::start(nats.url(), &snapshot).await;
    edge.answers(200, "one").await;
    nats.restart().await.expect("nats-server starts again");
    edge.answers(404, "").await;
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_snapshot_is_a_start_without_routes() {
    let folder = tempfile::tempdir().expect("a folder");
    let snapshot = folder.path().join("routes.json");
    for broken in ["", "{", "[{\"key\":\"shop.prod\"}]", "\u{0}\u{0}"] {
        std::fs::write(&snapshot, broken).expect("written");
        let edge = Edge::start("nats://a:b@127.0.0.1:1", &snapshot).await;
        edge.answers(404, "").await;
        edge.stop().await;
    }
}
