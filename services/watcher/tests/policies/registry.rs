//! A registry on loopback that does what a test tells it, and counts what it is asked.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{Query, Request, State},
    http::{Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use sha2::{Digest, Sha256};
use tokio::{net::TcpListener, task::JoinHandle};

pub(crate) const USER: &str = "robot";
pub(crate) const PASSWORD: &str = "a-password";

/// What is wrong with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Unauthorized,
    /// Asks to be left alone for so many seconds.
    TooMany(u64),
    Broken,
    Garbage,
    /// Each page of tags leads to another, with the same tags.
    Circle,
    /// Each page leads to another host.
    Elsewhere,
    /// Accepts, and says nothing.
    Silent,
    /// An answer without end.
    Endless,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Auth {
    None,
    Basic,
    /// Tokens that are good for one request each.
    Bearer,
}

#[derive(Default, Clone)]
pub(crate) struct Counts {
    pub(crate) requests: usize,
    /// With `If-None-Match`, and answered 304.
    pub(crate) unchanged: usize,
    pub(crate) tokens: usize,
}

pub(crate) struct Shelf {
    pub(crate) auth: Auth,
    pub(crate) fault: Option<Fault>,
    pub(crate) counts: Counts,
    /// By repository: what each tag means.
    tags: BTreeMap<String, BTreeMap<String, String>>,
    /// Documents by digest.
    documents: BTreeMap<String, Vec<u8>>,
    tokens: BTreeSet<String>,
}

pub(crate) struct Registry {
    pub(crate) address: SocketAddr,
    shelf: Arc<Mutex<Shelf>>,
    task: JoinHandle<()>,
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Registry {
    pub(crate) async fn start(auth: Auth) -> Registry {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let shelf = Arc::new(Mutex::new(Shelf {
            auth,
            fault: None,
            counts: Counts::default(),
            tags: BTreeMap::new(),
            documents: BTreeMap::new(),
            tokens: BTreeSet::new(),
        }));
        let app = Router::new().fallback(answer).with_state((shelf.clone(), address));
        let task = tokio::spawn(async move { axum::serve(listener, app).await.expect("served") });
        Registry { address, shelf, task }
    }

    pub(crate) fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().expect("unpoisoned")
    }

    pub(crate) fn counts(&self) -> Counts {
        self.shelf().counts.clone()
    }

    pub(crate) fn image(&self, repository: &str) -> String {
        format!("{}/{repository}", self.address)
    }

    /// Puts an image that was created at `created` (RFC 3339) on the shelf; gives its digest.
    pub(crate) fn push(&self, repository: &str, tag: &str, created: &str) -> String {
        let mut shelf = self.shelf();
        let config =
            format!(r#"{{"created":"{created}","os":"linux","of":"{repository}:{tag}:{}"}}"#, shelf.documents.len());
        let config = shelf.keep(config.into_bytes());
        let manifest = format!(r#"{{"schemaVersion":2,"config":{{"digest":"{config}"}},"layers":[]}}"#);
        let digest = shelf.keep(manifest.into_bytes());
        shelf.tags.entry(repository.into()).or_default().insert(tag.into(), digest.clone());
        digest
    }

    /// The same, as one of a list of images.
    pub(crate) fn push_list(&self, repository: &str, tag: &str, created: &str) -> String {
        let image = self.push(repository, tag, created);
        let mut shelf = self.shelf();
        let other = format!(r#"{{"digest":"{image}","platform":{{"os":"unknown"}}}}"#);
        let list = format!(
            r#"{{"schemaVersion":2,"manifests":[{other},{{"digest":"{image}","platform":{{"os":"linux"}}}}]}}"#
        );
        let digest = shelf.keep(list.into_bytes());
        shelf.tags.entry(repository.into()).or_default().insert(tag.into(), digest.clone());
        digest
    }

    /// Tags that all mean one image.
    pub(crate) fn push_many(&self, repository: &str, tags: impl Iterator<Item = String>) {
        let digest = self.push(repository, "first", "2026-01-01T00:00:00Z");
        let mut shelf = self.shelf();
        let known = shelf.tags.entry(repository.into()).or_default();
        known.remove("first");
        known.extend(tags.map(|tag| (tag, digest.clone())));
    }

    /// What `repository:tag` means, for the node.
    pub(crate) fn digest(&self, repository: &str, tag: &str) -> Option<String> {
        self.shelf().tags.get(repository)?.get(tag).cloned()
    }
}

impl Shelf {
    fn keep(&mut self, document: Vec<u8>) -> String {
        let digest = format!("sha256:{}", hex::encode(Sha256::digest(&document)));
        self.documents.insert(digest.clone(), document);
        digest
    }

    /// None where the caller may read.
    fn refuse(&mut self, authorization: &str, address: SocketAddr) -> Option<Response> {
        let challenge = match self.auth {
            Auth::None => return None,
            Auth::Basic if authorization == basic() => return None,
            Auth::Bearer if self.tokens.remove(authorization.trim_start_matches("Bearer ")) => return None,
            Auth::Basic => "Basic realm=\"registry\"".to_owned(),
            Auth::Bearer => format!("Bearer realm=\"http://{address}/token\",service=\"a, registry\""),
        };
        Some((StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, challenge)]).into_response())
    }
}

fn basic() -> String {
    // robot:a-password
    "Basic cm9ib3Q6YS1wYXNzd29yZA==".into()
}

async fn answer(
    State((shelf, address)): State<(Arc<Mutex<Shelf>>, SocketAddr)>,
    Query(query): Query<BTreeMap<String, String>>,
    request: Request,
) -> Response {
    let silent = {
        let shelf = shelf.lock().expect("unpoisoned");
        shelf.fault == Some(Fault::Silent)
    };
    if silent {
        std::future::pending::<()>().await;
    }
    let mut shelf = shelf.lock().expect("unpoisoned");
    let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (authorization, known) = (header(header::AUTHORIZATION), header(header::IF_NONE_MATCH));
    let path = request.uri().path().trim_start_matches('/').to_owned();
    if path == "token" {
        assert_eq!(query.get("service").map(String::as_str), Some("a, registry"));
        if authorization != basic() {
            return StatusCode::UNAUTHORIZED.into_response();
        }
        shelf.counts.tokens += 1;
        let token = format!("t{}", shelf.counts.tokens);
        shelf.tokens.insert(token.clone());
        return format!(r#"{{"access_token":"{token}","expires_in":300}}"#).into_response();
    }
    shelf.counts.requests += 1;
    match shelf.fault {
        Some(Fault::Unauthorized) => return StatusCode::UNAUTHORIZED.into_response(),
        Some(Fault::TooMany(seconds)) => {
            return (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, seconds.to_string())]).into_response();
        }
        Some(Fault::Broken) => return StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        Some(Fault::Garbage) => return "<html>not a registry</html>".into_response(),
        Some(Fault::Endless) => {
            let chunk = || Ok::<_, std::io::Error>(vec![b' '; 1 << 16]);
            let endless = futures::stream::repeat_with(chunk);
            return Body::from_stream(endless).into_response();
        }
        Some(Fault::Circle | Fault::Elsewhere | Fault::Silent) | None => {}
    }
    if let Some(refused) = shelf.refuse(authorization, address) {
        return refused;
    }
    let path = path.strip_prefix("v2/").unwrap_or_default();
    if let Some(repository) = path.strip_suffix("/tags/list") {
        return tags(&shelf, repository, &query);
    }
    let Some((repository, name)) = path.split_once("/manifests/").or_else(|| path.split_once("/blobs/")) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let tagged = shelf.tags.get(repository).and_then(|tags| tags.get(name)).cloned();
    let digest = tagged.unwrap_or_else(|| name.to_owned());
    let Some(document) = shelf.documents.get(&digest).cloned() else { return StatusCode::NOT_FOUND.into_response() };
    let etag = format!("\"{digest}\"");
    if known == etag {
        shelf.counts.unchanged += 1;
        return StatusCode::NOT_MODIFIED.into_response();
    }
    let body = if request.method() == Method::HEAD { Body::empty() } else { document.into() };
    ([("docker-content-digest", digest), ("etag", etag)], body).into_response()
}

fn tags(shelf: &Shelf, repository: &str, query: &BTreeMap<String, String>) -> Response {
    let Some(tags) = shelf.tags.get(repository) else { return StatusCode::NOT_FOUND.into_response() };
    let (size, last) = (query.get("n").and_then(|n| n.parse().ok()).unwrap_or(100), query.get("last"));
    let page: Vec<&String> = match shelf.fault {
        Some(Fault::Circle | Fault::Elsewhere) => tags.keys().take(size).collect(),
        _ => tags.keys().filter(|tag| last.is_none_or(|last| *tag > last)).take(size).collect(),
    };
    let more = page.last().filter(|end| tags.keys().next_back() != Some(**end));
    let next = match shelf.fault {
        Some(Fault::Circle) => {
            Some(format!("</v2/{repository}/tags/list?n={size}&last={}>; rel=\"next\"", runtime::clock::new_id()))
        }
        Some(Fault::Elsewhere) => Some("<http://127.0.0.1:1/v2/x/tags/list>; rel=\"next\"".to_owned()),
        _ => more.map(|end| format!("</v2/{repository}/tags/list?n={size}&last={end}>; rel=\"next\"")),
    };
    let body = serde_json::json!({ "name": repository, "tags": page }).to_string();
    match next {
        Some(next) => ([(header::LINK, next)], body).into_response(),
        None => body.into_response(),
    }
}

/// Longer than a registry in trouble needs to be found out, shorter than a test may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
