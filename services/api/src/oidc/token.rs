//! The code for the tokens, and what they say. `openidconnect` checks signature, issuer, audience, expiry and nonce; what
//! the contract asks for beyond that is checked here, beside it: presence of each claim by name, the authorized party, the
//! time of issue, the access token's hash, the strength of keys.

use std::sync::Arc;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use chrono::{DateTime, TimeDelta, Utc};
use domain::sso::{Algorithm, Settings};
use futures::FutureExt;
use openidconnect::{
    AccessToken, AccessTokenHash, AuthType, AuthorizationCode, ClaimsVerificationError, ClientId, ClientSecret,
    EndpointNotSet, EndpointSet, HttpRequest, HttpResponse, IssuerUrl, Nonce, OAuth2TokenResponse, PkceCodeVerifier,
    RedirectUrl, RequestTokenError, SignatureVerificationError, TokenResponse, TokenUrl,
    core::{
        CoreClient, CoreErrorResponseType, CoreIdToken, CoreIdTokenVerifier, CoreJsonWebKeySet,
        CoreJwsSigningAlgorithm, CoreTokenType,
    },
};
use reqwest::Url;
use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Map, Value};

use super::{Leg, Limits, Provider, Refusal, Trouble, http::Http, pending::Pending, provider::Discovered};

/// In bytes.
const LONGEST_TOKEN: usize = 64 << 10;
/// In characters, as the specification has it.
const LONGEST_SUBJECT: usize = 255;

pub(super) type Claims = Map<String, Value>;

type ReadyClient = CoreClient<EndpointSet, EndpointNotSet, EndpointNotSet, EndpointNotSet, EndpointSet, EndpointNotSet>;

pub(super) fn client(provider: &Provider, discovered: &Discovered) -> Result<ReadyClient, Refusal> {
    let settings = &provider.settings;
    let issuer = IssuerUrl::new(settings.issuer.clone()).map_err(|_| Refusal::DiscoveryIssuer)?;
    let redirect = RedirectUrl::new(provider.callback()).map_err(|_| Refusal::EndpointInsecure)?;
    let client = CoreClient::new(ClientId::new(settings.client_id.clone()), issuer, CoreJsonWebKeySet::default())
        .set_redirect_uri(redirect)
        .set_auth_uri(openidconnect::AuthUrl::from_url(discovered.authorization.clone()))
        .set_token_uri(TokenUrl::from_url(discovered.token.clone()))
        .set_auth_type(if discovered.secret_in_body { AuthType::RequestBody } else { AuthType::BasicAuth });
    Ok(match &provider.secret {
        Some(secret) => client.set_client_secret(ClientSecret::new(String::from_utf8_lossy(secret.expose()).into())),
        None => client,
    })
}

pub(super) struct Tokens {
    /// As it came.
    pub(super) id_token: String,
    access_token: AccessToken,
}

pub(super) async fn exchange(
    http: &Http,
    provider: &Provider,
    discovered: &Discovered,
    code: String,
    pending: &Pending,
) -> Result<Tokens, Refusal> {
    // Owned here and boxed below: of a future that borrows, nobody above could show that it moves between threads.
    let http = http.clone();
    let send = move |request| Box::pin(ask(http.clone(), request));
    let client = client(provider, discovered)?;
    let request = client
        .exchange_code(AuthorizationCode::new(code))
        .set_pkce_verifier(PkceCodeVerifier::new(pending.verifier.clone()));
    let answer = match request.request_async(&send).boxed().await {
        Ok(answer) => answer,
        Err(RequestTokenError::Request(trouble)) => return Err(Leg::Token.failed(trouble)),
        Err(RequestTokenError::ServerResponse(error)) => {
            return Err(match error.error() {
                CoreErrorResponseType::InvalidGrant => Refusal::CodeRefused,
                CoreErrorResponseType::InvalidClient | CoreErrorResponseType::UnauthorizedClient => {
                    Refusal::ClientRefused
                }
                _ => Refusal::TokenRefused,
            });
        }
        // The crate reads the ID token with the rest of the answer: which of the two was wrong?
        Err(RequestTokenError::Parse(_, body)) => {
            let id_token = serde_json::from_slice::<WithIdToken>(&body).ok().and_then(|body| body.id_token);
            let id_token = id_token.ok_or(Leg::Token.failed(Trouble::Garbage))?;
            read(&id_token, &provider.settings)?;
            return Err(Refusal::Malformed);
        }
        Err(RequestTokenError::Other(_)) => return Err(Leg::Token.failed(Trouble::Garbage)),
    };
    if *answer.token_type() != CoreTokenType::Bearer {
        return Err(Refusal::TokenType);
    }
    let id_token = answer.id_token().ok_or(Refusal::IdTokenMissing)?.to_string();
    Ok(Tokens { id_token, access_token: answer.access_token().clone() })
}

