//! An application behind a proxy: it answers with its version, as slowly as it is told.

use std::{sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
};

pub(crate) struct App {
    pub(crate) address: String,
    pub(crate) version: &'static str,
    /// Requests that have come and wait.
    pub(crate) came: Arc<Semaphore>,
    /// Requests that may end.
    pub(crate) go: Arc<Semaphore>,
    _tasks: JoinSet<()>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Manners {
    Good,
    /// Answers whoever asks directly, and hangs up on a proxy.
    NoProxies,
    /// Has a proxy's probes wait.
    Slow,
}

impl App {
    pub(crate) async fn start(version: &'static str) -> App {
        App::with(version, Manners::Good).await
    }

    /// Well by itself, and broken behind any proxy.
    pub(crate) async fn broken(version: &'static str) -> App {
        App::with(version, Manners::NoProxies).await
    }

    /// Answers a probe that comes through a proxy when it is told.
    pub(crate) async fn slow(version: &'static str) -> App {
        App::with(version, Manners::Slow).await
    }

    async fn with(version: &'static str, manners: Manners) -> App {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let (came, go) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let mut tasks = JoinSet::new();
        let gates = (came.clone(), go.clone());
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, version, manners, gates.clone()));
                while connections.try_join_next().is_some() {}
            }
        });
        App { address, version, came, go, _tasks: tasks }
    }
}

async fn serve(mut stream: TcpStream, version: &str, manners: Manners, gates: (Arc<Semaphore>, Arc<Semaphore>)) {
    stream.set_nodelay(true).expect("a socket");
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(_) => return,
            }
        }
        let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
        let proxied = head.contains("x-forwarded-for");
        if manners == Manners::NoProxies && proxied {
            return;
        }
        if head.starts_with("get /slow ") || (manners == Manners::Slow && proxied && head.starts_with("head ")) {
            gates.0.add_permits(1);
            gates.1.acquire().await.expect("open").forget();
        }
        let body = if head.starts_with("head ") { "" } else { "ok" };
        let answer = format!("HTTP/1.1 200 OK\r\nX-Version: {version}\r\nContent-Length: 2\r\n\r\n{body}");
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// The longest that anything here may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
