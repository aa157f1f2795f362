//! Sign-ins that have begun and not yet ended: kept on the server, by a hash of their state, each for one use and a short
//! time. The bucket (`nats/streams.json`) bounds their number and forgets them by itself.

use chrono::{DateTime, Utc};
use eventlog::{Bucket, EventLog};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Limits, Refusal};

pub(super) const BUCKET: &str = "oidc-pending";

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Pending {
    /// Hash of what the browser that began it holds.
    browser: String,
    pub(super) nonce: String,
    /// Of PKCE.
    pub(super) verifier: String,
    pub(super) return_to: String,
    /// Whom it was begun with.
    pub(super) issuer: String,
    pub(super) client_id: String,
    pub(super) begun: DateTime<Utc>,
}

pub(super) struct New<'a> {
    pub(super) browser: &'a str,
    pub(super) nonce: String,
    pub(super) verifier: String,
    pub(super) return_to: &'a str,
    pub(super) issuer: &'a str,
    pub(super) client_id: &'a str,
}

fn hash(secret: &str) -> String {
    hex::encode(Sha256::digest(secret))
}

#[derive(Clone)]
pub(super) struct Store(Bucket);

impl Store {
    pub(super) fn new(log: &EventLog) -> Self {
        Self(log.bucket(BUCKET))
    }

    pub(super) async fn put(&self, state: &str, new: New<'_>) -> Result<(), Refusal> {
        let pending = Pending {
            browser: hash(new.browser),
            nonce: new.nonce,
            verifier: new.verifier,
            return_to: new.return_to.into(),
            issuer: new.issuer.into(),
            client_id: new.client_id.into(),
            begun: runtime::clock::now(),
        };
        let text = serde_json::to_vec(&pending).map_err(|error| eventlog::Error::Protocol {
            operation: "writing down a sign-in",
            detail: error.to_string(),
        })?;
        self.0.create(&hash(state), text).await?;
        Ok(())
    }

    /// The sign-in of `state`, for the browser that began it; nobody gets it again. Another browser gets nothing, and
    /// takes nothing from the one that began it.
    pub(super) async fn take(&self, state: &str, browser: Option<&str>, limits: &Limits) -> Result<Pending, Refusal> {
        let key = hash(state);
        let entry = self.0.get(&key).await?.ok_or(Refusal::StateUnknown)?;
        let pending: Pending = serde_json::from_slice(&entry.value).map_err(|_| Refusal::StateUnknown)?;
        // Of hashes, so that how long the comparison takes tells nothing.
        if browser.map(hash).as_ref() != Some(&pending.browser) {
            return Err(Refusal::OtherBrowser);
        }
        match self.0.delete(&key, Some(entry.revision)).await {
            Ok(()) => {}
            Err(eventlog::Error::WrongRevision { .. }) => return Err(Refusal::StateUnknown),
            Err(error) => return Err(error.into()),
        }
        let age = runtime::clock::now() - pending.begun;
        if age.to_std().is_ok_and(|age| age >= limits.sign_in) {
            return Err(Refusal::StateExpired);
        }
        Ok(pending)
    }
}
