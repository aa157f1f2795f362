//! Whether a message comes from whom the hook is for. Every comparison takes the same time wherever the two differ.

use chrono::{DateTime, TimeDelta, Utc};
use domain::hook::Source;
use eventlog::Secret;
use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderMap, header};
use sha2::Sha256;

use crate::auth;

/// How far the clock of a build may be off, and how long a message of it is good.
const TOLERANCE: TimeDelta = TimeDelta::minutes(5);
const LONGEST_KEY: usize = 255;

/// A message as it came.
pub(super) struct Message<'a> {
    pub(super) headers: &'a HeaderMap,
    pub(super) query: &'a str,
    pub(super) body: &'a [u8],
}

/// It comes from there.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Proven {
    /// What makes a repetition of it the same message.
    pub(super) once: Option<String>,
}

impl Message<'_> {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The secret itself, in `Authorization`.
    fn bears(&self, secret: &Secret) -> bool {
        let presented = self.header(header::AUTHORIZATION.as_str()).unwrap_or_default();
        let presented = presented.strip_prefix("Bearer ").unwrap_or(presented).trim();
        auth::same_secret(secret.expose(), presented.as_bytes())
    }

    /// A keyed hash of the body, in hexadecimal.
    fn signed(&self, secret: &Secret, signature: &str, before: &[&[u8]]) -> bool {
        let (Ok(mut mac), Ok(signature)) = (Hmac::<Sha256>::new_from_slice(secret.expose()), hex::decode(signature))
        else {
            return false;
        };
        before.iter().for_each(|part| mac.update(part));
        mac.update(self.body);
        mac.verify_slice(&signature).is_ok()
    }

    /// As GitHub signs, and Gitea beside its own way.
    fn signed_like_github(&self, secret: &Secret) -> bool {
        let signature = self.header("x-hub-signature-256").and_then(|signature| signature.strip_prefix("sha256="));
        signature.is_some_and(|signature| self.signed(secret, signature, &[]))
    }
}

/// None where it does not come from there, or cannot prove it.
pub(super) fn verify(source: Source, secret: &Secret, message: &Message<'_>, now: DateTime<Utc>) -> Option<Proven> {
    let good = match source {
        Source::Distribution | Source::Harbor => message.bears(secret),
        Source::Github => message.signed_like_github(secret),
        Source::Gitea => {
            let own = message.header("x-gitea-signature").or(message.header("x-forgejo-signature"));
            own.is_some_and(|signature| message.signed(secret, signature, &[])) || message.signed_like_github(secret)
        }
        // It can send nothing but an address.
        Source::Dockerhub => form_urlencoded::parse(message.query.as_bytes())
            .any(|(name, value)| name == "secret" && auth::same_secret(secret.expose(), value.as_bytes())),
        Source::Plain => return plain(secret, message, now),
    };
    good.then_some(Proven { once: None })
}

/// `Sluice-Signature: t=<seconds since 1970>,v1=<hex>` over `<t>.<body>`, or the secret itself.
fn plain(secret: &Secret, message: &Message<'_>, now: DateTime<Utc>) -> Option<Proven> {
    let key = message.header("idempotency-key").filter(|key| (1..=LONGEST_KEY).contains(&key.len()));
    if let Some(signature) = message.header("sluice-signature") {
        let part = |name: &str| signature.split(',').find_map(|part| part.trim().strip_prefix(name)?.strip_prefix('='));
        let (at, signature) = (part("t")?, part("v1")?);
        let sent = DateTime::from_timestamp(at.parse().ok()?, 0)?;
        let fresh = (now - sent).abs() <= TOLERANCE;
        let good = message.signed(secret, signature, &[at.as_bytes(), b"."]);
        return (good && fresh).then(|| Proven { once: Some(format!("signed {}", signature.to_ascii_lowercase())) });
    }
    message.bears(secret).then(|| Proven { once: key.map(|key| format!("key {key}")) })
}

#[cfg(test)]
mod tests {
    use http::HeaderName;

    use super::*;

    const BODY: &[u8] = b"Hello, World!";

