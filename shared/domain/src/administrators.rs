//! Who of the enabled users administers the whole installation: one aggregate for all, because there must always be one.
//!
//! Changes in the same atomic batch as the user that it is about.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{Aggregate, Key, UserId};

/// Names reflect the stored format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", content = "data")]
pub enum Event {
    #[serde(rename = "joined.v1")]
    Joined { user: UserId },
    #[serde(rename = "left.v1")]
    Left { user: UserId },
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Administrators {
    pub users: BTreeSet<UserId>,
}

#[derive(Debug, Clone)]
pub enum Command {
    Join {
        user: UserId,
    },
    /// As the very first, while there is nobody.
    Found {
        user: UserId,
    },
    Leave {
        user: UserId,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    #[error("this is the last administrator who is enabled: make somebody else an administrator first")]
    LastAdministrator,
    #[error("there is an administrator already")]
    Founded,
}

impl Key<Administrators> {
    pub fn administrators() -> Self {
        Key::new("all".to_owned())
    }
}

impl Aggregate for Administrators {
    const NAME: &'static str = "administrators";
    type Event = Event;
    type Command = Command;
    type Rejection = Rejection;

    fn decide(&self, command: Command) -> Result<Vec<Event>, Rejection> {
        match command {
            Command::Join { user } | Command::Found { user } if self.users.contains(&user) => Ok(vec![]),
            Command::Join { user } => Ok(vec![Event::Joined { user }]),
            Command::Found { user } if self.users.is_empty() => Ok(vec![Event::Joined { user }]),
            Command::Found { .. } => Err(Rejection::Founded),
            Command::Leave { user } if !self.users.contains(&user) => Ok(vec![]),
            Command::Leave { .. } if self.users.len() == 1 => Err(Rejection::LastAdministrator),
            Command::Leave { user } => Ok(vec![Event::Left { user }]),
        }
    }

    fn evolve(&mut self, event: &Event) {
        match event {
            Event::Joined { user } => {
                self.users.insert(*user);
            }
            Event::Left { user } => {
                self.users.remove(user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    fn command() -> impl Strategy<Value = Command> {
        let user = || (1..5_u128).prop_map(|n| UserId(Uuid::from_u128(n)));
        prop_oneof![
            2 => user().prop_map(|user| Command::Join { user }),
            1 => user().prop_map(|user| Command::Found { user }),
            4 => user().prop_map(|user| Command::Leave { user }),
        ]
    }

    proptest! {
        #[test]
        fn once_there_is_an_administrator_there_is_always_one(
            commands in proptest::collection::vec(command(), 1..60),
        ) {
            let mut all = Administrators::default();
            let mut founded = false;
            for command in commands {
                let decided = all.decide(command.clone());
                decided.iter().flatten().for_each(|event| all.evolve(event));
                if decided.is_ok() {
                    prop_assert_eq!(all.decide(command), Ok(vec![]), "twice is once");
                }
                founded |= !all.users.is_empty();
                prop_assert_eq!(founded, !all.users.is_empty());
            }
        }
    }

    #[test]
    fn only_the_first_is_found() {
        let [ann, bob] = [1, 2].map(|n| UserId(Uuid::from_u128(n)));
        let mut all = Administrators::default();
        for event in all.decide(Command::Found { user: ann }).expect("the first") {
            all.evolve(&event);
        }
        assert_eq!(all.decide(Command::Found { user: bob }), Err(Rejection::Founded));
        assert_eq!(all.decide(Command::Leave { user: ann }), Err(Rejection::LastAdministrator));
    }
}
