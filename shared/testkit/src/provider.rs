//! An OpenID Connect provider of our own, which answers whatever a test wants it to: well, badly, late, or never.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use aws_lc_rs::{
    digest, hmac,
    rand::SystemRandom,
    signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RsaEncoding, RsaKeyPair},
};
use axum::{
    Router,
    body::{Body, Bytes},
    extract::{RawQuery, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use futures::StreamExt;
use serde_json::{Map, Value, json};
use tokio::{net::TcpListener, task::JoinHandle};

/// What a provider is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Leg {
    Discovery,
    Keys,
    Token,
    Userinfo,
}

/// What it does instead of a good answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// No answer, ever.
    Hang,
    /// The connection ends within the answer.
    CutOff,
    Status(u16),
    /// An answer without end.
    Endless,
    /// HTML.
    Garbage,
    /// To where it counts who comes: see [`HostileProvider::trapped`].
    Redirect,
}

/// How it signs ID tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signing {
    Rs256,
    Rs512,
    Ps256,
    Es256,
    Es384,
    EdDsa,
    /// Not at all, and says so.
    None,
    /// With the client secret.
    Hs256WithSecret,
    /// With what everybody can read: its own public key.
    Hs256WithPublicKey,
}

type Change<T> = Arc<dyn Fn(&mut T) + Send + Sync>;
type Pairs = Vec<(String, String)>;

/// What a test has asked for.
#[derive(Default)]
struct Script {
    discovery: Option<Change<Value>>,
    keys: Option<Change<Value>>,
    header: Option<Change<Value>>,
    claims: Option<Change<Value>>,
    id_token: Option<Change<String>>,
    token: Option<Change<Value>>,
    userinfo: Option<Change<Value>>,
    callback: Option<Change<Pairs>>,
    faults: HashMap<Leg, Fault>,
    signing: Option<Signing>,
}

/// What it knows of a code that it gave.
struct Given {
    nonce: Option<String>,
    challenge: String,
    redirect: String,
}

struct Shared {
    issuer: String,
    script: Mutex<Script>,
    keys: Mutex<Keys>,
    codes: Mutex<HashMap<String, Given>>,
    registered: Mutex<Option<String>>,
    hits: Mutex<HashMap<Leg, usize>>,
    trapped: Mutex<usize>,
}

struct Keys {
    generation: usize,
    rsa: RsaKeyPair,
    p256: EcdsaKeyPair,
    p384: EcdsaKeyPair,
    ed25519: Ed25519KeyPair,
}

/// The provider, on a loopback port of its own. Ends when dropped.
pub struct HostileProvider {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Drop for HostileProvider {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl HostileProvider {
    pub const CLIENT_ID: &str = "sluice";
    /// Its characters are those that a client may forget to encode.
    pub const CLIENT_SECRET: &str = "s3cr:t &+%/=é";
    pub const SUBJECT: &str = "248289761001";

    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.context("a port for the provider")?;
        let issuer = format!("http://{}", listener.local_addr().context("the provider's address")?);
        let shared = Arc::new(Shared {
            issuer,
            script: Mutex::default(),
            keys: Mutex::new(Keys::generate(0)?),
            codes: Mutex::default(),
            registered: Mutex::default(),
            hits: Mutex::default(),
            trapped: Mutex::default(),
        });
        let router = Router::new()
            .route("/.well-known/openid-configuration", get(discovery))
            .route("/authorize", get(authorize))
            .route("/keys", get(keys))
            .route("/token", post(token))
            .route("/userinfo", get(userinfo))
            .fallback(trap)
            .with_state(shared.clone());
        let task = tokio::spawn(async move {
            // It ends with the test.
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self { shared, task })
    }

    pub fn issuer(&self) -> &str {
        &self.shared.issuer
    }

    /// Changes what it says about itself.
    pub fn discovery(&self, change: impl Fn(&mut Value) + Send + Sync + 'static) {
        self.script().discovery = Some(Arc::new(change));
    }

