//! "Test this provider": everything that a sign-in will need is asked for anew, and each finding is told plainly.

use std::collections::BTreeSet;

use domain::sso::Algorithm;
use openidconnect::{JsonWebKey, core::CoreJsonWebKeySet};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Provider, Refusal,
    http::Http,
    provider::{Document, discovery_url, fetch_document, fetch_keys},
};

/// What was found, in the order in which it was looked for.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Report {
    /// Whether a sign-in can succeed, as far as that can be told without one.
    pub good: bool,
    pub checks: Vec<Check>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = ProviderCheck)]
pub struct Check {
    /// Stable, for scripts.
    #[schema(example = "discovery")]
    pub name: &'static str,
    pub outcome: Outcome,
    /// For people: what was found, and where it is not good, what to do.
    pub detail: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = ProviderCheckOutcome)]
pub enum Outcome {
    Passed,
    /// It works, and somebody should know.
    Warning,
    Failed,
    /// Nothing could be said, for what it needs has failed.
    Skipped,
}

/// All names, in order: the ones behind a failure that they depend on are skipped.
const NAMES: [&str; 12] = [
    "settings",
    "redirect_uri",
    "address",
    "discovery",
    "issuer",
    "endpoints",
    "algorithms",
    "pkce",
    "keys",
    "client_secret",
    "scopes",
    "logout",
];

struct Checks(Vec<Check>);

impl Checks {
    fn note(&mut self, name: &'static str, outcome: Outcome, detail: impl Into<String>) {
        self.0.push(Check { name, outcome, detail: detail.into() });
    }

    /// Notes how something went, and hands on what came of it.
    fn take<T>(&mut self, name: &'static str, result: Result<T, String>, good: impl Into<String>) -> Option<T> {
        match result {
            Ok(value) => {
                self.note(name, Outcome::Passed, good);
                Some(value)
            }
            Err(problem) => {
                self.note(name, Outcome::Failed, problem);
                None
            }
        }
    }

    fn report(mut self) -> Report {
        for name in NAMES {
            if !self.0.iter().any(|check| check.name == name) {
                self.note(name, Outcome::Skipped, "an earlier finding stands in the way");
            }
        }
        let place = |check: &Check| NAMES.iter().position(|name| *name == check.name);
        self.0.sort_by_key(place);
        let good = !self.0.iter().any(|check| matches!(check.outcome, Outcome::Failed | Outcome::Skipped));
        Report { good, checks: self.0 }
    }
}

pub(super) async fn probe(http: &Http, provider: &Provider) -> Report {
    let mut checks = Checks(Vec::new());
    look(http, provider, &mut checks).await;
    checks.report()
}

/// None where what is left needs something that has failed.
async fn look(http: &Http, provider: &Provider, checks: &mut Checks) -> Option<()> {
    let settings = &provider.settings;
    let wrong = settings.check();
    let wrong = wrong.iter().map(|error| format!("{} {}", error.field, error.problem)).collect::<Vec<_>>().join("; ");
    let readable = if wrong.is_empty() { Ok(()) } else { Err(wrong) };
    checks.take("settings", readable, "the settings are complete")?;
    redirect(provider, checks);
    secret(provider, checks);

    let url = discovery_url(&settings.issuer).map_err(|refusal| refusal.to_string());
    let found = match url {
        Ok(url) => http.resolve(&url).await.map(|()| url).map_err(|trouble| format!("{}: {trouble}", settings.issuer)),
        Err(problem) => Err(problem),
    };
    let url = checks.take("address", found, "its host is known and may be reached")?;

    let document = fetch_document(http, &settings.issuer).await.map_err(|refusal| format!("{url}: {refusal}"));
    let document = checks.take("discovery", document, format!("{url} describes the provider"))?;
    algorithms(provider, &document, checks);
    pkce(&document, checks);
    scopes(provider, &document, checks);
    let named = document.issuer.as_deref().map(shortened).unwrap_or_default();
    let same = if document.issuer.as_deref() == Some(&settings.issuer) {
        Ok(())
    } else {
        Err(format!(
            "the settings say `{}`, and the provider calls itself `{named}`: write it exactly so, down to the slash at \
             the end, where that is whom you mean",
            settings.issuer
        ))
    };
    checks.take("issuer", same, "it calls itself as the settings do")?;

    let discovered = document.discovered(&settings.issuer).map_err(|refusal| refusal.to_string());
    let discovered =
        checks.take("endpoints", discovered, "it says where to sign in, where tokens are, and its keys")?;
    match &discovered.end_session {
        Some(_) => checks.note("logout", Outcome::Passed, "who signs out here signs out there, too"),
        None => {
            checks.note("logout", Outcome::Warning, "it has no address to sign out at: people stay signed in there")
        }
    }
    let keys = fetch_keys(http, &discovered.keys).await;
    let keys = keys.and_then(|keys| fitting(&keys, &settings.algorithms));
    let problem = |refusal: Refusal| format!("{}: {refusal}", discovered.keys);
    match keys {
        Ok(fitting) => checks.note("keys", Outcome::Passed, format!("{fitting} of its keys can be used")),
        Err(refusal) => checks.note("keys", Outcome::Failed, problem(refusal)),
    }
    Some(())
}

