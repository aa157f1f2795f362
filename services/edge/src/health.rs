//! Active probes: every upstream that is routed to is asked, again and again, whether it lives.

use std::{collections::HashMap, io, net::SocketAddr, sync::Arc, time::Duration};

use domain::settings::{Check, HealthCheck};
use futures::future::join_all;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::{AbortHandle, JoinSet},
    time::{MissedTickBehavior, interval, timeout},
};

use crate::{
    routes::Routes,
    set::{Set, Upstream},
};

/// Probes faster than this would be load rather than care.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);

/// A status line is shorter.
const LONGEST_STATUS_LINE: u64 = 512;

/// A container on this machine answers a first look well before; for one that does not nobody waits longer.
const FIRST_LOOK: Duration = Duration::from_millis(300);

/// How a probe failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// Requests cannot be served either.
    #[error("connecting: {0}")]
    Unreachable(io::Error),
    /// Connected, but the answer was not healthy.
    #[error("{0}")]
    Unhealthy(String),
}

/// Probes the live sets of `routes`, whichever they are, for as long as it runs.
pub(crate) async fn probe_all(routes: Arc<Routes>) {
    let mut changes = routes.changes();
    let mut probes = JoinSet::new();
    let mut running: HashMap<u64, AbortHandle> = HashMap::new();
    loop {
        let live = routes.live_sets();
        running.retain(|id, probe| {
            let keep = live.iter().any(|set| set.id == *id);
            if !keep {
                probe.abort();
            }
            keep
        });
        for set in live {
            running.entry(set.id).or_insert_with(|| probes.spawn(probe_set(set)));
        }
        while probes.try_join_next().is_some() {}
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Takes none of the upstreams of `routes` for granted: each is avoided until it has answered a probe. All are asked at
/// the same time; who has not answered within [`FIRST_LOOK`] stays avoided, and [`probe_all`] asks on.
pub(crate) async fn first_look(routes: &Routes) {
    let sets = routes.live_sets();
    let upstreams = sets.iter().flat_map(|set| set.upstreams().iter().map(move |upstream| (set, upstream)));
    let probes = upstreams.map(|(set, upstream)| {
        upstream.mark(false);
        async move {
            if probe(upstream.address, &set.config.health).await.is_ok() {
                upstream.mark(true);
            }
        }
    });
    // Who is late is named below.
    let _ = timeout(FIRST_LOOK, join_all(probes)).await;
    for upstream in sets.iter().flat_map(|set| set.upstreams()).filter(|upstream| !upstream.is_healthy()) {
        tracing::warn!(instance = upstream.instance, address = %upstream.address, "upstream does not answer, avoided until it does");
    }
}

async fn probe_set(set: Arc<Set>) {
    let health = &set.config.health;
    let mut ticks = interval(health.interval.duration().max(SHORTEST_INTERVAL));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failures = vec![0; set.upstreams().len()];
    loop {
        ticks.tick().await;
        let probes = set.upstreams().iter().zip(&mut failures).map(|(upstream, failures)| async move {
            let outcome = probe(upstream.address, health).await;
            judge(upstream, outcome, failures, health.retries);
        });
        join_all(probes).await;
    }
}

/// One good answer lifts an upstream up. Without a connection it is down at once; bad answers
/// take `retries` in a row.
fn judge(upstream: &Upstream, outcome: Result<(), Failure>, failures: &mut u16, retries: u16) {
    let Err(failure) = outcome else {
        *failures = 0;
        if upstream.mark(true) {
            tracing::info!(instance = upstream.instance, address = %upstream.address, "upstream is healthy again");
        }
        return;
    };
    *failures = failures.saturating_add(1);
    let down = match failure {
        Failure::Unreachable(_) => true,
        Failure::Unhealthy(_) => *failures >= retries.max(1),
    };
    if down && upstream.mark(false) {
        tracing::warn!(instance = upstream.instance, address = %upstream.address, %failure, "upstream failed its probe, marked down");
    }
}

async fn probe(address: SocketAddr, health: &HealthCheck) -> Result<(), Failure> {
    let limit = health.timeout.duration();
    let connected = timeout(limit, TcpStream::connect(address)).await;
    let stream = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(Failure::Unreachable)?;
    match health.check {
        Check::Http => {}
        // What Docker checks, Docker's events tell; from here only the port can be seen.
        Check::Auto | Check::Image | Check::Tcp | Check::Running => return Ok(()),
    }
    let path = health.path.as_deref().unwrap_or("/");
    match timeout(limit, http_status(stream, address, path)).await {
        Err(_) => Err(Failure::Unhealthy(format!("no answer within {limit:?}"))),
        Ok(Err(error)) => Err(Failure::Unhealthy(error.to_string())),
        Ok(Ok(status)) if is_good(status, health.status) => Ok(()),
        Ok(Ok(status)) => Err(Failure::Unhealthy(format!("status {status}"))),
    }
}

fn is_good(status: u16, wanted: Option<u16>) -> bool {
    wanted.map_or((200..400).contains(&status), |wanted| status == wanted)
}

async fn http_status(mut stream: TcpStream, address: SocketAddr, path: &str) -> io::Result<u16> {
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: sluice-edge\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut line = Vec::new();
    let mut answer = stream.take(LONGEST_STATUS_LINE);
    while !line.contains(&b'\n') && answer.read_buf(&mut line).await? > 0 {}
    parse_status(&line).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the answer is not HTTP"))
}

/// `200` of `HTTP/1.1 200 OK`.
fn parse_status(line: &[u8]) -> Option<u16> {
    let line = line.strip_prefix(b"HTTP/1.")?;
    let code = line.get(2..5)?;
    std::str::from_utf8(code).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use domain::Span;
    use tokio::net::TcpListener;

    use super::*;
    use crate::set::tests::config;

    fn http() -> HealthCheck {
        HealthCheck {
            check: Check::Http,
            path: Some("/health".into()),
            timeout: Span::millis(300),
            ..HealthCheck::default()
        }
    }

    /// Answers every connection with `answer` and gives back its address.
    async fn server(answer: &'static [u8]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 1024];
                let read = stream.read(&mut request).await.unwrap_or(0);
                assert!(read == 0 || request.starts_with(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1:"));
                let _ = stream.write_all(answer).await;
            }
        });
        address
    }

    #[tokio::test]
    async fn an_http_probe_reads_the_status() {
        let good = server(b"HTTP/1.1 204 No Content\r\n\r\n").await;
        assert!(probe(good, &http()).await.is_ok());
        assert!(probe(good, &HealthCheck { status: Some(200), ..http() }).await.is_err(), "one status was asked for");
        for bad in [&b"HTTP/1.1 500 No\r\n\r\n"[..], b"SSH-2.0\r\n", b"", b"HTTP/1.1 2"] {
            let address = server(bad).await;
            assert!(matches!(probe(address, &http()).await, Err(Failure::Unhealthy(_))), "{bad:?}");
        }
    }

    #[tokio::test]
    async fn other_checks_only_connect() {
        let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = silent.local_addr().expect("an address");
        let tcp = HealthCheck { check: Check::Tcp, ..http() };
        assert!(probe(address, &tcp).await.is_ok());
        assert!(matches!(probe(address, &http()).await, Err(Failure::Unhealthy(_))), "HTTP needs an answer");
        drop(silent);
        assert!(matches!(probe(address, &tcp).await, Err(Failure::Unreachable(_))));
    }

    #[test]
    fn bad_answers_count_up_and_one_good_one_heals() {
        let set = Set::new(config(1, &["127.0.0.1:1"]), None);
        let upstream = &set.upstreams()[0];
        let mut failures = 0;
        let bad = || Err(Failure::Unhealthy("status 500".into()));
        judge(upstream, bad(), &mut failures, 2);
        assert!(upstream.is_healthy(), "once is no trend");
        judge(upstream, bad(), &mut failures, 2);
        assert!(!upstream.is_healthy());
        judge(upstream, Ok(()), &mut failures, 2);
        assert!(upstream.is_healthy());
        judge(upstream, Err(Failure::Unreachable(io::ErrorKind::ConnectionRefused.into())), &mut failures, 2);
        assert!(!upstream.is_healthy(), "nobody there is down at once");
    }
}
