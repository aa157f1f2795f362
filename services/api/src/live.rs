//! The live stream: one reader of the log feeds every listener.
//!
//! A listener that was away replays what it missed from the log and then joins, at a position that
//! is known, so that it sees every event once and in order. One that is too slow is cut off: it
//! comes back with the id of the last event it saw.

use std::{
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
};

use domain::Recorded;
use eventlog::EventLog;
use futures::{Stream, StreamExt, TryStreamExt, future, stream};
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;

use crate::{pattern::Pattern, problem::Error};

/// Every event.
const ALL: &str = "sluice.events.>";
const IDENTITY: [&str; 3] = ["sluice.events.user.", "sluice.events.session.", "sluice.events.token."];
/// Events that a listener may be behind before it is cut off.
const SLACK: usize = 4096;
/// Events read at once in a replay.
const PAGE: usize = 500;

/// An event, ready to be sent.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) sequence: u64,
    pub(crate) subject: String,
    pub(crate) project: Option<String>,
    pub(crate) kind: String,
    /// The CloudEvent as JSON.
    pub(crate) body: String,
}

#[derive(Clone)]
pub(crate) struct Live(Arc<Mutex<Option<Feed>>>);

struct Feed {
    /// Position of the last frame that was sent.
    head: u64,
    frames: broadcast::Sender<Arc<Frame>>,
    /// Subjects of what may end somebody's session, token or rights.
    identity: broadcast::Sender<Arc<str>>,
}

type Frames = broadcast::Receiver<Arc<Frame>>;

impl Live {
    /// A feed that will begin behind position `head`.
    pub(crate) fn new(head: u64) -> Self {
        let (frames, identity) = (broadcast::Sender::new(SLACK), broadcast::Sender::new(SLACK));
        Self(Arc::new(Mutex::new(Some(Feed { head, frames, identity }))))
    }

    /// Hands on every event behind `after`, until the log is closed or holds one that this version cannot read.
    pub(crate) async fn feed(self, log: EventLog, after: u64) {
        let mut events = pin!(log.follow(ALL, after));
        while let Some(event) = events.next().await {
            match event.map(frame).map_err(Error::from) {
                Ok(frame) => self.send(frame),
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(error, "the live stream has stopped");
                    break;
                }
            }
        }
        // Nobody waits for what will not come.
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The events whose subject fits `pattern`, from behind `after`, or from now on.
    pub(crate) async fn listen(
        &self,
        log: &EventLog,
        pattern: Pattern,
        after: Option<u64>,
    ) -> Result<impl Stream<Item = Result<Arc<Frame>, Error>> + Send + use<>, Error> {
        let near = self.head()?;
        let after = match after {
            None => near,
            Some(after) if after <= near => after,
            // The feed may be a little behind the log, but nobody has seen what lies beyond its end.
            Some(after) if after <= log.last_sequence().await? => after,
            Some(_) => return Err(Error::invalid("after", "lies beyond the end of the log")),
        };
        // A long replay must not fill up the listener's place in the feed: the first reads up to
        // where the feed was, the second what came meanwhile.
        let (live, log) = (self.clone(), log.clone());
        let long = replay(&log, after, near);
        let rest = stream::once(async move {
            let (frames, joined) = live.join()?;
            let short = replay(&log, after.max(near), joined);
            Ok::<_, Error>(short.chain(tail(frames, after.max(joined)).map(Ok)))
        });
        let frames = long.chain(rest.try_flatten());
        Ok(frames.try_filter(move |frame| future::ready(pattern.fits(&frame.subject))))
    }

    fn send(&self, frame: Frame) {
        if let Some(feed) = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            feed.head = frame.sequence;
            if IDENTITY.iter().any(|prefix| frame.subject.starts_with(prefix)) {
                let _ = feed.identity.send(frame.subject.as_str().into());
            }
            // Without listeners there is nobody to miss it.
            let _ = feed.frames.send(Arc::new(frame));
        }
    }

    /// The subject of whatever happens to users, sessions and tokens from now on.
    pub(crate) fn identity(&self) -> Result<broadcast::Receiver<Arc<str>>, Error> {
        let feed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        feed.as_ref().map(|feed| feed.identity.subscribe()).ok_or(Error::StreamStopped)
    }

    fn head(&self) -> Result<u64, Error> {
        let feed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        feed.as_ref().map(|feed| feed.head).ok_or(Error::StreamStopped)
    }

    /// All frames behind the returned position.
    fn join(&self) -> Result<(Frames, u64), Error> {
        let feed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        feed.as_ref().map(|feed| (feed.frames.subscribe(), feed.head)).ok_or(Error::StreamStopped)
    }
}

/// The events behind `after`, up to and with `to`.
fn replay(log: &EventLog, after: u64, to: u64) -> impl Stream<Item = Result<Arc<Frame>, Error>> + Send + use<> {
    let batches = (after < to).then(|| (Box::pin(log.batches(after, PAGE)), after));
    let batches = stream::unfold(batches, move |state| async move {
        let (mut batches, _) = state.filter(|(_, at)| *at < to)?;
        match batches.next().await? {
            Ok(batch) => {
                let at = batch.last().map_or(to, |event| event.sequence);
                Some((Ok(batch), Some((batches, at))))
            }
            Err(error) => Some((Err(Error::from(error)), None)),
        }
    });
    batches
        .map_ok(move |batch| {
            stream::iter(batch.into_iter().filter(move |event| event.sequence <= to).map(frame).map(Ok))
        })
        .try_flatten()
        .map_ok(Arc::new)
}

/// Ends when the listener has fallen too far behind, or the feed has stopped.
fn tail(frames: Frames, after: u64) -> impl Stream<Item = Arc<Frame>> + Send {
    BroadcastStream::new(frames)
        .take_while(|frame| future::ready(frame.is_ok()))
        .filter_map(move |frame| future::ready(frame.ok().filter(|frame| frame.sequence > after)))
}

fn frame(recorded: Recorded) -> Frame {
    let project = recorded.project().map(str::to_owned);
    Frame { sequence: recorded.sequence, subject: recorded.subject, project, kind: recorded.kind, body: recorded.body }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn send(live: &Live, sequences: std::ops::RangeInclusive<u64>) {
        for sequence in sequences {
            live.send(Frame { sequence, subject: "a.b".into(), project: None, kind: "k".into(), body: "{}".into() });
        }
    }

    #[tokio::test]
    async fn a_listener_joins_at_a_known_position() {
        let live = Live::new(7);
        send(&live, 8..=9);
        let (frames, joined) = live.join().expect("live");
        assert_eq!(joined, 9);
        send(&live, 10..=12);
        drop(live);
        let seen: Vec<u64> = tail(frames, joined).map(|frame| frame.sequence).collect().await;
        assert_eq!(seen, [10, 11, 12]);
    }

    #[tokio::test]
    async fn a_listener_that_falls_behind_is_cut_off_before_the_gap() {
        let live = Live::new(0);
        let (frames, joined) = live.join().expect("live");
        send(&live, 1..=SLACK as u64 + 1);
        assert_eq!(tail(frames, joined).count().await, 0);
    }
}
