//! A registry's HTTP API, as the OCI distribution specification has it: which tags there are, which bytes a tag means,
//! how old an image is. What has not changed is not sent again.
//!
//! No OCI client crate sends conditional requests or shows what a registry says about its limits, so this stands on the
//! HTTP client. A registry may answer anything: every body, list and wait has a limit.

mod auth;
mod trouble;

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use domain::image::{valid_digest, valid_tag};
use reqwest::{
    Method, Response, StatusCode, Url,
    header::{ACCEPT, ETAG, HeaderMap, HeaderValue, IF_NONE_MATCH, LINK},
    redirect,
};
use runtime::outgoing::{Outgoing, http::Filtered};
use serde::{Deserialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};

pub(crate) use auth::Credentials;
pub(crate) use trouble::{LONGEST_PAUSE, Trouble};

const CONNECT: Duration = Duration::from_secs(10);
/// For one answer, with its body.
const ANSWER: Duration = Duration::from_secs(30);
const MOST_REDIRECTS: usize = 5;
/// Of a manifest or an image's configuration, in bytes.
const LARGEST_DOCUMENT: usize = 4 << 20;
/// Of one page of tags, in bytes.
const LARGEST_PAGE: usize = 8 << 20;
/// Of tags, for each page.
const PAGE: &str = "1000";
/// Beyond these, a repository is refused: somebody should narrow it.
const MOST_TAGS: usize = 200_000;
const MOST_PAGES: usize = 1_000;
/// Answers that are remembered, of each kind.
const MEMORY: usize = 20_000;

const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";
const DIGEST: &str = "docker-content-digest";

pub(crate) struct Client {
    http: reqwest::Client,
    origin: Url,
    auth: auth::Auth,
    /// Until then the registry wants to be left alone.
    quiet: Mutex<Instant>,
    /// By repository and tag.
    digests: Memory<(String, String), Known<String>>,
    /// By repository.
    tags: Memory<String, Known<Arc<[String]>>>,
    /// By digest of the image: it never changes.
    created: Memory<String, Option<DateTime<Utc>>>,
}

/// An answer, and what the registry calls this state of it.
#[derive(Clone)]
struct Known<T> {
    value: T,
    etag: Option<HeaderValue>,
}

/// What was asked before. It forgets everything when there is too much of it.
struct Memory<K, V>(Mutex<HashMap<K, V>>);

impl<K: Eq + Hash, V: Clone> Memory<K, V> {
    fn new() -> Self {
        Self(Mutex::new(HashMap::new()))
    }

    fn get(&self, key: &K) -> Option<V> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    fn put(&self, key: K, value: V) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MEMORY {
            known.clear();
        }
        known.insert(key, value);
    }
}

