//! What the edge answers when no container does.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};

use crate::body::Reply;

/// A short plain-text answer. Constant text only: nothing a client sent is repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Page {
    /// The request itself is at fault.
    BadRequest,
    /// No route has this host and path.
    NotFound,
    /// The edge leads to its upstreams only.
    NoTunnels,
    /// The client began to send a body and fell silent.
    ClientSilent,
    /// An upstream answered, but not in a way that could be passed on.
    BadGateway,
    /// The route has no upstream that takes connections.
    NoUpstream,
    /// More requests wait on a held route than may.
    TooManyWaiting,
    /// The route was held for longer than a request may wait.
    HeldTooLong,
    /// An upstream has the whole request, but did not begin to answer.
    UpstreamSilent,
}

impl Page {
    pub(crate) fn status(self) -> StatusCode {
        match self {
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::NoTunnels => StatusCode::METHOD_NOT_ALLOWED,
            Self::ClientSilent => StatusCode::REQUEST_TIMEOUT,
            Self::BadGateway => StatusCode::BAD_GATEWAY,
            Self::NoUpstream | Self::TooManyWaiting => StatusCode::SERVICE_UNAVAILABLE,
            Self::HeldTooLong | Self::UpstreamSilent => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::BadRequest => "400 Bad Request\n",
            Self::NotFound => "404 Not Found: nothing is routed to this host and path.\n",
            Self::NoTunnels => "405 Method Not Allowed: this is no forward proxy.\n",
            Self::ClientSilent => "408 Request Timeout: the rest of the request did not come.\n",
            Self::BadGateway => "502 Bad Gateway: the service broke off while it answered.\n",
            Self::NoUpstream => "503 Service Unavailable: the service is not running at the moment.\n",
            Self::TooManyWaiting => {
                "503 Service Unavailable: the service is being replaced and too many requests wait for it.\n"
            }
            Self::HeldTooLong => "504 Gateway Timeout: the service is being replaced and did not come back in time.\n",
            Self::UpstreamSilent => "504 Gateway Timeout: the service did not answer in time.\n",
        }
    }

    /// Whether the service failed its client, rather than the client itself.
    pub(crate) fn is_failure(self) -> bool {
        self.status().is_server_error()
    }

    pub(crate) fn response(self) -> Response<Reply> {
        let text = Bytes::from_static(self.text().as_bytes());
        let length = text.len();
        let mut response = Response::new(Reply::page(text));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        headers.insert(header::CONTENT_LENGTH, length.into());
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if matches!(self, Self::BadRequest | Self::NoTunnels | Self::ClientSilent) {
            // Who knows what the rest of it would be taken for.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if self.status() == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
