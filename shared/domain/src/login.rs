//! Attempts to sign in that came to nothing, by where they came from: a record, from which nothing is decided. Each
//! command is one more line in it; the log sees to it that none is carried out twice.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::{Aggregate, Key};

/// Names reflect the stored format. None holds what was typed: people type passwords where names belong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", content = "data")]
pub enum Event {
    #[serde(rename = "failed.v1")]
    Failed {},
    /// From now on, nothing that comes from there is looked at.
    #[serde(rename = "blocked.v1")]
    Blocked {
        /// An IPv4 address, or an IPv6 network of 64 bits.
        source: String,
        until: DateTime<Utc>,
    },
    /// Somebody came back from the OpenID provider and was not let in.
    #[serde(rename = "refused.v1")]
    Refused { reason: String },
}

/// Nothing is kept of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Login;

#[derive(Debug, Clone)]
pub enum Command {
    Fail,
    Block { source: String, until: DateTime<Utc> },
    Refuse { reason: String },
}

/// There is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {}

impl Key<Login> {
    /// `digest` of the source, in hexadecimal. What is no digest is no key.
    pub fn login(digest: &str) -> Option<Self> {
        let good = digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        good.then(|| Key::new(digest.to_owned()))
    }
}

impl Aggregate for Login {
    const NAME: &'static str = "login";
    type Event = Event;
    type Command = Command;
    type Rejection = Rejection;

    fn decide(&self, command: Command) -> Result<Vec<Event>, Rejection> {
        Ok(vec![match command {
            Command::Fail => Event::Failed {},
            Command::Block { source, until } => Event::Blocked { source, until },
            Command::Refuse { reason } => Event::Refused { reason },
        }])
    }

    fn evolve(&mut self, event: &Event) {
        match event {
            Event::Failed {} | Event::Blocked { .. } | Event::Refused { .. } => {}
        }
    }
}
