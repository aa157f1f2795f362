//! Sign-in through an outside provider (OpenID Connect): the authorization code flow with PKCE, up to a verified
//! identity. What becomes of that identity here is decided elsewhere.
//!
//! The provider is trusted with who somebody is and which roles they have, and with nothing else: it may answer anything,
//! late or never, and so may whoever stands between. Each way in which a sign-in can fail is a [`Refusal`] of its own.

mod config;
mod http;
mod pending;
mod probe;
mod provider;
mod refusal;
mod token;

use std::{sync::Arc, time::Duration};

use domain::{
    Key,
    sso::{Mapped, Settings, Sso},
};
use eventlog::{EventLog, Secret};
use openidconnect::{
    AuthenticationFlow, ClientId, CsrfToken, EndSessionUrl, LogoutRequest, Nonce, PkceCodeChallenge,
    PostLogoutRedirectUrl, Scope,
    core::{CoreIdToken, CoreResponseType},
};
use reqwest::Url;
use tokio::sync::Semaphore;

pub use self::{
    config::{Config, Declared},
    http::Trouble,
    probe::{Check, Outcome, Report},
    refusal::{Leg, Refusal},
};
use self::{http::Http, pending::Store, provider::Memory};

/// Where the provider sends people back to, behind the public URL. It is what must be registered there.
pub const CALLBACK: &str = "/auth/oidc/callback";
/// Where a sign-in begins.
const START: &str = "/auth/oidc/start";
/// Where people land who signed out at the provider.
const SIGNED_OUT: &str = "/login";

/// In bytes, of what the browser brings back.
const LONGEST_CALLBACK: usize = 16 << 10;
const LONGEST_RETURN_PATH: usize = 1024;

/// How long and how often the provider is asked, and what is believed of its clock.
#[derive(Debug, Clone)]
pub struct Limits {
    /// For a connection to it.
    pub connect: Duration,
    /// For one of its answers, whole.
    pub answer: Duration,
    /// Between the begin and the end of a sign-in; at most the ten minutes that the bucket keeps it.
    pub sign_in: Duration,
    /// Between its clock and ours.
    pub leeway: Duration,
    /// How long what it says about itself, and its keys, are not asked for again.
    pub remember: Duration,
    /// The same where it said nothing useful.
    pub remember_failure: Duration,
    /// How often within `refetch_window` its keys are asked for because one was missing.
    pub refetches: usize,
    pub refetch_window: Duration,
    /// Sign-ins that are worked on.
    pub at_once: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(3),
            answer: Duration::from_secs(5),
            sign_in: Duration::from_secs(600),
            leeway: Duration::from_secs(60),
            remember: Duration::from_secs(600),
            remember_failure: Duration::from_secs(2),
            refetches: 5,
            refetch_window: Duration::from_secs(60),
            at_once: 64,
        }
    }
}

/// The provider, and who we are to it.
#[derive(Debug, Clone)]
pub struct Provider {
    pub settings: Settings,
    /// None for a client that has none: PKCE alone proves then who asks.
    pub secret: Option<Secret>,
    /// Scheme, host and port under which people reach us, without a slash at the end.
    pub public_url: String,
}

impl Provider {
    /// Where the provider sends people back to.
    pub fn callback(&self) -> String {
        format!("{}{CALLBACK}", self.public_url)
    }
}

/// A sign-in that has begun.
#[derive(Debug, Clone)]
pub struct Begun {
    /// Where the browser goes: at the provider.
    pub location: String,
    /// What only this browser may hold, as a cookie: HttpOnly, SameSite=Lax, as long as [`Limits::sign_in`].
    pub browser: String,
}

/// Somebody whom the provider knows.
#[derive(Debug, Clone)]
pub struct Verified {
    pub issuer: String,
    /// With the issuer, who it is: for ever, whatever their name becomes.
    pub subject: String,
    /// 1 to 128 characters: the user name, else the verified e-mail address, else the subject.
    pub display_name: String,
    /// Only where the provider has verified it.
    pub email: Option<String>,
    pub role: Mapped,
    /// For [`Flow::logout_url`]; to the vault.
    pub id_token: Secret,
    /// The path to come back to, on this server.
    pub return_to: String,
}

