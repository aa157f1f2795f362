//! Ends requests and websockets that are still in flight at their set's drain deadline.
//!
//! A request is one future: dropping it closes both its connections and gives its claim back.
//! Pingora offers no place to end a request from outside, so the future it runs is wrapped here,
//! and the claim, made somewhere inside of it, tells the wrapper what may cut it.

use std::{
    cell::Cell,
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
};

use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

thread_local! {
    /// What the request that is being polled on this thread claimed during this poll.
    static CLAIMED: Cell<Option<CancellationToken>> = const { Cell::new(None) };
}

/// From within [`until_cut`]: the request ends when `token` does.
pub(crate) fn cut_by(token: &CancellationToken) {
    CLAIMED.set(Some(token.clone()));
}

/// The outcome of `work`, or nothing if it was cut.
pub(crate) async fn until_cut<F: Future>(work: F) -> Option<F::Output> {
    let mut work = pin!(work);
    let mut cut = pin!(None::<WaitForCancellationFutureOwned>);
    poll_fn(|context| {
        CLAIMED.set(None);
        let polled = work.as_mut().poll(context);
        // Also when the work is done: another request may be polled on this thread next.
        let claimed = CLAIMED.take();
        if let Poll::Ready(outcome) = polled {
            return Poll::Ready(Some(outcome));
        }
        if let Some(token) = claimed {
            cut.set(Some(token.cancelled_owned()));
        }
        match cut.as_mut().as_pin_mut() {
            Some(cut) => cut.poll(context).map(|()| None),
            None => Poll::Pending,
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[tokio::test]
    async fn work_ends_with_the_set_that_it_claimed_last() {
        let (first, second) = (CancellationToken::new(), CancellationToken::new());
        let work = async {
            cut_by(&first);
            tokio::task::yield_now().await;
            cut_by(&second);
            first.cancel();
            tokio::task::yield_now().await;
            second.cancel();
            pending::<()>().await;
        };
        assert_eq!(until_cut(work).await, None);
        assert!(second.is_cancelled(), "the first set's end must not end it");
    }

    #[tokio::test]
    async fn work_that_claims_nothing_just_runs() {
        assert_eq!(until_cut(async { 7 }).await, Some(7));
    }
}
