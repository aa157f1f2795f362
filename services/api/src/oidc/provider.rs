//! What the provider says about itself, and its keys: asked for when they are needed, remembered for a while, and never
//! asked for more often than is decent.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::Instant,
};

use domain::sso::{Algorithm, Settings};
use openidconnect::core::{CoreJsonWebKey, CoreJsonWebKeySet};
use reqwest::Url;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::Mutex;

use super::{Leg, Limits, Refusal, Trouble, http::Http};

/// Keys beyond which a set of them is nonsense.
const MOST_KEYS: usize = 100;

/// As it stands at `/.well-known/openid-configuration`: the part of it that is used here.
#[derive(Debug, Deserialize)]
pub(super) struct Document {
    pub(super) issuer: Option<String>,
    authorization_endpoint: Option<String>,
    token_endpoint: Option<String>,
    userinfo_endpoint: Option<String>,
    jwks_uri: Option<String>,
    end_session_endpoint: Option<String>,
    id_token_signing_alg_values_supported: Option<Vec<String>>,
    code_challenge_methods_supported: Option<Vec<String>>,
    token_endpoint_auth_methods_supported: Option<Vec<String>>,
    pub(super) scopes_supported: Option<Vec<String>>,
    authorization_response_iss_parameter_supported: Option<bool>,
}

/// The same, once it was found to be good.
#[derive(Debug)]
pub(super) struct Discovered {
    pub(super) authorization: Url,
    pub(super) token: Url,
    pub(super) userinfo: Option<Url>,
    pub(super) keys: Url,
    pub(super) end_session: Option<Url>,
    /// The provider's answers name it (RFC 9207).
    pub(super) names_itself: bool,
    /// The client secret goes into the body, for the provider takes no `Authorization` header.
    pub(super) secret_in_body: bool,
    document: Document,
}

pub(super) fn discovery_url(issuer: &str) -> Result<Url, Refusal> {
    let url = format!("{}/.well-known/openid-configuration", issuer.strip_suffix('/').unwrap_or(issuer));
    Url::parse(&url).map_err(|_| Refusal::EndpointInsecure)
}

impl Document {
    pub(super) fn discovered(self, issuer: &str) -> Result<Discovered, Refusal> {
        if self.issuer.as_deref() != Some(issuer) {
            return Err(Refusal::DiscoveryIssuer);
        }
        let encrypted = issuer.starts_with("https://");
        let read = |endpoint: &Option<String>| -> Result<Option<Url>, Refusal> {
            let Some(endpoint) = endpoint else { return Ok(None) };
            let url = Url::parse(endpoint).map_err(|_| Refusal::EndpointInsecure)?;
            let good = url.scheme() == "https" || url.scheme() == "http" && !encrypted;
            let good = good && url.host().is_some() && url.username().is_empty() && url.password().is_none();
            if good && url.fragment().is_none() { Ok(Some(url)) } else { Err(Refusal::EndpointInsecure) }
        };
        let methods = self.token_endpoint_auth_methods_supported.as_deref();
        let takes = |method: &str| methods.is_some_and(|methods| methods.iter().any(|known| known == method));
        Ok(Discovered {
            authorization: read(&self.authorization_endpoint)?.ok_or(Refusal::EndpointMissing)?,
            token: read(&self.token_endpoint)?.ok_or(Refusal::EndpointMissing)?,
            keys: read(&self.jwks_uri)?.ok_or(Refusal::EndpointMissing)?,
            userinfo: read(&self.userinfo_endpoint)?,
            end_session: read(&self.end_session_endpoint)?,
            names_itself: self.authorization_response_iss_parameter_supported.unwrap_or(false),
            secret_in_body: takes("client_secret_post") && !takes("client_secret_basic"),
            document: self,
        })
    }

    /// What it signs with; none where it does not say.
    pub(super) fn algorithms(&self) -> Option<BTreeSet<Algorithm>> {
        let names = self.id_token_signing_alg_values_supported.as_ref()?;
        Some(names.iter().filter_map(|name| Algorithm::named(name)).collect())
    }

