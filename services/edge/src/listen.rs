//! The listener: accepts connections, or lets another process do so, and ends in order.

use std::{
    io,
    net::{SocketAddr, TcpListener as StdListener, TcpStream as StdStream},
    os::fd::AsFd,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use rustix::{
    io::Errno,
    net::{SocketFlags, accept_with},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{connection::Host, proxy::Proxy, workers::Workers};

/// How long a client with nothing under way may still speak once the edge ends: a request may be on its way to it, and
/// would meet a reset.
const LAST_WORD: Duration = Duration::from_millis(500);

/// Out of file descriptors, as a rule: nothing tells when there are some again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

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

/// Says what to do where the address cannot be had.
pub(crate) async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address}: set EDGE_LISTEN to a free address, such as 127.0.0.1:8081, or stop what listens there")
    })
}

/// Serves until it is told to stop, and counts what is open in `connections`. `listener` does not block.
pub(crate) async fn serve(
    listener: Arc<StdListener>,
    proxy: Proxy,
    workers: Workers,
    mut duty: watch::Receiver<Duty>,
    connections: TaskTracker,
) {
    let (stopping, leaving) = watch::channel(false);
    let silence = CancellationToken::new();
    let host = Host { proxy: Arc::new(proxy), leaving, silence: silence.clone(), connections: connections.clone() };
    let (mut listener, mut accepting) = (Some(listener), false);
    let grace = loop {
        let now = *duty.borrow_and_update();
        // From here on answers say that theirs is the last one on its connection.
        stopping.send_replace(now != Duty::Accept);
        match (now, &listener) {
            (Duty::Stop(grace), _) => break grace,
            (Duty::Accept, Some(listener)) => {
                accepting = true;
                let mut acceptors = JoinSet::new();
                for handle in workers.handles() {
                    acceptors.spawn_on(accept(listener.clone(), host.on_a_thread()), handle);
                }
                let changed = duty.changed().await;
                acceptors.shutdown().await;
                match changed {
                    Ok(()) => continue,
                    Err(_) => break Duration::ZERO,
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
        accept_queued(&listener, &host, &workers);
    }
    connections.close();
    if timeout(grace.min(LAST_WORD), connections.wait()).await.is_err() {
        silence.cancel();
        if timeout(grace.saturating_sub(LAST_WORD), connections.wait()).await.is_err() {
            tracing::warn!(connections = connections.len(), "still busy after the grace time, closing them");
        }
    }
    workers.end().await;
}

/// Accepts on the thread that it runs on, and for it.
async fn accept(listener: Arc<StdListener>, host: Host) {
    let listener = loop {
        match share(&listener) {
            Ok(listener) => break listener,
            Err(error) => tracing::warn!(%error, "a thread cannot use the listening socket yet"),
        }
        sleep(ACCEPT_PAUSE).await;
    };
    loop {
        match listener.accept().await {
            Ok((stream, client)) => host.spawn(stream, client),
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// The same socket under a descriptor of this thread's own, for its runtime to watch.
fn share(listener: &StdListener) -> io::Result<TcpListener> {
    TcpListener::from_std(StdListener::from(listener.as_fd().try_clone_to_owned()?))
}

/// Whoever has connected already, too: closing the socket would reset them. Asks the kernel itself, which knows of
/// connections that tokio has not been told of yet.
fn accept_queued(listener: &StdListener, host: &Host, workers: &Workers) {
    let mut handles = workers.handles().cycle();
    loop {
        let stream = match accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(socket) => StdStream::from(socket),
            Err(Errno::CONNABORTED | Errno::INTR) => continue,
            Err(_) => return,
        };
        if let (Ok(client), Some(handle)) = (stream.peer_addr(), handles.next()) {
            let own = host.clone();
            host.connections.spawn_on(async move { own.serve(TcpStream::from_std(stream)?, client).await }, handle);
        }
    }
}
