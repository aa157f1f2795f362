//! The listener: accepts connections, tells HTTP/1 from HTTP/2, and ends in order.

use std::{convert::Infallible, io, net::SocketAddr, os::fd::AsRawFd, sync::Arc, time::Duration};

use anyhow::Context;
use async_trait::async_trait;
use pingora::{
    apps::{HttpServerApp, HttpServerOptions, ReusedHttpStream, ServerApp},
    protocols::{
        GetSocketDigest, SocketDigest,
        http::ServerSession,
        l4::{ext::TcpKeepalive, stream::Stream},
    },
    proxy::HttpProxy,
    server::{ShutdownWatch, configuration::ServerConf},
};
use rustix::{
    io::Errno,
    net::{SocketFlags, accept_with},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{cut::until_cut, proxy::Proxy};

/// How long a client may take to begin its first request.
const FIRST_BYTE_LIMIT: Duration = Duration::from_secs(60);

/// How long a connection may lie idle between two requests. Longer than a proxy in front of the
/// edge keeps one (two minutes at most, as a rule): the side that sends requests should be the one
/// that closes, or a request may meet a connection that is just being closed.
const IDLE_LIMIT: Duration = Duration::from_secs(150);

/// How long a client with nothing under way may still speak once the edge ends: a request may be on its way to it, and
/// would meet a reset.
const LAST_WORD: Duration = Duration::from_millis(500);

/// No method begins like this, so it is HTTP/2 from the first three bytes on.
const HTTP2: &[u8] = b"PRI";

/// Connections to upstreams kept for reuse, per thread.
const POOL_SIZE: usize = 512;

/// More tries than a set can have upstreams: each is tried, none twice in a row.
const MAX_TRIES: usize = 64;

/// Finds a client whose machine vanished within two minutes: nothing else ends a silent websocket.
fn keepalive() -> TcpKeepalive {
    TcpKeepalive {
        idle: Duration::from_secs(60),
        interval: Duration::from_secs(15),
        count: 4,
        user_timeout: Duration::ZERO,
    }
}

/// What the listener does at present.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Duty {
    Accept,
    /// Another process accepts on the same socket. What is connected here is served: for one more request each, or to
    /// the end of what runs. May turn back.
    StandBy,
    /// The same for good: the socket is let go.
    Leave,
    /// Ends, as soon as what runs has ended, at the latest after this time.
    Stop(Duration),
}

/// What serves connections.
struct App {
    proxy: Arc<HttpProxy<Proxy>>,
    options: HttpServerOptions,
}

#[async_trait]
impl HttpServerApp for App {
    async fn process_new_http(
        self: &Arc<Self>,
        session: ServerSession,
        shutdown: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        until_cut(self.proxy.process_new_http(session, shutdown)).await.flatten()
    }

    fn server_options(&self) -> Option<&HttpServerOptions> {
        Some(&self.options)
    }
}

/// Says what to do where the address cannot be had.
pub(crate) async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address}: set EDGE_LISTEN to a free address, such as 127.0.0.1:8081, or stop what listens there")
    })
}

/// Serves until it is told to stop, and counts what is open in `connections`.
pub(crate) async fn serve(
    listener: Arc<TcpListener>,
    proxy: Proxy,
    threads: usize,
    mut duty: watch::Receiver<Duty>,
    connections: TaskTracker,
) {
    let app = Arc::new(app(proxy, threads));
    let (stopping, shutdown) = watch::channel(false);
    // Ends those that wait for a request.
    let silence = CancellationToken::new();
    let spawn = |stream, client| {
        let (app, shutdown, silence) = (app.clone(), shutdown.clone(), silence.clone());
        connections.spawn(async move {
            // A client that is gone already needs no answer.
            let _ = connection(&app, stream, client, shutdown, &silence).await;
        });
    };
    let (mut listener, mut accepting) = (Some(listener), false);
    let grace = loop {
        let now = *duty.borrow_and_update();
        // From here on answers say that theirs is the last one on its connection.
        stopping.send_replace(now != Duty::Accept);
        match (now, &listener) {
            (Duty::Stop(grace), _) => break grace,
            (Duty::Accept, Some(listener)) => {
                accepting = true;
                tokio::select! {
                    never = accept(listener, &spawn) => match never {},
                    _ = duty.changed() => continue,
                }
            }
            (Duty::StandBy | Duty::Accept, _) => accepting = false,
            (Duty::Leave, _) => (listener, accepting) = (None, false),
        }
        if duty.changed().await.is_err() {
            break Duration::ZERO;
        }
    };
    if let Some(listener) = listener.filter(|_| accepting) {
        accept_queued(&listener, &spawn);
    }
    connections.close();
    if timeout(grace.min(LAST_WORD), connections.wait()).await.is_ok() {
        return;
    }
    silence.cancel();
    app.proxy.http_cleanup().await;
    if timeout(grace.saturating_sub(LAST_WORD), connections.wait()).await.is_err() {
        tracing::warn!(connections = connections.len(), "still busy after the grace time, closing them");
    }
}