    /// Whether it takes PKCE with S256; none where it does not say.
    pub(super) fn pkce(&self) -> Option<bool> {
        self.code_challenge_methods_supported.as_ref().map(|methods| methods.iter().any(|method| method == "S256"))
    }
}

impl Discovered {
    /// Whether a sign-in with these settings can succeed at all.
    pub(super) fn suits(&self, settings: &Settings) -> Result<(), Refusal> {
        if self.document.algorithms().is_some_and(|known| known.is_disjoint(&settings.algorithms)) {
            return Err(Refusal::NoAlgorithm);
        }
        // Some that take it do not say so; whoever says what it takes is believed.
        if self.document.pkce() == Some(false) {
            return Err(Refusal::NoPkce);
        }
        Ok(())
    }
}

pub(super) async fn fetch_document(http: &Http, issuer: &str) -> Result<Document, Refusal> {
    let document = http.get(&discovery_url(issuer)?).await.map_err(|trouble| Leg::Discovery.failed(trouble))?;
    serde_json::from_value(document).map_err(|_| Leg::Discovery.failed(Trouble::Garbage))
}

pub(super) async fn fetch_keys(http: &Http, url: &Url) -> Result<CoreJsonWebKeySet, Refusal> {
    let garbage = || Leg::Keys.failed(Trouble::Garbage);
    let set = http.get(url).await.map_err(|trouble| Leg::Keys.failed(trouble))?;
    let keys = set.get("keys").and_then(Value::as_array).filter(|keys| keys.len() <= MOST_KEYS).ok_or_else(garbage)?;
    let usable = keys.iter().filter(|key| is_usable(key));
    // Keys of kinds that are not known are for others.
    let keys: Vec<CoreJsonWebKey> = usable.filter_map(|key| serde_json::from_value(key.clone()).ok()).collect();
    if keys.is_empty() { Err(Refusal::NoKeys) } else { Ok(CoreJsonWebKeySet::new(keys)) }
}

/// Whether a key can check signatures and is worth trusting: neither secret nor weak.
fn is_usable(key: &Value) -> bool {
    let text = |name: &str| key.get(name).and_then(Value::as_str);
    let public = ["d", "p", "q", "k"].iter().all(|part| key.get(part).is_none());
    let for_signatures = text("use").is_none_or(|purpose| purpose == "sig");
    let strong = match (text("kty"), text("crv")) {
        // Whoever can read six bits of a digit knows how many there are; leading zeros do not count.
        (Some("RSA"), _) => text("n").and_then(modulus_bits).is_some_and(|bits| (2048..=4096).contains(&bits)),
        (Some("EC"), Some("P-256" | "P-384")) | (Some("OKP"), Some("Ed25519")) => true,
        (_, _) => false,
    };
    public && for_signatures && strong
}

fn modulus_bits(modulus: &str) -> Option<usize> {
    use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(modulus.trim_end_matches('=')).ok()?;
    let first = bytes.iter().position(|byte| *byte != 0)?;
    Some((bytes.len() - first) * 8 - bytes[first].leading_zeros() as usize)
}

/// What is remembered of the provider.
pub(super) struct Memory {
    http: Http,
    limits: Limits,
    discovery: Mutex<Option<Kept<Discovered>>>,
    keys: Mutex<Option<Kept<CoreJsonWebKeySet>>>,
    refetches: Mutex<VecDeque<Instant>>,
}

struct Kept<T> {
    /// What was asked.
    from: String,
    at: Instant,
    answer: Result<Arc<T>, Refusal>,
}

impl<T> Kept<T> {
    fn fresh(&self, from: &str, limits: &Limits) -> bool {
        let lasts = if self.answer.is_ok() { limits.remember } else { limits.remember_failure };
        self.from == from && self.at.elapsed() < lasts
    }
}

impl Memory {
    pub(super) fn new(http: Http, limits: Limits) -> Self {
        Self { http, limits, discovery: Mutex::default(), keys: Mutex::default(), refetches: Mutex::default() }
    }

