//! A flow on a real event log, a hostile provider, and a browser.

use std::time::Duration;

use api::oidc::{Begun, Config, Flow, Limits, Provider, Refusal, Verified};
use domain::sso::Settings;
use eventlog::{EventLog, Secret};
use reqwest::{StatusCode, redirect};
use testkit::HostileProvider;

pub(crate) const PUBLIC_URL: &str = "https://deploy.example.com";

pub(crate) struct Lab {
    pub(crate) log: EventLog,
    pub(crate) flow: Flow,
    pub(crate) provider: HostileProvider,
    /// The provider as the settings have it.
    pub(crate) known: Provider,
    pub(crate) http: reqwest::Client,
    _directory: tempfile::TempDir,
    _nats: testkit::Nats,
}

/// What tests that wait for a deadline wait for.
pub(crate) fn impatient() -> Limits {
    Limits { answer: Duration::from_secs(1), remember_failure: Duration::ZERO, ..Limits::default() }
}

impl Lab {
    pub(crate) async fn start() -> Self {
        Self::with(Limits { remember_failure: Duration::ZERO, ..Limits::default() }).await
    }

    pub(crate) async fn with(limits: Limits) -> Self {
        let nats = testkit::Nats::start().await.expect("NATS starts");
        let directory = tempfile::tempdir().expect("a directory");
        let key = directory.path().join("vault.key");
        eventlog::vault::create_key(&key).expect("a key");
        let config = eventlog::Config { url: nats.url().into(), name: "test".into(), master_key: Some(key) };
        let log = EventLog::connect(&config).await.expect("NATS takes us");
        let provider = HostileProvider::start().await.expect("the provider starts");
        let known = Provider {
            settings: Settings::new(provider.issuer(), HostileProvider::CLIENT_ID),
            secret: Some(Secret::new(HostileProvider::CLIENT_SECRET)),
            public_url: PUBLIC_URL.into(),
        };
        let flow = flow(&log, limits, "127.0.0.0/8");
        let http = reqwest::Client::builder().no_proxy().redirect(redirect::Policy::none()).build().expect("a client");
        Self { log, flow, provider, known, http, _directory: directory, _nats: nats }
    }

    pub(crate) async fn begin(&self) -> Result<Begun, Refusal> {
        self.flow.begin(&self.known, "/projects/shop", None).await
    }

    /// What the provider sends the browser back with.
    pub(crate) async fn browse(&self, begun: &Begun) -> String {
        let answer = self.http.get(&begun.location).send().await.expect("the provider answers");
        assert_eq!(answer.status(), StatusCode::FOUND, "{}", begun.location);
        let back = answer.headers()["location"].to_str().expect("a location");
        back.strip_prefix(&format!("{}?", self.known.callback())).expect("back to us").to_owned()
    }

    pub(crate) async fn finish(&self, begun: &Begun, query: &str) -> Result<Verified, Refusal> {
        self.flow.finish(&self.known, query, Some(&begun.browser)).await
    }

    /// All of it, as a browser goes through it.
    pub(crate) async fn sign_in(&self) -> Result<Verified, Refusal> {
        let begun = self.begin().await?;
        let query = self.browse(&begun).await;
        self.finish(&begun, &query).await
    }

    #[track_caller]
    pub(crate) fn accepts(&self) -> impl Future<Output = Verified> {
        let caller = std::panic::Location::caller();
        async move { self.sign_in().await.unwrap_or_else(|refusal| panic!("{caller}: {} ({refusal})", refusal.code())) }
    }

    /// Nobody signs in, for the reason `code`.
    #[track_caller]
    pub(crate) fn refuses(&self, code: &str) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        async move { assert_eq!(refused(self.sign_in().await), code, "{caller}") }
    }
}

pub(crate) fn flow(log: &EventLog, limits: Limits, local: &str) -> Flow {
    let config = Config { outgoing: local.parse().expect("addresses"), declared: None };
    Flow::new(log.clone(), limits, config, PUBLIC_URL).expect("a flow")
}

/// The code of a refusal, whose words are for people.
#[track_caller]
pub(crate) fn refused<T>(result: Result<T, Refusal>) -> String {
    let refusal = result.err().expect("somebody was let in");
    let words = refusal.to_string();
    assert!(!words.is_empty() && !words.contains(HostileProvider::CLIENT_SECRET), "{words}");
    refusal.code()
}

/// A parameter of a query.
pub(crate) fn parameter(query: &str, name: &str) -> Option<String> {
    let query = query.split_once('?').map_or(query, |(_, query)| query);
    let mut pairs = form_urlencoded::parse(query.as_bytes());
    pairs.find(|(known, _)| known == name).map(|(_, value)| value.into_owned())
}

/// The same query with another value of a parameter, or without it.
pub(crate) fn with(query: &str, name: &str, value: Option<&str>) -> String {
    let kept = form_urlencoded::parse(query.as_bytes()).filter(|(known, _)| known != name);
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(kept).extend_pairs(value.map(|value| (name, value))).finish()
}
