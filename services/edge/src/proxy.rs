//! One request's way through the edge: find its route, claim an upstream, pass it on, try again
//! where that is safe.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use domain::traffic::DEPLOYMENT_HEADER;
use http::{StatusCode, Version, header};
use pingora::{
    Error, ErrorSource, ErrorType,
    http::{RequestHeader, ResponseHeader},
    modules::http::HttpModules,
    proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session},
    upstreams::peer::HttpPeer,
};
use tokio::time::{Instant, timeout_at};

use crate::{
    cut, headers,
    pages::Page,
    routes::{Aim, Count, Entry, Routes, Shared},
    set::{Claim, Connection, Refused},
};

pub(crate) struct Proxy {
    pub(crate) routes: Arc<Routes>,
    /// Who sends it is told which deployment answered.
    pub(crate) probe_token: String,
    /// Most requests that wait on one held route.
    pub(crate) max_waiting: u64,
}

/// What is known about one request.
#[derive(Default)]
pub(crate) struct Request {
    route: Option<Arc<Shared>>,
    claim: Option<Claim>,
    /// Upstreams of set `tried_in` that need not be tried again, a bit each.
    tried: u64,
    tried_in: u64,
    /// Whether an upstream was reached, at least.
    connected: bool,
    /// A pooled connection broke under this request: the next try opens its own.
    pool_failed: bool,
    probe: bool,
    /// When a held route has to be live again.
    wait_until: Option<Instant>,
    answer: Option<Page>,
}

impl Proxy {
    /// Finds the route and a place on one of its upstreams; waits while the route is held.
    async fn claim(&self, session: &mut Session, request: &mut Request) -> Result<(), Page> {
        loop {
            let entry = self.find(session).ok_or(Page::NotFound)?;
            if request.route.is_none() {
                Count::add(&entry.shared.count.requests);
                request.route = Some(entry.shared.clone());
            }
            match &entry.aim {
                Aim::Live(set) => {
                    if request.tried_in != set.id {
                        (request.tried_in, request.tried) = (set.id, 0);
                    }
                    match set.claim(request.tried) {
                        Ok(claim) => {
                            cut::cut_by(claim.cut_token());
                            request.claim = Some(claim);
                            return Ok(());
                        }
                        // The table was replaced before the flag was raised: the next look finds
                        // the new one.
                        Err(Refused::Draining) => {}
                        Err(Refused::Exhausted) if request.connected => return Err(Page::BadGateway),
                        Err(Refused::Exhausted) => return Err(Page::NoUpstream),
                    }
                }
                Aim::Held { limit } => self.wait(session, request, &entry.shared, *limit).await?,
            }
        }
    }

    fn find(&self, session: &Session) -> Option<Arc<Entry>> {
        let header = session.req_header();
        self.routes.find(headers::host(header), header.uri.path())
    }

    /// Until the route changes.
    async fn wait(
        &self,
        session: &mut Session,
        request: &mut Request,
        route: &Shared,
        limit: Duration,
    ) -> Result<(), Page> {
        let until = *request.wait_until.get_or_insert_with(|| Instant::now() + limit);
        let _seat = route.hold.enter(self.max_waiting).ok_or(Page::TooManyWaiting)?;
        let mut released = std::pin::pin!(route.hold.released());
        released.as_mut().enable();
        // The route may have changed between the look and the seat.
        if self.find(session).is_none_or(|entry| !matches!(entry.aim, Aim::Held { .. })) {
            return Ok(());
        }
        tokio::select! {
            waited = timeout_at(until, released) => waited.map_err(|_| Page::HeldTooLong),
            () = client_left(session) => Err(Page::BadRequest),
        }
    }

    /// Answers in place of an upstream.
    async fn answer(&self, page: Page, session: &mut Session, request: &Request) -> pingora::Result<()> {
        if let Some(route) = request.route.as_ref().filter(|_| page.is_failure()) {
            Count::add(&route.count.failed);
        }
        page.send(session).await
    }
}

/// Resolves when a client that has sent its whole request hangs up.
async fn client_left(session: &mut Session) {
    if session.is_body_empty() {
        // Only ever returns with the end of the connection.
        let _ = session.read_body_or_idle(true).await;
    } else {
        std::future::pending().await
    }
}

/// Whether the request may be sent a second time after its connection broke: it has no effect
/// that could be doubled, all of it is at hand, and nothing of an answer went out.
fn can_repeat(session: &Session) -> bool {
    session.req_header().method.is_idempotent()
        && !session.retry_buffer_truncated()
        && session.response_written().is_none_or(|response| response.status.is_informational())
}

/// Errors of the connection itself, not of what was said on it.
fn connection_broke(error: &Error) -> bool {
    matches!(error.esource(), ErrorSource::Upstream)
        && matches!(error.etype(), ErrorType::ConnectionClosed | ErrorType::ReadError | ErrorType::WriteError)
}

/// The edge itself lacked something (a port, a file descriptor): no fault of the upstream's.
fn is_local(error: &Error) -> bool {
    matches!(error.etype(), ErrorType::SocketError | ErrorType::BindError | ErrorType::InternalError)
}

#[async_trait]
impl ProxyHttp for Proxy {
    type CTX = Request;

    fn new_ctx(&self) -> Request {
        Request::default()
    }