    /// Changes the keys that it publishes.
    pub fn keys(&self, change: impl Fn(&mut Value) + Send + Sync + 'static) {
        self.script().keys = Some(Arc::new(change));
    }

    /// Changes the header of ID tokens, before they are signed.
    pub fn header(&self, change: impl Fn(&mut Value) + Send + Sync + 'static) {
        self.script().header = Some(Arc::new(change));
    }

    /// Changes the claims of ID tokens, before they are signed.
    pub fn claims(&self, change: impl Fn(&mut Value) + Send + Sync + 'static) {
        self.script().claims = Some(Arc::new(change));
    }

    /// Changes ID tokens after they were signed.
    pub fn id_token(&self, change: impl Fn(&mut String) + Send + Sync + 'static) {
        self.script().id_token = Some(Arc::new(change));
    }

    /// Changes the answer to a code.
    pub fn token(&self, change: impl Fn(&mut Value) + Send + Sync + 'static) {
        self.script().token = Some(Arc::new(change));
    }

    pub fn userinfo(&self, change: impl Fn(&mut Value) + Send + Sync + 'static) {
        self.script().userinfo = Some(Arc::new(change));
    }

    /// Changes what the browser is sent back with.
    pub fn callback(&self, change: impl Fn(&mut Vec<(String, String)>) + Send + Sync + 'static) {
        self.script().callback = Some(Arc::new(change));
    }

    pub fn sign(&self, signing: Signing) {
        self.script().signing = Some(signing);
    }

    pub fn fail(&self, leg: Leg, fault: Fault) {
        self.script().faults.insert(leg, fault);
    }

    pub fn heal(&self, leg: Leg) {
        self.script().faults.remove(&leg);
    }

    /// The only address that it sends people back to; without this, any.
    pub fn register(&self, redirect: &str) {
        *locked(&self.shared.registered) = Some(redirect.to_owned());
    }

    /// Signs with new keys from now on, and publishes no others.
    pub fn rotate(&self) -> Result<()> {
        let mut keys = locked(&self.shared.keys);
        *keys = Keys::generate(keys.generation + 1)?;
        Ok(())
    }

    /// How often something was asked for.
    pub fn hits(&self, leg: Leg) -> usize {
        locked(&self.shared.hits).get(&leg).copied().unwrap_or_default()
    }

    /// How many came where only a redirect leads.
    pub fn trapped(&self) -> usize {
        *locked(&self.shared.trapped)
    }

    fn script(&self) -> MutexGuard<'_, Script> {
        locked(&self.shared.script)
    }
}

impl Shared {
    /// Counts the request; answers in its stead where a fault is due.
    async fn fault(&self, leg: Leg) -> Option<Response> {
        *locked(&self.hits).entry(leg).or_default() += 1;
        let fault = locked(&self.script).faults.get(&leg).copied()?;
        let endless = || futures::stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from_static(&[b' '; 8192])));
        Some(match fault {
            Fault::Hang => std::future::pending::<Infallible>().await.into_response(),
            Fault::CutOff => {
                let broken = futures::stream::once(async { Err(std::io::Error::other("cut off")) });
                Body::from_stream(endless().take(1).chain(broken)).into_response()
            }
            Fault::Status(status) => {
                let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                (status, "<h1>Out of order</h1>").into_response()
            }
            Fault::Endless => {
                ([(header::CONTENT_TYPE, "application/json")], Body::from_stream(endless())).into_response()
            }
            Fault::Garbage => "<html>Welcome to the login page</html>".into_response(),
            Fault::Redirect => (StatusCode::FOUND, [(header::LOCATION, "/elsewhere")]).into_response(),
        })
    }

    fn changed<T>(&self, mut value: T, which: impl Fn(&Script) -> &Option<Change<T>>) -> T {
        let change = which(&locked(&self.script)).clone();
        if let Some(change) = change {
            change(&mut value);
        }
        value
    }
}