/// Its errors are JSON, too; anything else comes from something that is out of order.
async fn ask(http: Http, request: HttpRequest) -> Result<HttpResponse, Trouble> {
    let answer = http.send(request).await?;
    let status = answer.status();
    let readable = status.is_success() || serde_json::from_slice::<IgnoredAny>(answer.body()).is_ok();
    if readable { Ok(answer) } else { Err(Trouble::Status(status.as_u16())) }
}

#[derive(Deserialize)]
struct WithIdToken {
    id_token: Option<String>,
}

/// The claims of an ID token whose form is good. Nothing of them is proven yet: this only names the cause where one of
/// them is missing or wrong, which the crate would call garbage.
fn read(id_token: &str, settings: &Settings) -> Result<Claims, Refusal> {
    if id_token.len() > LONGEST_TOKEN {
        return Err(Refusal::Malformed);
    }
    let parts: Vec<&str> = id_token.split('.').collect();
    let [header, payload, _signature] = parts[..] else {
        return Err(if parts.len() == 5 { Refusal::Encrypted } else { Refusal::Malformed });
    };
    let header = object(header).ok_or(Refusal::Malformed)?;
    let claims = object(payload).ok_or(Refusal::Malformed)?;

    let algorithm = header.get("alg").and_then(Value::as_str).ok_or(Refusal::Malformed)?;
    if algorithm.eq_ignore_ascii_case("none") {
        return Err(Refusal::Unsigned);
    }
    Algorithm::named(algorithm).filter(|known| settings.algorithms.contains(known)).ok_or(Refusal::AlgorithmRefused)?;

    if text(&claims, "iss") != Some(&settings.issuer) {
        return Err(Refusal::Issuer);
    }
    check_audience(&claims, &settings.client_id)?;
    match text(&claims, "sub") {
        None | Some("") => return Err(Refusal::SubjectMissing),
        Some(subject) if subject.chars().count() > LONGEST_SUBJECT => return Err(Refusal::SubjectTooLong),
        Some(_) => {}
    }
    for (name, missing) in [("exp", Refusal::ExpiryMissing), ("iat", Refusal::IssuedAtMissing)] {
        claims.get(name).and_then(Value::as_f64).ok_or(missing)?;
    }
    text(&claims, "nonce").ok_or(Refusal::NonceMissing)?;
    Ok(claims)
}

/// A part of a token.
fn object(part: &str) -> Option<Claims> {
    serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(part).ok()?).ok()
}

/// Whose an ID token says that it is.
pub(super) fn issuer(id_token: &str) -> Option<String> {
    text(&object(id_token.split('.').nth(1)?)?, "iss").map(str::to_owned)
}

fn text<'a>(claims: &'a Claims, name: &str) -> Option<&'a str> {
    claims.get(name)?.as_str()
}

/// For us; and where it is for others, too, asked for by us.
fn check_audience(claims: &Claims, client_id: &str) -> Result<(), Refusal> {
    let audience: Vec<&str> = match claims.get("aud") {
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(all)) => all.iter().filter_map(Value::as_str).collect(),
        Some(_) | None => vec![],
    };
    if audience.is_empty() {
        return Err(Refusal::AudienceMissing);
    }
    if !audience.contains(&client_id) {
        return Err(Refusal::Audience);
    }
    let others = audience.iter().any(|one| *one != client_id);
    match claims.get("azp") {
        None | Some(Value::Null) if others => Err(Refusal::PartyMissing),
        None | Some(Value::Null) => Ok(()),
        Some(party) if party.as_str() == Some(client_id) => Ok(()),
        Some(_) => Err(Refusal::Party),
    }
}