    /// None: bodies pass as they are.
    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}

    async fn request_filter(&self, session: &mut Session, request: &mut Request) -> pingora::Result<bool> {
        headers::to_origin_form(session.req_header_mut()).map_err(Error::into_down)?;
        match self.claim(session, request).await {
            Ok(()) => Ok(false),
            Err(page) => {
                if self.answer(page, session, request).await.is_err() {
                    // The client left, so this answer and the connection are of no use to anyone.
                    session.set_keepalive(None);
                }
                Ok(true)
            }
        }
    }

    async fn upstream_peer(&self, session: &mut Session, request: &mut Request) -> pingora::Result<Box<HttpPeer>> {
        if request.claim.is_none() {
            // An earlier try failed.
            if let Err(page) = self.claim(session, request).await {
                request.answer = Some(page);
            }
        }
        match &request.claim {
            Some(claim) => Ok(claim.peer(connection(session, request))),
            None => Err(Error::explain(ErrorType::HTTPStatus(503), "no upstream left to try")),
        }
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        upstream: &mut RequestHeader,
        request: &mut Request,
    ) -> pingora::Result<()> {
        request.connected = true;
        request.probe = headers::take_probe(upstream, &self.probe_token);
        if connection(session, request) == Connection::Own {
            upstream.insert_header(header::CONNECTION, "close")?;
        }
        headers::set_forwarded(upstream, session.client_addr(), session.server_addr())
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        request: &mut Request,
    ) -> pingora::Result<()> {
        // Hop by hop, and Pingora leaves them in.
        response.remove_header("keep-alive");
        response.remove_header("proxy-connection");
        if let Some(route) = &request.route {
            if response.status == StatusCode::SWITCHING_PROTOCOLS {
                Count::add(&route.count.websockets);
                // Silence is no fault on a websocket.
                session.set_read_timeout(None);
            } else if response.status.is_server_error() {
                Count::add(&route.count.upstream_errors);
            }
        }
        if session.req_header().version == Version::HTTP_10
            && response.remove_header(&header::TRANSFER_ENCODING).is_some()
        {
            // It does not know chunks: the end of the connection is the end of the body.
            session.set_keepalive(None);
        }
        if let Some(claim) = request.claim.as_ref().filter(|_| request.probe) {
            response.insert_header(DEPLOYMENT_HEADER, claim.set().config.deployment.to_string())?;
        }
        Ok(())
    }

    /// Nothing was sent, so any request may be tried on another upstream.
    fn fail_to_connect(
        &self,
        _session: &mut Session,
        _peer: &HttpPeer,
        request: &mut Request,
        mut error: Box<Error>,
    ) -> Box<Error> {
        if let Some(claim) = request.claim.take() {
            request.tried |= claim.bit();
            if !is_local(&error) && claim.upstream().mark(false) {
                let upstream = claim.upstream();
                tracing::warn!(instance = upstream.instance, address = %upstream.address, %error, "upstream does not take connections, marked down");
            }
        }
        error.set_retry(true);
        error
    }

    fn error_while_proxy(
        &self,
        _peer: &HttpPeer,
        session: &mut Session,
        mut error: Box<Error>,
        request: &mut Request,
        reused: bool,
    ) -> Box<Error> {
        let again = connection_broke(&error) && can_repeat(session);
        if again && reused {
            // It was closed while idle, most likely: the same upstream, on a new connection.
            request.pool_failed = true;
        } else if again && let Some(claim) = request.claim.take() {
            request.tried |= claim.bit();
        }
        error.set_retry(again);
        error
    }

    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, request: &mut Request) -> FailToProxy {
        let page = match (request.answer, error.esource()) {
            (Some(page), _) => page,
            (None, ErrorSource::Upstream) => Page::BadGateway,
            (None, ErrorSource::Internal | ErrorSource::Unset) => Page::BadGateway,
            (None, ErrorSource::Downstream) => Page::BadRequest,
        };
        if page != Page::BadRequest {
            tracing::warn!(%error, status = page.status(), request = self.request_summary(session, request), "request failed");
        }
        let begun = session.response_written().is_some_and(|response| !response.status.is_informational());
        // A client that is gone cannot be answered, and who got half an answer must see it break off.
        if !begun && self.answer(page, session, request).await.is_ok() {
            return FailToProxy { error_code: page.status(), can_reuse_downstream: false };
        }
        FailToProxy { error_code: 0, can_reuse_downstream: false }
    }

    async fn logging(&self, _session: &mut Session, _error: Option<&Error>, request: &mut Request) {
        request.claim = None;
    }

    /// Logged in [`Self::fail_to_proxy`], where it is known whose fault it was.
    fn suppress_error_log(&self, _session: &Session, _request: &Request, _error: &Error) -> bool {
        true
    }

    /// An upstream that goes down is logged once, not with every request.
    fn suppress_proxy_warn_log(&self, _: &Session, _: &Request, _: &Error, _: ProxyWarnLogContext) -> bool {
        true
    }

    /// Without the query, which may hold secrets.
    fn request_summary(&self, session: &Session, _request: &Request) -> String {
        let header = session.req_header();
        format!("{} {}{}", header.method, headers::host(header), header.uri.path())
    }
}

/// A pooled connection may just be being closed by the upstream. Only a request that can be sent
/// again takes that risk, and leaves its connection to the pool; any other gets one of its own, and
/// closes it.
fn connection(session: &mut Session, request: &Request) -> Connection {
    if session.req_header().headers.contains_key(header::UPGRADE) {
        Connection::Upgrade
    } else if session.req_header().method.is_idempotent() && session.is_body_empty() && !request.pool_failed {
        Connection::Shared
    } else {
        Connection::Own
    }
}
