//! Registries: how they are reached and signed in to, and how often they are asked what is new. One aggregate per
//! registry host. The password lies in the vault; events hold where it lies and which version of it.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{Aggregate, FieldError, Key, Span, image};

/// Names reflect the stored format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", content = "data")]
pub enum Event {
    #[serde(rename = "configured.v1")]
    Configured { host: String, settings: RegistrySettings },
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
    /// As if nothing had ever been said about it.
    #[serde(rename = "removed.v1")]
    Removed { host: String },
}

impl Event {
    pub fn host(&self) -> &str {
        match self {
            Self::Configured { host, .. }
            | Self::CredentialsSet { host, .. }
            | Self::CredentialsRemoved { host }
            | Self::Removed { host } => host,
        }
    }
}

/// A registry as declared. Registries that nobody declares are reached as the defaults say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RegistrySettings {
    /// Where its API is: `https://<host>` where it is left out, `http://` for one on this machine. Another URL ends the
    /// credentials, which were meant for the one before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "https://registry.example.com")]
    pub url: Option<String>,
    /// Who signs in to it; the password is set by itself. Another name ends the password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// Time between two looks for new images. `0s` for never: then it is asked when a webhook tells of a push, when a
    /// policy changes and when the watcher starts.
    #[serde(default = "one_minute")]
    #[schema(value_type = String, example = "1m")]
    pub poll: Span,
}

fn one_minute() -> Span {
    Span::secs(60)
}

