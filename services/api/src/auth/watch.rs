//! Streams end with what their listener was let in by.

use std::sync::Arc;

use futures::{Stream, StreamExt};
use tokio::sync::broadcast::{Receiver, error::RecvError};

use super::{Auth, Principal, Who};
use crate::{live::Live, problem::Error};

/// `events` until the caller is no longer who they were, or may no longer do what they might.
pub(crate) async fn watched<S: Stream>(
    auth: &Arc<Auth>,
    live: &Live,
    caller: Principal,
    events: S,
) -> Result<impl Stream<Item = S::Item> + use<S>, Error> {
    // Listening comes first: what happens from here on is heard, and what happened before is looked at.
    let changes = live.identity()?;
    if !auth.still(&caller).await? {
        return Err(Error::Unauthorized);
    }
    Ok(events.take_until(over(auth.clone(), caller, changes)))
}

/// Comes to its end when the caller is out.
async fn over(auth: Arc<Auth>, caller: Principal, mut changes: Receiver<Arc<str>>) {
    let subjects = subjects(&caller);
    loop {
        let change = tokio::select! {
            change = changes.recv() => change,
            () = expiry(&caller) => return,
        };
        match change {
            Ok(subject) if !subjects.iter().any(|prefix| subject.starts_with(prefix)) => continue,
            // It concerns them, or nobody can say what was missed.
            Ok(_) | Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return,
        }
        match auth.still(&caller).await {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "a stream ends: its listener cannot be asked for"
                );
                return;
            }
        }
    }
}

/// Beginnings of the subjects of what may end it.
fn subjects(caller: &Principal) -> Vec<String> {
    let user = caller.user().map(|user| format!("sluice.events.user.{user}."));
    let own = match caller.who {
        Who::Session { session, .. } => Some(format!("sluice.events.session.{session}.")),
        Who::Token { token, .. } => Some(format!("sluice.events.token.{token}.")),
    };
    user.into_iter().chain(own).collect()
}

async fn expiry(caller: &Principal) {
    let Some(until) = caller.until else { return std::future::pending().await };
    // A second late rather than one early: a handle counts in whole seconds.
    tokio::time::sleep((until - runtime::clock::now()).to_std().unwrap_or_default()).await;
}
