//! What the edge answers when no container does.

use bytes::Bytes;
use http::header;
use pingora::{http::ResponseHeader, proxy::Session};

/// A short plain-text answer. Constant text only: nothing a client sent is repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Page {
    /// The request itself is at fault.
    BadRequest,
    /// No route has this host and path.
    NotFound,
    /// An upstream answered, but not in a way that could be passed on.
    BadGateway,
    /// The route has no upstream that takes connections.
    NoUpstream,
    /// More requests wait on a held route than may.
    TooManyWaiting,
    /// The route was held for longer than a request may wait.
    HeldTooLong,
}

impl Page {
    pub(crate) fn status(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::NotFound => 404,
            Self::BadGateway => 502,
            Self::NoUpstream | Self::TooManyWaiting => 503,
            Self::HeldTooLong => 504,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::BadRequest => "400 Bad Request\n",
            Self::NotFound => "404 Not Found: nothing is routed to this host and path.\n",
            Self::BadGateway => "502 Bad Gateway: the service broke off while it answered.\n",
            Self::NoUpstream => "503 Service Unavailable: the service is not running at the moment.\n",
            Self::TooManyWaiting => {
                "503 Service Unavailable: the service is being replaced and too many requests wait for it.\n"
            }
            Self::HeldTooLong => "504 Gateway Timeout: the service is being replaced and did not come back in time.\n",
        }
    }

    /// Whether the service failed its client, rather than the client itself.
    pub(crate) fn is_failure(self) -> bool {
        self.status() >= 500
    }

    pub(crate) async fn send(self, session: &mut Session) -> pingora::Result<()> {
        let text = Bytes::from_static(self.text().as_bytes());
        let mut response = ResponseHeader::build(self.status(), Some(6))?;
        response.insert_header(header::CONTENT_TYPE, "text/plain; charset=utf-8")?;
        response.insert_header(header::CONTENT_LENGTH, text.len())?;
        response.insert_header(header::CACHE_CONTROL, "no-store")?;
        if self.status() == 503 {
            response.insert_header(header::RETRY_AFTER, "1")?;
        }
        let bodiless = session.req_header().method == http::Method::HEAD;
        session.write_response_header(Box::new(response), bodiless).await?;
        if bodiless {
            return Ok(());
        }
        session.write_response_body(Some(text), true).await
    }
}
