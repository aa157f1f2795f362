//! Registries that need a sign-in: one aggregate per registry host. The password lies in the
//! vault; events hold where it lies and which version of it.

use serde::{Deserialize, Serialize};

use crate::{Aggregate, Key, image};

/// Names reflect the stored format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", content = "data")]
pub enum Event {
    #[serde(rename = "credentials.set.v1")]
    CredentialsSet {
        host: String,
        username: String,
        /// Key in the vault.
        secret: String,
        /// Revision of that key.
        version: u64,
    },
    #[serde(rename = "credentials.removed.v1")]
    CredentialsRemoved { host: String },
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Registry {
    pub credentials: Option<Credentials>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    pub username: String,
    pub secret: String,
    pub version: u64,
}

#[derive(Debug, Clone)]
pub enum Command {
    SetCredentials { host: String, username: String, secret: String, version: u64 },
    RemoveCredentials { host: String },
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    #[error("`{0}` is not a registry: give its host and port, such as registry.example.com or 127.0.0.1:5000")]
    BadHost(String),
    #[error("a user name of 1 to 256 characters is needed")]
    BadUsername,
    #[error("no credentials are stored for this registry")]
    NoCredentials,
}

impl Key<Registry> {
    /// `host[:port]`. Dots separate subject tokens; `_` cannot be part of a host name.
    pub fn registry(host: &str) -> Result<Self, Rejection> {
        if !image::valid_host(host) {
            return Err(Rejection::BadHost(host.chars().take(120).collect()));
        }
        Ok(Key::new(host.to_ascii_lowercase().replace('.', "_")))
    }

    /// Where this registry's password lies in the vault.
    pub fn secret(&self) -> String {
        format!("registry/{}", self.as_str().replace(':', "="))
    }
}

pub(crate) fn check_username(username: &str) -> Result<(), Rejection> {
    if (1..=256).contains(&username.chars().count()) { Ok(()) } else { Err(Rejection::BadUsername) }
}

impl Aggregate for Registry {
    const NAME: &'static str = "registry";
    type Event = Event;
    type Command = Command;
    type Rejection = Rejection;

    fn decide(&self, command: Command) -> Result<Vec<Event>, Rejection> {
        match command {
            Command::SetCredentials { host, username, secret, version } => {
                check_username(&username)?;
                let wanted = Credentials { username: username.clone(), secret: secret.clone(), version };
                if self.credentials.as_ref() == Some(&wanted) {
                    return Ok(vec![]);
                }
                Ok(vec![Event::CredentialsSet { host, username, secret, version }])
            }
            Command::RemoveCredentials { host } => match self.credentials {
                Some(_) => Ok(vec![Event::CredentialsRemoved { host }]),
                None => Err(Rejection::NoCredentials),
            },
        }
    }

    fn evolve(&mut self, event: &Event) {
        self.credentials = match event {
            Event::CredentialsSet { username, secret, version, .. } => {
                Some(Credentials { username: username.clone(), secret: secret.clone(), version: *version })
            }
            Event::CredentialsRemoved { .. } => None,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_set_changed_and_removed() {
        let mut registry = Registry::default();
        let set = |version| Command::SetCredentials {
            host: "r:1".into(),
            username: "ci".into(),
            secret: "k".into(),
            version,
        };
        for (command, events) in
            [(set(1), 1), (set(1), 0), (set(2), 1), (Command::RemoveCredentials { host: "r:1".into() }, 1)]
        {
            let decided = registry.decide(command).expect("accepted");
            assert_eq!(decided.len(), events);
            decided.iter().for_each(|event| registry.evolve(event));
        }
        assert_eq!(registry.decide(Command::RemoveCredentials { host: "r:1".into() }), Err(Rejection::NoCredentials));
    }

    #[test]
    fn a_host_cannot_break_out_of_its_subject() {
        assert_eq!(Key::registry("127.0.0.1:5000").expect("good").as_str(), "127_0_0_1:5000");
        for bad in ["", "a/b", "a b", "a.>", "*", "http://x", "x:99999"] {
            assert!(Key::registry(bad).is_err(), "{bad:?} passed");
        }
    }
}
