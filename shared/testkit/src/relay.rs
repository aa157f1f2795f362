//! A relay in front of a real part, whose traffic a test can slow down, hold back or cut.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::{mpsc, watch},
    task::JoinSet,
    time::Instant,
};

const CHUNK: usize = 16 * 1024;
/// Chunks of one direction of a connection that are held back; then the sender is no longer read.
const HELD: usize = 4096;
/// Beginnings of requests that are remembered, and their bytes.
const HEADS: usize = 1000;
const LONGEST_HEAD: usize = 200;

/// What becomes of the bytes of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    Pass,
    /// Each byte arrives this much later.
    Delay(Duration),
    /// Bytes are accepted and not delivered, until they may pass again: then all of them are.
    Stall,
    /// So many more bytes of this direction arrive, over all connections; then it stalls.
    StallAfter(u64),
    /// Connections end, and new ones end at once.
    Cut,
}

/// One direction of a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From clients to the part.
    Requests,
    /// From the part to clients.
    Answers,
}

/// A way to a real part (an engine's socket, a registry, NATS, PostgreSQL, an application) that is open when it is
/// made. Dropping it closes it and everything that runs through it.
pub struct Relay {
    address: String,
    lanes: Arc<Lanes>,
    _tasks: JoinSet<()>,
    _directory: Option<TempDir>,
}

struct Lanes {
    requests: Lane,
    answers: Lane,
    trap: Mutex<Option<Vec<u8>>>,
    heads: Mutex<VecDeque<String>>,
}

struct Lane {
    flow: watch::Sender<Flow>,
    /// Bytes that may still pass under [`Flow::StallAfter`].
    left: AtomicU64,
}

#[derive(Clone)]
enum Target {
    Tcp(String),
    Unix(PathBuf),
}

impl Relay {
    /// In front of `target` (`127.0.0.1:5432`), on a loopback port of its own.
    pub async fn tcp(target: &str) -> Result<Relay> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("opening a relay's port")?;
        let address = listener.local_addr().context("asking for a relay's port")?.to_string();
        let target = Target::Tcp(target.to_owned());
        Ok(Relay::start(address, None, |lanes| {
            serve(lanes, target, async move || Some(listener.accept().await.ok()?.0))
        }))
    }

    /// In front of the unix socket `target` (a path, or `unix:///path` as in `DOCKER_HOST`).
    pub async fn unix(target: &str) -> Result<Relay> {
        let directory = TempDir::with_prefix("sluice-relay-").context("creating a relay's directory")?;
        let path = directory.path().join("relay.sock");
        let listener = UnixListener::bind(&path).context("opening a relay's socket")?;
        let target = Target::Unix(Path::new(target.trim_start_matches("unix://")).to_owned());
        let address = format!("unix://{}", path.display());
        let work = |lanes| serve(lanes, target, async move || Some(listener.accept().await.ok()?.0));
        Ok(Relay::start(address, Some(directory), work))
    }

    fn start<W>(address: String, directory: Option<TempDir>, work: impl FnOnce(Arc<Lanes>) -> W) -> Relay
    where
        W: Future<Output = ()> + Send + 'static,
    {
        let lane = || Lane { flow: watch::Sender::new(Flow::Pass), left: AtomicU64::new(0) };
        let lanes =
            Arc::new(Lanes { requests: lane(), answers: lane(), trap: Mutex::default(), heads: Mutex::default() });
        let mut tasks = JoinSet::new();
        tasks.spawn(work(lanes.clone()));
        Relay { address, lanes, _tasks: tasks, _directory: directory }
    }

    /// Where clients connect: `127.0.0.1:port`, or `unix:///path`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Sets what becomes of one direction from now on.
    pub fn set(&self, direction: Direction, flow: Flow) {
        self.lanes.lane(direction).set(flow);
    }

    /// Sets what becomes of both directions from now on.
    pub fn set_both(&self, flow: Flow) {
        self.set(Direction::Requests, flow);
        self.set(Direction::Answers, flow);
    }

    /// From the next request on that contains `text` (such as `POST /containers/create`, which has to come in one piece), both directions stall: the part never sees that request.
    pub fn stall_at(&self, text: &str) {
        *self.lanes.trap() = Some(text.as_bytes().to_vec());
    }

    /// How the requests so far began (`POST /containers/create?name=x HTTP/1.1`), the last thousand, in the order
    /// in which they reached the relay, whatever became of them.
    pub fn requests(&self) -> Vec<String> {
        self.lanes.heads.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Resolves once the request of [`Relay::stall_at`] has come.
    pub async fn stalled(&self) {
        let mut flow = self.lanes.requests.flow.subscribe();
        // The sender lives as long as this.
        let _ = flow.wait_for(|flow| *flow == Flow::Stall).await;
    }
}