/// What the ID token says, once all of it is proven.
pub(super) fn verify(
    tokens: &Tokens,
    settings: &Settings,
    keys: &Arc<CoreJsonWebKeySet>,
    pending: &Pending,
    limits: &Limits,
) -> Result<Claims, Refusal> {
    let claims = read(&tokens.id_token, settings)?;
    let token: CoreIdToken = tokens.id_token.parse().map_err(|_| Refusal::Malformed)?;
    let issuer = IssuerUrl::new(settings.issuer.clone()).map_err(|_| Refusal::DiscoveryIssuer)?;
    let now = runtime::clock::now();
    let leeway = TimeDelta::from_std(limits.leeway).unwrap_or_default();
    // As for a public client: with the client secret at hand the crate would take it for a key.
    let verifier =
        CoreIdTokenVerifier::new_public_client(ClientId::new(settings.client_id.clone()), issuer, (**keys).clone())
            .set_allowed_algs(settings.algorithms.iter().map(|algorithm| in_jose(*algorithm)).collect::<Vec<_>>())
            // Others in the audience are judged by the authorized party, above.
            .set_other_audience_verifier_fn(|_| true)
            .set_time_fn(move || now - leeway);
    let proven = token.claims(&verifier, &Nonce::new(pending.nonce.clone())).map_err(refusal)?;
    check_issue_time(proven.issue_time(), now, pending.begun, leeway)?;
    // The crate does not know it. As a number like the other times, which it has read by now.
    if let Some(good_from) = claims.get("nbf").filter(|claim| !claim.is_null()) {
        let good_from = good_from.as_f64().ok_or(Refusal::Malformed)?;
        #[expect(clippy::cast_precision_loss, reason = "seconds since 1970 are far below 2^53")]
        let latest = (now + leeway).timestamp() as f64;
        if good_from > latest {
            return Err(Refusal::NotYet);
        }
    }
    if let Some(wanted) = proven.access_token_hash() {
        let key = token.signing_key(&verifier).map_err(|_| Refusal::KeyUnusable)?;
        let algorithm = token.signing_alg().map_err(|_| Refusal::AlgorithmRefused)?;
        let actual = AccessTokenHash::from_token(&tokens.access_token, algorithm, key);
        if actual.map_err(|_| Refusal::AccessTokenHash)? != *wanted {
            return Err(Refusal::AccessTokenHash);
        }
    }
    Ok(claims)
}

/// Not from the future, and not from before it was asked for.
fn check_issue_time(
    issued: DateTime<Utc>,
    now: DateTime<Utc>,
    begun: DateTime<Utc>,
    leeway: TimeDelta,
) -> Result<(), Refusal> {
    if issued > now + leeway {
        return Err(Refusal::IssuedInFuture);
    }
    if issued < begun - leeway {
        return Err(Refusal::Stale);
    }
    Ok(())
}

fn in_jose(algorithm: Algorithm) -> CoreJwsSigningAlgorithm {
    use CoreJwsSigningAlgorithm as Jose;
    match algorithm {
        Algorithm::Rs256 => Jose::RsaSsaPkcs1V15Sha256,
        Algorithm::Rs384 => Jose::RsaSsaPkcs1V15Sha384,
        Algorithm::Rs512 => Jose::RsaSsaPkcs1V15Sha512,
        Algorithm::Ps256 => Jose::RsaSsaPssSha256,
        Algorithm::Ps384 => Jose::RsaSsaPssSha384,
        Algorithm::Ps512 => Jose::RsaSsaPssSha512,
        Algorithm::Es256 => Jose::EcdsaP256Sha256,
        Algorithm::Es384 => Jose::EcdsaP384Sha384,
        Algorithm::EdDsa => Jose::EdDsa,
    }
}

fn refusal(error: ClaimsVerificationError) -> Refusal {
    use ClaimsVerificationError as Claim;
    use SignatureVerificationError as Signed;
    match error {
        Claim::Expired(_) => Refusal::Expired,
        Claim::InvalidAudience(_) => Refusal::Audience,
        Claim::InvalidIssuer(_) => Refusal::Issuer,
        Claim::InvalidNonce(_) => Refusal::Nonce,
        Claim::SignatureVerification(error) => match error {
            Signed::AmbiguousKeyId(_) => Refusal::KeyAmbiguous,
            Signed::CryptoError(_) => Refusal::Signature,
            Signed::DisallowedAlg(_) | Signed::UnsupportedAlg(_) => Refusal::AlgorithmRefused,
            Signed::InvalidKey(_) => Refusal::KeyUnusable,
            Signed::NoMatchingKey => Refusal::KeyUnknown,
            Signed::NoSignature => Refusal::Unsigned,
            _ => Refusal::Signature,
        },
        Claim::Unsupported(_) => Refusal::Unsupported,
        _ => Refusal::Malformed,
    }
}

