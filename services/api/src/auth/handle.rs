//! The signed handle to a session: a JWT that says which session, and nothing that the log would not be asked about.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use domain::{SessionId, UserId};
use eventlog::{EventLog, Secret, Vault};
use hmac::{Hmac, KeyInit, Mac};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::{sync::Mutex, time::Instant};

use super::settings::Identity;
use crate::problem::Error;

const PLACE: &str = "auth/sessions";
/// How old a key gets before another takes over. The one before it is kept: no handle lasts as long.
const ROTATION: TimeDelta = TimeDelta::days(30);
const LOOK: Duration = Duration::from_secs(3600);
/// Between two looks for a key that is not known: anybody can name one.
const PAUSE: Duration = Duration::from_secs(5);
const PURPOSE: &str = "session";
/// A handle that is older than this part of its life is written anew.
const RENEWAL: i32 = 20;

/// Where keys are, and those that there are.
pub(crate) struct Handles {
    vault: Vault,
    /// `JWT_SECRET_KEY`: without it, what is in the vault signs nothing.
    secret: Secret,
    audience: String,
    idle: TimeDelta,
    keys: RwLock<Arc<Keys>>,
    looked: Mutex<Instant>,
}

struct Keys {
    current: String,
    all: BTreeMap<String, (EncodingKey, DecodingKey)>,
}

/// As it lies in the vault, the newest first.
#[derive(Serialize, Deserialize)]
struct Ring(Vec<Stored>);

#[derive(Clone, Serialize, Deserialize)]
struct Stored {
    made: DateTime<Utc>,
    /// 256 random bits, in hexadecimal.
    key: String,
}

#[derive(Serialize, Deserialize)]
struct Claims {
    sid: SessionId,
    sub: UserId,
    iat: i64,
    exp: i64,
    aud: String,
    purpose: String,
}

/// What a handle says.
pub(crate) struct Held {
    pub(crate) session: SessionId,
    pub(crate) user: UserId,
    pub(crate) issued_at: DateTime<Utc>,
    pub(crate) expires_at: DateTime<Utc>,
}

impl Handles {
    pub(super) async fn open(log: &EventLog, settings: &Identity) -> Result<Self, Error> {
        let (vault, secret) = (log.vault(), Secret::new(settings.jwt_secret.as_bytes()));
        let ring = turn(&vault, runtime::clock::now()).await?;
        Ok(Self {
            vault,
            keys: RwLock::new(Arc::new(Keys::new(&ring, &secret))),
            secret,
            audience: format!("sluice/{}", log.installation()),
            idle: settings.session_idle(),
            looked: Mutex::new(Instant::now()),
        })
    }

    /// Looks for a newer key, and makes one when it is time.
    pub(super) async fn keep(&self) {
        loop {
            tokio::time::sleep(LOOK).await;
            if let Err(error) = self.look(runtime::clock::now()).await {
                tracing::warn!(error = &error as &dyn std::error::Error, "the keys of sessions could not be read");
            }
        }
    }

    async fn look(&self, now: DateTime<Utc>) -> Result<(), Error> {
        let ring = turn(&self.vault, now).await?;
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(Keys::new(&ring, &self.secret));
        Ok(())
    }

    /// A handle to the session that is good until it is not used for a while, and never beyond `end`.
    pub(super) fn write(
        &self,
        session: SessionId,
        user: UserId,
        now: DateTime<Utc>,
        end: DateTime<Utc>,
    ) -> Result<String, Error> {
        let keys = self.keys();
        let (key, _) = keys.all.get(&keys.current).ok_or(Error::Panicked)?;
        let header = Header { kid: Some(keys.current.clone()), ..Header::new(Algorithm::HS256) };
        let claims = Claims {
            sid: session,
            sub: user,
            iat: now.timestamp(),
            exp: end.min(now + self.idle).timestamp(),
            aud: self.audience.clone(),
            purpose: PURPOSE.into(),
        };
        jsonwebtoken::encode(&header, &claims, key).map_err(|_| Error::Panicked)
    }

