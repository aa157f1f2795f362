//! A relay for HTTP that notes every request and how it was answered.

use std::{
    mem,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use anyhow::{Context, Result};
use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use reqwest::{
    StatusCode,
    header::{CONNECTION, HOST, IF_NONE_MATCH, TRANSFER_ENCODING},
};
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};

/// Of a request or an answer, in bytes.
const LARGEST: usize = 1 << 20;

pub(super) struct Asked {
    pub(super) came: Instant,
    pub(super) answered: Instant,
    /// It asked for what is not known already.
    pub(super) conditional: bool,
    pub(super) status: StatusCode,
}

pub(super) struct Relay {
    address: String,
    behind: Arc<Behind>,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<()>,
}

struct Behind {
    address: String,
    http: reqwest::Client,
    asked: Mutex<Vec<Asked>>,
}

impl Relay {
    /// In front of the server at `address`, on a loopback port of its own.
    pub(super) async fn start(address: &str) -> Result<Relay> {
        let http = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build()?;
        let behind = Arc::new(Behind { address: address.to_owned(), http, asked: Mutex::default() });
        let listener = TcpListener::bind("127.0.0.1:0").await.context("opening a relay's port")?;
        let address = listener.local_addr().context("asking for a relay's port")?.to_string();
        let app = Router::new().fallback(pass).with_state(behind.clone());
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = tokio::spawn(async move {
            tokio::select! {
                // It never fails.
                _ = axum::serve(listener, app).into_future() => {}
                // Told to, or nobody can tell any more.
                _ = stopped => {}
            }
        });
        Ok(Relay { address, behind, stop, serving })
    }

    /// Host and port.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// What was asked and answered since this was called last.
    pub(super) fn asked(&self) -> Vec<Asked> {
        mem::take(&mut *self.behind.asked.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) async fn stop(self) {
        drop(self.stop);
        // It was told so.
        let _ = self.serving.await;
    }
}

async fn pass(State(behind): State<Arc<Behind>>, request: Request) -> Response {
    let came = Instant::now();
    let conditional = request.headers().contains_key(IF_NONE_MATCH);
    let answer = forward(&behind, request).await.unwrap_or_else(|_| StatusCode::BAD_GATEWAY.into_response());
    let asked = Asked { came, answered: Instant::now(), conditional, status: answer.status() };
    behind.asked.lock().unwrap_or_else(PoisonError::into_inner).push(asked);
    answer
}

async fn forward(behind: &Behind, request: Request) -> Result<Response> {
    let (mut head, body) = request.into_parts();
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    let url = format!("http://{}{path}", behind.address);
    for own in [HOST, CONNECTION, TRANSFER_ENCODING] {
        head.headers.remove(own);
    }
    let body = to_bytes(body, LARGEST).await?;
    let answer = behind.http.request(head.method, url).headers(head.headers).body(body).send().await?;
    let (status, mut headers) = (answer.status(), answer.headers().clone());
    for own in [CONNECTION, TRANSFER_ENCODING] {
        headers.remove(own);
    }
    Ok((status, headers, Body::from(answer.bytes().await?)).into_response())
}