impl Default for RegistrySettings {
    fn default() -> Self {
        Self { url: None, username: None, poll: one_minute() }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Registry {
    /// None where nobody declared it.
    pub settings: Option<RegistrySettings>,
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
    Configure { host: String, settings: RegistrySettings },
    SetCredentials { host: String, username: String, secret: String, version: u64 },
    RemoveCredentials { host: String },
    Remove { host: String },
}

impl Command {
    pub fn host(&self) -> &str {
        match self {
            Self::Configure { host, .. }
            | Self::SetCredentials { host, .. }
            | Self::RemoveCredentials { host }
            | Self::Remove { host } => host,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    #[error("`{0}` is not a registry: give its host and port, such as registry.example.com or 127.0.0.1:5000")]
    BadHost(String),
    #[error("a user name of 1 to 256 characters is needed")]
    BadUsername,
    #[error("no credentials are stored for this registry")]
    NoCredentials,
    #[error("nothing is known of this registry: `sluice registry list` shows those that are declared")]
    Unknown,
    #[error("{}", .0.iter().map(|e| format!("{}: {}", e.field, e.problem)).collect::<Vec<_>>().join("; "))]
    Invalid(Vec<FieldError>),
}

const DAY: Span = Span::secs(86_400);

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
        format!("registry/{}", self.as_bucket_key())
    }

    /// As a key of a bucket has it, where a colon cannot stand.
    pub fn as_bucket_key(&self) -> String {
        self.as_str().replace(':', "=")
    }
}

impl RegistrySettings {
    /// Everything that is wrong with them.
    pub fn check(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let mut require = |good: bool, field: &str, problem: &str| {
            if !good {
                errors.push(FieldError { field: field.to_owned(), problem: problem.to_owned() });
            }
        };
        if let Some(url) = &self.url {
            let how =
                "must be http:// or https:// with a host and perhaps a port, such as https://registry.example.com";
            require(is_origin(url), "url", how);
        }
        if let Some(username) = &self.username {
            require(good_username(username), "username", "must be 1 to 256 characters");
        }
        let paced = self.poll.is_zero() || (Span::secs(1)..=DAY).contains(&self.poll);
        require(paced, "poll", "must be from 1s to 24h, or 0s for never");
        errors
    }

    /// Scheme, host and port of the API of the registry `host`, without a slash at the end.
    pub fn origin(&self, host: &str) -> String {
        if let Some(url) = &self.url {
            return url.trim_end_matches('/').to_owned();
        }
        let name = host.split(':').next().unwrap_or(host);
        let here = name == "localhost" || name.parse::<Ipv4Addr>().is_ok_and(|address| address.is_loopback());
        match host {
            // Docker Hub's API has another name than its images.
            "docker.io" => "https://registry-1.docker.io".into(),
            host if here => format!("http://{host}"),
            host => format!("https://{host}"),
        }
    }
}

/// Nothing but scheme, host and port: no user, path or query in which something secret could stand.
fn is_origin(url: &str) -> bool {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    rest.is_some_and(|rest| image::valid_host(rest.strip_suffix('/').unwrap_or(rest)))
}

fn good_username(username: &str) -> bool {
    (1..=256).contains(&username.chars().count()) && !username.contains([':', '\n', '\r'])
}

impl Registry {
    /// The settings that it is reached by.
    pub fn settings(&self) -> RegistrySettings {
        self.settings.clone().unwrap_or_default()
    }
}

impl Aggregate for Registry {
    const NAME: &'static str = "registry";
    type Event = Event;
    type Command = Command;
    type Rejection = Rejection;

    fn decide(&self, command: Command) -> Result<Vec<Event>, Rejection> {
        match command {
            Command::Configure { host, settings } => {
                let errors = settings.check();
                if !errors.is_empty() {
                    return Err(Rejection::Invalid(errors));
                }
                if self.settings.as_ref() == Some(&settings) {
                    return Ok(vec![]);
                }
                let moved = self.settings().origin(&host) != settings.origin(&host);
                let known = self.credentials.as_ref();
                let ended = known.filter(|known| moved || settings.username.as_ref() != Some(&known.username));
                let ended = ended.map(|_| Event::CredentialsRemoved { host: host.clone() });
                Ok(ended.into_iter().chain([Event::Configured { host, settings }]).collect())
            }
            Command::SetCredentials { host, username, secret, version } => {
                if !good_username(&username) {
                    return Err(Rejection::BadUsername);
                }
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
            Command::Remove { host } => match (&self.settings, &self.credentials) {
                (None, None) => Err(Rejection::Unknown),
                (_, Some(_)) => Ok(vec![Event::CredentialsRemoved { host: host.clone() }, Event::Removed { host }]),
                (Some(_), None) => Ok(vec![Event::Removed { host }]),
            },
        }
    }

    fn evolve(&mut self, event: &Event) {
        match event {
            Event::Configured { settings, .. } => self.settings = Some(settings.clone()),
            Event::CredentialsSet { username, secret, version, .. } => {
                let (username, secret) = (username.clone(), secret.clone());
                self.settings = Some(RegistrySettings { username: Some(username.clone()), ..self.settings() });
                self.credentials = Some(Credentials { username, secret, version: *version });
            }
            Event::CredentialsRemoved { .. } => {
                self.credentials = None;
                // With nothing else declared, nothing is left to tell.
                let settings = RegistrySettings { username: None, ..self.settings() };
                self.settings = Some(settings).filter(|settings| *settings != RegistrySettings::default());
            }
            Event::Removed { .. } => *self = Self::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(registry: &mut Registry, command: Command) -> Result<Vec<&'static str>, Rejection> {
        let events = registry.decide(command)?;
        events.iter().for_each(|event| registry.evolve(event));
        let name = |event: &Event| match event {
            Event::Configured { .. } => "configured",
            Event::CredentialsSet { .. } => "set",
            Event::CredentialsRemoved { .. } => "ended",
            Event::Removed { .. } => "removed",
        };
        Ok(events.iter().map(name).collect())
    }

    fn set(version: u64) -> Command {
        Command::SetCredentials { host: "r:1".into(), username: "ci".into(), secret: "k".into(), version }
    }

    fn configure(settings: RegistrySettings) -> Command {
        Command::Configure { host: "r:1".into(), settings }
    }

    #[test]
    fn credentials_are_set_changed_and_removed() {
        let mut registry = Registry::default();
        let remove = Command::RemoveCredentials { host: "r:1".into() };
        for (command, events) in
            [(set(1), vec!["set"]), (set(1), vec![]), (set(2), vec!["set"]), (remove.clone(), vec!["ended"])]
        {
            assert_eq!(run(&mut registry, command), Ok(events));
        }
        assert_eq!(run(&mut registry, remove), Err(Rejection::NoCredentials));
        assert_eq!(registry, Registry::default(), "nothing is left of them");
    }

    #[test]
    fn another_url_or_user_ends_the_credentials_and_another_pace_does_not() {
        let named = RegistrySettings { username: Some("ci".into()), ..RegistrySettings::default() };
        for (change, events) in [
            (RegistrySettings { poll: Span::secs(5), ..named.clone() }, vec!["configured"]),
            (RegistrySettings { url: Some("https://r:1".into()), ..named.clone() }, vec!["configured"]),
            (RegistrySettings { url: Some("http://r:1".into()), ..named.clone() }, vec!["ended", "configured"]),
            (RegistrySettings { username: Some("me".into()), ..named.clone() }, vec!["ended", "configured"]),
            (RegistrySettings::default(), vec!["ended", "configured"]),
            (named, vec![]),
        ] {
            let mut registry = Registry::default();
            run(&mut registry, set(1)).expect("accepted");
            assert_eq!(run(&mut registry, configure(change.clone())), Ok(events.clone()), "{change:?}");
            assert_eq!(registry.credentials.is_none(), events.contains(&"ended"));
            assert_eq!(registry.settings, Some(change.clone()));
            assert_eq!(run(&mut registry, configure(change)), Ok(vec![]), "twice is once");
        }
    }

    #[test]
    fn a_registry_that_is_removed_is_as_new() {
        let mut registry = Registry::default();
        let remove = Command::Remove { host: "r:1".into() };
        assert_eq!(run(&mut registry, remove.clone()), Err(Rejection::Unknown));
        run(&mut registry, set(1)).expect("accepted");
        assert_eq!(run(&mut registry, remove), Ok(vec!["ended", "removed"]));
        assert_eq!(registry, Registry::default());
    }

    #[test]
    fn a_url_is_an_origin_and_holds_nothing_secret() {
        for bad in
            ["", "registry", "ftp://r", "https://u:p@r", "https://r/v2", "https://r?x", "https://r:99999", "https://"]
        {
            let settings = RegistrySettings { url: Some(bad.into()), ..RegistrySettings::default() };
            assert_eq!(settings.check().len(), 1, "{bad:?} passed");
        }
        let origin = |host| RegistrySettings::default().origin(host);
        assert_eq!(origin("docker.io"), "https://registry-1.docker.io");
        assert_eq!(origin("127.0.0.1:5000"), "http://127.0.0.1:5000");
        assert_eq!(origin("r.example.com"), "https://r.example.com");
        assert_eq!(origin("127.example.com"), "https://127.example.com", "a name, and not this machine");
    }

    #[test]
    fn a_host_cannot_break_out_of_its_subject() {
        assert_eq!(Key::registry("127.0.0.1:5000").expect("good").as_str(), "127_0_0_1:5000");
        for bad in ["", "a/b", "a b", "a.>", "*", "http://x", "x:99999"] {
            assert!(Key::registry(bad).is_err(), "{bad:?} passed");
        }
    }
}