impl Lanes {
    /// Remembers how `chunk` of a request begins.
    fn seen(&self, chunk: &[u8]) {
        let head = chunk.split(|byte| *byte == b'\r' || *byte == b'\n').next().unwrap_or_default();
        let mut heads = self.heads.lock().unwrap_or_else(PoisonError::into_inner);
        if heads.len() >= HEADS {
            heads.pop_front();
        }
        heads.push_back(String::from_utf8_lossy(&head[..head.len().min(LONGEST_HEAD)]).into_owned());
        drop(heads);
        self.spring(chunk);
    }

    fn lane(&self, direction: Direction) -> &Lane {
        match direction {
            Direction::Requests => &self.requests,
            Direction::Answers => &self.answers,
        }
    }

    fn trap(&self) -> std::sync::MutexGuard<'_, Option<Vec<u8>>> {
        self.trap.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stalls everything where `chunk` is the request that was waited for.
    fn spring(&self, chunk: &[u8]) {
        let mut trap = self.trap();
        let Some(text) = trap.as_deref() else { return };
        if chunk.windows(text.len()).any(|window| window == text) {
            *trap = None;
            self.answers.set(Flow::Stall);
            self.requests.set(Flow::Stall);
        }
    }
}

impl Lane {
    fn set(&self, flow: Flow) {
        if let Flow::StallAfter(bytes) = flow {
            self.left.store(bytes, Ordering::SeqCst);
        }
        self.flow.send_replace(flow);
    }

    /// Waits until some of `length` bytes that came at `came` may go on; answers how many.
    async fn clear(&self, length: usize, came: Instant) -> usize {
        let mut changes = self.flow.subscribe();
        loop {
            let flow = *changes.borrow_and_update();
            let due = match flow {
                Flow::Pass => return length,
                Flow::Delay(delay) if came + delay <= Instant::now() => return length,
                Flow::Delay(delay) => Some(came + delay),
                Flow::StallAfter(_) => {
                    let take = |left: u64| Some(left.saturating_sub(length as u64));
                    let left = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).unwrap_or_default();
                    if left > 0 {
                        return length.min(usize::try_from(left).unwrap_or(usize::MAX));
                    }
                    None
                }
                Flow::Stall | Flow::Cut => None,
            };
            match due {
                Some(due) => {
                    tokio::select! {
                        () = tokio::time::sleep_until(due) => {}
                        _ = changes.changed() => {}
                    }
                }
                // The sender lives as long as this.
                None => drop(changes.changed().await),
            }
        }
    }

    async fn cut(&self) {
        let mut changes = self.flow.subscribe();
        let _ = changes.wait_for(|flow| *flow == Flow::Cut).await;
    }
}

async fn serve<S>(lanes: Arc<Lanes>, target: Target, accept: impl AsyncFn() -> Option<S>)
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        let client = tokio::select! {
            client = accept() => client,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
        };
        // Out of descriptors: nothing that a relay could mend.
        let Some(client) = client else { return };
        let (lanes, target) = (lanes.clone(), target.clone());
        connections.spawn(async move {
            let through = async {
                match target {
                    Target::Tcp(address) => match TcpStream::connect(address).await {
                        Ok(server) => both_ways(&lanes, client, server).await,
                        Err(_) => drop(client),
                    },
                    Target::Unix(path) => match UnixStream::connect(path).await {
                        Ok(server) => both_ways(&lanes, client, server).await,
                        Err(_) => drop(client),
                    },
                }
            };
            tokio::select! {
                biased;
                () = lanes.requests.cut() => {}
                () = lanes.answers.cut() => {}
                () = through => {}
            }
        });
    }
}

async fn both_ways(lanes: &Lanes, client: impl AsyncRead + AsyncWrite, server: impl AsyncRead + AsyncWrite) {
    let (from_client, to_client) = tokio::io::split(client);
    let (from_server, to_server) = tokio::io::split(server);
    let requests = one_way(&lanes.requests, from_client, to_server, |chunk| lanes.seen(chunk));
    let answers = one_way(&lanes.answers, from_server, to_client, |_| {});
    tokio::join!(requests, answers);
}

