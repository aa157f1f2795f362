//! A server that answers one connection after another as it was told, and remembers what it was asked.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread::JoinHandle,
};

use serde_json::Value;

/// What a connection gets for its request.
pub(crate) enum Reply {
    /// The end of the connection.
    Cut,
    /// These bytes, then the end.
    Bytes(String),
    /// An event stream that stays open until the other side leaves.
    Hold(String),
}

const STREAM: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n: hello\n\n";

impl Reply {
    pub(crate) fn json(status: u16, body: &Value) -> Self {
        let body = body.to_string();
        Self::Bytes(format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len()))
    }

    pub(crate) fn events(events: &[String]) -> Self {
        Self::Bytes(format!("{STREAM}{}", events.concat()))
    }
}

pub(crate) struct Server {
    address: std::net::SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Nobody listens any more once all replies are given.
    pub(crate) fn new<const N: usize>(replies: [Reply; N]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&asked);
        let serve = move || {
            for reply in replies {
                let (stream, _) = listener.accept().expect("a connection");
                seen.lock().expect("not poisoned").push(request(&stream));
                answer(stream, reply);
            }
        };
        let thread = (N > 0).then(|| std::thread::spawn(serve));
        Self { address, asked, thread }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Every request so far, head and body.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("not poisoned").clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        // Replies that nobody asked for would keep it waiting; a failing test must not hang on them.
        while !thread.is_finished() && TcpStream::connect(self.address).is_ok() {}
        thread.join().ok();
    }
}

fn request(stream: &TcpStream) -> String {
    let mut reader = BufReader::new(stream);
    let mut text = String::new();
    while !text.ends_with("\r\n\r\n") && reader.read_line(&mut text).expect("readable") > 0 {}
    let length = header(&text, "content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body).expect("a whole body");
    text + &String::from_utf8(body).expect("UTF-8")
}

fn answer(mut stream: TcpStream, reply: Reply) {
    // Whoever went away in the meantime is told nothing.
    match reply {
        Reply::Cut => {}
        Reply::Bytes(bytes) => {
            stream.write_all(bytes.as_bytes()).ok();
        }
        Reply::Hold(events) => {
            stream.write_all(format!("{STREAM}{events}").as_bytes()).ok();
            std::io::copy(&mut stream, &mut std::io::sink()).ok();
        }
    }
}

pub(crate) fn header(request: &str, name: &str) -> Option<String> {
    let head = request.split("\r\n\r\n").next()?;
    head.lines().skip(1).find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
    })
}
