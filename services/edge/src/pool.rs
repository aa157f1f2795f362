//! Connections to upstreams: how they are made, and kept for the next request.
//!
//! Each serving thread keeps its own, for no connection ever leaves the thread that made it: requests and connections
//! wake each other without a system call, and nothing here is locked.

use std::{cell::RefCell, collections::HashMap, io, time::Duration};

use http::Request;
use hyper::{
    Response,
    body::Incoming,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpStream,
    time::{Instant, MissedTickBehavior, interval, timeout},
};

use crate::{body::Upload, set::Upstream};

/// A SYN that was lost is sent again after one second; only then is an upstream given up.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);

/// Idle connections are closed well before any common server closes its side (2 s and more), so
/// that a request hardly ever meets a connection that is just being closed.
const IDLE_LIMIT: Duration = Duration::from_secs(1);

/// Idle connections to one upstream, per thread.
const MOST_IDLE: usize = 512;

thread_local! {
    /// By [`Upstream::key`].
    static IDLE: RefCell<HashMap<u64, Vec<Idle>>> = RefCell::default();
}

struct Idle {
    connection: SendRequest<Upload>,
    since: Instant,
}

/// A connection in use.
#[derive(Debug)]
pub(crate) struct Lease {
    key: u64,
    connection: SendRequest<Upload>,
    /// Whether a request went over it before.
    pub(crate) reused: bool,
}

/// Why a request got no answer.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Nothing of it was sent.
    Unsent(Box<Request<Upload>>),
    Broke(hyper::Error),
}

impl Lease {
    /// One that lies idle, if there is any.
    pub(crate) async fn reuse(upstream: &Upstream) -> Option<Self> {
        loop {
            let mut connection = take(upstream.key)?;
            // It is, unless it has just been closed: its task has yet to see that the last answer is over.
            if connection.ready().await.is_ok() {
                return Some(Self { key: upstream.key, connection, reused: true });
            }
        }
    }

    pub(crate) async fn connect(upstream: &Upstream) -> io::Result<Self> {
        let stream = timeout(CONNECT_LIMIT, TcpStream::connect(upstream.address)).await??;
        stream.set_nodelay(true)?;
        let (connection, driver) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        // Ends when its lease does, after what runs. What it fails with, the request on it learns.
        tokio::spawn(driver.with_upgrades());
        Ok(Self { key: upstream.key, connection, reused: false })
    }

    pub(crate) async fn send(&mut self, request: Request<Upload>) -> Result<Response<Incoming>, Failure> {
        self.connection.try_send_request(request).await.map_err(|mut error| match error.take_message() {
            Some(request) => Failure::Unsent(Box::new(request)),
            None => Failure::Broke(error.into_error()),
        })
    }

    /// After the last byte of an answer.
    pub(crate) fn give_back(self) {
        if self.connection.is_closed() {
            return;
        }
        // No longer there when the thread ends.
        let _ = IDLE.try_with(|idle| {
            let mut idle = idle.borrow_mut();
            let idle = idle.entry(self.key).or_default();
            if idle.len() < MOST_IDLE {
                idle.push(Idle { connection: self.connection, since: Instant::now() });
            }
        });
    }
}

/// The one used last.
fn take(key: u64) -> Option<SendRequest<Upload>> {
    IDLE.with_borrow_mut(|idle| {
        let idle = idle.get_mut(&key)?;
        let last = idle.pop()?;
        if last.since.elapsed() < IDLE_LIMIT {
            return Some(last.connection);
        }
        // So are all before it.
        idle.clear();
        None
    })
}

/// Closes what this thread has not used for long, for as long as it runs.
pub(crate) async fn sweep() {
    let mut ticks = interval(IDLE_LIMIT / 2);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        IDLE.with_borrow_mut(|idle| {
            idle.retain(|_, idle| {
                let stale = idle.partition_point(|idle| idle.since.elapsed() >= IDLE_LIMIT);
                idle.drain(..stale);
                !idle.is_empty()
            });
        });
    }
}
