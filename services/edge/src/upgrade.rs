//! Connections for requests that ask for an upgrade, such as websockets.
//!
//! Pingora sends the end of such a request and reads the answer at the same time, in any order. Where the 101 comes
//! first, it takes the end of the request for the end of the tunnel and closes it: about one websocket in a hundred.
//! So nothing is read from these connections before the whole request has gone out.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use async_trait::async_trait;
use pingora::{
    Error, ErrorType,
    connectors::L4Connect,
    protocols::l4::{
        socket::SocketAddr,
        stream::Stream,
        virt::{VirtualSockOpt, VirtualSocket, VirtualSocketStream},
    },
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Sleep, sleep, timeout},
};

use crate::set::CONNECT_LIMIT;

/// Pingora flushes after the header and again after the end of the body.
const WHOLE_REQUEST: u32 = 2;
/// A client that wants `100 Continue` before it sends a body would wait for the answer that waits for it.
const PATIENCE: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Connector;

#[async_trait]
impl L4Connect for Connector {
    async fn connect(&self, address: &SocketAddr) -> pingora::Result<Stream> {
        let address = address.as_inet().ok_or_else(|| Error::explain(ErrorType::InternalError, "not an IP address"))?;
        let stream = timeout(CONNECT_LIMIT, TcpStream::connect(address))
            .await
            .map_err(|late| Error::because(ErrorType::ConnectTimedout, "connecting for an upgrade", late))?
            .map_err(|error| Error::because(ErrorType::ConnectError, "connecting for an upgrade", error))?;
        let socket = Socket { stream, flushes: 0, patience: Box::pin(sleep(PATIENCE)) };
        Ok(VirtualSocketStream::new(Box::new(socket)).into())
    }
}

#[derive(Debug)]
struct Socket {
    stream: TcpStream,
    flushes: u32,
    patience: Pin<Box<Sleep>>,
}

impl VirtualSocket for Socket {
    fn set_socket_option(&self, option: VirtualSockOpt) -> io::Result<()> {
        match option {
            VirtualSockOpt::NoDelay => self.stream.set_nodelay(true),
            // Upstreams are on this machine or its bridge: one that vanishes says so.
            _ => Ok(()),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.flushes < WHOLE_REQUEST {
            // The same task writes and reads: after a flush it comes by again, so that needs no waker.
            ready!(self.patience.as_mut().poll(context));
            self.flushes = WHOLE_REQUEST;
        }
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, from)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(context))?;
        self.flushes = self.flushes.saturating_add(1);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
