//! Reverse proxies that people run themselves, and how Sluice deals with each. The password for a proxy's admin API
//! lies in the vault; events hold where it lies and which version of it.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    Aggregate, FieldError, Key, Slug,
    settings::{StageSettings, Strategy, plain_host},
};

/// Names reflect the stored format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", content = "data")]
pub enum Event {
    #[serde(rename = "configured.v1")]
    Configured { settings: Settings },
    #[serde(rename = "credentials.set.v1")]
    CredentialsSet {
        username: String,
        /// Key in the vault.
        secret: String,
        /// Revision of that key.
        version: u64,
    },
    #[serde(rename = "removed.v1")]
    Removed {},
}

/// A proxy as declared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    pub driver: Driver,
    #[serde(default)]
    pub mode: Mode,
    /// The proxy's admin API, e.g. `http://127.0.0.1:2019`. In mode `via_edge` it may be left out: then nobody but you
    /// points the proxy at the edge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// `ip:port` at which the proxy takes plain HTTP requests, asked whenever a switch is confirmed. In mode `via_edge`
    /// it may be left out: then a switch is confirmed at the edges alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// In mode `via_edge`: `host:port` at which the proxy reaches the edge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edge: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Driver {
    /// Nginx Proxy Manager, by its REST API. It asks for a sign-in.
    Npm,
    /// Caddy, by its admin API.
    Caddy,
    /// Traefik, by its REST provider.
    Traefik,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// The proxy points at the edge, once; deployments do not touch it, and the edge switches.
    #[default]
    ViaEdge,
    /// Every deployment changes the proxy's own upstreams.
    Direct,
}

/// What a client that repeats nothing sees of a switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Guarantee {
    /// No request fails.
    Lossless,
    /// The proxy loads its configuration anew: it may reset a kept-alive connection just as a client uses it again.
    Reloading,
}

/// One route at a proxy: what it should lead to, and whether it does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Drift {
    pub host: String,
    pub path: String,
    /// `host:port` of what it should lead to.
    pub upstreams: Vec<String>,
    /// As it was found.
    pub state: State,
    /// What the proxy holds instead, in its own terms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found: Option<String>,
    /// It was set right.
    pub repaired: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum State {
    AsDeclared,
    Missing,
    /// By somebody else's hand.
    Changed,
}

impl Settings {
    /// What a switch costs the clients of this proxy.
    pub fn guarantee(&self) -> Guarantee {
        match (self.mode, self.driver) {
            (Mode::ViaEdge, _) | (Mode::Direct, Driver::Traefik) => Guarantee::Lossless,
            (Mode::Direct, Driver::Npm | Driver::Caddy) => Guarantee::Reloading,
        }
    }

    /// Everything that is wrong with the settings, by field.
    pub fn check(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let mut require = |good: bool, field: &str, problem: &str| {
            if !good {
                errors.push(FieldError { field: field.to_owned(), problem: problem.to_owned() });
            }
        };
        let good = |of: &Option<String>, is: fn(&str) -> bool| of.as_deref().is_none_or(is);
        require(
            good(&self.url, plain_url),
            "url",
            "must be http://host:port without path, user or password: admin APIs belong on a private network",
        );
        require(good(&self.address, socket), "address", "must be an IP address and a port, such as 127.0.0.1:80");
        require(good(&self.edge, host_port), "edge", "must be a host and a port, such as 172.17.0.1:8080");
        match self.mode {
            Mode::Direct => {
                require(self.url.is_some(), "url", "is needed in mode direct");
                require(self.address.is_some(), "address", "is needed in mode direct, to confirm a switch");
                require(self.edge.is_none(), "edge", "applies only to mode via_edge");
            }
            Mode::ViaEdge => require(self.edge.is_some(), "edge", "is needed in mode via_edge"),
        }
        errors
    }

