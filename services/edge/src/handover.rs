//! One edge process takes over from another: the words they exchange, and the listening socket.
//!
//! The edge that runs starts its successor with one end of a private socket pair as standard input. Both watch that
//! connection for as long as they live, so each notices the other's death, however it died:
//!
//! ```text
//!   predecessor                           successor
//!      | -- listening socket, Estate --------> |  has the same routes, probes the upstreams,
//!      | <------------------------- Ready ---- |  follows NATS
//!      |  answers under another id             |
//!      | -- Go ------------------------------> |  answers as the edge, accepts
//!      | <----------------------- Serving ---- |
//!      |  accepts no more, serves on what      |
//!      |  it has, ends                         |
//!      | <------------ Replaced or Stopped --- |  when it ends in order
//! ```
//!
//! A successor that dies before the predecessor has ended is replaced by it: it still holds the socket. A predecessor
//! that dies before `Go` is replaced at once by a successor that has the socket.

use std::{
    ffi::OsString,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream as StdUnixStream,
    },
    path::Path,
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use rustix::{
    cmsg_space,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
        recvmsg, sendmsg,
    },
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Interest, Lines},
    net::{
        TcpListener, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    process::{Child, Command},
    time::timeout,
};

use crate::routes::Saved;

/// Set for a process that is to take over from the one that starts it.
const VARIABLE: &str = "EDGE_HANDOVER";

/// From the start of a successor to its being ready: it waits a few seconds for NATS.
const READY_LIMIT: Duration = Duration::from_secs(20);
/// Between [`Message::Go`] and [`Message::Serving`].
const GO_LIMIT: Duration = Duration::from_secs(5);
/// How long a successor waits to be told to go: longer than any predecessor that lives takes.
const TURN_LIMIT: Duration = Duration::from_secs(30);
/// How long the remains of a process may take.
const REAP_LIMIT: Duration = Duration::from_secs(5);

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "is")]
enum Message {
    /// What the successor begins with.
    Estate(Estate),
    Go,
    Ready,
    Serving,
    Failed {
        reason: String,
    },
    /// A successor of the successor serves.
    Replaced,
    /// The edge as a whole is to end.
    Stopped,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Estate {
    /// One for both, so that a probe of either is answered by whoever accepts it.
    pub(crate) probe_token: String,
    pub(crate) routes: Vec<Saved>,
}

struct Channel {
    lines: Lines<BufReader<OwnedReadHalf>>,
    writer: OwnedWriteHalf,
}

impl Channel {
    fn new(stream: UnixStream) -> Self {
        let (reader, writer) = stream.into_split();
        Self { lines: BufReader::new(reader).lines(), writer }
    }

    async fn send(&mut self, message: &Message) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        self.writer.write_all(&line).await
    }

    /// `None` when the other process is gone. May be dropped at any time.
    async fn next(&mut self) -> Option<Message> {
        let line = self.lines.next_line().await.ok()??;
        match serde_json::from_str(&line) {
            Ok(message) => Some(message),
            Err(error) => Some(Message::Failed { reason: format!("unknown words: {error}") }),
        }
    }
}

/// The process that takes over from this one.
pub(crate) struct Successor {
    pub(crate) pid: u32,
    child: Child,
    channel: Channel,
}

/// What became of a successor.
pub(crate) enum Fate {
    Gone,
    Replaced,
    Stopped,
}

impl Successor {
    /// Runs `program` with the arguments of this process; it has the listening socket and waits for its turn.
    pub(crate) async fn start(program: &Path, listener: &impl AsFd, estate: Estate) -> Result<Self> {
        let (ours, theirs) = StdUnixStream::pair().context("creating a socket pair")?;
        ours.set_nonblocking(true)?;
        let ours = UnixStream::from_std(ours)?;
        let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
        let child = Command::new(program)
            .args(arguments)
            .env(VARIABLE, "1")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        let pid = child.id().context("it ended at once")?;
        let sent = send_socket(&ours, listener).await;
        let mut successor = Self { pid, child, channel: Channel::new(ours) };
        let give = async {
            sent?;
            successor.channel.send(&Message::Estate(estate)).await
        };
        match timeout(READY_LIMIT, give).await {
            Ok(Ok(())) => Ok(successor),
            // Its status says more than our broken pipe.
            Ok(Err(_)) => Err(successor.failure("it took over").await),
            Err(_) => Err(successor.kill(format!("it did not take over within {READY_LIMIT:?}")).await),
        }
    }

    /// Waits until it could serve. An error means that it has ended.
    pub(crate) async fn ready(&mut self) -> Result<()> {
        match timeout(READY_LIMIT, self.channel.next()).await {
            Ok(Some(Message::Ready)) => Ok(()),
            Ok(Some(Message::Failed { reason })) => Err(self.kill(reason).await),
            Ok(Some(other)) => Err(self.kill(format!("it said {other:?} before it was ready")).await),
            Ok(None) => Err(self.failure("it was ready").await),
            Err(_) => Err(self.kill(format!("it was not ready within {READY_LIMIT:?}")).await),
        }
    }

