//! What a registry can do to those who ask it.

use std::{error::Error, time::Duration};

use chrono::{DateTime, Utc};
use reqwest::{Response, StatusCode, Url, header::RETRY_AFTER};
use runtime::outgoing::Outgoing;

/// However long a registry asks to be left alone, it is asked again after this.
pub(crate) const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Trouble {
    #[error("the registry cannot be reached: {0}")]
    Unreachable(String),
    #[error(
        "the registry refuses us ({status}): store a user name and password that may read {repository} with `sluice registry login`"
    )]
    Unauthorized { status: u16, repository: String },
    #[error("no password is kept for {registry}: `sluice registry login {registry}` takes it")]
    PasswordMissing { registry: String },
    #[error("the registry has no such image in {repository}")]
    NotFound { repository: String },
    #[error("the registry asks for fewer requests")]
    TooMany { pause: Option<Duration> },
    #[error("the registry answered {status}")]
    Broken { status: u16, pause: Option<Duration> },
    #[error("the registry answers something else than the specification says: {0}")]
    Nonsense(String),
}

impl Trouble {
    pub(super) fn unreachable(origin: &str, why: impl AsRef<str>) -> Self {
        Self::Unreachable(format!("{origin}: {}", why.as_ref()))
    }

    pub(super) fn local(url: &Url) -> Self {
        let host = url.host_str().unwrap_or_default();
        Self::Unreachable(format!(
            "{host} is an address of this machine or its surroundings, which is refused: if that is meant, allow it in {}",
            Outgoing::VARIABLE
        ))
    }

    pub(super) fn of(answer: &Response, repository: &str) -> Self {
        let status = answer.status();
        let pause = pause(answer);
        let repository = repository.to_owned();
        match status {
            StatusCode::NOT_FOUND => Self::NotFound { repository },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Self::Unauthorized { status: status.as_u16(), repository }
            }
            StatusCode::TOO_MANY_REQUESTS => Self::TooMany { pause },
            status => Self::Broken { status: status.as_u16(), pause },
        }
    }

    /// Stable, for scripts.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "registry_unreachable",
            Self::Unauthorized { .. } => "registry_unauthorized",
            Self::PasswordMissing { .. } => "credentials_missing",
            Self::NotFound { .. } => "image_not_found",
            Self::TooMany { .. } => "registry_rate_limited",
            Self::Broken { .. } | Self::Nonsense(_) => "registry_error",
        }
    }

    /// Whether it is the registry's, so that its other repositories are better not asked now.
    pub(crate) fn of_the_whole_registry(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::TooMany { .. } | Self::Broken { status: 502..=504, .. } => true,
            // One repository may be broken, and the others well.
            Self::Broken { .. } => false,
            Self::Unauthorized { .. } | Self::PasswordMissing { .. } | Self::NotFound { .. } | Self::Nonsense(_) => {
                false
            }
        }
    }

    /// How long the registry wants to be left alone, where it says so.
    pub(crate) fn pause(&self) -> Option<Duration> {
        match self {
            Self::TooMany { pause } | Self::Broken { pause, .. } => *pause,
            Self::Unreachable(_)
            | Self::Unauthorized { .. }
            | Self::PasswordMissing { .. }
            | Self::NotFound { .. }
            | Self::Nonsense(_) => None,
        }
    }
}

/// `Retry-After`, in seconds or as a date.
fn pause(answer: &Response) -> Option<Duration> {
    let text = answer.headers().get(RETRY_AFTER)?.to_str().ok()?;
    let pause = match text.trim().parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => until(DateTime::parse_from_rfc2822(text).ok()?.to_utc(), runtime::clock::now()),
    };
    Some(pause.min(LONGEST_PAUSE))
}

fn until(then: DateTime<Utc>, now: DateTime<Utc>) -> Duration {
    (then - now).to_std().unwrap_or_default()
}

/// An error with its causes: the outermost of a network error says little.
pub(super) fn chain(error: &reqwest::Error) -> String {
    // The address may carry what a registry put there.
    let mut text = match error {
        error if error.is_timeout() => "no answer in time".to_owned(),
        error if error.is_connect() => "no connection".to_owned(),
        _ => "the connection broke".to_owned(),
    };
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    if let Some(advice) = advice(&text) {
        text = format!("{text}; {advice}");
    }
    text
}

/// What to do about a certificate that is not trusted. Of the TLS library's error only its words are left by the time
/// that the HTTP client has wrapped it.
fn advice(text: &str) -> Option<&'static str> {
    let (_, reason) = text.split_once("invalid peer certificate: ")?;
    // An authority that was made anew under its old name has another key.
    Some(if reason.contains("UnknownIssuer") || reason.contains("BadSignature") {
        "name the certificate of its authority by SSL_CERT_FILE in the environment of the watcher, and start that again"
    } else if reason.contains("NotValidForName") || reason.contains("not valid for") {
        "give the address that its certificate is for: `sluice registry set HOST --url https://NAME`"
    } else {
        "give the registry a certificate that is valid now, for its name, by an authority that this machine trusts"
    })
}