/// What the provider says about the person beside the ID token, where it says anything there.
pub(super) async fn userinfo(
    http: &Http,
    url: Option<&Url>,
    tokens: &Tokens,
    subject: &str,
) -> Result<Claims, Refusal> {
    let Some(url) = url else { return Ok(Claims::new()) };
    let token = tokens.access_token.secret();
    let sendable = (1..=LONGEST_TOKEN).contains(&token.len()) && token.bytes().all(|b| (0x21..0x7f).contains(&b));
    if !sendable {
        return Err(Refusal::AccessTokenUnusable);
    }
    let failed = |trouble| Leg::Userinfo.failed(trouble);
    let request = http::Request::get(url.as_str())
        .header(http::header::ACCEPT, "application/json")
        .header(http::header::AUTHORIZATION, format!("Bearer {token}"))
        .body(Vec::new());
    let answer = http.send(request.map_err(|_| failed(Trouble::Garbage))?).await.map_err(failed)?;
    if answer.status() != http::StatusCode::OK {
        return Err(failed(Trouble::Status(answer.status().as_u16())));
    }
    let kind = answer.headers().get(http::header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    if kind.is_some_and(|kind| kind.to_ascii_lowercase().starts_with("application/jwt")) {
        return Err(Refusal::UserinfoSigned);
    }
    let claims: Claims = serde_json::from_slice(answer.body()).map_err(|_| failed(Trouble::Garbage))?;
    match text(&claims, "sub") {
        None => Err(Refusal::UserinfoSubjectMissing),
        Some(named) if named != subject => Err(Refusal::UserinfoSubject),
        Some(_) => Ok(claims),
    }
}

/// What is known of a person: the ID token, which is signed, before the rest.
pub(super) struct Person {
    pub(super) name: String,
    /// Only where the provider has verified it.
    pub(super) email: Option<String>,
    /// The claims that hold the roles.
    pub(super) roles: Claims,
}

pub(super) fn person(settings: &Settings, signed: Claims, rest: Claims) -> Person {
    let email = [&signed, &rest].into_iter().find(|claims| claims.contains_key("email")).and_then(|claims| {
        // Both from one hand, and no text that only looks true.
        let verified = claims.get("email_verified") == Some(&Value::Bool(true));
        // An address with something cut away is another's.
        text(claims, "email").filter(|email| verified && readable(email).as_deref() == Some(email)).map(str::to_owned)
    });
    let username =
        [&signed, &rest].into_iter().find_map(|claims| text(claims, "preferred_username")).and_then(readable);
    let subject = text(&signed, "sub").and_then(readable);
    let name = username.or_else(|| email.clone()).or(subject).unwrap_or_default();
    let roles = if settings.find_roles(&signed).is_some() { signed } else { rest };
    Person { name, email, roles }
}

/// In characters.
const LONGEST_NAME: usize = 128;

/// `text` as it can be shown beside other text, without what would reorder or hide that.
fn readable(text: &str) -> Option<String> {
    let hidden = |c: char| matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    let shown: String = text.chars().filter(|c| !c.is_control() && !hidden(*c)).collect();
    let shown: String = shown.trim().chars().take(LONGEST_NAME).collect();
    (!shown.is_empty()).then_some(shown)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(signed: Value, rest: Value) -> Person {
        let claims = |value: Value| value.as_object().cloned().expect("an object");
        person(&Settings::new("https://id.example.com", "sluice"), claims(signed), claims(rest))
    }

    #[test]
    fn a_name_is_the_user_name_else_a_verified_address_else_the_subject() {
        for (signed, rest, name, email) in [
            (json!({"sub": "1", "preferred_username": "ann"}), json!({"preferred_username": "eve"}), "ann", None),
            (json!({"sub": "1"}), json!({"preferred_username": "ann"}), "ann", None),
            (json!({"sub": "1", "email": "a@x", "email_verified": true}), json!({}), "a@x", Some("a@x")),
            (json!({"sub": "1", "email": "a@x", "email_verified": false}), json!({}), "1", None),
            (json!({"sub": "1", "email": "a@x", "email_verified": "true"}), json!({}), "1", None),
            (json!({"sub": "1", "email": "a@x"}), json!({"email_verified": true}), "1", None),
            (json!({"sub": "1", "email": "a@x"}), json!({"email": "b@x", "email_verified": true}), "1", None),
            (json!({"sub": "1"}), json!({"email": "b@x", "email_verified": true}), "b@x", Some("b@x")),
            (json!({"sub": "1", "preferred_username": "\u{202e} \n"}), json!({}), "1", None),
            (json!({"sub": "1", "preferred_username": "a\u{202e}n\u{200b}n\r\n"}), json!({}), "ann", None),
            (json!({"sub": "1", "preferred_username": 7}), json!({}), "1", None),
            (json!({"sub": "1", "email": "a@x\u{202e}", "email_verified": true}), json!({}), "1", None),
            (
                json!({"sub": "1", "email": format!("{}@x", "a".repeat(200)), "email_verified": true}),
                json!({}),
                "1",
                None,
            ),
        ] {
            let person = of(signed.clone(), rest.clone());
            assert_eq!((person.name.as_str(), person.email.as_deref()), (name, email), "{signed} {rest}");
        }
        assert_eq!(
            of(json!({"sub": "1", "preferred_username": "a".repeat(9_000)}), json!({})).name.len(),
            LONGEST_NAME
        );
    }

    #[test]
    fn roles_of_the_id_token_go_before_those_of_userinfo_even_where_they_are_none() {
        let roles = |signed, rest| of(signed, rest).roles.get("roles").cloned();
        assert_eq!(roles(json!({"roles": []}), json!({"roles": ["admin"]})), Some(json!([])));
        assert_eq!(roles(json!({}), json!({"roles": ["viewer"]})), Some(json!(["viewer"])));
    }
}