/// Until the sender has ended and all it sent has arrived, or the receiver is gone.
async fn one_way(lane: &Lane, mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, seen: impl Fn(&[u8])) {
    let (held, mut waiting) = mpsc::channel::<(Instant, Vec<u8>)>(HELD);
    let reading = async move {
        let mut buffer = vec![0; CHUNK];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            seen(&buffer[..length]);
            if held.send((Instant::now(), buffer[..length].to_vec())).await.is_err() {
                return;
            }
        }
    };
    let writing = async move {
        while let Some((came, chunk)) = waiting.recv().await {
            let mut rest = &chunk[..];
            while !rest.is_empty() {
                let (now, later) = rest.split_at(lane.clear(rest.len(), came).await);
                if to.write_all(now).await.is_err() {
                    return;
                }
                rest = later;
            }
        }
        // Who was connected has gone, or reads its end.
        let _ = to.shutdown().await;
    };
    tokio::join!(reading, writing);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that answers each byte with the same byte.
    async fn echo() -> (String, JoinSet<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                connections.spawn(async move {
                    let (mut from, mut to) = stream.split();
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                });
            }
        });
        (address, tasks)
    }

    async fn answered(stream: &mut TcpStream, wanted: &[u8]) {
        let mut answer = vec![0; wanted.len()];
        let read = tokio::time::timeout(Duration::from_secs(10), stream.read_exact(&mut answer));
        read.await.expect("in time").expect("readable");
        assert_eq!(answer, wanted);
    }

    #[tokio::test]
    async fn what_was_held_back_arrives_in_order_when_it_may() {
        let (server, _tasks) = echo().await;
        let relay = Relay::tcp(&server).await.expect("a relay");
        let mut client = TcpStream::connect(relay.address()).await.expect("connected");
        client.write_all(b"one").await.expect("sent");
        answered(&mut client, b"one").await;

        relay.set(Direction::Answers, Flow::StallAfter(2));
        client.write_all(b"twothree").await.expect("sent");
        answered(&mut client, b"tw").await;
        let silent = tokio::time::timeout(Duration::from_millis(100), client.read_u8()).await;
        assert!(silent.is_err(), "a byte came through: {silent:?}");
        relay.set_both(Flow::Delay(Duration::from_millis(20)));
        answered(&mut client, b"othree").await;
    }

    #[tokio::test]
    async fn a_request_springs_the_trap_and_does_not_arrive() {
        let (server, _tasks) = echo().await;
        let relay = Relay::tcp(&server).await.expect("a relay");
        relay.stall_at("POST /b");
        let mut client = TcpStream::connect(relay.address()).await.expect("connected");
        client.write_all(b"POST /a").await.expect("sent");
        answered(&mut client, b"POST /a").await;
        client.write_all(b"POST /b").await.expect("sent");
        relay.stalled().await;
        let silent = tokio::time::timeout(Duration::from_millis(100), client.read_u8()).await;
        assert!(silent.is_err(), "a byte came through: {silent:?}");
        relay.set_both(Flow::Pass);
        answered(&mut client, b"POST /b").await;
        assert_eq!(relay.requests(), ["POST /a", "POST /b"]);
    }

    #[tokio::test]
    async fn cut_connections_end_and_so_do_new_ones() {
        let (server, _tasks) = echo().await;
        let relay = Relay::tcp(&server).await.expect("a relay");
        let mut client = TcpStream::connect(relay.address()).await.expect("connected");
        client.write_all(b"x").await.expect("sent");
        answered(&mut client, b"x").await;
        relay.set_both(Flow::Cut);
        assert!(!matches!(client.read(&mut [0]).await, Ok(1..)), "it ends");
        let mut second = TcpStream::connect(relay.address()).await.expect("accepted");
        assert!(!matches!(second.read(&mut [0]).await, Ok(1..)), "it ends at once");
        relay.set_both(Flow::Pass);
        let mut third = TcpStream::connect(relay.address()).await.expect("connected");
        third.write_all(b"y").await.expect("sent");
        answered(&mut third, b"y").await;
        drop(relay);
        assert!(!matches!(third.read(&mut [0]).await, Ok(1..)), "it ends with the relay");
    }

    #[tokio::test]
    async fn a_unix_socket_has_one_too() {
        let directory = TempDir::new().expect("a directory");
        let path = directory.path().join("server.sock");
        let listener = UnixListener::bind(&path).expect("a socket");
        let relay = Relay::unix(&format!("unix://{}", path.display())).await.expect("a relay");
        let mut client = UnixStream::connect(relay.address().trim_start_matches("unix://")).await.expect("connected");
        client.write_all(b"hello").await.expect("sent");
        client.shutdown().await.expect("its end");
        let (mut server, _) = listener.accept().await.expect("a connection");
        let mut text = String::new();
        server.read_to_string(&mut text).await.expect("readable");
        assert_eq!(text, "hello");
    }
}
