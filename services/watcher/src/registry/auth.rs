//! Signing in to a registry: not at all, by user name and password, or by a token that somebody else gives for them.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use eventlog::Secret;
use http_auth::parse_challenges;
use reqwest::{
    RequestBuilder, Response, StatusCode, Url,
    header::{HeaderMap, WWW_AUTHENTICATE},
};
use runtime::outgoing::Outgoing;
use serde::Deserialize;

use super::trouble::{Trouble, chain};

/// Where a token does not say how long it lasts; the specification's own number.
const LASTS: u64 = 60;
/// A token is not used to its last second.
const MARGIN: Duration = Duration::from_secs(10);
/// Of an answer with a token, in bytes.
const LARGEST: usize = 64 << 10;
const MOST_TOKENS: usize = 10_000;

pub(crate) struct Credentials {
    pub(crate) username: String,
    pub(crate) password: Secret,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

pub(super) struct Auth {
    http: reqwest::Client,
    credentials: Option<Credentials>,
    /// Of the registry: only that one is told who we are.
    origin: Url,
    outgoing: Arc<Outgoing>,
    known: Mutex<Known>,
}

/// What the registry asked for before.
#[derive(Default)]
struct Known {
    basic: bool,
    /// By repository.
    tokens: HashMap<String, Token>,
}

#[derive(Clone)]
struct Token {
    text: String,
    until: Instant,
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

/// What an answer of 401 asks for.
enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

enum Proof {
    None,
    Basic,
    Bearer(String),
}

impl Auth {
    pub(super) fn new(
        http: reqwest::Client,
        credentials: Option<Credentials>,
        origin: Url,
        outgoing: Arc<Outgoing>,
    ) -> Self {
        Self { http, credentials, origin, outgoing, known: Mutex::default() }
    }

    /// Sends what `build` makes, and once more with what the registry then asks for.
    pub(super) async fn send(&self, build: impl Fn() -> RequestBuilder, repository: &str) -> Result<Response, Trouble> {
        let answer = self.try_with(build(), self.proof(repository)).await?;
        // Whoever the registry has sent us to is not asked for.
        if answer.status() != StatusCode::UNAUTHORIZED || answer.url().origin() != self.origin.origin() {
            return Ok(answer);
        }
        let proof = match challenge(answer.headers()) {
            Some(Challenge::Basic) if self.credentials.is_some() => {
                self.known().basic = true;
                Proof::Basic
            }
            Some(Challenge::Bearer { realm, service, scope }) => {
                Proof::Bearer(self.fetch(&realm, service, scope, repository).await?)
            }
            Some(Challenge::Basic) | None => return Ok(answer),
        };
        self.try_with(build(), proof).await
    }

    async fn try_with(&self, request: RequestBuilder, proof: Proof) -> Result<Response, Trouble> {
        let request = match proof {
            Proof::None => request,
            Proof::Basic => self.signed(request),
            Proof::Bearer(token) => request.bearer_auth(token),
        };
        request.send().await.map_err(|error| Trouble::Unreachable(chain(&error)))
    }

    fn signed(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.credentials {
            Some(Credentials { username, password }) => {
                request.basic_auth(username, Some(String::from_utf8_lossy(password.expose())))
            }
            None => request,
        }
    }

    fn proof(&self, repository: &str) -> Proof {
        let known = self.known();
        let fresh = known.tokens.get(repository).filter(|token| token.until > Instant::now());
        match fresh {
            Some(token) => Proof::Bearer(token.text.clone()),
            None if known.basic => Proof::Basic,
            None => Proof::None,
        }
    }

    /// A token that may read `repository`.
    async fn fetch(
        &self,
        realm: &str,
        service: Option<String>,
        scope: Option<String>,
        repository: &str,
    ) -> Result<String, Trouble> {
        let nonsense = |what: &str| Trouble::Nonsense(what.to_owned());
        let mut url =
            Url::parse(realm).map_err(|_| nonsense("it sends us to sign in at something that is no address"))?;
        // What is encrypted to the registry is not told in clear text to somebody else.
        if !(url.scheme() == "https" || url.scheme() == "http" && self.origin.scheme() == "http") {
            return Err(nonsense("it sends us to sign in at an address that is not encrypted"));
        }
        if self.outgoing.refuses(&url) {
            return Err(Trouble::local(&url));
        }
        let scope = scope.unwrap_or_else(|| format!("repository:{repository}:pull"));
        url.query_pairs_mut().extend_pairs(service.map(|service| ("service", service))).append_pair("scope", &scope);
        let answer = self.signed(self.http.get(url)).send().await;
        let mut answer = answer.map_err(|error| Trouble::Unreachable(format!("signing in: {}", chain(&error))))?;
        if !answer.status().is_success() {
            return Err(Trouble::of(&answer, repository));
        }
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(|error| Trouble::Unreachable(chain(&error)))? {
            if body.len() + chunk.len() > LARGEST {
                return Err(nonsense("it signs us in with an endless token"));
            }
            body.extend_from_slice(&chunk);
        }
        let given: TokenAnswer =
            serde_json::from_slice(&body).map_err(|_| nonsense("it signs us in with something that is no token"))?;
        let text = given.token.or(given.access_token).ok_or_else(|| nonsense("it signs us in without a token"))?;
        let lasts = Duration::from_secs(given.expires_in.unwrap_or(LASTS).min(86_400)).saturating_sub(MARGIN);
        let mut known = self.known();
        if known.tokens.len() >= MOST_TOKENS {
            known.tokens.clear();
        }
        known.tokens.insert(repository.to_owned(), Token { text: text.clone(), until: Instant::now() + lasts });
        Ok(text)
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The strongest of what is asked for.
fn challenge(headers: &HeaderMap) -> Option<Challenge> {
    let mut basic = None;
    for header in headers.get_all(WWW_AUTHENTICATE) {
        for challenge in header.to_str().ok().and_then(|text| parse_challenges(text).ok()).unwrap_or_default() {
            let parameter = |name: &str| {
                let found = challenge.params.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
                found.map(|(_, value)| value.to_unescaped())
            };
            if challenge.scheme.eq_ignore_ascii_case("bearer")
                && let Some(realm) = parameter("realm")
            {
                return Some(Challenge::Bearer { realm, service: parameter("service"), scope: parameter("scope") });
            }
            if challenge.scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Challenge::Basic);
            }
        }
    }
    basic
}
