//! The one way in which the provider is asked: without following anybody anywhere, only as long and as much as is
//! reasonable, and only where [`Outgoing`] lets us go.

use std::{error::Error, io, sync::Arc};

use openidconnect::{HttpRequest, HttpResponse};
use reqwest::{Url, redirect};
use runtime::outgoing::{
    Outgoing,
    http::{Filtered, Unresolved, address, lookup},
};

use super::Limits;

/// Of any answer, in bytes.
const LARGEST: usize = 256 << 10;

/// What a provider can do to those who ask it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    #[error("its name is not known: check the address, and this machine's DNS")]
    Name,
    #[error(
        "it stands at an address of this machine or its surroundings, which is refused: if that is meant, allow the \
         address in {}",
        Outgoing::VARIABLE
    )]
    Refused,
    #[error("nothing answers there: check that the provider runs and can be reached from here")]
    Unreachable,
    #[error("no encrypted connection comes about: check its certificate, and that https:// is right")]
    Tls,
    #[error("it does not answer in time")]
    Timeout,
    #[error("it breaks off its answer")]
    BrokenOff,
    #[error("it sends us elsewhere, which is never followed: give the final address")]
    Redirected,
    #[error("it answers {0}")]
    Status(u16),
    #[error("its answer is longer than {} KiB", LARGEST >> 10)]
    TooLarge,
    #[error("its answer is not what the specification says")]
    Garbage,
}

impl Trouble {
    /// Stable, for scripts.
    pub fn code(self) -> &'static str {
        match self {
            Self::Name => "name_unknown",
            Self::Refused => "address_refused",
            Self::Unreachable => "unreachable",
            Self::Tls => "tls",
            Self::Timeout => "timeout",
            Self::BrokenOff => "broken_off",
            Self::Redirected => "redirected",
            Self::Status(_) => "status",
            Self::TooLarge => "too_large",
            Self::Garbage => "garbage",
        }
    }
}

#[derive(Clone)]
pub(super) struct Http {
    client: reqwest::Client,
    outgoing: Arc<Outgoing>,
}

impl Http {
    pub(super) fn new(limits: &Limits, outgoing: Arc<Outgoing>) -> reqwest::Result<Self> {
        let client = reqwest::Client::builder()
            .connect_timeout(limits.connect)
            .timeout(limits.answer)
            .redirect(redirect::Policy::none())
            // A proxy would go where the filter does not see it.
            .no_proxy()
            .dns_resolver(Arc::new(Filtered(outgoing.clone())))
            .user_agent(concat!("sluice/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Self { client, outgoing })
    }

    /// The answer, whatever its status, except where it points elsewhere.
    pub(super) async fn send(&self, request: HttpRequest) -> Result<HttpResponse, Trouble> {
        let request = reqwest::Request::try_from(request).map_err(|_| Trouble::Garbage)?;
        let encrypted = request.url().scheme() == "https";
        // An address in the URL is never resolved, so the resolver does not see it.
        if self.outgoing.refuses(request.url()) {
            return Err(Trouble::Refused);
        }
        let mut answer = self.client.execute(request).await.map_err(|error| trouble(&error, encrypted))?;
        if answer.status().is_redirection() {
            return Err(Trouble::Redirected);
        }
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(|error| trouble(&error, encrypted))? {
            if body.len() + chunk.len() > LARGEST {
                return Err(Trouble::TooLarge);
            }
            body.extend_from_slice(&chunk);
        }
        let mut response = HttpResponse::new(body);
        *response.status_mut() = answer.status();
        *response.headers_mut() = std::mem::take(answer.headers_mut());
        Ok(response)
    }

    /// The body of a 200 to a GET, as JSON.
    pub(super) async fn get(&self, url: &Url) -> Result<serde_json::Value, Trouble> {
        let request = http::Request::get(url.as_str()).header(http::header::ACCEPT, "application/json");
        let answer = self.send(request.body(Vec::new()).map_err(|_| Trouble::Garbage)?).await?;
        match answer.status().as_u16() {
            200 => serde_json::from_slice(answer.body()).map_err(|_| Trouble::Garbage),
            status => Err(Trouble::Status(status)),
        }
    }

    /// Whether the host of `url` is known and may be gone to.
    pub(super) async fn resolve(&self, url: &Url) -> Result<(), Trouble> {
        if let Some(address) = address(url) {
            return if self.outgoing.permits(address) { Ok(()) } else { Err(Trouble::Refused) };
        }
        match lookup(url.host_str().unwrap_or_default(), &self.outgoing).await {
            Ok(_) => Ok(()),
            Err(Unresolved::Refused) => Err(Trouble::Refused),
            Err(Unresolved::Unknown(_)) => Err(Trouble::Name),
        }
    }
}

fn trouble(error: &reqwest::Error, encrypted: bool) -> Trouble {
    use io::ErrorKind as K;
    let mut on_the_wire = false;
    let mut next: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(cause) = next {
        match cause.downcast_ref() {
            Some(Unresolved::Refused) => return Trouble::Refused,
            Some(Unresolved::Unknown(_)) => return Trouble::Name,
            None => {}
        }
        let kind = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        on_the_wire |= matches!(
            kind,
            Some(K::ConnectionRefused | K::ConnectionReset | K::HostUnreachable | K::NetworkUnreachable | K::TimedOut)
        );
        next = cause.source();
    }
    match () {
        () if error.is_timeout() => Trouble::Timeout,
        () if error.is_connect() && encrypted && !on_the_wire => Trouble::Tls,
        () if error.is_connect() => Trouble::Unreachable,
        () => Trouble::BrokenOff,
    }
}