async fn accept(listener: &TcpListener, spawn: &impl Fn(TcpStream, SocketAddr)) -> Infallible {
    loop {
        match listener.accept().await {
            Ok((stream, client)) => spawn(stream, client),
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed");
                // Out of file descriptors, as a rule: nothing tells when there are some again.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Whoever has connected already, too: closing the socket would reset them. Asks the kernel itself, which knows of
/// connections that tokio has not been told of yet.
fn accept_queued(listener: &TcpListener, spawn: &impl Fn(TcpStream, SocketAddr)) {
    loop {
        let stream = match accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(socket) => std::net::TcpStream::from(socket),
            Err(Errno::CONNABORTED | Errno::INTR) => continue,
            Err(_) => return,
        };
        if let Ok(client) = stream.peer_addr()
            && let Ok(stream) = TcpStream::from_std(stream)
        {
            spawn(stream, client);
        }
    }
}

fn app(proxy: Proxy, threads: usize) -> App {
    let conf = ServerConf {
        threads,
        upstream_keepalive_pool_size: POOL_SIZE,
        max_retries: MAX_TRIES,
        ..ServerConf::default()
    };
    let mut proxy = HttpProxy::new(proxy, Arc::new(conf));
    proxy.handle_init_modules();
    let mut options = HttpServerOptions::default();
    options.h2c = true;
    options.h2_idle_timeout = Some(IDLE_LIMIT);
    App { proxy: Arc::new(proxy), options }
}

async fn connection(
    app: &Arc<App>,
    stream: TcpStream,
    client: SocketAddr,
    shutdown: ShutdownWatch,
    silence: &CancellationToken,
) -> io::Result<()> {
    let mut first = [0; HTTP2.len()];
    let read = tokio::select! {
        // What has arrived is served, also when it is time to stop.
        biased;
        read = timeout(FIRST_BYTE_LIMIT, stream.peek(&mut first)) => read??,
        () = silence.cancelled() => 0,
    };
    if read == 0 {
        return Ok(());
    }
    let local = stream.local_addr()?;
    let mut stream = Stream::from(stream);
    let digest = SocketDigest::from_raw_fd(stream.as_raw_fd());
    // Known already, so that nobody has to ask the kernel again; a new cell takes any value.
    let _ = digest.peer_addr.set(Some(client.into()));
    let _ = digest.local_addr.set(Some(local.into()));
    stream.set_socket_digest(digest);
    // Options that make things better, not possible.
    let _ = stream.set_nodelay();
    let _ = stream.set_keepalive(&keepalive());
    if first == HTTP2 {
        app.process_new(Box::new(stream), &shutdown).await;
    } else {
        http1(app, stream, &shutdown).await;
    }
    Ok(())
}

/// One request after the other.
async fn http1(app: &Arc<App>, stream: Stream, shutdown: &ShutdownWatch) {
    let mut session = ServerSession::new_http1(Box::new(stream));
    loop {
        // Both before every request: Pingora takes "keep alive" from the client to mean for ever.
        session.set_keepalive(Some(IDLE_LIMIT.as_secs()));
        session.set_pipelining_enabled(true);
        let Some(reused) = app.process_new_http(session, shutdown).await else { return };
        let (stream, settings) = reused.consume();
        session = ServerSession::new_http1(stream);
        if let Some(settings) = settings {
            settings.apply_to_session(&mut session);
        }
    }
}
