//! An edge as a deployer sees it: it says that it lives, takes up routes, and answers probes.

use std::{
    collections::HashMap,
    pin::pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use domain::traffic::{
    Counters, DEPLOYMENT_HEADER, EDGES, EdgePresence, EdgeStatus, ROUTES, Route, RouteStatus, SetStatus, Target,
    status_subject,
};
use eventlog::{Change, EventLog};
use futures::StreamExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

/// Ends when dropped.
pub(crate) struct FakeEdge {
    routes: Routes,
    /// Every target it has had, in order.
    pub(crate) history: Arc<Mutex<Vec<Target>>>,
    _tasks: JoinSet<()>,
}

type Routes = Arc<Mutex<HashMap<String, (Route, u64)>>>;

impl FakeEdge {
    pub(crate) async fn start(log: &EventLog) -> FakeEdge {
        let routes = Routes::default();
        let history = Arc::<Mutex<Vec<Target>>>::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let presence = EdgePresence {
            id: "fake".into(),
            version: "0".into(),
            address: listener.local_addr().expect("an address").to_string(),
            probe_token: "token".into(),
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(answer_probes(listener, routes.clone()));
        tasks.spawn(answer_status(log.clone(), routes.clone()));
        tasks.spawn(follow(log.clone(), routes.clone(), history.clone()));
        tasks.spawn(live(log.clone(), presence));
        FakeEdge { routes, history, _tasks: tasks }
    }

    /// Hosts that it serves.
    pub(crate) fn hosts(&self) -> Vec<String> {
        self.routes.lock().expect("unpoisoned").values().map(|(route, _)| route.host.clone()).collect()
    }
}

async fn live(log: EventLog, presence: EdgePresence) {
    let value = serde_json::to_vec(&presence).expect("JSON");
    loop {
        log.bucket(EDGES).put(&presence.id, value.clone()).await.expect("present");
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}

async fn follow(log: EventLog, routes: Routes, history: Arc<Mutex<Vec<Target>>>) {
    let mut changes = pin!(log.bucket(ROUTES).watch());
    while let Some(change) = changes.next().await {
        let mut routes = routes.lock().expect("unpoisoned");
        match change.expect("readable") {
            Change::Put { key, value, revision } => {
                let route: Route = serde_json::from_slice(&value).expect("a route");
                history.lock().expect("unpoisoned").push(route.target.clone());
                routes.insert(key, (route, revision));
            }
            Change::Deleted { key, .. } => {
                routes.remove(&key);
            }
            Change::Ready => {}
        }
    }
}

async fn answer_status(log: EventLog, routes: Routes) {
    let mut requests = pin!(log.serve(&status_subject("fake")).await.expect("serving"));
    while let Some(request) = requests.next().await {
        let status = EdgeStatus { id: "fake".into(), routes: statuses(&routes), draining: vec![] };
        request.reply(serde_json::to_vec(&status).expect("JSON")).await.expect("answered");
    }
}

fn statuses(routes: &Routes) -> Vec<RouteStatus> {
    let routes = routes.lock().expect("unpoisoned");
    let status = |(key, (route, revision)): (&String, &(Route, u64))| RouteStatus {
        key: key.clone(),
        revision: *revision,
        host: route.host.clone(),
        path: route.path.clone(),
        held: matches!(route.target, Target::Held { .. }),
        waiting: 0,
        live: match &route.target {
            Target::Live(set) => Some(SetStatus { deployment: set.deployment, in_flight: 0, upstreams: vec![] }),
            Target::Held { .. } => None,
        },
        counters: Counters::default(),
    };
    routes.iter().map(status).collect()
}

async fn answer_probes(listener: TcpListener, routes: Routes) {
    loop {
        let (stream, _) = listener.accept().await.expect("a connection");
        answer_probe(stream, &routes).await;
    }
}

async fn answer_probe(mut stream: TcpStream, routes: &Routes) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    assert!(head.contains("sluice-probe: token\r\n"), "a probe without its token: {head}");
    let host = head.lines().find_map(|line| line.strip_prefix("host: ")).unwrap_or_default();
    let answering = routes.lock().expect("unpoisoned").values().find_map(|(route, _)| match &route.target {
        Target::Live(set) if route.host == host => Some(set.deployment),
        Target::Live(_) | Target::Held { .. } => None,
    });
    let marker = answering.map(|deployment| format!("{DEPLOYMENT_HEADER}: {deployment}\r\n")).unwrap_or_default();
    // Any status will do: who answered is what counts.
    let answer = format!("HTTP/1.1 404 Not Found\r\n{marker}content-length: 0\r\nconnection: close\r\n\r\n");
    let _ = stream.write_all(answer.as_bytes()).await;
}