fn json_answer(status: StatusCode, value: &Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

fn pairs(text: &str) -> HashMap<String, String> {
    form_urlencoded::parse(text.as_bytes()).into_owned().collect()
}

async fn trap(State(shared): State<Arc<Shared>>) -> StatusCode {
    *locked(&shared.trapped) += 1;
    StatusCode::NOT_FOUND
}

async fn discovery(State(shared): State<Arc<Shared>>) -> Response {
    if let Some(answer) = shared.fault(Leg::Discovery).await {
        return answer;
    }
    let at = |path: &str| format!("{}{path}", shared.issuer);
    let document = json!({
        "issuer": shared.issuer,
        "authorization_endpoint": at("/authorize"),
        "token_endpoint": at("/token"),
        "userinfo_endpoint": at("/userinfo"),
        "jwks_uri": at("/keys"),
        "end_session_endpoint": at("/logout"),
        "response_types_supported": ["code"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["none", "HS256", "RS256", "ES256", "EdDSA"],
        "code_challenge_methods_supported": ["plain", "S256"],
        "scopes_supported": ["openid", "profile", "email"],
        "authorization_response_iss_parameter_supported": true,
    });
    json_answer(StatusCode::OK, &shared.changed(document, |script| &script.discovery))
}

async fn keys(State(shared): State<Arc<Shared>>) -> Response {
    if let Some(answer) = shared.fault(Leg::Keys).await {
        return answer;
    }
    let set = locked(&shared.keys).published();
    json_answer(StatusCode::OK, &shared.changed(set, |script| &script.keys))
}

/// Signs everybody in without a question.
async fn authorize(State(shared): State<Arc<Shared>>, RawQuery(query): RawQuery) -> Response {
    let asked = pairs(&query.unwrap_or_default());
    let get = |name: &str| asked.get(name).map(String::as_str);
    let registered = locked(&shared.registered).clone();
    let redirect = get("redirect_uri").filter(|to| registered.as_deref().is_none_or(|registered| registered == *to));
    let good = get("client_id") == Some(HostileProvider::CLIENT_ID)
        && get("response_type") == Some("code")
        && get("code_challenge_method") == Some("S256")
        && get("scope").is_some_and(|scope| scope.split(' ').any(|scope| scope == "openid"));
    let (Some(redirect), true) = (redirect, good) else {
        return (StatusCode::BAD_REQUEST, "this request is not for this client").into_response();
    };
    let code = random();
    let given = Given {
        nonce: get("nonce").map(str::to_owned),
        challenge: get("code_challenge").unwrap_or_default().to_owned(),
        redirect: redirect.to_owned(),
    };
    locked(&shared.codes).insert(code.clone(), given);
    let answer = [("code", code.as_str()), ("state", get("state").unwrap_or_default()), ("iss", &shared.issuer)];
    let answer = answer.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let answer = shared.changed(answer, |script| &script.callback);
    let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(answer).finish();
    (StatusCode::FOUND, [(header::LOCATION, format!("{redirect}?{query}"))]).into_response()
}

async fn token(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: String) -> Response {
    if let Some(answer) = shared.fault(Leg::Token).await {
        return answer;
    }
    let asked = pairs(&body);
    let refused = |status, error: &str| json_answer(status, &json!({ "error": error }));
    if !is_the_client(&headers, &asked) {
        return refused(StatusCode::UNAUTHORIZED, "invalid_client");
    }
    // A code is good once, whatever comes of it.
    let given = asked.get("code").and_then(|code| locked(&shared.codes).remove(code));
    let challenge =
        asked.get("code_verifier").map(|verifier| encode(digest::digest(&digest::SHA256, verifier.as_bytes())));
    let Some(given) = given.filter(|given| {
        asked.get("redirect_uri") == Some(&given.redirect) && challenge.as_ref() == Some(&given.challenge)
    }) else {
        return refused(StatusCode::BAD_REQUEST, "invalid_grant");
    };
    let access_token = random();
    let id_token = sign_in(&shared, given.nonce.as_deref(), &access_token);
    let id_token = match id_token {
        Ok(id_token) => shared.changed(id_token, |script| &script.id_token),
        Err(error) => return (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}")).into_response(),
    };
    let answer = json!({
        "access_token": access_token,
        "token_type": "Bearer",
        "expires_in": 300,
        "id_token": id_token,
    });
    json_answer(StatusCode::OK, &shared.changed(answer, |script| &script.token))
}

/// By `Authorization: Basic`, whose parts are form-encoded, or in the body.
fn is_the_client(headers: &HeaderMap, asked: &HashMap<String, String>) -> bool {
    let basic = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Basic "));
    let basic = basic.and_then(|value| String::from_utf8(BASE64_STANDARD.decode(value).ok()?).ok());
    let decoded = |text: &str| form_urlencoded::parse(text.as_bytes()).next().map(|(name, _)| name.into_owned());
    let (id, secret) = match basic.as_deref().and_then(|basic| basic.split_once(':')) {
        Some((id, secret)) => (decoded(id), decoded(secret)),
        None => (asked.get("client_id").cloned(), asked.get("client_secret").cloned()),
    };
    id.as_deref() == Some(HostileProvider::CLIENT_ID) && secret.as_deref() == Some(HostileProvider::CLIENT_SECRET)
}

fn sign_in(shared: &Shared, nonce: Option<&str>, access_token: &str) -> Result<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    let half = digest::digest(&digest::SHA256, access_token.as_bytes());
    let signing = locked(&shared.script).signing.unwrap_or(Signing::Rs256);
    let mut claims = json!({
        "iss": shared.issuer,
        "sub": HostileProvider::SUBJECT,
        "aud": HostileProvider::CLIENT_ID,
        "exp": now + 300,
        "iat": now,
        "nonce": nonce,
        "roles": ["operator"],
        "preferred_username": "ann",
        "email": "ann@example.com",
        "email_verified": true,
    });
    // Of these the hash is made with SHA-256.
    if matches!(signing, Signing::Rs256 | Signing::Ps256 | Signing::Es256) {
        claims["at_hash"] = encode(&half.as_ref()[..16]).into();
    }
    let claims = shared.changed(claims, |script| &script.claims);
    let keys = locked(&shared.keys);
    let (alg, key) = signing.names();
    let header = json!({ "alg": alg, "typ": "JWT", "kid": format!("{key}-{}", keys.generation) });
    let header = shared.changed(header, |script| &script.header);
    let input = format!("{}.{}", encode(header.to_string()), encode(claims.to_string()));
    let signature = keys.sign(signing, input.as_bytes())?;
    Ok(format!("{input}.{}", encode(signature)))
}

async fn userinfo(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    if let Some(answer) = shared.fault(Leg::Userinfo).await {
        return answer;
    }
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    if bearer.is_none() {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let claims = json!({ "sub": HostileProvider::SUBJECT });
    json_answer(StatusCode::OK, &shared.changed(claims, |script| &script.userinfo))
}

impl Signing {
    /// The algorithm's name in JOSE, and the beginning of the key's.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Rs256 => ("RS256", "rsa"),
            Self::Rs512 => ("RS512", "rsa"),
            Self::Ps256 => ("PS256", "rsa"),
            Self::Es256 => ("ES256", "p256"),
            Self::Es384 => ("ES384", "p384"),
            Self::EdDsa => ("EdDSA", "ed25519"),
            Self::None => ("none", "rsa"),
            Self::Hs256WithSecret | Self::Hs256WithPublicKey => ("HS256", "rsa"),
        }
    }
}

