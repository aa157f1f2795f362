//! API tokens: how programs, and people at a command line, sign in. What a token looks like is known only to its
//! holder; its digest lies in the vault, and events hold where.

use serde::{Deserialize, Serialize};

use crate::{Aggregate, Key, Role, Slug, TokenId};

/// Names reflect the stored format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", content = "data")]
pub enum Event {
    #[serde(rename = "created.v1")]
    Created {
        /// The actor of everything that is done with it.
        name: Slug,
        role: Role,
        /// Key in the vault.
        secret: String,
        /// Revision of that key.
        version: u64,
    },
    #[serde(rename = "revoked.v1")]
    Revoked {},
}

/// Without a holder it was never created.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Token {
    pub holder: Option<Holder>,
    pub revoked: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    pub name: Slug,
    pub role: Role,
    pub secret: String,
    pub version: u64,
}

#[derive(Debug, Clone)]
pub enum Command {
    Create(Holder),
    Revoke,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    #[error("`{RESERVED}` is the name of the administrator's own token: choose another")]
    Reserved,
    #[error("no such token: `sluice token list` shows them")]
    Unknown,
}

const RESERVED: &str = "admin";

impl Key<Token> {
    pub fn token(id: TokenId) -> Self {
        Key::new(id.to_string())
    }
}

impl Token {
    /// Who holds it, as long as it is good for anything.
    pub fn valid(&self) -> Option<&Holder> {
        self.holder.as_ref().filter(|_| !self.revoked)
    }
}

impl Aggregate for Token {
    const NAME: &'static str = "token";
    type Event = Event;
    type Command = Command;
    type Rejection = Rejection;

    fn decide(&self, command: Command) -> Result<Vec<Event>, Rejection> {
        match (command, &self.holder) {
            (Command::Create(holder), _) if holder.name.as_str() == RESERVED => Err(Rejection::Reserved),
            (Command::Create(Holder { name, role, secret, version }), None) => {
                Ok(vec![Event::Created { name, role, secret, version }])
            }
            (Command::Create(_), Some(_)) => Ok(vec![]),
            (Command::Revoke, None) => Err(Rejection::Unknown),
            (Command::Revoke, Some(_)) => Ok(if self.revoked { vec![] } else { vec![Event::Revoked {}] }),
        }
    }

    fn evolve(&mut self, event: &Event) {
        match event {
            Event::Created { name, role, secret, version } => {
                let (name, secret) = (name.clone(), secret.clone());
                self.holder = Some(Holder { name, role: *role, secret, version: *version });
            }
            Event::Revoked {} => self.revoked = true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(name: &str) -> Holder {
        Holder { name: name.parse().expect("a good name"), role: Role::Operator, secret: "k".into(), version: 1 }
    }

    #[test]
    fn a_token_is_good_from_its_creation_until_it_is_revoked() {
        let mut token = Token::default();
        assert_eq!(token.decide(Command::Revoke), Err(Rejection::Unknown));
        for (command, events, valid) in [
            (Command::Create(holder("ci")), 1, true),
            (Command::Create(holder("ci")), 0, true),
            (Command::Revoke, 1, false),
            (Command::Revoke, 0, false),
        ] {
            let decided = token.decide(command).expect("accepted");
            assert_eq!(decided.len(), events);
            decided.iter().for_each(|event| token.evolve(event));
            assert_eq!(token.valid().is_some(), valid);
        }
    }

    #[test]
    fn nobody_takes_the_administrators_name() {
        assert_eq!(Token::default().decide(Command::Create(holder("admin"))), Err(Rejection::Reserved));
    }
}
