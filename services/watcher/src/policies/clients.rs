//! One client for each registry, which remembers what it was told.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use domain::{
    Key, Span,
    registry::{Registry, RegistrySettings},
};
use eventlog::EventLog;

use super::look::Trouble;
use crate::registry::{self, Client, Credentials};

#[derive(Default)]
pub(super) struct Clients(Mutex<HashMap<String, Known>>);

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
}

impl Clients {
    /// As the registry is declared now.
    pub(super) async fn get(&self, log: &EventLog, host: &str) -> Result<Line, Trouble> {
        let nonsense = |error: domain::registry::Rejection| registry::Trouble::Nonsense(error.to_string());
        let key = Key::<Registry>::registry(host).map_err(nonsense)?;
        let Registry { settings, credentials } = log.load(&key).await?.state;
        let settings: RegistrySettings = settings.unwrap_or_default();
        let origin = settings.origin(host);
        let version = credentials.as_ref().map(|known| known.version);
        {
            let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(known) = known.get(host).filter(|known| known.origin == origin && known.version == version) {
                return Ok(Line { client: known.client.clone(), poll: settings.poll });
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
        let client = Arc::new(Client::new(&origin, credentials)?);
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(host.to_owned(), Known { client: client.clone(), origin, version });
        Ok(Line { client, poll: settings.poll })
    }
}