/// How many keys fit the accepted algorithms.
fn fitting(keys: &CoreJsonWebKeySet, accepted: &BTreeSet<Algorithm>) -> Result<usize, Refusal> {
    let kind = |algorithm: &Algorithm| match algorithm {
        Algorithm::Rs256 | Algorithm::Rs384 | Algorithm::Rs512 => "RSA",
        Algorithm::Ps256 | Algorithm::Ps384 | Algorithm::Ps512 => "RSA",
        Algorithm::Es256 | Algorithm::Es384 => "EC",
        Algorithm::EdDsa => "OKP",
    };
    let kinds: BTreeSet<&str> = accepted.iter().map(kind).collect();
    let of_kind = |key: &&openidconnect::core::CoreJsonWebKey| {
        serde_json::to_value(key.key_type()).is_ok_and(|kty| kty.as_str().is_some_and(|kty| kinds.contains(kty)))
    };
    match keys.keys().iter().filter(of_kind).count() {
        0 => Err(Refusal::NoAlgorithm),
        fitting => Ok(fitting),
    }
}

/// Whether people come back from there, only the provider knows; whether their browsers can, is plain to see.
fn redirect(provider: &Provider, checks: &mut Checks) {
    let callback = provider.callback();
    if callback.starts_with("https://") {
        checks.note("redirect_uri", Outcome::Passed, format!("{callback} is where it must send people back to"));
    } else {
        checks.note(
            "redirect_uri",
            Outcome::Warning,
            format!(
                "{callback} is where it must send people back to, which is for a browser on this machine only: set \
                 PUBLIC_URL to the https:// address at which people reach Sluice"
            ),
        );
    }
}

fn secret(provider: &Provider, checks: &mut Checks) {
    match provider.secret {
        Some(_) => {
            checks.note("client_secret", Outcome::Passed, "there is one; the first sign-in shows whether it is right")
        }
        None => checks.note(
            "client_secret",
            Outcome::Warning,
            "there is none: that is right only where the provider knows us as a public client",
        ),
    }
}

fn algorithms(provider: &Provider, document: &Document, checks: &mut Checks) {
    let accepted = &provider.settings.algorithms;
    let words = |all: &BTreeSet<Algorithm>| all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    match document.algorithms() {
        None => checks.note("algorithms", Outcome::Warning, "it does not say how it signs"),
        Some(offered) => {
            let common: BTreeSet<_> = offered.intersection(accepted).copied().collect();
            if common.is_empty() {
                let accepted = words(accepted);
                checks.note("algorithms", Outcome::Failed, format!("it signs with none of {accepted}: let it use one"));
            } else {
                checks.note("algorithms", Outcome::Passed, format!("it signs with {}", words(&common)));
            }
        }
    }
}

fn pkce(document: &Document, checks: &mut Checks) {
    match document.pkce() {
        Some(true) => checks.note("pkce", Outcome::Passed, "it takes PKCE with S256"),
        Some(false) => checks.note("pkce", Outcome::Failed, "it does not take PKCE with S256, which is always used"),
        None => {
            checks.note("pkce", Outcome::Warning, "it does not say whether it takes PKCE, which is sent in any case")
        }
    }
}

fn scopes(provider: &Provider, document: &Document, checks: &mut Checks) {
    let Some(known) = &document.scopes_supported else {
        checks.note("scopes", Outcome::Passed, "it does not say which scopes it knows");
        return;
    };
    let unknown: Vec<_> = provider.settings.scopes.iter().filter(|scope| !known.contains(scope)).cloned().collect();
    if unknown.is_empty() {
        checks.note("scopes", Outcome::Passed, "it knows the scopes that are asked for");
    } else {
        checks.note("scopes", Outcome::Warning, format!("it does not list {}", unknown.join(", ")));
    }
}

/// What a stranger wrote, fit to be shown.
fn shortened(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}
