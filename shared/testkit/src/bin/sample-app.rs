//! The application that the sample images run: a small web server whose virtues and vices are set by environment
//! variables, so that a test can deploy whatever it wants to see go well or wrong.
//!
//! - `VERSION`: in every answer's body and in the header `x-version`
//! - `PORT`: 8080 unless told
//! - `START_DELAY_MS`: waits before it listens
//! - `HEALTH_STATUS`: what `/healthz` answers, 200 unless told; `UNHEALTHY_AFTER_MS`: 500 from then on;
//!   `HEALTH_DELAY_MS`: how long it takes to answer
//! - `EXIT_AFTER_MS`, `EXIT_CODE`: ends by itself
//! - `IGNORE_SIGTERM`: lives until killed
//! - `ALLOCATE_MB`: fills this much memory once it listens
//!
//! Paths: `/healthz`, `/break` (from then on `/healthz` answers 500), `/slow?ms=`, `/headers` (the request's, as JSON),
//! `/ws` (websocket echo), `/events` (server-sent events, ten a second, without end), `/env?name=`, `/log?text=` (a line
//! on stdout); every other path, by any method, answers the version and the path.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "what an application in a container logs to")]

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    env, future, process,
    str::FromStr,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    body::Body,
    extract::{Query, Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, Uri, header},
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
    routing::get,
};
use futures::{SinkExt, StreamExt};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    signal::unix::{Signal, SignalKind, signal},
    time::sleep,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{handshake::derive_accept_key, protocol::Role},
};

/// Whether `/break` was asked for.
static BROKEN: AtomicBool = AtomicBool::new(false);
/// Open websockets and requests are cut off this long after SIGTERM.
const GRACE: Duration = Duration::from_secs(5);

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let port: u16 = setting("PORT").unwrap_or(8080);
    if env::args().nth(1).as_deref() == Some("healthcheck") {
        process::exit(if healthy(port).await { 0 } else { 1 });
    }
    if let Some(after) = milliseconds("EXIT_AFTER_MS") {
        tokio::spawn(async move {
            sleep(after).await;
            eprintln!("fatal: the sample application gives up, as it was told to");
            process::exit(setting("EXIT_CODE").unwrap_or(1));
        });
    }
    let mut terminate = signal(SignalKind::terminate()).expect("SIGTERM can be listened for");
    tokio::select! {
        () = sleep(milliseconds("START_DELAY_MS").unwrap_or_default()) => serve(port, terminate).await,
        () = terminated(&mut terminate) => {}
    }
}

async fn serve(port: u16, mut terminate: Signal) {
    let listener = TcpListener::bind(("0.0.0.0", port)).await.expect("the port is free");
    println!("sample application {} listens on {port}", version());
    let _ballast = vec![1_u8; setting("ALLOCATE_MB").unwrap_or(0_usize) << 20];
    let app = Router::new()
        .route("/healthz", get(health))
        .route("/break", get(async || BROKEN.store(true, Ordering::Relaxed)))
        .route("/slow", get(slow))
        .route("/headers", get(headers))
        .route("/ws", get(websocket))
        .route("/events", get(events))
        .route("/env", get(variable))
        .route("/log", get(log))
        .fallback(async |uri: Uri| format!("{} {}\n", version(), uri.path()))
        .layer(from_fn(mark))
        .with_state(Instant::now());
    let finishing = async move {
        terminated(&mut terminate).await;
        println!("SIGTERM received, finishing");
        tokio::spawn(async {
            sleep(GRACE).await;
            process::exit(0);
        });
    };
    axum::serve(listener, app).with_graceful_shutdown(finishing).await.expect("the listener stays open");
}

async fn terminated(terminate: &mut Signal) {
    terminate.recv().await;
    if env::var_os("IGNORE_SIGTERM").is_some() {
        eprintln!("SIGTERM ignored");
        future::pending::<()>().await;
    }
}

async fn mark(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    if let Ok(version) = HeaderValue::from_str(&version()) {
        response.headers_mut().insert("x-version", version);
    }
    response
}

async fn health(State(started): State<Instant>) -> StatusCode {
    sleep(milliseconds("HEALTH_DELAY_MS").unwrap_or_default()).await;
    let late = milliseconds("UNHEALTHY_AFTER_MS").is_some_and(|after| started.elapsed() >= after);
    if late || BROKEN.load(Ordering::Relaxed) {
        return StatusCode::INTERNAL_SERVER_ERROR;
    }
    setting("HEALTH_STATUS").and_then(|status| StatusCode::from_u16(status).ok()).unwrap_or(StatusCode::OK)
}

async fn slow(Query(query): Query<HashMap<String, u64>>) -> String {
    sleep(Duration::from_millis(query.get("ms").copied().unwrap_or(1000))).await;
    format!("{} slow\n", version())
}

async fn events() -> Response {
    let ticks = futures::stream::unfold((), |()| async {
        sleep(Duration::from_millis(100)).await;
        Some((Ok::<_, Infallible>("data: tick\n\n"), ()))
    });
    ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(ticks)).into_response()
}

async fn headers(headers: HeaderMap) -> Json<BTreeMap<String, Vec<String>>> {
    let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in &headers {
        all.entry(name.to_string()).or_default().push(String::from_utf8_lossy(value.as_bytes()).into_owned());
    }
    Json(all)
}

async fn variable(Query(query): Query<HashMap<String, String>>) -> String {
    query.get("name").and_then(|name| env::var(name).ok()).unwrap_or_default()
}

async fn log(Query(query): Query<HashMap<String, String>>) {
    println!("{}", query.get("text").map_or("", String::as_str));
}

async fn websocket(mut request: Request) -> Response {
    let Some(key) = request.headers().get(header::SEC_WEBSOCKET_KEY) else {
        return (StatusCode::BAD_REQUEST, "not a websocket handshake\n").into_response();
    };
    let accept = derive_accept_key(key.as_bytes());
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        if let Ok(upgraded) = upgrade.await {
            echo(WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await).await;
        }
    });
    let switching = [
        (header::CONNECTION, "upgrade"),
        (header::UPGRADE, "websocket"),
        (header::SEC_WEBSOCKET_ACCEPT, accept.as_str()),
    ];
    (StatusCode::SWITCHING_PROTOCOLS, switching, Body::empty()).into_response()
}

async fn echo(mut socket: WebSocketStream<TokioIo<Upgraded>>) {
    while let Some(Ok(message)) = socket.next().await {
        if (message.is_text() || message.is_binary()) && socket.send(message).await.is_err() {
            return;
        }
    }
}

/// For the image's HEALTHCHECK: an empty image has no other program to ask with.
async fn healthy(port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)).await else { return false };
    let mut answer = Vec::new();
    stream.write_all(b"GET /healthz HTTP/1.0\r\nhost: localhost\r\n\r\n").await.is_ok()
        && stream.read_to_end(&mut answer).await.is_ok()
        && answer.starts_with(b"HTTP/1.0 200")
}

fn version() -> String {
    setting("VERSION").unwrap_or_else(|| "0".into())
}

fn setting<T: FromStr>(name: &str) -> Option<T> {
    env::var(name).ok()?.parse().ok()
}

fn milliseconds(name: &str) -> Option<Duration> {
    setting(name).map(Duration::from_millis)
}