    /// What the handle says, where it is ours and not yet over.
    pub(super) async fn read(&self, handle: &str, now: DateTime<Utc>) -> Option<Held> {
        let header = jsonwebtoken::decode_header(handle).ok()?;
        let kid = header.kid.filter(|_| header.alg == Algorithm::HS256)?;
        if !self.keys().all.contains_key(&kid) {
            self.look_again().await;
        }
        let keys = self.keys();
        let (_, key) = keys.all.get(&kid)?;
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_audience(&[&self.audience]);
        validation.set_required_spec_claims(&["exp", "aud", "sub"]);
        // Time comes from one clock only.
        validation.validate_exp = false;
        let claims = jsonwebtoken::decode::<Claims>(handle, key, &validation).ok()?.claims;
        let held = Held {
            session: claims.sid,
            user: claims.sub,
            issued_at: DateTime::from_timestamp(claims.iat, 0)?,
            expires_at: DateTime::from_timestamp(claims.exp, 0)?,
        };
        (claims.purpose == PURPOSE && now < held.expires_at).then_some(held)
    }

    /// Whether it is time to write the handle anew.
    pub(super) fn due(&self, held: &Held, now: DateTime<Utc>) -> bool {
        now - held.issued_at > self.idle / RENEWAL
    }

    /// Another process may have made a key since.
    async fn look_again(&self) {
        let mut looked = self.looked.lock().await;
        if looked.elapsed() >= PAUSE {
            *looked = Instant::now();
            if let Err(error) = self.look(runtime::clock::now()).await {
                tracing::warn!(error = &error as &dyn std::error::Error, "the keys of sessions could not be read");
            }
        }
    }