    /// Whoever comes while somebody asks waits for that answer, good or bad.
    pub(super) async fn discovery(&self, settings: &Settings) -> Result<Arc<Discovered>, Refusal> {
        let issuer = &settings.issuer;
        let mut kept = self.discovery.lock().await;
        let answer = match &*kept {
            Some(kept) if kept.fresh(issuer, &self.limits) => kept.answer.clone(),
            Some(_) | None => {
                let document = fetch_document(&self.http, issuer).await;
                let answer = document.and_then(|document| document.discovered(issuer)).map(Arc::new);
                *kept = Some(Kept { from: issuer.clone(), at: Instant::now(), answer: answer.clone() });
                answer
            }
        };
        answer.and_then(|discovered| discovered.suits(settings).map(|()| discovered))
    }

    pub(super) async fn keys(&self, url: &Url) -> Result<Arc<CoreJsonWebKeySet>, Refusal> {
        let mut kept = self.keys.lock().await;
        match &*kept {
            Some(kept) if kept.fresh(url.as_str(), &self.limits) => kept.answer.clone(),
            Some(_) | None => {
                let answer = fetch_keys(&self.http, url).await.map(Arc::new);
                *kept = Some(Kept { from: url.to_string(), at: Instant::now(), answer: answer.clone() });
                answer
            }
        }
    }

    /// Other keys than `known`, among which one was missing: the provider may have new ones. None where it was asked
    /// often enough lately: else whoever can bring tokens with invented keys could have us flood it.
    pub(super) async fn newer_keys(
        &self,
        url: &Url,
        known: &Arc<CoreJsonWebKeySet>,
    ) -> Result<Option<Arc<CoreJsonWebKeySet>>, Refusal> {
        let mut kept = self.keys.lock().await;
        if let Some(Kept { from, answer: Ok(newer), .. }) = &*kept
            && from == url.as_str()
            && !Arc::ptr_eq(newer, known)
        {
            return Ok(Some(newer.clone()));
        }
        if !self.may_refetch().await {
            return Ok(None);
        }
        // The keys that are known stay so when this fails.
        let newer = Arc::new(fetch_keys(&self.http, url).await?);
        *kept = Some(Kept { from: url.to_string(), at: Instant::now(), answer: Ok(newer.clone()) });
        Ok(Some(newer))
    }

    async fn may_refetch(&self) -> bool {
        let mut done = self.refetches.lock().await;
        let now = Instant::now();
        while done.front().is_some_and(|first| now.duration_since(*first) >= self.limits.refetch_window) {
            done.pop_front();
        }
        let may = done.len() < self.limits.refetches;
        if may {
            done.push_back(now);
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rsa(bits: usize) -> Value {
        use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
        let mut modulus = vec![0_u8; bits.div_ceil(8) + 1];
        modulus[1] = 1 << ((bits - 1) % 8);
        json!({ "kty": "RSA", "e": "AQAB", "n": BASE64_URL_SAFE_NO_PAD.encode(modulus) })
    }

    #[test]
    fn weak_secret_and_foreign_keys_are_not_used() {
        for (bits, good) in [(512, false), (1024, false), (2047, false), (2048, true), (4096, true), (4097, false)] {
            assert_eq!(is_usable(&rsa(bits)), good, "{bits}");
        }
        let with = |mut key: Value, name: &str, value: &str| {
            key[name] = value.into();
            key
        };
        let ec = json!({ "kty": "EC", "crv": "P-256", "x": "", "y": "" });
        assert!(is_usable(&ec) && is_usable(&with(ec.clone(), "use", "sig")));
        for bad in [
            with(ec.clone(), "use", "enc"),
            with(ec.clone(), "d", "secret"),
            with(rsa(2048), "d", "secret"),
            with(ec, "crv", "P-521"),
            json!({ "kty": "oct", "k": "c2VjcmV0" }),
            json!({ "kty": "oct" }),
            json!({}),
            json!(1),
        ] {
            assert!(!is_usable(&bad), "{bad}");
        }
    }
}