/// Signs people in. Clones share what is known of the provider.
#[derive(Clone)]
pub struct Flow {
    log: EventLog,
    declared: Option<Arc<Declared>>,
    public_url: Arc<str>,
    http: Http,
    memory: Arc<Memory>,
    pending: Store,
    at_once: Arc<Semaphore>,
    limits: Limits,
}

impl Flow {
    /// `public_url` is scheme, host and port under which people reach us, without a slash at the end. Fails only where
    /// this machine has no usable TLS.
    pub fn new(log: EventLog, limits: Limits, config: Config, public_url: &str) -> anyhow::Result<Self> {
        let Config { outgoing, declared } = config;
        let (declared, public_url) = (declared.map(Arc::new), public_url.into());
        let http = Http::new(&limits, Arc::new(outgoing))?;
        let memory = Arc::new(Memory::new(http.clone(), limits.clone()));
        let (pending, at_once) = (Store::new(&log), Arc::new(Semaphore::new(limits.at_once)));
        Ok(Self { log, declared, public_url, http, memory, pending, at_once, limits })
    }

    /// Whether the environment names the provider: then nothing that is stored counts.
    pub fn by_environment(&self) -> bool {
        self.declared.is_some()
    }

    /// Where a browser begins a sign-in.
    pub fn start(&self) -> String {
        format!("{}{START}", self.public_url)
    }

    /// How the provider is reached, as the environment, and where that says nothing what is stored, has it. None where
    /// neither does.
    pub async fn settings(&self) -> Result<Option<Settings>, eventlog::Error> {
        match &self.declared {
            Some(declared) => Ok(Some(declared.settings.clone())),
            None => Ok(self.log.fold(&Key::<Sso>::sso()).await?.state.settings.clone()),
        }
    }

    /// The same with what we prove ourselves with.
    pub async fn provider(&self) -> Result<Option<Provider>, eventlog::Error> {
        let public_url = self.public_url.to_string();
        if let Some(declared) = &self.declared {
            let Declared { settings, secret } = (**declared).clone();
            return Ok(Some(Provider { settings, secret, public_url }));
        }
        let Sso { settings, secret } = self.log.fold(&Key::<Sso>::sso()).await?.state.clone();
        let Some(settings) = settings else { return Ok(None) };
        let secret = match secret {
            Some(place) => self.log.vault().get(&place.secret).await?,
            None => None,
        };
        Ok(Some(Provider { settings, secret, public_url }))
    }

    /// Begins a sign-in that ends at `return_to`. A browser that holds the value of an earlier one keeps it, so that
    /// several of its tabs may sign in at once.
    pub async fn begin(&self, provider: &Provider, return_to: &str, browser: Option<&str>) -> Result<Begun, Refusal> {
        check_return_path(return_to)?;
        let _one = self.at_once.try_acquire().map_err(|_| Refusal::Busy)?;
        let discovered = self.memory.discovery(&provider.settings).await?;
        let client = token::client(provider, &discovered)?;
        let (challenge, verifier) = PkceCodeChallenge::new_random_sha256_len(32);
        let scopes = provider.settings.scopes.iter().filter(|scope| *scope != "openid").cloned().map(Scope::new);
        let random = |make: fn(u32) -> CsrfToken| make(32);
        let (location, state, nonce) = client
            .authorize_url(
                AuthenticationFlow::<CoreResponseType>::AuthorizationCode,
                move || random(CsrfToken::new_random_len),
                || Nonce::new_random_len(32),
            )
            .add_scopes(scopes)
            .set_pkce_challenge(challenge)
            .url();
        let browser = browser.filter(|value| is_random(value)).map_or_else(new_random, str::to_owned);
        let new = pending::New {
            browser: &browser,
            nonce: nonce.secret().clone(),
            verifier: verifier.into_secret(),
            return_to,
            issuer: &provider.settings.issuer,
            client_id: &provider.settings.client_id,
        };
        self.pending.put(state.secret(), new).await?;
        Ok(Begun { location: location.into(), browser })
    }

