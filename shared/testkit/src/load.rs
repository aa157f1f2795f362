//! A load generator that forgives nothing: no retries, every answer that is not a success is a failure.

use std::{
    collections::BTreeMap,
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{
    Request,
    client::conn::http1::{self, SendRequest},
    header::HOST,
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpStream,
    task::JoinSet,
    time::{MissedTickBehavior, interval_at, timeout},
};
use tokio_util::sync::CancellationToken;

/// What to ask for, how and how often.
#[derive(Clone)]
pub struct Load {
    address: String,
    host: String,
    path: String,
    connections: u32,
    rate: Option<u32>,
    keep_alive: bool,
    deadline: Duration,
}

impl Load {
    /// GET `/` from `address` (host and port) in the name of `host`, over 8 connections that are kept alive, as fast
    /// as they go, with ten seconds for each answer.
    pub fn new(address: &str, host: &str) -> Load {
        Load {
            address: address.into(),
            host: host.into(),
            path: "/".into(),
            connections: 8,
            rate: None,
            keep_alive: true,
            deadline: Duration::from_secs(10),
        }
    }

    /// Path and query.
    #[must_use]
    pub fn path(mut self, path: &str) -> Load {
        self.path = path.into();
        self
    }

    /// How many clients ask at the same time.
    #[must_use]
    pub fn connections(mut self, connections: u32) -> Load {
        self.connections = connections;
        self
    }

    /// Requests a second, of all connections together.
    #[must_use]
    pub fn rate(mut self, per_second: u32) -> Load {
        self.rate = Some(per_second);
        self
    }

    /// A new connection for each request.
    #[must_use]
    pub fn without_keep_alive(mut self) -> Load {
        self.keep_alive = false;
        self
    }

    /// A request without an answer by then has failed.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Load {
        self.deadline = deadline;
        self
    }

    /// Starts the clients. They end with [`Running::stop`], or when the returned value is dropped.
    pub fn start(self) -> Running {
        let stop = CancellationToken::new();
        let answered = Arc::new(AtomicU64::new(0));
        let clients =
            (0..self.connections).map(|client| self.clone().run(client, stop.clone(), answered.clone())).collect();
        Running { stop, answered, clients }
    }

    async fn run(self, client: u32, stop: CancellationToken, answered: Arc<AtomicU64>) -> Report {
        let mut report = Report::default();
        let mut connection = None;
        let mut ticks = self.rate.map(|rate| {
            let first = tokio::time::Instant::now() + Duration::from_secs(1) * client / rate;
            let mut ticks = interval_at(first, Duration::from_secs(1) * self.connections / rate);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks
        });
        loop {
            if let Some(ticks) = &mut ticks {
                tokio::select! { () = stop.cancelled() => {}, _ = ticks.tick() => {} }
            }
            if stop.is_cancelled() {
                return report;
            }
            let started = Instant::now();
            let outcome = timeout(self.deadline, self.request(&mut connection))
                .await
                .unwrap_or_else(|_| Err(format!("no answer within {:?}", self.deadline)));
            report.record(outcome, started.elapsed());
            answered.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Answers the version that the answer names.
    async fn request(&self, kept: &mut Option<SendRequest<Empty<Bytes>>>) -> Result<String, String> {
        // A server may close an idle connection; only one that breaks under a request is a failure.
        let mut idle = kept.take();
        if let Some(connection) = &mut idle
            && connection.ready().await.is_err()
        {
            idle = None;
        }
        let mut connection = match idle {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        let request = Request::get(&self.path)
            .header(HOST, &self.host)
            .body(Empty::new())
            .map_err(|error| with_causes("building the request", &error))?;
        let response =
            connection.send_request(request).await.map_err(|error| with_causes("awaiting the answer", &error))?;
        let status = response.status();
        let version = response.headers().get("x-version").and_then(|version| version.to_str().ok());
        let version = version.unwrap_or("none").to_owned();
        response.into_body().collect().await.map_err(|error| with_causes("reading the answer", &error))?;
        if self.keep_alive {
            *kept = Some(connection);
        }
        if status.is_success() { Ok(version) } else { Err(format!("status {status}")) }
    }

    async fn connect(&self) -> Result<SendRequest<Empty<Bytes>>, String> {
        let stream = TcpStream::connect(&self.address).await.map_err(|error| with_causes("connecting", &error))?;
        let (sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| with_causes("connecting", &error))?;
        // Ends when the sender is dropped; its errors reach the request.
        tokio::spawn(connection);
        Ok(sender)
    }
}

/// Load that is under way.
pub struct Running {
    stop: CancellationToken,
    answered: Arc<AtomicU64>,
    clients: JoinSet<Report>,
}

impl Running {
    /// How many requests have ended so far, well or not.
    pub fn requests(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Waits until `count` more requests have ended: the load is known to have met what happened in between.
    pub async fn more(&self, count: u64) {
        let enough = self.requests() + count;
        while self.requests() < enough {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Lets open requests finish, then tells what happened.
    pub async fn stop(mut self) -> Report {
        self.stop.cancel();
        let mut total = Report::default();
        while let Some(report) = self.clients.join_next().await {
            total.add(report.unwrap_or_else(|error| Report::failure(with_causes("running a client", &error))));
        }
        total
    }
}

/// What happened to the requests.
#[derive(Debug, Default)]
pub struct Report {
    /// All of them.
    pub requests: u64,
    /// Those with no answer, or with one that is not a success.
    pub failed: u64,
    /// The failures by reason.
    pub failures: BTreeMap<String, u64>,
    /// The successes by the version that answered.
    pub versions: BTreeMap<String, u64>,
    latencies: Vec<Duration>,
}

impl Report {
    /// The latency that `quantile` (0 to 1) of the requests did not exceed.
    pub fn latency(&self, quantile: f64) -> Duration {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        let last = sorted.len().saturating_sub(1) as f64;
        sorted.get((last * quantile).round() as usize).copied().unwrap_or_default()
    }

    /// Adds another load's report to this one.
    pub fn add(&mut self, other: Report) {
        self.requests += other.requests;
        self.failed += other.failed;
        for (reason, count) in other.failures {
            *self.failures.entry(reason).or_default() += count;
        }
        for (version, count) in other.versions {
            *self.versions.entry(version).or_default() += count;
        }
        self.latencies.extend(other.latencies);
    }

    fn failure(reason: String) -> Report {
        Report { requests: 1, failed: 1, failures: BTreeMap::from([(reason, 1)]), ..Report::default() }
    }

    fn record(&mut self, outcome: Result<String, String>, latency: Duration) {
        self.requests += 1;
        self.latencies.push(latency);
        match outcome {
            Ok(version) => *self.versions.entry(version).or_default() += 1,
            Err(reason) => {
                self.failed += 1;
                *self.failures.entry(reason).or_default() += 1;
            }
        }
    }
}

fn with_causes(operation: &str, error: &dyn Error) -> String {
    let mut text = format!("{operation}: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    /// Reads a request on each connection, writes `answer` and hangs up.
    async fn server(answer: &'static [u8]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.read(&mut [0; 1024]).await;
                let _ = stream.write_all(answer).await;
            }
        });
        address
    }

    async fn report(answer: &'static [u8]) -> Report {
        let load = Load::new(&server(answer).await, "localhost").connections(2).rate(100).start();
        load.more(10).await;
        load.stop().await
    }

    #[tokio::test]
    async fn a_request_without_a_whole_answer_has_failed() {
        for answer in [
            &b""[..],
            b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf",
            b"HTTP/1.1 503 x\r\ncontent-length: 0\r\n\r\n",
        ] {
            let report = report(answer).await;
            assert!(report.failed == report.requests && report.requests >= 10, "{report:?}");
        }
    }

    #[tokio::test]
    async fn an_idle_connection_that_was_closed_is_replaced() {
        let report = report(b"HTTP/1.1 200 OK\r\nx-version: 7\r\ncontent-length: 0\r\n\r\n").await;
        assert!(report.failed == 0 && report.versions["7"] == report.requests, "{report:?}");
    }
}
