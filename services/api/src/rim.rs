//! What every request passes through: its id and log line, the time limit, panics, problem bodies
//! and security headers.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{MatchedPath, Request},
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures::FutureExt;
use http::{HeaderName, HeaderValue, StatusCode, header};
use tracing::{Instrument, field};

use crate::problem::{Error, Problem};

/// Names a request in answers, log lines and events. Made here: a client's own is never trusted.
#[derive(Debug, Clone)]
pub(crate) struct RequestId(pub(crate) Arc<str>);

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Until a handler answers; streams take as long as they like after that.
const LIMIT: Duration = Duration::from_secs(60);

const HEADERS: [(HeaderName, HeaderValue); 7] = [
    (
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("default-src 'none'; object-src 'none'; base-uri 'none'; frame-ancestors 'none'"),
    ),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (
        HeaderName::from_static("permissions-policy"),
        HeaderValue::from_static("camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
    ),
    (HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin")),
    (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin")),
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
];

pub(crate) async fn rim(mut request: Request, next: Next) -> Response {
    let id: Arc<str> = runtime::clock::new_id().to_string().into();
    request.extensions_mut().insert(RequestId(id.clone()));
    // The template of the address, not the address: what people put into a URL stays out of the log.
    let path = request.extensions().get::<MatchedPath>().map_or("-", MatchedPath::as_str).to_owned();
    // The guard says where from, and who.
    let (source, actor) = (field::Empty, field::Empty);
    // There with every filter: whatever line is written within it says of which request it is.
    let span = tracing::error_span!("request", request_id = %id, method = %request.method(), path, source, actor);
    let started = tokio::time::Instant::now();
    async {
        let mut response = answer(request, next).await;
        let elapsed_ms = started.elapsed().as_millis();
        report(&response, elapsed_ms);
        if let Some(error) = response.extensions_mut().remove::<Arc<Error>>() {
            response = render(&error, &id);
        }
        for (name, value) in HEADERS {
            response.headers_mut().entry(name).or_insert(value);
        }
        if let Ok(id) = HeaderValue::from_str(&id) {
            response.headers_mut().insert(REQUEST_ID, id);
        }
        response
    }
    .instrument(span)
    .await
}

async fn answer(request: Request, next: Next) -> Response {
    let handled = AssertUnwindSafe(next.run(request)).catch_unwind();
    match tokio::time::timeout(LIMIT, handled).await {
        Ok(Ok(response)) => response,
        Ok(Err(_)) => Error::Panicked.into_response(),
        Err(_) => Error::TimedOut.into_response(),
    }
}

/// The one place where a request's failure is logged.
fn report(response: &Response, elapsed_ms: u128) {
    let status = response.status().as_u16();
    match response.extensions().get::<Arc<Error>>() {
        // A flood must not fill the log with what is no fault of ours.
        Some(error) if response.status().is_server_error() && !error.is_busy() => {
            tracing::error!(status, elapsed_ms, error = %causes(error.as_ref()), "request failed");
        }
        // The detail may hold what the caller typed; it is in the answer, and only there.
        Some(error) => tracing::info!(status, elapsed_ms, code = error.code(), "request refused"),
        None => tracing::info!(status, elapsed_ms, "request"),
    }
}

fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

fn render(error: &Error, request_id: &str) -> Response {
    let mut response = (error.status(), Json(Problem::new(error, request_id))).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    if error.status() == StatusCode::UNAUTHORIZED {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if let Some(seconds) = error.retry_after() {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

#[cfg(test)]
mod tests {
    use axum::{Router, middleware, routing::get};

    use super::*;

    #[tokio::test]
    async fn a_panic_is_a_problem_that_tells_nothing() {
        let router = Router::new().route("/", get(async || -> StatusCode { panic!("a secret") }));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let served = tokio::spawn(axum::serve(listener, router.layer(middleware::from_fn(rim))).into_future());
        let response = reqwest::get(url).await.expect("an answer");
        assert_eq!(response.status(), 500);
        assert!(response.headers().contains_key("x-request-id"));
        let body = response.text().await.expect("a body");
        assert!(body.contains(r#""code":"internal""#) && !body.contains("a secret"), "{body}");
        served.abort();
    }
}