    fn keys(&self) -> Arc<Keys> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Keys {
    fn new(ring: &Ring, secret: &Secret) -> Self {
        let mut current = String::new();
        let mut all = BTreeMap::new();
        for stored in ring.0.iter().rev() {
            // A key of any length is taken.
            let Ok(mac) = Hmac::<Sha256>::new_from_slice(secret.expose()) else { continue };
            let key = mac.chain_update(stored.key.as_bytes()).finalize().into_bytes();
            current = hex::encode(&Sha256::digest(key)[..8]);
            all.insert(current.clone(), (EncodingKey::from_secret(&key), DecodingKey::from_secret(&key)));
        }
        Self { current, all }
    }
}

/// The keys as they are in the vault, after the newest was replaced if that was due.
async fn turn(vault: &Vault, now: DateTime<Utc>) -> Result<Ring, Error> {
    loop {
        let found = vault.entry(PLACE).await?;
        // What cannot be read is of no use: whoever is signed in signs in again.
        let read = |secret: &Secret| serde_json::from_slice::<Ring>(secret.expose()).ok();
        let ring = found.as_ref().and_then(|(secret, _)| read(secret)).unwrap_or(Ring(vec![]));
        if ring.0.first().is_some_and(|newest| now < newest.made + ROTATION) {
            return Ok(ring);
        }
        let fresh = Stored { made: now, key: super::random_secret() };
        let next = Ring([fresh].into_iter().chain(ring.0.into_iter().take(1)).collect());
        let sealed = Secret::new(serde_json::to_vec(&next).map_err(Error::Encode)?);
        let written = match found {
            Some((_, revision)) => vault.replace(PLACE, &sealed, revision).await,
            None => vault.create(PLACE, &sealed).await,
        };
        match written {
            Ok(_) => return Ok(next),
            // Another process was faster.
            Err(eventlog::Error::WrongRevision { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use eventlog::Config;
    use testkit::Nats;

    use super::*;

    const SECRET: &str = "a key of at least 32 characters, 0123456789";

    async fn log() -> (Nats, tempfile::TempDir, EventLog) {
        let nats = Nats::start().await.expect("NATS starts");
        let directory = tempfile::tempdir().expect("a directory");
        let master_key = directory.path().join("key");
        eventlog::vault::create_key(&master_key).expect("a key");
        let config = Config { url: nats.url().into(), name: "test".into(), master_key: Some(master_key) };
        let log = EventLog::connect(&config).await.expect("the log opens");
        (nats, directory, log)
    }

    #[tokio::test]
    async fn a_handle_of_another_purpose_or_installation_is_none() {
        let (_nats, _directory, log) = log().await;
        let handles = Handles::open(&log, &Identity::new(SECRET)).await.expect("opens");
        let now = runtime::clock::now();
        let keys = handles.keys();
        let (key, _) = &keys.all[&keys.current];
        let sign = |purpose: &str, aud: &str, algorithm: Algorithm| {
            let header = Header { kid: Some(keys.current.clone()), ..Header::new(algorithm) };
            let (sid, sub) = (SessionId(uuid::Uuid::from_u128(1)), UserId(uuid::Uuid::from_u128(2)));
            let (iat, exp) = (now.timestamp(), now.timestamp() + 60);
            let claims = Claims { sid, sub, iat, exp, aud: aud.into(), purpose: purpose.into() };
            jsonwebtoken::encode(&header, &claims, key).expect("signed")
        };
        let own = handles.audience.clone();
        assert!(handles.read(&sign(PURPOSE, &own, Algorithm::HS256), now).await.is_some());
        let elsewhere = format!("sluice/{}", uuid::Uuid::from_u128(9));
        for (purpose, aud, algorithm) in [
            ("setup", own.as_str(), Algorithm::HS256),
            ("", &own, Algorithm::HS256),
            (PURPOSE, &elsewhere, Algorithm::HS256),
            (PURPOSE, "", Algorithm::HS256),
            (PURPOSE, &own, Algorithm::HS512),
        ] {
            let handle = sign(purpose, aud, algorithm);
            assert!(handles.read(&handle, now).await.is_none(), "{purpose} {aud} {algorithm:?}");
        }
        log.close().await;
    }

    #[tokio::test]
    async fn processes_share_their_keys_and_a_new_one_takes_over_without_ending_a_session() {
        let (_nats, _directory, log) = log().await;
        let open = async |secret: &str| Handles::open(&log, &Identity::new(secret)).await.expect("opens");
        let (one, other) = (open(SECRET).await, open(SECRET).await);
        let (session, user) = (SessionId(uuid::Uuid::from_u128(1)), UserId(uuid::Uuid::from_u128(2)));
        let begun = runtime::clock::now();
        let write = |by: &Handles, now: DateTime<Utc>| by.write(session, user, now, now + TimeDelta::hours(12));
        let knows = async |by: &Handles, handle: &str, now: DateTime<Utc>| {
            by.read(handle, now).await.is_some_and(|held| (held.session, held.user) == (session, user))
        };

        let old = write(&one, begun).expect("written");
        assert!(knows(&one, &old, begun).await && knows(&other, &old, begun).await, "one key for both");
        let stranger = open("another key of at least 32 characters").await;
        assert!(!knows(&stranger, &old, begun).await, "who knows the vault alone knows nothing");

        // One of them finds that it is time for a new key; the other hears of it by the first handle.
        let before = begun + ROTATION - TimeDelta::seconds(1);
        one.look(before).await.expect("looked");
        assert_eq!(kid(&write(&one, before).expect("written")), kid(&old), "not yet");
        let turned = begun + ROTATION + TimeDelta::seconds(1);
        let last = write(&one, turned).expect("written");
        one.look(turned).await.expect("looked");
        let new = write(&one, turned).expect("written");
        assert_ne!(kid(&new), kid(&last));
        *other.looked.lock().await -= PAUSE;
        assert!(knows(&other, &new, turned).await, "looked for");
        assert_eq!(kid(&write(&other, turned).expect("written")), kid(&new), "and used");

        // What the old key signed is good to its end, in a process that starts now, too.
        let late = open(SECRET).await;
        let idle = Identity::new(SECRET).session_idle();
        for by in [&one, &other, &late] {
            assert!(knows(by, &last, turned + idle - TimeDelta::seconds(2)).await);
            assert!(!knows(by, &last, turned + idle).await, "its time is over");
        }
        // With the next key it is gone, whatever its time.
        let again = turned + ROTATION + TimeDelta::seconds(1);
        one.look(again).await.expect("looked");
        assert!(!knows(&one, &last, turned).await && knows(&one, &new, turned).await);
        log.close().await;
    }

    fn kid(handle: &str) -> Option<String> {
        jsonwebtoken::decode_header(handle).expect("a header").kid
    }
}
