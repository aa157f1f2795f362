//! One client's connection: tells HTTP/1 from HTTP/2, serves one request after the other or many at a time, and ends
//! in order.

use std::{convert::Infallible, io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustix::net::sockopt;
use tokio::{net::TcpStream, sync::watch, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    headers::Client,
    proxy::{Entrance, Proxy},
};

/// How long a client may take to begin its first request.
const FIRST_BYTE_LIMIT: Duration = Duration::from_secs(60);

/// How long a connection may lie idle between two requests, and a request's head may take to arrive. Longer than a
/// proxy in front of the edge keeps one (two minutes at most, as a rule): the side that sends requests should be the
/// one that closes, or a request may meet a connection that is just being closed.
const IDLE_LIMIT: Duration = Duration::from_secs(150);

/// No method begins like this, so it is HTTP/2 from the first three bytes on.
const HTTP2: &[u8] = b"PRI";

/// On HTTP/2 a client that does not answer a ping is gone.
const PING_INTERVAL: Duration = Duration::from_secs(60);
const PONG_LIMIT: Duration = Duration::from_secs(20);

/// What serves connections, and what ends them.
#[derive(Clone)]
pub(crate) struct Host {
    pub(crate) proxy: Arc<Proxy>,
    /// Whether answers say that theirs is the last one on its connection.
    pub(crate) leaving: watch::Receiver<bool>,
    /// Ends those that wait for a request.
    pub(crate) silence: CancellationToken,
    pub(crate) connections: TaskTracker,
}

impl Host {
    /// For one of several threads: what its connections wait for is nothing that they share with others.
    pub(crate) fn on_a_thread(&self) -> Self {
        Self { silence: self.silence.child_token(), ..self.clone() }
    }

    /// On the thread that this runs on.
    pub(crate) fn spawn(&self, stream: TcpStream, client: SocketAddr) {
        // A client that is gone already needs no answer.
        self.connections.spawn(self.clone().serve(stream, client));
    }

    pub(crate) async fn serve(self, stream: TcpStream, client: SocketAddr) -> io::Result<()> {
        let mut first = [0; HTTP2.len()];
        let read = tokio::select! {
            // What has arrived is served, also when it is time to stop.
            biased;
            read = timeout(FIRST_BYTE_LIMIT, stream.peek(&mut first)) => read??,
            () = self.silence.cancelled() => 0,
        };
        if read == 0 {
            return Ok(());
        }
        // Options that make things better, not possible.
        let _ = stream.set_nodelay(true);
        let _ = set_keepalive(&stream);
        let entrance = Arc::new(Entrance {
            client: Client::new(client, stream.local_addr()?),
            leaving: self.leaving.clone(),
            connections: self.connections.clone(),
        });
        let stream = TokioIo::new(stream);
        // How it ends is up to the client.
        let _ = if first == HTTP2 { self.http2(stream, entrance).await } else { self.http1(stream, entrance).await };
        Ok(())
    }

    async fn http1(self, stream: TokioIo<TcpStream>, entrance: Arc<Entrance>) -> hyper::Result<()> {
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(IDLE_LIMIT);
        let mut serving = pin!(http.serve_connection(stream, self.service(entrance)).with_upgrades());
        tokio::select! {
            biased;
            served = serving.as_mut() => return served,
            () = self.silence.cancelled() => {}
        }
        serving.as_mut().graceful_shutdown();
        serving.await
    }

    async fn http2(mut self, stream: TokioIo<TcpStream>, entrance: Arc<Entrance>) -> hyper::Result<()> {
        let mut http = http2::Builder::new(TokioExecutor::new());
        http.timer(TokioTimer::new()).keep_alive_interval(PING_INTERVAL).keep_alive_timeout(PONG_LIMIT);
        let mut serving = pin!(http.serve_connection(stream, self.service(entrance)));
        tokio::select! {
            biased;
            served = serving.as_mut() => return served,
            // There is no last answer to say it with.
            _ = self.leaving.wait_for(|leaving| *leaving) => {}
        }
        serving.as_mut().graceful_shutdown();
        serving.await
    }

    fn service(
        &self,
        entrance: Arc<Entrance>,
    ) -> impl hyper::service::Service<
        http::Request<Incoming>,
        Response = http::Response<crate::body::Reply>,
        Error = Infallible,
        Future: Send + 'static,
    > + use<> {
        let proxy = self.proxy.clone();
        service_fn(move |request| {
            let (proxy, entrance) = (proxy.clone(), entrance.clone());
            async move { Ok(proxy.answer(request, &entrance).await) }
        })
    }
}

/// Finds a client whose machine vanished within two minutes: nothing else ends a silent websocket.
fn set_keepalive(stream: &TcpStream) -> rustix::io::Result<()> {
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(60))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(15))?;
    sockopt::set_tcp_keepcnt(stream, 4)
}
