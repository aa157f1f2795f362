//! The threads that serve. Each has a runtime of its own: a connection stays where it was accepted, together with the
//! connections to upstreams that its requests use, so that nothing on a request's way crosses threads.

use std::{io, thread};

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::pool;

pub(crate) struct Workers {
    threads: Vec<(Handle, thread::JoinHandle<()>)>,
    /// Ends them.
    ended: DropGuard,
}

impl Workers {
    pub(crate) fn start(count: usize) -> io::Result<Self> {
        let ended = CancellationToken::new();
        let start = |number| {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let handle = runtime.handle().clone();
            let ended = ended.clone();
            let thread = thread::Builder::new().name(format!("edge-{number}")).spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        () = pool::sweep() => {}
                        () = ended.cancelled() => {}
                    }
                });
            })?;
            Ok((handle, thread))
        };
        let threads = (0..count.max(1)).map(start).collect::<io::Result<_>>()?;
        Ok(Self { threads, ended: ended.drop_guard() })
    }

    pub(crate) fn handles(&self) -> impl Iterator<Item = &Handle> + Clone {
        self.threads.iter().map(|(handle, _)| handle)
    }

    /// With all that still runs on them.
    pub(crate) async fn end(self) {
        drop(self.ended);
        let threads = self.threads;
        let joined = tokio::task::spawn_blocking(move || {
            threads.into_iter().map(|(_, thread)| thread.join()).filter(Result::is_err).count()
        });
        if !matches!(joined.await, Ok(0)) {
            tracing::error!("a serving thread had panicked");
        }
    }
}
