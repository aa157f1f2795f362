//! Sessions: what a browser holds a handle to between a sign-in and its end.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    Aggregate, Key, SessionId, UserId,
    user::{Person, User},
};

/// Names reflect the stored format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", content = "data")]
pub enum Event {
    #[serde(rename = "opened.v1")]
    Opened(Opening),
    #[serde(rename = "ended.v1")]
    Ended { reason: Reason },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opening {
    pub user: UserId,
    /// The user's at the sign-in: a later one ends the session.
    pub epoch: u64,
    pub method: Method,
    /// The end of it, whatever is done with it.
    pub expires_at: DateTime<Utc>,
}

/// How somebody signed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    Password,
    /// By the link that an administrator made.
    Setup,
    Oidc,
}

/// Why a session ended before its time. A disable or a new password of its user ends it without a word: see
/// [`Person::epoch`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    Logout,
    /// By an administrator, or by the user from another session.
    Ended,
    /// Another sign-in took its place.
    Replaced,
}

/// Without an opening it was never opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Session {
    pub opening: Option<Opening>,
    pub ended: Option<Reason>,
}

#[derive(Debug, Clone)]
pub enum Command {
    Open(Opening),
    End { reason: Reason },
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    #[error("no such session: `sluice session list` shows them")]
    Unknown,
}

impl Key<Session> {
    pub fn session(id: SessionId) -> Self {
        Key::new(id.to_string())
    }
}

impl Session {
    /// The opening, where it was neither ended nor is over at `now`.
    pub fn open(&self, now: DateTime<Utc>) -> Option<&Opening> {
        self.opening.as_ref().filter(|opening| self.ended.is_none() && now < opening.expires_at)
    }

    /// Who it is good for at `now`, where `user` is the one that it was opened for.
    pub fn holder<'a>(&self, user: &'a User, now: DateTime<Utc>) -> Option<&'a Person> {
        let opening = self.open(now)?;
        user.enabled().filter(|person| person.epoch == opening.epoch)
    }
}

impl Aggregate for Session {
    const NAME: &'static str = "session";
    type Event = Event;
    type Command = Command;
    type Rejection = Rejection;

    fn decide(&self, command: Command) -> Result<Vec<Event>, Rejection> {
        match (command, &self.opening) {
            (Command::Open(opening), None) => Ok(vec![Event::Opened(opening)]),
            (Command::Open(_), Some(_)) => Ok(vec![]),
            (Command::End { .. }, None) => Err(Rejection::Unknown),
            (Command::End { reason }, Some(_)) => {
                Ok(if self.ended.is_none() { vec![Event::Ended { reason }] } else { vec![] })
            }
        }
    }

    fn evolve(&mut self, event: &Event) {
        match event {
            Event::Opened(opening) => self.opening = Some(opening.clone()),
            Event::Ended { reason } => self.ended = Some(*reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::{
        Grant, Role,
        user::{self, Kept, Sealed, Source},
    };

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(second, 0).expect("in range")
    }

    fn apply<A: Aggregate>(state: &mut A, command: A::Command) -> usize {
        let events = state.decide(command).expect("accepted");
        events.iter().for_each(|event| state.evolve(event));
        events.len()
    }

    fn user() -> User {
        let mut user = User::default();
        let (handle, profile, grant) = ("h".into(), Sealed("x".into()), Grant::everywhere(Role::Viewer));
        apply(&mut user, user::Command::Create { source: Source::Local, handle, profile, grant });
        user
    }

    fn open(epoch: u64) -> Command {
        let user = UserId(Uuid::from_u128(1));
        Command::Open(Opening { user, epoch, method: Method::Password, expires_at: at(100) })
    }

    #[test]
    fn a_session_is_good_until_it_is_ended_or_over() {
        let (user, mut session) = (user(), Session::default());
        assert_eq!(session.decide(Command::End { reason: Reason::Logout }), Err(Rejection::Unknown));
        assert_eq!([apply(&mut session, open(0)), apply(&mut session, open(0))], [1, 0]);
        assert!(session.holder(&user, at(99)).is_some());
        assert!(session.holder(&user, at(100)).is_none(), "over");
        for events in [1, 0] {
            assert_eq!(apply(&mut session, Command::End { reason: Reason::Logout }), events);
            assert!(session.holder(&user, at(1)).is_none(), "ended");
        }
    }

    #[test]
    fn a_session_ends_with_what_its_user_signed_in_by() {
        let mut session = Session::default();
        apply(&mut session, open(0));
        let mut disabled = user();
        apply(&mut disabled, user::Command::Disable);
        assert!(session.holder(&disabled, at(1)).is_none());
        apply(&mut disabled, user::Command::Enable);
        assert!(session.holder(&disabled, at(1)).is_none(), "enabling brings no old session back");
        let mut changed = user();
        apply(&mut changed, user::Command::SetPassword(Kept { secret: "p".into(), version: 1 }));
        assert!(session.holder(&changed, at(1)).is_none());
    }
}
