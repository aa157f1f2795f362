//! Speaks to the API: one place for addresses, tokens, retries and errors.
//!
//! Must never import: a role's crate. What the API says is all there is to know.

mod connection;
mod credentials;
mod follow;
mod wire;

use std::time::Duration;

use reqwest::{Method, StatusCode, Url, header};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::Instant;

pub(crate) use follow::{Following, Message};
pub(crate) use wire::*;

const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// A deployment request asks a registry before it is answered.
const ANSWER_LIMIT: Duration = Duration::from_secs(90);
/// How long a lost connection is tried again: a restart of the API takes less.
const PATIENCE: Duration = Duration::from_secs(3);
/// The most that the API gives at once.
const LARGEST_PAGE: usize = 500;
const FIRST_PAUSE: Duration = Duration::from_millis(100);

pub(crate) struct Client {
    http: reqwest::Client,
    api: Url,
    token: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{name}: {problem}")]
    Address { name: &'static str, problem: String },
    #[error("nobody has signed in to {api}")]
    NotSignedIn { api: Box<Url> },
    #[error("cannot reach Sluice at {api}: {}", root_cause(.source))]
    Unreachable { api: Box<Url>, source: reqwest::Error },
    #[error("the answer of {url} is not understood: {problem}")]
    Unreadable { url: Box<Url>, problem: String },
    #[error("the answer is not of a Sluice of this version: {0}")]
    Misunderstood(String),
    #[error("{}", .0.title)]
    Refused(Box<Problem>),
}

/// RFC 9457, as the API writes it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Problem {
    pub(crate) title: String,
    pub(crate) status: u16,
    pub(crate) detail: String,
    pub(crate) code: String,
    pub(crate) request_id: Option<String>,
    pub(crate) errors: Vec<FieldProblem>,
    pub(crate) hint: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FieldProblem {
    pub(crate) field: String,
    pub(crate) problem: String,
}

/// What to send besides the path.
#[derive(Default)]
pub(crate) struct Parts<'a> {
    pub(crate) query: &'a [(&'a str, String)],
    pub(crate) body: Option<Value>,
    /// The same key for every attempt, so that a repeated mutation has its effect once.
    pub(crate) idempotency_key: Option<String>,
}

impl Parts<'_> {
    pub(crate) fn body(body: Value) -> Self {
        Self { body: Some(body), ..Self::default() }
    }
}

impl Client {
    pub(crate) fn open() -> Result<Self, Error> {
        let connection::Connection { api, token } = connection::find()?;
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_LIMIT)
            // The token is meant for Sluice alone, not for a proxy on the way.
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("sluice/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|source| Error::Address { name: "HTTP client", problem: source.to_string() })?;
        Ok(Self { http, api, token })
    }

    pub(crate) async fn get(&self, path: &str, query: &[(&str, String)]) -> Result<Value, Error> {
        let (url, status, body) = self.ask(Method::GET, path, Parts { query, ..Parts::default() }).await?;
        answer(url, status, &body)
    }

