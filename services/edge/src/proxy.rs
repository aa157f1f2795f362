//! One request's way through the edge: find its route, claim an upstream, pass it on, try again
//! where that is safe.

use std::{
    fmt, io,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use domain::traffic::DEPLOYMENT_HEADER;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header, request};
use hyper::{
    body::{Body, Incoming},
    upgrade::OnUpgrade,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout_at},
};
use tokio_util::task::TaskTracker;

use crate::{
    body::{Progress, Reply, Upload},
    headers::{self, Client},
    pages::Page,
    pool::{Failure, Lease},
    routes::{Aim, Count, Entry, Routes, Shared},
    set::{Claim, Refused},
    upgrade,
};

/// As long as an application may sensibly think, and as other proxies wait.
pub(crate) const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// More than a set can have upstreams. Only one that is replaced again and again takes more.
const MAX_TRIES: usize = 64;

pub(crate) struct Proxy {
    pub(crate) routes: Arc<Routes>,
    /// Who sends it is told which deployment answered.
    pub(crate) probe_token: String,
    /// Most requests that wait on one held route.
    pub(crate) max_waiting: u64,
    /// How long an upstream that has all of a request may take to begin its answer.
    pub(crate) answer_limit: Duration,
}

/// Where a request came in.
pub(crate) struct Entrance {
    pub(crate) client: Client,
    /// Whether answers say that theirs is the last one on its connection.
    pub(crate) leaving: watch::Receiver<bool>,
    /// What outlives the request counts here.
    pub(crate) connections: TaskTracker,
}

/// What is known about one request on its way.
struct Passage {
    what: Summary,
    route: Option<Arc<Shared>>,
    /// Upstreams of set `tried_in` that need not be tried again, a bit each.
    tried: u64,
    tried_in: u64,
    /// Whether an upstream was reached, at least.
    connected: bool,
    /// When a held route has to be live again.
    wait_until: Option<Instant>,
    probe: bool,
    /// The client's side of a websocket to be.
    websocket: Option<OnUpgrade>,
    progress: Option<Arc<Progress>>,
    /// [`Proxy::answer_limit`].
    answer_limit: Duration,
}

/// The request in short, without the query, which may hold secrets.
struct Summary {
    method: Method,
    host: Option<HeaderValue>,
    uri: Uri,
}

/// How one try ended without an answer.
enum Lost {
    /// As it was before: it may go elsewhere, whatever it is.
    Unsent(Box<Request<Upload>>),
    /// The connection broke before an answer began.
    Broke(hyper::Error),
    /// There is nothing to try again.
    Ended(Page),
}