#[derive(Deserialize)]
struct TagList {
    /// Null in a repository whose last tag was deleted.
    tags: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Manifest {
    /// Of an image.
    config: Option<Descriptor>,
    /// Of a list of images.
    manifests: Option<Vec<Descriptor>>,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: String,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    os: Option<String>,
}

#[derive(Deserialize)]
struct ImageConfig {
    created: Option<String>,
}

impl Client {
    /// For the API at `origin`: scheme, host and port.
    pub(crate) fn new(origin: &str, credentials: Option<Credentials>, outgoing: &Outgoing) -> Result<Self, Trouble> {
        let origin = Url::parse(origin).map_err(|error| Trouble::unreachable(origin, error.to_string()))?;
        let outgoing = Arc::new(outgoing.towards(&origin));
        if outgoing.refuses(&origin) {
            return Err(Trouble::local(&origin));
        }
        let filter = outgoing.clone();
        let encrypted = origin.scheme() == "https";
        let careful = redirect::Policy::custom(move |attempt| {
            if attempt.previous().len() > MOST_REDIRECTS {
                attempt.error("too many redirects")
            } else if encrypted && attempt.url().scheme() != "https" {
                attempt.error("a redirect from https to something else")
            } else if filter.refuses(attempt.url()) {
                attempt.error("a redirect to an address of this machine or its surroundings")
            } else {
                attempt.follow()
            }
        });
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT)
            .timeout(ANSWER)
            .redirect(careful)
            .dns_resolver(Arc::new(Filtered(outgoing.clone())))
            .user_agent(concat!("sluice/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| Trouble::unreachable(origin.as_str(), trouble::chain(&error)))?;
        let auth = auth::Auth::new(http.clone(), credentials, origin.clone(), outgoing);
        let (digests, tags, created) = (Memory::new(), Memory::new(), Memory::new());
        Ok(Self { http, origin, auth, quiet: Mutex::new(Instant::now()), digests, tags, created })
    }

    /// The bytes that a tag means now.
    pub(crate) async fn digest(&self, repository: &str, tag: &str) -> Result<String, Trouble> {
        let key = (repository.to_owned(), tag.to_owned());
        let known = self.digests.get(&key);
        let url = self.url(repository, &["manifests", tag]);
        let etag = known.as_ref().and_then(|known| known.etag.clone());
        let answer = self.ask(Method::HEAD, &url, repository, MANIFESTS, etag).await?;
        if let (StatusCode::NOT_MODIFIED, Some(known)) = (answer.status(), &known) {
            return Ok(known.value.clone());
        }
        let (value, etag) = match stated_digest(answer.headers()) {
            Some(digest) => (digest, etag_of(answer.headers())),
            // Some registries say it with the bytes only, and some not at all.
            None => {
                let answer = self.ask(Method::GET, &url, repository, MANIFESTS, None).await?;
                let etag = etag_of(answer.headers());
                let body = self.body(answer, LARGEST_DOCUMENT).await?;
                (format!("sha256:{}", hex::encode(Sha256::digest(&body))), etag)
            }
        };
        self.digests.put(key, Known { value: value.clone(), etag });
        Ok(value)
    }

    /// The bytes that a tag meant when it was last asked for, or else means now: for tags that nobody moves.
    pub(crate) async fn known_digest(&self, repository: &str, tag: &str) -> Result<String, Trouble> {
        match self.digests.get(&(repository.to_owned(), tag.to_owned())) {
            Some(known) => Ok(known.value),
            None => self.digest(repository, tag).await,
        }
    }

    /// Every tag of a repository.
    pub(crate) async fn tags(&self, repository: &str) -> Result<Arc<[String]>, Trouble> {
        let mut known = self.tags.get(&repository.to_owned());
        let mut url = self.url(repository, &["tags", "list"]);
        url.query_pairs_mut().append_pair("n", PAGE);
        let (mut tags, mut seen) = (Vec::new(), HashSet::new());
        let mut first = None;
        for page in 0..MOST_PAGES {
            // One page alone can say that nothing has changed: of several, the first does not know of the last.
            let etag = known.take().and_then(|known| known.etag.map(|etag| (etag, known.value)));
            let (etag, value) = etag.unzip();
            let answer = self.ask(Method::GET, &url, repository, "application/json", etag).await?;
            if let (StatusCode::NOT_MODIFIED, Some(value)) = (answer.status(), value) {
                return Ok(value);
            }
            if page == 0 {
                first = etag_of(answer.headers());
            }
            let next = self.next_page(&url, answer.headers())?;
            let list: TagList = self.document(answer, LARGEST_PAGE).await?;
            let before = seen.len();
            for tag in list.tags.unwrap_or_default() {
                // What is no tag may be of any length.
                if valid_tag(&tag) && seen.insert(tag.clone()) {
                    tags.push(tag);
                }
            }
            let Some(next) = next else {
                let tags: Arc<[String]> = tags.into();
                let etag = first.filter(|_| page == 0);
                self.tags.put(repository.to_owned(), Known { value: tags.clone(), etag });
                return Ok(tags);
            };
            if seen.len() == before {
                return Err(self.nonsense("its list of tags goes on without another tag"));
            }
            if tags.len() > MOST_TAGS {
                return Err(self.nonsense(format!("{repository} has more than {MOST_TAGS} tags")));
            }
            url = next;
        }
        Err(self.nonsense(format!("the list of tags of {repository} has more than {MOST_PAGES} pages")))
    }

    /// When an image was created, where it says so.
    pub(crate) async fn created(&self, repository: &str, digest: &str) -> Result<Option<DateTime<Utc>>, Trouble> {
        if let Some(created) = self.created.get(&digest.to_owned()) {
            return Ok(created);
        }
        let created = self.read_created(repository, digest).await?;
        self.created.put(digest.to_owned(), created);
        Ok(created)
    }

    async fn read_created(&self, repository: &str, digest: &str) -> Result<Option<DateTime<Utc>>, Trouble> {
        let mut manifest = self.manifest(repository, digest).await?;
        if let Some(images) = manifest.manifests {
            // All of a list were built together; attestations have no platform.
            let image = |of: &&Descriptor| {
                of.platform.as_ref().and_then(|p| p.os.as_deref()).is_some_and(|os| os != "unknown" && !os.is_empty())
            };
            let Some(image) = images.iter().find(image).or(images.first()) else { return Ok(None) };
            manifest = self.manifest(repository, &image.digest).await?;
        }
        let Some(config) = manifest.config else { return Ok(None) };
        let url = self.url(repository, &["blobs", self.checked(&config.digest)?]);
        let answer = self.ask(Method::GET, &url, repository, "*/*", None).await?;
        let config: ImageConfig = self.document(answer, LARGEST_DOCUMENT).await?;
        let created = config.created.and_then(|created| DateTime::parse_from_rfc3339(&created).ok());
        Ok(created.map(|created| created.to_utc()))
    }

    async fn manifest(&self, repository: &str, digest: &str) -> Result<Manifest, Trouble> {
        let url = self.url(repository, &["manifests", self.checked(digest)?]);
        let answer = self.ask(Method::GET, &url, repository, MANIFESTS, None).await?;
        self.document(answer, LARGEST_DOCUMENT).await
    }

    /// What a registry calls a digest becomes part of an address.
    fn checked<'a>(&self, digest: &'a str) -> Result<&'a str, Trouble> {
        if valid_digest(digest) {
            Ok(digest)
        } else {
            Err(self.nonsense("a manifest names something that is no digest"))
        }
    }

