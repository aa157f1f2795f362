//! What people are known by: a name here, or a subject at the OpenID provider. One aggregate per handle, so that no two
//! people share one. Its key is a keyed digest: the log tells nobody who it is about.

use serde::{Deserialize, Serialize};

use crate::{Aggregate, Key, UserId};

/// Names reflect the stored format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", content = "data")]
pub enum Event {
    #[serde(rename = "claimed.v1")]
    Claimed { user: UserId },
    #[serde(rename = "released.v1")]
    Released { user: UserId },
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Handle {
    pub user: Option<UserId>,
}

#[derive(Debug, Clone)]
pub enum Command {
    Claim { user: UserId },
    Release { user: UserId },
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    #[error("this name belongs to somebody already: choose another")]
    Taken,
}

impl Key<Handle> {
    /// `digest` in hexadecimal. What is no digest is no key.
    pub fn handle(digest: &str) -> Option<Self> {
        let good = digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        good.then(|| Key::new(digest.to_owned()))
    }
}

impl Aggregate for Handle {
    const NAME: &'static str = "handle";
    type Event = Event;
    type Command = Command;
    type Rejection = Rejection;

    fn decide(&self, command: Command) -> Result<Vec<Event>, Rejection> {
        match (command, self.user) {
            (Command::Claim { user }, None) => Ok(vec![Event::Claimed { user }]),
            (Command::Claim { user }, Some(holder)) if holder == user => Ok(vec![]),
            (Command::Claim { .. }, Some(_)) => Err(Rejection::Taken),
            (Command::Release { user }, Some(holder)) if holder == user => Ok(vec![Event::Released { user }]),
            (Command::Release { .. }, Some(_) | None) => Ok(vec![]),
        }
    }

    fn evolve(&mut self, event: &Event) {
        match event {
            Event::Claimed { user } => self.user = Some(*user),
            Event::Released { .. } => self.user = None,
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_handle_is_one_persons_until_it_is_released_by_them() {
        let mut handle = Handle::default();
        let [ann, bob] = [1, 2].map(|n| UserId(Uuid::from_u128(n)));
        for (command, expected) in [
            (Command::Release { user: ann }, Ok(0)),
            (Command::Claim { user: ann }, Ok(1)),
            (Command::Claim { user: ann }, Ok(0)),
            (Command::Claim { user: bob }, Err(Rejection::Taken)),
            (Command::Release { user: bob }, Ok(0)),
            (Command::Claim { user: bob }, Err(Rejection::Taken)),
            (Command::Release { user: ann }, Ok(1)),
            (Command::Claim { user: bob }, Ok(1)),
        ] {
            let decided = handle.decide(command.clone());
            decided.iter().flatten().for_each(|event| handle.evolve(event));
            assert_eq!(decided.map(|events| events.len()), expected, "{command:?}");
        }
    }

    #[test]
    fn what_is_no_digest_is_no_key() {
        for bad in ["", "ann", &"a.".repeat(32), &"A".repeat(64), &"a".repeat(63), &"*".repeat(64)] {
            assert!(Key::handle(bad).is_none(), "{bad:?} passed");
        }
        assert!(Key::handle(&"0f".repeat(32)).is_some());
    }
}