impl Proxy {
    pub(crate) async fn answer(&self, request: Request<Incoming>, entrance: &Entrance) -> Response<Reply> {
        let version = request.version();
        let (mut head, body) = request.into_parts();
        let mut response = match headers::to_origin_form(&mut head) {
            Ok(()) => self.pass(head, body, entrance).await,
            Err(page) => page.response(),
        };
        if version == Version::HTTP_2 {
            response.headers_mut().remove(header::CONNECTION);
        } else if *entrance.leaving.borrow() {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    async fn pass(&self, mut head: request::Parts, body: Incoming, entrance: &Entrance) -> Response<Reply> {
        let mut passage = Passage::new(&head, self.answer_limit);
        let outcome = match headers::to_upstream(&mut head, !body.is_end_stream(), &entrance.client) {
            Ok(()) => {
                passage.probe = headers::take_probe(&mut head.headers, &self.probe_token);
                passage.websocket =
                    head.extensions.remove::<OnUpgrade>().filter(|_| head.headers.contains_key(header::UPGRADE));
                self.forward(head, body, entrance, &mut passage).await
            }
            Err(page) => Err(page),
        };
        outcome.unwrap_or_else(|page| {
            if let Some(route) = passage.route.filter(|_| page.is_failure()) {
                Count::add(&route.count.failed);
            }
            page.response()
        })
    }

    async fn forward(
        &self,
        head: request::Parts,
        body: Incoming,
        entrance: &Entrance,
        passage: &mut Passage,
    ) -> Result<Response<Reply>, Page> {
        // What may be sent a second time after its connection broke: it has no effect that could be doubled, and all of
        // it is at hand. Only that takes the risk of a kept connection, which may just be being closed by the
        // upstream; anything else gets one of its own, and closes it.
        let repeatable =
            (head.method.is_idempotent() && body.is_end_stream() && passage.websocket.is_none()).then(|| head.clone());
        let (body, progress) = Upload::new(body);
        passage.progress = progress;
        let mut request = Box::new(Request::from_parts(head, body));
        if repeatable.is_none() && passage.websocket.is_none() {
            request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        let mut may_reuse = repeatable.is_some();
        for _ in 0..MAX_TRIES {
            let claim = self.claim(passage).await?;
            let kept = if may_reuse { Lease::reuse(claim.upstream()).await } else { None };
            let lease = match kept {
                Some(lease) => lease,
                None => match Lease::connect(claim.upstream()).await {
                    Ok(lease) => lease,
                    // Nothing was sent, so any request may be tried on another upstream.
                    Err(error) => {
                        passage.tried |= claim.bit();
                        mark_down(&claim, &error);
                        continue;
                    }
                },
            };
            passage.connected = true;
            let (reused, bit) = (lease.reused, claim.bit());
            let lost = match passage.attempt(*request, lease, claim, repeatable.is_some(), entrance).await {
                Ok(response) => return Ok(response),
                Err(lost) => lost,
            };
            if reused {
                // It was closed while idle, most likely: the same upstream, on a new connection.
                may_reuse = false;
            } else {
                passage.tried |= bit;
            }
            request = match (lost, &repeatable) {
                (Lost::Unsent(request), _) => request,
                (Lost::Broke(error), Some(head)) if connection_broke(&error) => {
                    Box::new(Request::from_parts(head.clone(), Upload::none()))
                }
                (Lost::Broke(error), _) => return Err(passage.failed(&error)),
                (Lost::Ended(page), _) => return Err(page),
            };
        }
        Err(Page::NoUpstream)
    }

    /// Finds the route and a place on one of its upstreams; waits while the route is held.
    async fn claim(&self, passage: &mut Passage) -> Result<Claim, Page> {
        loop {
            let entry = self.find(&passage.what).ok_or(Page::NotFound)?;
            if passage.route.is_none() {
                Count::add(&entry.shared.count.requests);
                passage.route = Some(entry.shared.clone());
            }
            match &entry.aim {
                Aim::Live(set) => {
                    if passage.tried_in != set.id {
                        (passage.tried_in, passage.tried) = (set.id, 0);
                    }
                    match set.claim(passage.tried) {
                        Ok(claim) => return Ok(claim),
                        // The table was replaced before the flag was raised: the next look finds
                        // the new one.
                        Err(Refused::Draining) => {}
                        Err(Refused::Exhausted) if passage.connected => return Err(Page::BadGateway),
                        Err(Refused::Exhausted) => return Err(Page::NoUpstream),
                    }
                }
                Aim::Held { limit } => self.wait(passage, &entry.shared, *limit).await?,
            }
        }
    }

    fn find(&self, what: &Summary) -> Option<Arc<Entry>> {
        self.routes.find(what.host(), what.uri.path())
    }

    /// Until the route changes. A client that leaves meanwhile ends this.
    async fn wait(&self, passage: &mut Passage, route: &Shared, limit: Duration) -> Result<(), Page> {
        let until = *passage.wait_until.get_or_insert_with(|| Instant::now() + limit);
        let _seat = route.hold.enter(self.max_waiting).ok_or(Page::TooManyWaiting)?;
        let mut released = std::pin::pin!(route.hold.released());
        released.as_mut().enable();
        // The route may have changed between the look and the seat.
        if self.find(&passage.what).is_none_or(|entry| !matches!(entry.aim, Aim::Held { .. })) {
            return Ok(());
        }
        timeout_at(until, released).await.map_err(|_| Page::HeldTooLong)
    }
}

impl Passage {
    fn new(head: &request::Parts, answer_limit: Duration) -> Self {
        let what = Summary {
            method: head.method.clone(),
            host: head.headers.get(header::HOST).cloned(),
            uri: head.uri.clone(),
        };
        Self {
            what,
            route: None,
            tried: 0,
            tried_in: 0,
            connected: false,
            wait_until: None,
            probe: false,
            websocket: None,
            progress: None,
            answer_limit,
        }
    }

    /// Sends the request and waits for the head of the answer.
    async fn attempt(
        &mut self,
        request: Request<Upload>,
        mut lease: Lease,
        claim: Claim,
        keep: bool,
        entrance: &Entrance,
    ) -> Result<Response<Reply>, Lost> {
        let sent = tokio::select! {
            biased;
            sent = lease.send(request) => sent,
            () = claim.cut_token().cancelled() => {
                tracing::info!(request = %self.what, "the drain deadline was reached before there was an answer");
                return Err(Lost::Ended(Page::BadGateway));
            }
            () = silence(self.answer_limit, self.progress.as_deref()) => {
                tracing::warn!(request = %self.what, instance = claim.upstream().instance, "no answer within {:?}", self.answer_limit);
                return Err(Lost::Ended(Page::UpstreamSilent));
            }
        };
        let response = sent.map_err(|failure| match failure {
            Failure::Unsent(request) => Lost::Unsent(request),
            Failure::Broke(error) => Lost::Broke(error),
        })?;
        self.pass_back(response, claim, keep.then_some(lease), entrance).map_err(Lost::Ended)
    }

    fn pass_back(
        &mut self,
        mut response: Response<Incoming>,
        claim: Claim,
        lease: Option<Lease>,
        entrance: &Entrance,
    ) -> Result<Response<Reply>, Page> {
        let upgraded = response.extensions_mut().remove::<OnUpgrade>();
        let (mut head, body) = response.into_parts();
        headers::to_client(&mut head);
        if self.probe
            && let Ok(deployment) = HeaderValue::try_from(claim.set().config.deployment.to_string())
        {
            head.headers.insert(DEPLOYMENT_HEADER, deployment);
        }
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            let (Some(client), Some(upstream)) = (self.websocket.take(), upgraded) else {
                tracing::warn!(request = %self.what, "the upstream switches protocols unasked");
                return Err(Page::BadGateway);
            };
            headers::set_upgraded(&mut head.headers);
            self.count(|route| &route.count.websockets);
            entrance.connections.spawn(upgrade::tunnel(client, upstream, claim));
            return Ok(Response::from_parts(head, Reply::empty()));
        }
        if head.status.is_server_error() {
            self.count(|route| &route.count.upstream_errors);
        }
        Ok(Response::from_parts(head, Reply::upstream(body, claim, lease)))
    }

    fn count(&self, counter: impl Fn(&Shared) -> &AtomicU64) {
        if let Some(route) = &self.route {
            Count::add(counter(route));
        }
    }

    /// Whose fault it was.
    fn failed(&self, error: &hyper::Error) -> Page {
        match &self.progress {
            Some(progress) if progress.is_silent() => Page::ClientSilent,
            Some(progress) if progress.is_broken() => Page::BadRequest,
            Some(_) | None => {
                tracing::warn!(%error, request = %self.what, "request failed");
                Page::BadGateway
            }
        }
    }
}

impl Summary {
    fn host(&self) -> &str {
        self.host.as_ref().and_then(|host| host.to_str().ok()).unwrap_or_default()
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}{}", self.method, self.host(), self.uri.path())
    }
}

/// Until the answer is overdue. The time counts from the end of the request.
async fn silence(limit: Duration, upload: Option<&Progress>) {
    loop {
        sleep(limit).await;
        if upload.is_none_or(|upload| !upload.has_moved()) {
            return;
        }
    }
}

/// Errors of the connection itself, not of what was said on it.
fn connection_broke(error: &hyper::Error) -> bool {
    error.is_incomplete_message() || error.is_canceled() || error.is_closed() || is_io(error)
}

fn is_io(error: &hyper::Error) -> bool {
    std::error::Error::source(error).is_some_and(|source| source.is::<io::Error>())
}

fn mark_down(claim: &Claim, error: &io::Error) {
    let upstream = claim.upstream();
    if !is_local(error) && upstream.mark(false) {
        tracing::warn!(instance = upstream.instance, address = %upstream.address, %error, "upstream does not take connections, marked down");
    }
}

/// The edge itself lacked something (a port, a file descriptor): no fault of the upstream's.
fn is_local(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let local = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::ADDRNOTAVAIL, Errno::ADDRINUSE];
    error.raw_os_error().is_some_and(|code| local.iter().any(|errno| errno.raw_os_error() == code))
}