    fn url(&self, repository: &str, rest: &[&str]) -> Url {
        let mut url = self.origin.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.clear().push("v2").extend(repository.split('/')).extend(rest);
        }
        url
    }

    /// The page after this one, which must be on the same registry.
    fn next_page(&self, url: &Url, headers: &HeaderMap) -> Result<Option<Url>, Trouble> {
        let links = headers.get_all(LINK).iter().filter_map(|link| link.to_str().ok()).flat_map(|link| link.split(','));
        let Some(next) = links.map(str::trim).find(|link| is_next(link)) else { return Ok(None) };
        let target = next.strip_prefix('<').and_then(|next| next.split_once('>')).map(|(target, _)| target);
        let next = target.and_then(|target| url.join(target).ok());
        let next = next.filter(|next| next.origin() == self.origin.origin() && next != url);
        next.map(Some).ok_or_else(|| self.nonsense("its list of tags goes on at an address that is not its own"))
    }

    /// Asks, signing in where the registry wants that, and not while it wants to be left alone. The answer is a good one, or says that nothing has changed.
    async fn ask(
        &self,
        method: Method,
        url: &Url,
        repository: &str,
        accept: &'static str,
        etag: Option<HeaderValue>,
    ) -> Result<Response, Trouble> {
        let left = self.quiet().saturating_duration_since(Instant::now());
        if !left.is_zero() {
            return Err(Trouble::TooMany { pause: Some(left) });
        }
        let asked = self.ask_at_once(method, url, repository, accept, etag).await;
        if let Some(pause) = asked.as_ref().err().and_then(Trouble::pause) {
            let until = Instant::now() + pause;
            let mut quiet = self.quiet();
            *quiet = until.max(*quiet);
        }
        asked
    }

    async fn ask_at_once(
        &self,
        method: Method,
        url: &Url,
        repository: &str,
        accept: &'static str,
        etag: Option<HeaderValue>,
    ) -> Result<Response, Trouble> {
        let conditional = etag.is_some();
        let build = || {
            let request = self.http.request(method.clone(), url.clone()).header(ACCEPT, accept);
            match &etag {
                Some(etag) => request.header(IF_NONE_MATCH, etag),
                None => request,
            }
        };
        let answer = self.auth.send(build, repository).await?;
        match answer.status() {
            status if status.is_success() => Ok(answer),
            StatusCode::NOT_MODIFIED if conditional => Ok(answer),
            _ => Err(Trouble::of(&answer, repository)),
        }
    }

    fn quiet(&self) -> MutexGuard<'_, Instant> {
        self.quiet.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn document<T: DeserializeOwned>(&self, answer: Response, limit: usize) -> Result<T, Trouble> {
        let body = self.body(answer, limit).await?;
        serde_json::from_slice(&body).map_err(|error| self.nonsense(format!("its answer cannot be read: {error}")))
    }

    async fn body(&self, mut answer: Response, limit: usize) -> Result<Vec<u8>, Trouble> {
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(|error| self.cut_off(&error))? {
            if body.len() + chunk.len() > limit {
                return Err(self.nonsense(format!("its answer is longer than {limit} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    fn nonsense(&self, what: impl Into<String>) -> Trouble {
        Trouble::Nonsense(what.into())
    }

    fn cut_off(&self, error: &reqwest::Error) -> Trouble {
        Trouble::unreachable(self.origin.as_str(), trouble::chain(error))
    }
}

fn is_next(link: &str) -> bool {
    link.split(';').skip(1).any(|parameter| {
        let parameter = parameter.trim();
        parameter.eq_ignore_ascii_case("rel=\"next\"") || parameter.eq_ignore_ascii_case("rel=next")
    })
}

fn stated_digest(headers: &HeaderMap) -> Option<String> {
    let stated = headers.get(DIGEST)?.to_str().ok()?;
    valid_digest(stated).then(|| stated.to_owned())
}

fn etag_of(headers: &HeaderMap) -> Option<HeaderValue> {
    headers.get(ETAG).cloned()
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    /// A registry that answers everything so, on this machine.
    async fn registry(answer: &'static str) -> (String, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let serving = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.expect("a client");
                let mut request = [0; 4096];
                // All of it comes at once; what it asks for does not matter.
                assert!(stream.read(&mut request).await.expect("a request") > 0);
                let answer = format!("HTTP/1.1 {answer}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.expect("answered");
            }
        });
        (url, serving)
    }

    #[tokio::test]
    async fn nobody_is_sent_where_a_machine_is_told_about_itself() {
        let strict = Outgoing::default();
        for origin in
            ["http://169.254.169.254", "http://[fe80::1]:5000", "https://100.100.100.200", "http://0.0.0.0:5000"]
        {
            let refused = Client::new(origin, None, &strict).err().expect(origin).to_string();
            assert!(refused.contains("URL_ALLOW_LOCAL"), "{refused}");
        }
        for (answer, said) in [
            ("401 Unauthorized\r\nWWW-Authenticate: Bearer realm=\"http://169.254.169.254/token\"", "URL_ALLOW_LOCAL"),
            ("307 Temporary Redirect\r\nLocation: http://169.254.169.254/latest/meta-data", "its surroundings"),
        ] {
            let (url, serving) = registry(answer).await;
            let client = Client::new(&url, None, &strict).expect("declared on this machine");
            let refused = client.digest("shop", "main").await.expect_err("refused").to_string();
            assert!(refused.contains(said), "{refused}");
            let allowed: Outgoing = "169.254.169.254".parse().expect("good");
            assert!(allowed.towards(&url.parse().expect("a URL")).permits([169, 254, 169, 254].into()));
            serving.abort();
        }
    }
}