    /// What of a stage's settings this proxy cannot do, each error's field under `prefix`.
    pub fn check_stage(&self, stage: &StageSettings, prefix: &str) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let mut require = |good: bool, field: &str, problem: &str| {
            if !good {
                errors.push(FieldError { field: format!("{prefix}.{field}"), problem: problem.to_owned() });
            }
        };
        if self.mode == Mode::Direct {
            require(
                stage.strategy != Strategy::Recreate,
                "strategy",
                "cannot be recreate behind a proxy in mode direct, which holds no requests back: use mode via_edge",
            );
            if self.driver == Driver::Npm {
                const ONE: &str =
                    "must be 1: in mode direct Nginx Proxy Manager forwards to one container; use mode via_edge";
                require(stage.replicas == 1, "replicas", ONE);
                let whole = stage.route.as_ref().is_none_or(|route| route.path == "/");
                const WHOLE: &str =
                    "must be /: in mode direct Nginx Proxy Manager forwards whole hosts; use mode via_edge";
                require(whole, "route.path", WHOLE);
            }
        }
        errors
    }
}

fn plain_url(url: &str) -> bool {
    url.strip_prefix("http://").is_some_and(|rest| host_port(rest.strip_suffix('/').unwrap_or(rest)))
}

fn socket(address: &str) -> bool {
    address.parse::<SocketAddr>().is_ok_and(|address| address.port() != 0)
}

fn host_port(text: &str) -> bool {
    socket(text)
        || text
            .rsplit_once(':')
            .is_some_and(|(host, port)| plain_host(host) && port.parse::<u16>().is_ok_and(|port| port != 0))
}

/// Without settings it was never declared, or was removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proxy {
    pub settings: Option<Settings>,
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
    /// Credentials are kept as long as driver and URL stay: another server must not be shown them.
    Configure(Settings),
    SetCredentials(Credentials),
    Remove,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    #[error("some settings of the proxy are wrong")]
    Invalid(Vec<FieldError>),
    #[error("a user name of 1 to 256 characters is needed")]
    BadUsername,
    #[error("no such proxy: `sluice proxy list` shows them")]
    Unknown,
}

impl Key<Proxy> {
    pub fn proxy(name: &Slug) -> Self {
        Key::new(name.to_string())
    }

    /// Where this proxy's password lies in the vault.
    pub fn secret(&self) -> String {
        format!("proxy/{}", self.as_str())
    }
}

impl Aggregate for Proxy {
    const NAME: &'static str = "proxy";
    type Event = Event;
    type Command = Command;
    type Rejection = Rejection;

    fn decide(&self, command: Command) -> Result<Vec<Event>, Rejection> {
        match (command, &self.settings) {
            (Command::Configure(settings), known) => {
                let errors = settings.check();
                if !errors.is_empty() {
                    return Err(Rejection::Invalid(errors));
                }
                Ok(if known.as_ref() == Some(&settings) { vec![] } else { vec![Event::Configured { settings }] })
            }
            (Command::SetCredentials(_) | Command::Remove, None) => Err(Rejection::Unknown),
            (Command::SetCredentials(wanted), Some(_)) => {
                if wanted.username.is_empty() || wanted.username.chars().count() > 256 {
                    return Err(Rejection::BadUsername);
                }
                if self.credentials.as_ref() == Some(&wanted) {
                    return Ok(vec![]);
                }
                let Credentials { username, secret, version } = wanted;
                Ok(vec![Event::CredentialsSet { username, secret, version }])
            }
            (Command::Remove, Some(_)) => Ok(vec![Event::Removed {}]),
        }
    }

