//! The whole proxy against real sockets: every test starts its own, with tiny applications behind it.

mod app;
mod http;
mod replace;
mod retry;
mod upgrade;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use domain::{
    Span,
    settings::HealthCheck,
    traffic::{Route, Target, UpstreamSet},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::timeout,
};
use tokio_util::task::TaskTracker;

use self::app::App;
use crate::{
    listen::{self, Duty},
    proxy::{ANSWER_LIMIT, Proxy},
    routes::Routes,
    workers::Workers,
};

const HOST: &str = "shop.test";
const KEY: &str = "shop.prod";
const TOKEN: &str = "token";
const DEADLINE: Duration = Duration::from_secs(10);

/// A running edge without NATS: routes are put in by hand.
struct Edge {
    routes: Arc<Routes>,
    address: SocketAddr,
    duty: watch::Sender<Duty>,
    grace: Duration,
    serving: JoinHandle<()>,
    _tasks: JoinSet<()>,
}

impl Edge {
    async fn start() -> Edge {
        Edge::with(Duration::from_secs(5)).await
    }

    async fn with(grace: Duration) -> Edge {
        Edge::with_limits(grace, ANSWER_LIMIT).await
    }

    async fn with_limits(grace: Duration, answer_limit: Duration) -> Edge {
        let routes = Arc::new(Routes::new());
        let listener = listen::bind(([127, 0, 0, 1], 0).into()).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let duty = watch::Sender::new(Duty::Accept);
        let connections = TaskTracker::new();
        let proxy = Proxy { routes: routes.clone(), probe_token: TOKEN.into(), max_waiting: 3, answer_limit };
        let listener = Arc::new(listener.into_std().expect("a listener"));
        let workers = Workers::start(2).expect("threads");
        let serving = tokio::spawn(listen::serve(listener, proxy, workers, duty.subscribe(), connections));
        let mut tasks = JoinSet::new();
        tasks.spawn(routes.clone().enforce_deadlines());
        Edge { routes, address, duty, grace, serving, _tasks: tasks }
    }

    fn stop(&self) {
        self.duty.send_replace(Duty::Stop(self.grace));
    }

    /// An edge with one application behind [`HOST`].
    async fn serving(app: &App) -> Edge {
        let edge = Edge::start().await;
        edge.live(1, &[app.address]);
        edge
    }

    fn put(&self, fence: u64, target: Target) {
        let name = |text: &str| text.parse().expect("a name");
        let route = Route {
            project: name("shop"),
            stage: name("prod"),
            host: HOST.into(),
            path: "/".into(),
            target,
            fence,
            front: None,
        };
        self.routes.put(KEY, fence, route);
    }

    /// Deployment `number`, which is also the fence.
    fn live(&self, number: u64, addresses: &[SocketAddr]) {
        self.put(number, Target::Live(set(number, addresses, Span::secs(30))));
    }

    fn held(&self, number: u64, limit: Span) {
        self.put(number, Target::Held { limit });
    }

    async fn connect(&self) -> Client {
        Client(TcpStream::connect(self.address).await.expect("the edge accepts"))
    }

    /// One answer to GET `path`, on a connection of its own.
    async fn get(&self, path: &str) -> Answer {
        self.connect().await.get(path).await
    }

    fn waiting(&self) -> u64 {
        self.routes.status("test").routes[0].waiting
    }

    /// In flight on sets that drain.
    fn draining(&self) -> u64 {
        self.routes.status("test").draining.iter().map(|set| set.in_flight).sum()
    }

    fn in_flight(&self) -> u64 {
        self.routes.status("test").routes[0].live.as_ref().map_or(0, |set| set.in_flight)
    }
}

fn set(number: u64, addresses: &[SocketAddr], drain: Span) -> UpstreamSet {
    let addresses: Vec<String> = addresses.iter().map(SocketAddr::to_string).collect();
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    UpstreamSet { drain, health: HealthCheck::default(), ..crate::set::tests::config(number.into(), &addresses) }
}

/// An address at which nobody listens.
async fn nobody() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    listener.local_addr().expect("an address")
}

/// Waits until `condition` holds.
async fn until(what: &str, condition: impl Fn() -> bool) {
    let held = timeout(DEADLINE, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    assert!(held.await.is_ok(), "not within {DEADLINE:?}: {what}");
}

/// A client that says exactly what it is told to.
struct Client(TcpStream);

/// Status line and headers, and the body, as they came.
#[derive(Debug)]
struct Answer {
    head: String,
    body: String,
}

impl Answer {
    fn status(&self) -> u16 {
        self.head.get(9..12).and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("no status in {self:?}"))
    }

    fn header(&self, name: &str) -> Option<&str> {
        app::header(&self.head, name)
    }
}

impl Client {
    async fn get(&mut self, path: &str) -> Answer {
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
        self.answer().await
    }

    async fn post(&mut self, path: &str, body: &str) -> Answer {
        self.send(&format!("POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {}\r\n\r\n{body}", body.len()))
            .await;
        self.answer().await
    }

    async fn send(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.expect("the edge reads");
    }

    async fn answer(&mut self) -> Answer {
        let answer = timeout(DEADLINE, app::read_message(&mut self.0)).await.expect("an answer in time");
        let (head, body) = answer.expect("an answer");
        Answer { head, body }
    }

    /// Everything up to the end of the connection.
    async fn rest(&mut self) -> String {
        let mut rest = Vec::new();
        let read = timeout(DEADLINE, self.0.read_to_end(&mut rest)).await.expect("the end in time");
        // A reset is an end, too.
        let _ = read;
        String::from_utf8_lossy(&rest).into_owned()
    }
}