    /// Like [`Client::get`], with nothing where there is nothing.
    pub(crate) async fn find(&self, path: &str, query: &[(&str, String)]) -> Result<Option<Value>, Error> {
        match self.get(path, query).await {
            Ok(value) => Ok(Some(value)),
            Err(Error::Refused(problem)) if problem.status == 404 => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A mutation. Without a key of the caller's it gets one of its own.
    pub(crate) async fn send(&self, method: Method, path: &str, mut parts: Parts<'_>) -> Result<Value, Error> {
        parts.idempotency_key.get_or_insert_with(|| runtime::clock::new_id().to_string());
        let (url, status, body) = self.ask(method, path, parts).await?;
        answer(url, status, &body)
    }

    /// A mutation whose effect the next command will see, read from `effect`: the read models follow the log
    /// a moment later. It is done either way, so that they lag is no reason to fail.
    pub(crate) async fn change(
        &self,
        method: Method,
        path: &str,
        parts: Parts<'_>,
        effect: &str,
    ) -> Result<Value, Error> {
        let answer = self.send(method, path, parts).await?;
        let accepted: Accepted = read(answer.clone())?;
        self.get(effect, &accepted.seen()).await.ok();
        Ok(answer)
    }

    /// Up to `limit` of a list that comes in pages under `name`, and where to read on. `cursor` is the
    /// parameter that asks for the next page.
    pub(crate) async fn pages(
        &self,
        path: &str,
        query: &[(&str, String)],
        name: &str,
        cursor: &str,
        limit: usize,
    ) -> Result<(Vec<Value>, Option<u64>), Error> {
        let (mut found, mut next) = (Vec::new(), None);
        loop {
            let mut query = query.to_vec();
            query.push(("limit", (limit - found.len()).min(LARGEST_PAGE).to_string()));
            if let Some(next) = next {
                query.retain(|(name, _)| *name != cursor);
                query.push((cursor, u64::to_string(&next)));
            }
            let mut page = self.get(path, &query).await?;
            found.extend(read::<Vec<Value>>(page[name].take())?);
            next = page["next"].as_u64();
            if next.is_none() || found.len() >= limit {
                return Ok((found, next));
            }
        }
    }

    /// Health is told to anyone, and a degraded system answers 503 with the same document.
    pub(crate) async fn health(&self) -> Result<Value, Error> {
        let (url, status, body) = self.ask(Method::GET, "/health", Parts::default()).await?;
        match serde_json::from_slice::<Value>(&body) {
            Ok(value) if value["status"].is_string() => Ok(value),
            Ok(_) | Err(_) => answer(url, status, &body),
        }
    }

    /// Server-sent events from `path`, picked up where they broke off after every lost connection.
    pub(crate) fn follow(&self, path: &str, query: &[(&str, String)]) -> Following<'_> {
        Following::new(self, self.url(path, query))
    }

    fn url(&self, path: &str, query: &[(&str, String)]) -> Url {
        let mut url = self.api.clone();
        url.set_path(&format!("{}/api/v1{path}", self.api.path().trim_end_matches('/')));
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query.iter().map(|(name, value)| (*name, value.as_str())));
        }
        url
    }

    /// Where Sluice answers.
    pub(crate) fn api(&self) -> &Url {
        &self.api
    }

    /// Keeps a token for the commands that come; without one, forgets the one that was kept.
    pub(crate) fn keep_token(&self, token: Option<&str>) -> Result<(), Error> {
        credentials::keep(&self.api, token)
    }

    fn request(&self, method: Method, url: Url) -> Result<reqwest::RequestBuilder, Error> {
        let public = ["/health", "/auth/methods"].iter().any(|path| url.path().ends_with(path));
        let signing_in = ["/auth/token", "/auth/code"].iter().any(|path| url.path().ends_with(path));
        let request = self.http.request(method, url);
        if signing_in {
            return Ok(request);
        }
        match &self.token {
            Some(token) => Ok(request.bearer_auth(token)),
            None if public => Ok(request),
            None => Err(Error::NotSignedIn { api: Box::new(self.api.clone()) }),
        }
    }

    async fn ask(&self, method: Method, path: &str, parts: Parts<'_>) -> Result<(Url, StatusCode, Vec<u8>), Error> {
        let url = self.url(path, parts.query);
        let deadline = Instant::now() + PATIENCE;
        let mut pause = FIRST_PAUSE;
        loop {
            let mut request = self.request(method.clone(), url.clone())?.timeout(ANSWER_LIMIT);
            if let Some(key) = &parts.idempotency_key {
                request = request.header("Idempotency-Key", key);
            }
            if let Some(body) = &parts.body {
                request = request.header(header::CONTENT_TYPE, "application/json").body(body.to_string());
            }
            let answer = async {
                let response = request.send().await?;
                Ok((response.status(), response.bytes().await?.to_vec()))
            };
            match answer.await {
                Ok((status, body)) => return Ok((url, status, body)),
                Err(error) if lost(&error) && Instant::now() + pause < deadline => {
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
                Err(source) => return Err(self.unreachable(source)),
            }
        }
    }

    fn unreachable(&self, source: reqwest::Error) -> Error {
        Error::Unreachable { api: Box::new(self.api.clone()), source: source.without_url() }
    }
}

/// The connection broke, which says nothing about whether the request was carried out.
fn lost(error: &reqwest::Error) -> bool {
    !error.is_builder()
        && !error.is_timeout()
        && (error.is_connect() || error.is_request() || error.is_body() || error.is_decode())
}

fn answer(url: Url, status: StatusCode, body: &[u8]) -> Result<Value, Error> {
    if !status.is_success() {
        return Err(Error::Refused(problem(status, body)));
    }
    if body.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(body).map_err(|error| Error::Unreadable { url: Box::new(url), problem: error.to_string() })
}

/// Whatever stands between may answer in its own words, so nothing is taken for granted.
fn problem(status: StatusCode, body: &[u8]) -> Box<Problem> {
    let mut problem: Problem = serde_json::from_slice(body).unwrap_or_default();
    problem.status = status.as_u16();
    if problem.title.is_empty() {
        problem.title = format!("the server answered {status}");
    }
    if problem.code.is_empty() {
        problem.code = format!("http_{}", status.as_u16());
    }
    Box::new(problem)
}

/// The outer errors of an HTTP client only repeat that something failed.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_keeps_its_fields_and_a_strange_answer_still_says_something() {
        let body = br#"{"type":"about:blank","title":"Invalid","status":422,"code":"invalid","detail":"no","future":1,
            "errors":[{"field":"stages.dev.replicas","problem":"must be from 1 to 50"}]}"#;
        let known = problem(StatusCode::UNPROCESSABLE_ENTITY, body);
        assert_eq!((known.code.as_str(), known.errors.len()), ("invalid", 1));
        let strange = problem(StatusCode::BAD_GATEWAY, b"<html>");
        assert_eq!(strange.title, "the server answered 502 Bad Gateway");
        assert_eq!(strange.code, "http_502");
    }
}
