//! One client for each registry, which remembers what it was told, and until when the registry wants to be left alone:
//! that all watchers tell one another, for any of them may be the one that a webhook reaches.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use chrono::TimeDelta;
use domain::{
    Key, Span,
    push::{LOOKS, Quiet, quiet_key},
    registry::{Registry, RegistrySettings},
};
use eventlog::EventLog;
use runtime::outgoing::Outgoing;

use super::look::Trouble;
use crate::registry::{self, Client, Credentials};

pub(super) struct Clients {
    known: Mutex<HashMap<String, Known>>,
    outgoing: Outgoing,
}

struct Known {
    client: Arc<Client>,
    origin: String,
    /// Revision of the password.
    version: Option<u64>,
}

/// How a registry is asked, and how often.
pub(super) struct Line {
    pub(super) client: Arc<Client>,
    pub(super) poll: Span,
    pub(super) origin: String,
}

impl Clients {
    pub(super) fn new(outgoing: Outgoing) -> Self {
        Self { known: Mutex::default(), outgoing }
    }

    /// As the registry is declared now. Trouble within the time for which it wants to be left alone.
    pub(super) async fn get(&self, log: &EventLog, host: &str) -> Result<Line, Trouble> {
        let nonsense = |error: domain::registry::Rejection| registry::Trouble::Nonsense(error.to_string());
        let key = Key::<Registry>::registry(host).map_err(nonsense)?;
        let Registry { settings, credentials } = log.load(&key).await?.state;
        let settings: RegistrySettings = settings.unwrap_or_default();
        let origin = settings.origin(host);
        if let Some(pause) = left_alone(log, &key, &origin).await? {
            return Err(registry::Trouble::TooMany { pause: Some(pause) }.into());
        }
        let version = credentials.as_ref().map(|known| known.version);
        {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(known) = known.get(host).filter(|known| known.origin == origin && known.version == version) {
                return Ok(Line { client: known.client.clone(), poll: settings.poll, origin });
            }
        }
        let credentials = match (credentials, settings.username) {
            (Some(known), _) => {
                let password = log.vault().get(&known.secret).await?;
                let password = password.ok_or_else(|| registry::Trouble::PasswordMissing { registry: host.into() })?;
                Some(Credentials { username: known.username, password })
            }
            (None, Some(_)) => return Err(registry::Trouble::PasswordMissing { registry: host.into() }.into()),
            (None, None) => None,
        };
        let client = Arc::new(Client::new(&origin, credentials, &self.outgoing)?);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(host.to_owned(), Known { client: client.clone(), origin: origin.clone(), version });
        Ok(Line { client, poll: settings.poll, origin })
    }
}

/// For how much longer the registry at `origin` wants to be left alone.
async fn left_alone(log: &EventLog, key: &Key<Registry>, origin: &str) -> Result<Option<Duration>, eventlog::Error> {
    let entry = log.bucket(LOOKS).get(&quiet_key(key)).await?;
    let quiet = entry.and_then(|entry| serde_json::from_slice::<Quiet>(&entry.value).ok());
    let quiet = quiet.filter(|quiet| quiet.origin == origin);
    // A clock that was set back must not make it longer than any registry is left alone for.
    let left = quiet.and_then(|quiet| (quiet.until - runtime::clock::now()).to_std().ok());
    Ok(left.filter(|left| !left.is_zero()).map(|left| left.min(registry::LONGEST_PAUSE)))
}

/// Tells all watchers that the registry on this line wants to be left alone.
pub(super) async fn leave_alone(log: &EventLog, host: &str, origin: &str, pause: Duration) {
    let Ok(key) = Key::<Registry>::registry(host) else { return };
    let until = runtime::clock::now() + TimeDelta::from_std(pause).unwrap_or_default();
    super::write(log, &quiet_key(&key), &Quiet { origin: origin.to_owned(), until }).await;
}