impl Keys {
    fn generate(generation: usize) -> Result<Self> {
        Ok(Self {
            generation,
            rsa: RsaKeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).context("an RSA key")?,
            p256: EcdsaKeyPair::generate(&signature::ECDSA_P256_SHA256_FIXED_SIGNING).context("a P-256 key")?,
            p384: EcdsaKeyPair::generate(&signature::ECDSA_P384_SHA384_FIXED_SIGNING).context("a P-384 key")?,
            ed25519: Ed25519KeyPair::generate().context("an Ed25519 key")?,
        })
    }

    fn sign(&self, signing: Signing, message: &[u8]) -> Result<Vec<u8>> {
        let random = SystemRandom::new();
        let rsa = |padding: &'static dyn RsaEncoding| {
            let mut signature = vec![0; self.rsa.public_modulus_len()];
            self.rsa.sign(padding, &random, message, &mut signature).context("signing with RSA")?;
            Ok(signature)
        };
        let mac = |secret: &[u8]| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message).as_ref().to_vec();
        match signing {
            Signing::Rs256 => rsa(&signature::RSA_PKCS1_SHA256),
            Signing::Rs512 => rsa(&signature::RSA_PKCS1_SHA512),
            Signing::Ps256 => rsa(&signature::RSA_PSS_SHA256),
            Signing::Es256 => Ok(self.p256.sign(&random, message).context("signing with P-256")?.as_ref().to_vec()),
            Signing::Es384 => Ok(self.p384.sign(&random, message).context("signing with P-384")?.as_ref().to_vec()),
            Signing::EdDsa => Ok(self.ed25519.sign(message).as_ref().to_vec()),
            Signing::None => Ok(vec![]),
            Signing::Hs256WithSecret => Ok(mac(HostileProvider::CLIENT_SECRET.as_bytes())),
            Signing::Hs256WithPublicKey => Ok(mac(self.rsa.public_key().as_ref())),
        }
    }

    /// As a key set.
    fn published(&self) -> Value {
        let key = |name: &str, members: Value| {
            let mut key = Map::from_iter([("kid".to_owned(), format!("{name}-{}", self.generation).into())]);
            key.insert("use".into(), "sig".into());
            key.extend(members.as_object().cloned().unwrap_or_default());
            Value::Object(key)
        };
        let curve = |name: &str, pair: &EcdsaKeyPair| {
            // Behind the mark of the uncompressed form.
            let (x, y) = pair.public_key().as_ref()[1..].split_at(pair.public_key().as_ref().len() / 2);
            json!({ "kty": "EC", "crv": name, "x": encode(x), "y": encode(y) })
        };
        let ed25519 = encode(self.ed25519.public_key().as_ref());
        json!({ "keys": [
            key("rsa", json!({ "kty": "RSA", "n": encode(modulus(&self.rsa)), "e": "AQAB" })),
            key("p256", curve("P-256", &self.p256)),
            key("p384", curve("P-384", &self.p384)),
            key("ed25519", json!({ "kty": "OKP", "crv": "Ed25519", "x": ed25519 })),
            // As real ones have it: a key that is not for signatures.
            key("rsa-encryption", json!({ "kty": "RSA", "use": "enc", "alg": "RSA-OAEP", "n": "AQAB", "e": "AQAB" })),
        ]})
    }
}

/// Out of the DER of a public key of 2048 bits: a sequence of modulus and exponent, each with its length before it.
fn modulus(key: &RsaKeyPair) -> Vec<u8> {
    const BEGIN: usize = 9;
    key.public_key().as_ref()[BEGIN..BEGIN + 256].to_vec()
}

fn encode(bytes: impl AsRef<[u8]>) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

fn random() -> String {
    encode(rand::random::<[u8; 32]>())
}

#[cfg(test)]
mod tests {
    use anyhow::ensure;

    use super::*;

    #[test]
    fn the_modulus_is_where_it_is_looked_for() -> Result<()> {
        let keys = Keys::generate(0)?;
        let der = keys.rsa.public_key();
        ensure!(der.as_ref()[..9] == [0x30, 0x82, 0x01, 0x0a, 0x02, 0x82, 0x01, 0x01, 0x00], "another form");
        ensure!(der.as_ref()[265..] == [0x02, 0x03, 0x01, 0x00, 0x01], "another exponent");
        Ok(())
    }
}
