//! What runs against an application while it is deployed, and what became of it.

use std::time::Instant;

use testkit::{Chat, Load, Report, Running, Sockets};

/// Half of the requests come over kept connections, half over a connection each.
pub(super) const RATE: u32 = 500;
/// So many that each has two seconds from one request to the next: what is held for less than that holds no later
/// request up, as it would be with clients that know nothing of each other.
const CLIENTS: u32 = 2 * RATE;
pub(super) const WEBSOCKETS: usize = 20;

/// Load that is under way. Starts on the current runtime, and so in the network that its threads are in.
pub(super) struct Traffic {
    kept: Running,
    fresh: Running,
    sockets: Sockets,
    began: Instant,
}

/// What became of it.
pub(super) struct Seen {
    /// Requests over kept connections.
    pub(super) kept: Report,
    /// Requests over a connection each.
    pub(super) fresh: Report,
    pub(super) chat: Chat,
    /// Seconds that the load ran.
    pub(super) seconds: f64,
}

impl Traffic {
    pub(super) fn start(address: &str, host: &str) -> Traffic {
        let half = Load::new(address, host).connections(CLIENTS / 2).rate(RATE / 2);
        Traffic {
            kept: half.clone().start(),
            fresh: half.without_keep_alive().start(),
            sockets: Sockets::open(address, host, WEBSOCKETS),
            began: Instant::now(),
        }
    }

    /// Waits until every client has met what serves now.
    pub(super) async fn settle(&self) {
        tokio::join!(self.kept.more(u64::from(CLIENTS / 2)), self.fresh.more(u64::from(CLIENTS / 2)));
    }

    pub(super) async fn stop(self) -> Seen {
        let seconds = self.began.elapsed().as_secs_f64();
        let (kept, fresh, chat) = tokio::join!(self.kept.stop(), self.fresh.stop(), self.sockets.close());
        Seen { kept, fresh, chat, seconds }
    }
}