    fn secret() -> Secret {
        Secret::new("It's a Secret to Everybody")
    }

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000, 0).expect("in range")
    }

    fn ask(source: Source, headers: &[(&'static str, &str)], query: &str, body: &[u8]) -> Option<Proven> {
        let headers = headers.iter().map(|(n, v)| (HeaderName::from_static(n), v.parse().expect("a header"))).collect();
        verify(source, &secret(), &Message { headers: &headers, query, body }, now())
    }

    fn sign(before: &[u8]) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(secret().expose()).expect("any length");
        mac.update(before);
        mac.update(BODY);
        hex::encode(mac.finalize().into_bytes())
    }

    /// The example of GitHub's manual.
    const SIGNATURE: &str = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";

    #[test]
    fn a_body_must_be_signed_with_the_secret() {
        let github = format!("sha256={SIGNATURE}");
        assert_eq!(sign(b""), SIGNATURE);
        for (source, name, value, good) in [
            (Source::Github, "x-hub-signature-256", github.as_str(), true),
            (Source::Github, "x-hub-signature-256", SIGNATURE, false),
            (Source::Github, "x-hub-signature-256", "sha256=", false),
            (Source::Github, "x-hub-signature-256", "sha256=zz", false),
            (Source::Github, "x-hub-signature-256", &github[..50], false),
            (Source::Github, "x-hub-signature", github.as_str(), false),
            (Source::Github, "authorization", "Bearer It's a Secret to Everybody", false),
            (Source::Gitea, "x-gitea-signature", SIGNATURE, true),
            (Source::Gitea, "x-forgejo-signature", SIGNATURE, true),
            (Source::Gitea, "x-hub-signature-256", github.as_str(), true),
            (Source::Gitea, "x-gitea-signature", "", false),
        ] {
            assert_eq!(ask(source, &[(name, value)], "", BODY).is_some(), good, "{source:?} {name} {value}");
            assert_eq!(ask(source, &[(name, value)], "", b"another body"), None);
        }
        assert_eq!(ask(Source::Github, &[], "", BODY), None);
    }

    #[test]
    fn a_secret_must_be_the_whole_secret() {
        for source in [Source::Distribution, Source::Harbor, Source::Plain] {
            for (value, good) in [
                ("Bearer It's a Secret to Everybody", true),
                ("It's a Secret to Everybody", true),
                ("Bearer It's a Secret to Everybod", false),
                ("Bearer It's a Secret to Everybody!", false),
                ("Bearer ", false),
                ("Basic SXQncw==", false),
            ] {
                assert_eq!(ask(source, &[("authorization", value)], "", BODY).is_some(), good, "{source:?} {value}");
            }
        }
        let query = "x=1&secret=It%27s+a+Secret+to+Everybody";
        assert!(ask(Source::Dockerhub, &[], query, BODY).is_some());
        for bad in ["", "secret=", "secret=It", "token=It%27s+a+Secret+to+Everybody"] {
            assert_eq!(ask(Source::Dockerhub, &[], bad, BODY), None, "{bad}");
        }
        assert_eq!(ask(Source::Dockerhub, &[("authorization", "It's a Secret to Everybody")], "", BODY), None);
    }

    #[test]
    fn a_builds_signature_is_good_for_five_minutes_and_names_one_message() {
        let at = |seconds: i64| {
            let t = (now().timestamp() + seconds).to_string();
            let signature = sign(format!("{t}.").as_bytes());
            let header = format!("t={t},v1={signature}");
            (ask(Source::Plain, &[("sluice-signature", &header)], "", BODY), signature)
        };
        for (seconds, good) in [(0, true), (-300, true), (300, true), (-301, false), (301, false)] {
            let (proven, signature) = at(seconds);
            assert_eq!(proven, good.then(|| Proven { once: Some(format!("signed {signature}")) }), "{seconds}");
        }
        let upper = format!("t={},v1={}", now().timestamp(), at(0).1.to_ascii_uppercase());
        assert_eq!(ask(Source::Plain, &[("sluice-signature", &upper)], "", BODY), at(0).0, "the same message");
        // The time is part of what is signed.
        let moved = format!("t={},v1={}", now().timestamp() + 1, at(0).1);
        assert_eq!(ask(Source::Plain, &[("sluice-signature", &moved)], "", BODY), None);
        // A bad signature is not made good by the secret beside it.
        let both = [("sluice-signature", "t=1,v1=00"), ("authorization", "It's a Secret to Everybody")];
        assert_eq!(ask(Source::Plain, &both, "", BODY), None);
        let keyed = [("idempotency-key", "run-7"), ("authorization", "It's a Secret to Everybody")];
        assert_eq!(ask(Source::Plain, &keyed, "", BODY), Some(Proven { once: Some("key run-7".into()) }));
    }
}