    /// Ends a sign-in: `query` is what the provider sent the browser back with, `browser` what that browser holds.
    pub async fn finish(&self, provider: &Provider, query: &str, browser: Option<&str>) -> Result<Verified, Refusal> {
        let callback = Callback::read(query)?;
        let _one = self.at_once.try_acquire().map_err(|_| Refusal::Busy)?;
        let state = callback.state.ok_or(Refusal::StateMissing)?;
        let pending = self.pending.take(&state, browser, &self.limits).await?;
        let settings = &provider.settings;
        if pending.issuer != settings.issuer || pending.client_id != settings.client_id {
            return Err(Refusal::SettingsChanged);
        }
        let discovered = self.memory.discovery(settings).await?;
        // Before the code goes anywhere: it may be another provider's.
        match callback.iss {
            Some(issuer) if issuer != settings.issuer => return Err(Refusal::MixUp),
            None if discovered.names_itself => return Err(Refusal::IssuerParameterMissing),
            Some(_) | None => {}
        }
        match callback.error.as_deref() {
            Some("access_denied") => return Err(Refusal::AccessDenied),
            Some(_) => return Err(Refusal::ProviderError),
            None => {}
        }
        let code = callback.code.ok_or(Refusal::CodeMissing)?;
        let tokens = token::exchange(&self.http, provider, &discovered, code, &pending).await?;
        let keys = self.memory.keys(&discovered.keys).await?;
        let claims = match token::verify(&tokens, settings, &keys, &pending, &self.limits) {
            // There may be new keys; some providers even give them old names.
            Err(refusal @ (Refusal::KeyUnknown | Refusal::Signature)) => {
                match self.memory.newer_keys(&discovered.keys, &keys).await? {
                    Some(newer) => token::verify(&tokens, settings, &newer, &pending, &self.limits)?,
                    None => return Err(refusal),
                }
            }
            verified => verified?,
        };
        let subject = claims.get("sub").and_then(|sub| sub.as_str()).ok_or(Refusal::SubjectMissing)?.to_owned();
        let rest = token::userinfo(&self.http, discovered.userinfo.as_ref(), &tokens, &subject).await?;
        let person = token::person(settings, claims, rest);
        Ok(Verified {
            issuer: settings.issuer.clone(),
            subject,
            display_name: person.name,
            email: person.email,
            role: settings.role(&person.roles)?,
            id_token: Secret::new(tokens.id_token),
            return_to: pending.return_to,
        })
    }

    /// Where somebody goes who has signed out here, so as to sign out at the provider, too (RP-initiated logout). None
    /// where the provider has no such place, cannot be asked, or is not the one that issued the token: they are signed
    /// out here in any case.
    pub async fn logout_url(&self, provider: &Provider, id_token: Option<&Secret>) -> Option<String> {
        let hint = id_token.and_then(|token| str::from_utf8(token.expose()).ok());
        if hint.is_some_and(|hint| token::issuer(hint).as_ref() != Some(&provider.settings.issuer)) {
            return None;
        }
        let discovered = self.memory.discovery(&provider.settings).await.ok()?;
        let back = PostLogoutRedirectUrl::new(format!("{}{SIGNED_OUT}", provider.public_url)).ok()?;
        let request = LogoutRequest::from(EndSessionUrl::from_url(discovered.end_session.clone()?))
            .set_client_id(ClientId::new(provider.settings.client_id.clone()))
            .set_post_logout_redirect_uri(back);
        let hint = hint.and_then(|hint| hint.parse::<CoreIdToken>().ok());
        let request = match &hint {
            Some(hint) => request.set_id_token_hint(hint),
            None => request,
        };
        Some(request.http_get_url().into())
    }

