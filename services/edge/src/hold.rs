//! Requests that wait while their route is held.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{Notify, futures::Notified};

/// The waiting room of one route.
#[derive(Debug, Default)]
pub(crate) struct Hold {
    waiting: AtomicU64,
    released: Notify,
}

/// A request's place in the waiting room, until dropped.
#[derive(Debug)]
pub(crate) struct Seat<'a>(&'a Hold);

impl Hold {
    /// A place, unless `limit` requests wait already.
    pub(crate) fn enter(&self, limit: u64) -> Option<Seat<'_>> {
        let seat = Seat(self);
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        (before < limit).then_some(seat)
    }

    pub(crate) fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Resolves at the next [`Hold::release`] after it was enabled.
    pub(crate) fn released(&self) -> Notified<'_> {
        self.released.notified()
    }

    /// Everybody looks at the table again.
    pub(crate) fn release(&self) {
        self.released.notify_waiters();
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_wait_than_may() {
        let hold = Hold::default();
        let first = hold.enter(2).expect("a seat");
        let _second = hold.enter(2).expect("a seat");
        assert!(hold.enter(2).is_none());
        assert_eq!(hold.waiting(), 2, "one who was refused takes no seat");
        drop(first);
        assert!(hold.enter(2).is_some());
    }
}
