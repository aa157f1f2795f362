//! Bodies on their way through: never held as a whole, each watched for what may end it.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Sleep, sleep};
use tokio_util::sync::WaitForCancellationFutureOwned;

use crate::{pool::Lease, set::Claim};

/// How long a client may fall silent in the middle of a body.
const UPLOAD_SILENCE: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    #[error("the client broke off: {0}")]
    Client(#[source] hyper::Error),
    #[error("the client was silent for {UPLOAD_SILENCE:?} in the middle of the body")]
    ClientSilent,
    #[error("the upstream broke off: {0}")]
    Upstream(#[source] hyper::Error),
    #[error("the drain deadline was reached")]
    Cut,
}

/// A request's body, from the client.
#[derive(Debug)]
pub(crate) struct Upload {
    /// None where there is nothing to send.
    body: Option<Incoming>,
    progress: Option<Arc<Progress>>,
    patience: Option<Pin<Box<Sleep>>>,
}

/// What became of an upload, for the one who waits for the answer meanwhile.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    moved: AtomicBool,
    silent: AtomicBool,
    broke: AtomicBool,
}

impl Upload {
    /// Nothing to watch where there is no body.
    pub(crate) fn new(body: Incoming) -> (Self, Option<Arc<Progress>>) {
        if body.is_end_stream() {
            return (Self::none(), None);
        }
        let progress = Arc::<Progress>::default();
        (Self { body: Some(body), progress: Some(progress.clone()), patience: None }, Some(progress))
    }

    pub(crate) fn none() -> Self {
        Self { body: None, progress: None, patience: None }
    }

    fn fail(&self, flag: impl Fn(&Progress) -> &AtomicBool) {
        if let Some(progress) = &self.progress {
            flag(progress).store(true, Ordering::Relaxed);
        }
    }
}

impl Progress {
    /// Whether some of the body went on since the last call.
    pub(crate) fn has_moved(&self) -> bool {
        self.moved.swap(false, Ordering::Relaxed)
    }

    pub(crate) fn is_silent(&self) -> bool {
        self.silent.load(Ordering::Relaxed)
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.broke.load(Ordering::Relaxed)
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let Some(body) = &mut self.body else {
            return Poll::Ready(None);
        };
        match Pin::new(body).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => {
                self.patience = None;
                self.fail(|progress| &progress.moved);
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                self.fail(|progress| &progress.broke);
                Poll::Ready(Some(Err(Broken::Client(error))))
            }
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => {
                let patience = self.patience.get_or_insert_with(|| Box::pin(sleep(UPLOAD_SILENCE)));
                if patience.as_mut().poll(context).is_pending() {
                    return Poll::Pending;
                }
                self.fail(|progress| &progress.silent);
                Poll::Ready(Some(Err(Broken::ClientSilent)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Incoming::size_hint)
    }
}

/// An answer's body, to the client.
#[derive(Debug)]
pub(crate) enum Reply {
    Page(Option<Bytes>),
    Upstream(Download),
}

/// What an upstream sends. Its claim lasts as long as it does, and so does its connection.
#[derive(Debug)]
pub(crate) struct Download {
    body: Incoming,
    claim: Option<Claim>,
    lease: Option<Lease>,
    cut: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    broken: Option<hyper::Error>,
}

impl Reply {
    pub(crate) fn page(text: Bytes) -> Self {
        Self::Page(Some(text))
    }

    pub(crate) fn empty() -> Self {
        Self::Page(None)
    }

    pub(crate) fn upstream(body: Incoming, claim: Claim, lease: Option<Lease>) -> Self {
        Self::Upstream(Download { body, claim: Some(claim), lease, cut: None, broken: None })
    }
}

impl Download {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        if let Some(error) = self.broken.take() {
            return Poll::Ready(Some(Err(Broken::Upstream(error))));
        }
        match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => Poll::Ready(Some(Ok(frame))),
            Poll::Ready(None) => {
                self.end();
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => {
                // The client gets what there was, as the connection is flushed whenever there is nothing to do.
                self.broken = Some(error);
                context.waker().wake_by_ref();
                Poll::Pending
            }
            Poll::Pending => {
                let Some(claim) = &self.claim else { return Poll::Pending };
                let cut = self.cut.get_or_insert_with(|| Box::pin(claim.cut_token().clone().cancelled_owned()));
                cut.as_mut().poll(context).map(|()| Some(Err(Broken::Cut)))
            }
        }
    }

    /// All of it is here: the connection is free for the next request.
    fn end(&mut self) {
        self.claim = None;
        if let Some(lease) = self.lease.take() {
            lease.give_back();
        }
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        if self.body.is_end_stream() {
            self.end();
        }
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match self.get_mut() {
            Self::Page(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Self::Upstream(download) => download.poll(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Page(text) => text.is_none(),
            Self::Upstream(download) => download.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Page(text) => SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64)),
            Self::Upstream(download) => download.body.size_hint(),
        }
    }
}