    /// Asks the provider for all it says about itself, anew, and tells what of it is good.
    pub async fn probe(&self, provider: &Provider) -> Report {
        probe::probe(&self.http, provider).await
    }
}

/// 256 bits, as text.
fn new_random() -> String {
    hex::encode(rand::random::<[u8; 32]>())
}

fn is_random(value: &str) -> bool {
    value.len() == 64 && value.bytes().all(|b| b.is_ascii_hexdigit())
}

/// What the provider sent the browser back with.
#[derive(Debug, Default)]
struct Callback {
    state: Option<String>,
    code: Option<String>,
    iss: Option<String>,
    error: Option<String>,
}

impl Callback {
    /// What comes twice could be read in two ways, so it is not read at all.
    fn read(query: &str) -> Result<Self, Refusal> {
        if query.len() > LONGEST_CALLBACK {
            return Err(Refusal::CallbackMalformed);
        }
        let mut callback = Self::default();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let place = match &*name {
                "state" => &mut callback.state,
                "code" => &mut callback.code,
                "iss" => &mut callback.iss,
                "error" => &mut callback.error,
                _ => continue,
            };
            if place.replace(value.into_owned()).is_some() {
                return Err(Refusal::CallbackMalformed);
            }
        }
        callback.state = callback.state.filter(|state| !state.is_empty());
        callback.code = callback.code.filter(|code| !code.is_empty());
        Ok(callback)
    }
}

/// A path on this server, however a browser reads it.
fn check_return_path(path: &str) -> Result<(), Refusal> {
    let encoded = path.to_ascii_lowercase();
    let hidden = ["%2f", "%5c", "%00", "%09", "%0a", "%0d"].iter().any(|hidden| encoded.contains(hidden));
    let plain = path.starts_with('/')
        && path.len() <= LONGEST_RETURN_PATH
        && path.bytes().all(|b| (0x21..0x7f).contains(&b))
        && !path.contains("//")
        && !path.contains('\\')
        && !hidden;
    // The second opinion is that of the parser that browsers agree with.
    let here = Url::parse("https://here.invalid").and_then(|here| here.join(path));
    let here = here.is_ok_and(|url| url.host_str() == Some("here.invalid") && !url.path().starts_with("//"));
    if plain && here { Ok(()) } else { Err(Refusal::ReturnPath) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_return_path_leads_nowhere_else() {
        for good in ["/", "/projects/shop?tab=stages&q=a%20b#top", "/a/../b", "/settings/account"] {
            assert!(check_return_path(good).is_ok(), "{good} was refused");
        }
        for bad in [
            "",
            "projects",
            "//evil.example",
            "///evil.example",
            "/\\evil.example",
            "\\\\evil.example",
            "/x\\y",
            "https://evil.example",
            "https:evil.example",
            "javascript:alert(1)",
            "/\t/evil.example",
            "/\n/evil.example",
            "/a\r\nLocation: x",
            "/%2f/evil.example",
            "/%2F%2Fevil.example",
            "/%5cevil.example",
            "/%0d%0aLocation:x",
            "/.//evil.example",
            "/a/..//evil.example",
            " /x",
            "/x y",
            "/ä",
            "/\u{0}",
            "?x",
            "#x",
            "@evil.example",
            &format!("/{}", "a".repeat(LONGEST_RETURN_PATH)),
        ] {
            assert!(check_return_path(bad).is_err(), "{bad:?} passed");
        }
    }

    #[test]
    fn a_callback_that_can_be_read_in_two_ways_is_not_read() {
        for bad in ["state=a&state=b", "code=a&code=a", "iss=a&state=x&iss=b", "error=a&error=b"] {
            assert!(Callback::read(bad).is_err(), "{bad} passed");
        }
        let good = Callback::read("state=a%20b&code=c&session_state=x&session_state=y&iss=").expect("read");
        assert_eq!(
            (good.state.as_deref(), good.code.as_deref(), good.iss.as_deref()),
            (Some("a b"), Some("c"), Some(""))
        );
    }
}
