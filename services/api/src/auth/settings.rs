//! How people and programs sign in, as the environment says it.

use anyhow::{Context, Result, bail};
use chrono::TimeDelta;
use domain::{address::networks, throttle::Limits};

use super::{address::Addresses, limiter::Rate};

/// How long a setup link is good.
pub(super) const SETUP: TimeDelta = TimeDelta::hours(1);
const SHORTEST_KEY: usize = 32;
/// A key of fewer different bytes was typed, not drawn.
const FEWEST_BYTES: usize = 8;
const DAY: u64 = 86_400;

/// Settings of identity. Every field is the environment variable of its name.
#[derive(Clone)]
pub struct Identity {
    /// `ADMIN_PASSWORD`: of the first administrator, `admin`; needed until there is one.
    pub admin_password: Option<String>,
    /// `JWT_SECRET_KEY`: at least 32 characters. Another one ends every session.
    pub jwt_secret: String,
    /// `PUBLIC_URL`: scheme, host and port at which browsers reach Sluice; without it, on this machine over plain HTTP.
    /// What leads people here begins with it, and never with what a request says.
    pub public_url: Option<String>,
    /// `LOGIN_MAX_FAILURES`.
    pub login_max_failures: u64,
    /// `LOGIN_WINDOW_SECONDS`.
    pub login_window: u64,
    /// `LOGIN_COOLDOWN_SECONDS`.
    pub login_cooldown: u64,
    /// `LOGIN_TRUSTED_PROXY_IPS`: addresses and networks, separated by commas.
    pub login_trusted_proxies: String,
    /// `RATE_LIMIT_REQUESTS`: of one address that does not sign in, within the window.
    pub rate_limit_requests: u64,
    /// `RATE_LIMIT_WINDOW_SECONDS`.
    pub rate_limit_window: u64,
    /// `SESSION_IDLE_SECONDS`.
    pub session_idle: u64,
    /// `SESSION_MAX_SECONDS`: at most 12 hours.
    pub session_max: u64,
}

impl Identity {
    /// The defaults.
    pub fn new(jwt_secret: impl Into<String>) -> Self {
        Self {
            admin_password: None,
            jwt_secret: jwt_secret.into(),
            public_url: None,
            login_max_failures: 5,
            login_window: 300,
            login_cooldown: 900,
            login_trusted_proxies: String::new(),
            rate_limit_requests: 6000,
            rate_limit_window: 60,
            session_idle: 1800,
            session_max: 43_200,
        }
    }

    pub(super) fn check(&mut self) -> Result<Addresses> {
        let different = self.jwt_secret.bytes().collect::<std::collections::BTreeSet<_>>().len();
        if self.jwt_secret.chars().count() < SHORTEST_KEY || different < FEWEST_BYTES {
            bail!(
                "JWT_SECRET_KEY is too weak: it needs at least {SHORTEST_KEY} random characters, such as \
                 `openssl rand -hex 32` prints"
            );
        }
        for (name, value, most) in [
            ("LOGIN_MAX_FAILURES", self.login_max_failures, 1000),
            ("LOGIN_WINDOW_SECONDS", self.login_window, DAY),
            ("LOGIN_COOLDOWN_SECONDS", self.login_cooldown, DAY),
            ("RATE_LIMIT_REQUESTS", self.rate_limit_requests, 1_000_000),
            ("RATE_LIMIT_WINDOW_SECONDS", self.rate_limit_window, DAY),
            ("SESSION_IDLE_SECONDS", self.session_idle, DAY / 2),
            ("SESSION_MAX_SECONDS", self.session_max, DAY / 2),
        ] {
            if !(1..=most).contains(&value) {
                bail!("{name}: {value} is out of range: give a number from 1 to {most}");
            }
        }
        self.public_url = self.public_url.as_deref().map(origin).transpose()?;
        let trusted = networks(&self.login_trusted_proxies).context("LOGIN_TRUSTED_PROXY_IPS")?;
        Ok(Addresses::new(trusted))
    }

    pub(super) fn limits(&self) -> Limits {
        Limits {
            failures: usize::try_from(self.login_max_failures).unwrap_or(usize::MAX),
            window: seconds(self.login_window),
            cooldown: seconds(self.login_cooldown),
        }
    }

    pub(super) fn rate(&self) -> Rate {
        Rate { requests: self.rate_limit_requests, window: std::time::Duration::from_secs(self.rate_limit_window) }
    }

    pub(super) fn session_idle(&self) -> TimeDelta {
        seconds(self.session_idle)
    }

    pub(super) fn session_max(&self) -> TimeDelta {
        seconds(self.session_max)
    }
}

/// As the parser of browsers has it, without a slash at the end.
fn origin(text: &str) -> Result<String> {
    let url = reqwest::Url::parse(text).ok().filter(|url| {
        let bare = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
        let bare = bare && url.username().is_empty() && url.password().is_none();
        bare && url.has_host() && matches!(url.scheme(), "http" | "https")
    });
    match url {
        Some(url) => Ok(url.origin().ascii_serialization()),
        None => bail!("PUBLIC_URL: must be scheme, host and perhaps a port, such as https://sluice.example.com"),
    }
}

/// Never more than a day, by [`Identity::check`].
fn seconds(seconds: u64) -> TimeDelta {
    TimeDelta::seconds(seconds.min(DAY).cast_signed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_setting_is_named() {
        let good = Identity::new("0123456789abcdef0123456789abcdef");
        assert!(good.clone().check().is_ok());
        for (mut bad, name) in [
            (Identity::new("short"), "JWT_SECRET_KEY"),
            (Identity::new("a".repeat(64)), "JWT_SECRET_KEY"),
            (Identity { login_max_failures: 0, ..good.clone() }, "LOGIN_MAX_FAILURES"),
            (Identity { login_window: 0, ..good.clone() }, "LOGIN_WINDOW_SECONDS"),
            (Identity { login_cooldown: DAY + 1, ..good.clone() }, "LOGIN_COOLDOWN_SECONDS"),
            (Identity { login_trusted_proxies: "10.0.0.1,x".into(), ..good.clone() }, "LOGIN_TRUSTED_PROXY_IPS"),
            (Identity { rate_limit_requests: 0, ..good.clone() }, "RATE_LIMIT_REQUESTS"),
            (Identity { session_max: 43_201, ..good.clone() }, "SESSION_MAX_SECONDS"),
            (Identity { session_idle: 0, ..good.clone() }, "SESSION_IDLE_SECONDS"),
            (Identity { public_url: Some("sluice.example".into()), ..good.clone() }, "PUBLIC_URL"),
            (Identity { public_url: Some("https://u@h".into()), ..good.clone() }, "PUBLIC_URL"),
            (Identity { public_url: Some("https://sluice.example/sub".into()), ..good.clone() }, "PUBLIC_URL"),
            (Identity { public_url: Some("javascript:x".into()), ..good.clone() }, "PUBLIC_URL"),
        ] {
            let error = format!("{:#}", bad.check().err().expect(name));
            assert!(error.starts_with(name), "{error}");
        }
    }

    #[test]
    fn the_public_url_is_an_origin_as_browsers_write_it() {
        for (url, origin) in [
            ("https://Sluice.Example/", "https://sluice.example"),
            ("https://sluice.example:443", "https://sluice.example"),
            ("http://127.0.0.1:7070/", "http://127.0.0.1:7070"),
        ] {
            let good = Identity::new("0123456789abcdef0123456789abcdef");
            let mut identity = Identity { public_url: Some(url.into()), ..good };
            identity.check().expect("good");
            assert_eq!(identity.public_url.as_deref(), Some(origin));
        }
    }
}
