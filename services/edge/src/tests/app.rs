//! An application to stand behind the edge. What it does depends on the path.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::sleep,
};

/// How the application treats a connection after an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum After {
    KeepOpen,
    /// Closes it without having said so, as sloppy servers do.
    Close,
}

pub(super) struct App {
    pub(super) address: SocketAddr,
    pub(super) requests: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl App {
    /// Answers name itself `name` in `x-version`.
    pub(super) async fn start(name: &'static str) -> App {
        App::with(name, After::KeepOpen).await
    }

    pub(super) async fn with(name: &'static str, after: After) -> App {
        App::at(([127, 0, 0, 1], 0).into(), name, after).await
    }

    pub(super) async fn at(address: SocketAddr, name: &'static str, after: After) -> App {
        let listener = TcpListener::bind(address).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let requests = Arc::new(AtomicU64::new(0));
        let counted = requests.clone();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, name, after, counted.clone()));
                while connections.try_join_next().is_some() {}
            }
        });
        App { address, requests, task }
    }

    pub(super) fn requests(&self) -> u64 {
        self.requests.load(Ordering::SeqCst)
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut stream: TcpStream, name: &'static str, after: After, requests: Arc<AtomicU64>) -> io::Result<()> {
    let _ = stream.set_nodelay(true);
    loop {
        let (head, body) = read_message(&mut stream).await?;
        requests.fetch_add(1, Ordering::SeqCst);
        let path = head.split(' ').nth(1).unwrap_or_default();
        let plain = |status: &str, body: &str| {
            format!(
                "HTTP/1.1 {status}\r\nX-Version: {name}\r\nContent-Length: {}\r\nKeep-Alive: timeout=5\r\n\r\n{body}",
                body.len()
            )
        };
        if path.starts_with("/slow") {
            sleep(Duration::from_millis(path.rsplit('/').next().and_then(|ms| ms.parse().ok()).unwrap_or(300))).await;
        }
        let answer = match path {
            "/socket" => {
                stream
                    .write_all(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
                    .await?;
                return echo(stream).await;
            }
            "/head" => plain("200 OK", &head),
            "/body" => plain("200 OK", &body),
            "/error" => plain("500 Internal Server Error", "broken"),
            "/abort" => return Ok(()),
            "/half" => "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf".into(),
            "/chunked" => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n".into(),
            "/nonsense" => "what?\r\n\r\n".into(),
            _ if head.starts_with("HEAD") => plain("200 OK", ""),
            _ => plain("200 OK", name),
        };
        stream.write_all(answer.as_bytes()).await?;
        if after == After::Close || path == "/half" {
            return Ok(());
        }
    }
}

async fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = [0; 1024];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            read => stream.write_all(&buffer[..read]).await?,
        }
    }
}

/// One HTTP/1 request or answer: its head and its body.
pub(super) async fn read_message(stream: &mut TcpStream) -> io::Result<(String, String)> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let mut body = Vec::new();
    if head.starts_with("HTTP/1.1 1") || head.starts_with("HTTP/1.1 204") {
        return Ok((head, String::new()));
    }
    if header(&head, "expect").is_some() {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
    }
    if let Some(length) = header(&head, "content-length").and_then(|length| length.parse().ok()) {
        body.resize(length, 0);
        stream.read_exact(&mut body).await?;
    } else if header(&head, "transfer-encoding").is_some() {
        while !body.ends_with(b"0\r\n\r\n") {
            body.push(stream.read_u8().await?);
        }
    } else if head.starts_with("HTTP/") {
        stream.read_to_end(&mut body).await?;
    }
    Ok((head, String::from_utf8_lossy(&body).into_owned()))
}

pub(super) fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = head.lines().filter_map(|line| line.split_once(':'));
    lines.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}