    /// Lets it serve. An error means that it has ended.
    pub(crate) async fn go(&mut self) -> Result<()> {
        if self.channel.send(&Message::Go).await.is_err() {
            return Err(self.failure("it served").await);
        }
        match timeout(GO_LIMIT, self.channel.next()).await {
            Ok(Some(Message::Serving)) => Ok(()),
            Ok(Some(Message::Failed { reason })) => Err(self.kill(reason).await),
            Ok(Some(other)) => Err(self.kill(format!("it said {other:?} before it served")).await),
            Ok(None) => Err(self.failure("it served").await),
            Err(_) => Err(self.kill(format!("it did not serve within {GO_LIMIT:?}")).await),
        }
    }

    /// Waits for its end, or for what it says of it. May be dropped at any time.
    pub(crate) async fn fate(&mut self) -> Fate {
        loop {
            match self.channel.next().await {
                None => {
                    // Reaped: its parent is this process.
                    let _ = timeout(REAP_LIMIT, self.child.wait()).await;
                    return Fate::Gone;
                }
                Some(Message::Replaced) => return Fate::Replaced,
                Some(Message::Stopped) => return Fate::Stopped,
                Some(_) => {}
            }
        }
    }

    /// It has closed the connection: why?
    async fn failure(&mut self, before: &str) -> anyhow::Error {
        // What it said before it went comes first.
        if let Some(Message::Failed { reason }) = self.channel.next().await {
            return self.kill(reason).await;
        }
        match timeout(REAP_LIMIT, self.child.wait()).await {
            Ok(Ok(status)) => anyhow::anyhow!("it ended with {status} before {before}; the edge's log says more"),
            Ok(Err(_)) | Err(_) => self.kill(format!("it hung up before {before}")).await,
        }
    }

    pub(crate) async fn kill(&mut self, reason: String) -> anyhow::Error {
        // Fails only where it has ended already.
        let _ = timeout(REAP_LIMIT, self.child.kill()).await;
        anyhow::Error::msg(reason)
    }
}

/// The process that this one takes over from.
pub(crate) struct Predecessor(Channel);

impl Predecessor {
    /// Where this process was started as a successor: the socket to listen on, and what to begin with.
    pub(crate) async fn find() -> Result<Option<(Self, TcpListener, Estate)>> {
        if runtime::env::optional(VARIABLE).is_none() {
            return Ok(None);
        }
        let stream = StdUnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        stream.set_nonblocking(true)?;
        let inherited = timeout(READY_LIMIT, Self::receive(UnixStream::from_std(stream)?)).await;
        inherited.context("the edge before did not hand over in time")?.context("taking over from the edge before")
    }

    async fn receive(stream: UnixStream) -> Result<Option<(Self, TcpListener, Estate)>> {
        let listener = receive_socket(&stream).await?;
        let mut channel = Channel::new(stream);
        match channel.next().await {
            Some(Message::Estate(estate)) => Ok(Some((Self(channel), listener, estate))),
            other => bail!("instead of its routes came {other:?}"),
        }
    }

    pub(crate) async fn ready(&mut self) {
        // If it is gone by now, `turn` tells.
        let _ = self.0.send(&Message::Ready).await;
    }

    /// Returns when it is this process's turn: when it is told so, or when the edge before is gone. May be dropped at
    /// any time.
    pub(crate) async fn turn(&mut self) -> Result<()> {
        match timeout(TURN_LIMIT, self.0.next()).await {
            Ok(Some(Message::Go)) => Ok(()),
            Ok(None) => {
                tracing::warn!("the edge before is gone, taking over at once");
                Ok(())
            }
            Ok(Some(other)) => bail!("the edge before said {other:?} instead of letting this one serve"),
            Err(_) => bail!("the edge before did not let this one serve within {TURN_LIMIT:?}"),
        }
    }

    /// These are of interest only where it still lives.
    pub(crate) async fn serving(&mut self) {
        let _ = self.0.send(&Message::Serving).await;
    }

    pub(crate) async fn replaced(&mut self) {
        let _ = self.0.send(&Message::Replaced).await;
    }

    pub(crate) async fn stopped(&mut self) {
        let _ = self.0.send(&Message::Stopped).await;
    }

    pub(crate) async fn failed(&mut self, error: &anyhow::Error) {
        let _ = self.0.send(&Message::Failed { reason: format!("{error:#}") }).await;
    }
}

/// One byte, to have something that the socket can come with.
const MARK: [u8; 1] = *b"L";

async fn send_socket(stream: &UnixStream, listener: &impl AsFd) -> io::Result<()> {
    let sent = stream.async_io(Interest::WRITABLE, || {
        let descriptors = [listener.as_fd()];
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
        Ok(sendmsg(stream, &[IoSlice::new(&MARK)], &mut control, SendFlags::empty())?)
    });
    if sent.await? == MARK.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

async fn receive_socket(stream: &UnixStream) -> Result<TcpListener> {
    let received = stream.async_io(Interest::READABLE, || {
        let mut mark = [0; MARK.len()];
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        recvmsg(stream, &mut [IoSliceMut::new(&mut mark)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
        let descriptor = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        Ok(descriptor)
    });
    let socket = received.await?.context("no socket came along")?;
    let listener = std::net::TcpListener::from(socket);
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener).context("using the socket")
}
