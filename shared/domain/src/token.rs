//! API tokens: how programs, and people at a command line, sign in. What a token looks like is known only to its
//! holder; its digest lies in the vault, and events hold where.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::{
    Aggregate, FieldError, Grant, Key, Role, Slug, TokenId, UserId,
    user::{Person, User},
};

/// Names reflect the stored format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", content = "data")]
pub enum Event {
    #[serde(rename = "created.v1")]
    Created(Holder),
    #[serde(rename = "revoked.v1")]
    Revoked {},
}

/// Without a holder it was never created.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Token {
    pub holder: Option<Holder>,
    pub revoked: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Stored", into = "Stored")]
pub struct Holder {
    /// The actor of everything that is done with it, unless it has an owner, who then is.
    pub name: Slug,
    pub grant: Grant,
    /// Whose personal token it is; a machine has nobody but itself.
    pub owner: Option<Owner>,
    /// Key in the vault.
    pub secret: String,
    /// Revision of that key.
    pub version: u64,
    /// Good for ever where it is left out.
    pub expires_at: Option<DateTime<Utc>>,
}

/// A person whose token dies with what they had signed in by when it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    pub user: UserId,
    pub epoch: u64,
}

/// As the event has it: the first tokens had a role, and nothing more.
#[derive(Serialize, Deserialize)]
struct Stored {
    name: Slug,
    role: Role,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    projects: Option<BTreeSet<Slug>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    owner: Option<Owner>,
    secret: String,
    version: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires_at: Option<DateTime<Utc>>,
}

impl From<Stored> for Holder {
    fn from(Stored { name, role, projects, owner, secret, version, expires_at }: Stored) -> Self {
        Self { name, grant: Grant { role, projects }, owner, secret, version, expires_at }
    }
}

impl From<Holder> for Stored {
    fn from(holder: Holder) -> Self {
        let Holder { name, grant: Grant { role, projects }, owner, secret, version, expires_at } = holder;
        Self { name, role, projects, owner, secret, version, expires_at }
    }
}

#[derive(Debug, Clone)]
pub enum Command {
    Create(Holder),
    Revoke,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    #[error("the log calls others {}: choose another name", RESERVED.map(|name| format!("`{name}`")).join(", "))]
    Reserved,
    #[error("no such token: `sluice token list` shows them")]
    Unknown,
    #[error("{}", .0.iter().map(|e| format!("{}: {}", e.field, e.problem)).collect::<Vec<_>>().join("; "))]
    Invalid(Vec<FieldError>),
}

/// Who stands in events without being a token: the administrator of earlier versions, Sluice itself, and whoever has not
/// signed in.
const RESERVED: [&str; 3] = ["admin", "system", "nobody"];

impl Key<Token> {
    pub fn token(id: TokenId) -> Self {
        Key::new(id.to_string())
    }
}

impl Token {
    /// Who holds it, as long as it is good for anything.
    pub fn valid(&self, now: DateTime<Utc>) -> Option<&Holder> {
        let over = |holder: &Holder| holder.expires_at.is_some_and(|end| end <= now);
        self.holder.as_ref().filter(|holder| !self.revoked && !over(holder))
    }
}

impl Holder {
    /// What it is good for in the hands of its owner: never for more than they may do themselves, and for nothing once
    /// they are out.
    pub fn effective(&self, owner: &User) -> Option<Grant> {
        let same_epoch = |person: &&Person| self.owner.is_some_and(|owner| owner.epoch == person.epoch);
        owner.enabled().filter(same_epoch).map(|person| self.grant.and(&person.grant))
    }
}

impl Aggregate for Token {
    const NAME: &'static str = "token";
    type Event = Event;
    type Command = Command;
    type Rejection = Rejection;

    fn decide(&self, command: Command) -> Result<Vec<Event>, Rejection> {
        match (command, &self.holder) {
            (Command::Create(holder), _) if RESERVED.contains(&holder.name.as_str()) => Err(Rejection::Reserved),
            (Command::Create(holder), None) => {
                let errors = holder.grant.check();
                if errors.is_empty() { Ok(vec![Event::Created(holder)]) } else { Err(Rejection::Invalid(errors)) }
            }
            (Command::Create(_), Some(_)) => Ok(vec![]),
            (Command::Revoke, None) => Err(Rejection::Unknown),
            (Command::Revoke, Some(_)) => Ok(if self.revoked { vec![] } else { vec![Event::Revoked {}] }),
        }
    }

    fn evolve(&mut self, event: &Event) {
        match event {
            Event::Created(holder) => self.holder = Some(holder.clone()),
            Event::Revoked {} => self.revoked = true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::user;

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(second, 0).expect("in range")
    }

    fn holder(name: &str) -> Holder {
        Holder {
            name: name.parse().expect("a good name"),
            grant: Grant::everywhere(Role::Operator),
            owner: None,
            secret: "k".into(),
            version: 1,
            expires_at: None,
        }
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
            assert_eq!(token.valid(at(0)).is_some(), valid);
        }
    }

    #[test]
    fn a_token_expires() {
        let token = Token { holder: Some(Holder { expires_at: Some(at(10)), ..holder("ci") }), revoked: false };
        assert!(token.valid(at(9)).is_some() && token.valid(at(10)).is_none());
    }

    #[test]
    fn a_personal_token_is_worth_no_more_than_its_owner() {
        let owner = UserId(uuid::Uuid::from_u128(1));
        let shop = || Some(["shop".parse().expect("a good name")].into());
        let grant = Grant { role: Role::Admin, projects: shop() };
        let mine = Holder { grant, owner: Some(Owner { user: owner, epoch: 0 }), ..holder("ann") };
        let mut user = User::default();
        assert_eq!(mine.effective(&user), None);
        let mut run = |command| {
            for event in user.decide(command).expect("accepted") {
                user.evolve(&event);
            }
            mine.effective(&user)
        };
        let (source, handle, profile) = (user::Source::Local, "h".into(), user::Sealed("x".into()));
        let create = user::Command::Create { source, handle, profile, grant: Grant::everywhere(Role::Operator) };
        assert_eq!(run(create), Some(Grant { role: Role::Operator, projects: shop() }));
        let demoted = user::Command::Grant { grant: Grant::everywhere(Role::Viewer) };
        assert_eq!(run(demoted), Some(Grant { role: Role::Viewer, projects: shop() }));
        assert_eq!(run(user::Command::Disable), None);
        assert_eq!(run(user::Command::Enable), None, "what is dead stays dead");
    }

    #[test]
    fn nobody_takes_the_administrators_name() {
        assert_eq!(Token::default().decide(Command::Create(holder("admin"))), Err(Rejection::Reserved));
    }
}