    fn evolve(&mut self, event: &Event) {
        match event {
            Event::Configured { settings } => {
                let server = |settings: &Settings| (settings.driver, settings.url.clone());
                if self.settings.as_ref().map(server) != Some(server(settings)) {
                    self.credentials = None;
                }
                self.settings = Some(settings.clone());
            }
            Event::CredentialsSet { username, secret, version } => {
                let (username, secret) = (username.clone(), secret.clone());
                self.credentials = Some(Credentials { username, secret, version: *version });
            }
            Event::Removed {} => *self = Self::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::RouteSettings;

    fn direct(driver: Driver) -> Settings {
        Settings {
            driver,
            mode: Mode::Direct,
            url: Some("http://127.0.0.1:2019".into()),
            address: Some("127.0.0.1:80".into()),
            edge: None,
        }
    }

    fn run(proxy: &mut Proxy, command: Command) -> Result<usize, Rejection> {
        let events = proxy.decide(command)?;
        events.iter().for_each(|event| proxy.evolve(event));
        Ok(events.len())
    }

    fn credentials(version: u64) -> Command {
        Command::SetCredentials(Credentials { username: "admin".into(), secret: "k".into(), version })
    }

    fn fields(errors: Vec<FieldError>) -> Vec<String> {
        errors.into_iter().map(|error| error.field).collect()
    }

    #[test]
    fn a_proxy_is_declared_changed_and_removed() {
        let mut proxy = Proxy::default();
        assert_eq!(run(&mut proxy, credentials(1)), Err(Rejection::Unknown));
        for (command, events) in [
            (Command::Configure(direct(Driver::Caddy)), 1),
            (Command::Configure(direct(Driver::Caddy)), 0),
            (credentials(1), 1),
            (credentials(1), 0),
            (credentials(2), 1),
            (Command::Remove, 1),
        ] {
            assert_eq!(run(&mut proxy, command), Ok(events));
        }
        assert_eq!(proxy, Proxy::default());
        assert_eq!(run(&mut proxy, Command::Remove), Err(Rejection::Unknown));
    }

    #[test]
    fn another_server_is_not_shown_the_password_of_this_one() {
        let mut proxy = Proxy::default();
        let settings = direct(Driver::Npm);
        run(&mut proxy, Command::Configure(settings.clone())).expect("accepted");
        run(&mut proxy, credentials(1)).expect("accepted");
        let moved = Settings { address: Some("127.0.0.1:81".into()), ..settings };
        run(&mut proxy, Command::Configure(moved.clone())).expect("accepted");
        assert!(proxy.credentials.is_some(), "the admin API is the same");
        let other = Settings { url: Some("http://10.0.0.9:81".into()), ..moved };
        run(&mut proxy, Command::Configure(other)).expect("accepted");
        assert_eq!(proxy.credentials, None);
    }

    #[test]
    fn every_bad_field_is_named() {
        let bad = Settings {
            url: Some("https://user:pw@x/".into()),
            address: Some("localhost:80".into()),
            edge: Some("x".into()),
            ..direct(Driver::Caddy)
        };
        assert_eq!(fields(bad.check()), ["url", "address", "edge", "edge"]);
        let empty = Settings { url: None, address: None, ..direct(Driver::Caddy) };
        assert_eq!(fields(empty.check()), ["url", "address"]);
        let via = Settings { mode: Mode::ViaEdge, ..empty };
        assert_eq!(fields(via.check()), ["edge"]);
        assert_eq!(Settings { edge: Some("edge:8080".into()), ..via }.check(), []);
    }

    #[test]
    fn what_a_proxy_cannot_do_for_a_stage_is_said_by_field() {
        let route = Some(RouteSettings { host: "a.test".into(), path: "/api".into(), proxy: None });
        let stage = StageSettings { replicas: 2, strategy: Strategy::Recreate, route, ..StageSettings::default() };
        assert_eq!(fields(direct(Driver::Npm).check_stage(&stage, "s")), ["s.strategy", "s.replicas", "s.route.path"]);
        assert_eq!(fields(direct(Driver::Caddy).check_stage(&stage, "s")), ["s.strategy"]);
        assert_eq!(Settings { mode: Mode::ViaEdge, ..direct(Driver::Npm) }.check_stage(&stage, "s"), []);
    }

    #[test]
    fn only_what_reloads_is_said_to() {
        assert_eq!(direct(Driver::Caddy).guarantee(), Guarantee::Reloading);
        assert_eq!(direct(Driver::Npm).guarantee(), Guarantee::Reloading);
        assert_eq!(direct(Driver::Traefik).guarantee(), Guarantee::Lossless);
        assert_eq!(Settings { mode: Mode::ViaEdge, ..direct(Driver::Npm) }.guarantee(), Guarantee::Lossless);
    }
}
