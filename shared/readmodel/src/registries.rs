//! Registries that something is declared for. The password lies in the vault and is never shown.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use domain::{
    Aggregate, Event, Recorded,
    registry::{self, RegistrySettings},
};
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgPool, types::Json};
use utoipa::ToSchema;

use crate::{Error, Model, fold};

pub(crate) const MODEL: Model =
    Model { name: "registries", fill: None, apply: |to, events| Box::pin(apply(to, events)) };

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Registry {
    /// `host[:port]`, in lower case.
    pub host: String,
    /// None where nothing is declared any more.
    pub settings: Option<RegistrySettings>,
    /// Whether a password is kept for it.
    pub signed_in: bool,
    /// The actor that last changed it.
    pub changed_by: String,
    pub changed_at: DateTime<Utc>,
    /// Of the last event that changed it.
    pub sequence: u64,
}

/// Those that are declared, by host.
pub async fn list(database: &PgPool) -> Result<Vec<Registry>, Error> {
    sqlx::query_scalar!(
        r#"select to_jsonb(r) as "row!: Json<Registry>" from registries r where settings is not null order by host"#
    )
    .fetch_all(database)
    .await
    .map(fold::unwrapped)
    .map_err(Error::during("listing the registries"))
}

impl Registry {
    fn apply(&mut self, recorded: &Recorded, event: &registry::Event) {
        // What an event means for the settings is known in one place.
        let mut state = registry::Registry { settings: self.settings.take(), credentials: None };
        state.evolve(event);
        self.settings = state.settings;
        self.signed_in = match event {
            registry::Event::Configured { .. } => self.signed_in,
            registry::Event::CredentialsSet { .. } => true,
            registry::Event::CredentialsRemoved { .. } | registry::Event::Removed { .. } => false,
        };
        self.changed_by.clone_from(&recorded.context.actor);
        self.changed_at = fold::time(recorded);
        self.sequence = recorded.sequence;
    }

    fn new(host: String, recorded: &Recorded) -> Self {
        Self {
            host,
            settings: None,
            signed_in: false,
            changed_by: recorded.context.actor.clone(),
            changed_at: fold::time(recorded),
            sequence: recorded.sequence,
        }
    }
}

/// Hosts that differ only in case are one aggregate.
fn of_registry(recorded: &Recorded) -> Option<(String, &registry::Event)> {
    let Event::Registry(event) = &recorded.event else { return None };
    Some((event.host().to_ascii_lowercase(), event))
}

async fn apply(to: &mut PgConnection, events: &[Recorded]) -> sqlx::Result<()> {
    let hosts = fold::keys(events, key);
    if hosts.is_empty() {
        return Ok(());
    }
    let mut rows: BTreeMap<String, Registry> = sqlx::query_scalar!(
        r#"select to_jsonb(r) as "row!: Json<Registry>" from registries r where host = any($1)"#,
        &hosts
    )
    .fetch_all(&mut *to)
    .await?
    .into_iter()
    .map(|Json(registry)| (registry.host.clone(), registry))
    .collect();
    fold(&mut rows, events);
    sqlx::query!(
        "insert into registries select * from jsonb_populate_recordset(null::registries, $1::text::jsonb)
         on conflict (host) do update set
            (settings, signed_in, changed_by, changed_at, sequence)
            = (excluded.settings, excluded.signed_in, excluded.changed_by, excluded.changed_at, excluded.sequence)",
        fold::recordset(rows.values())?
    )
    .execute(to)
    .await?;
    Ok(())
}

pub(crate) fn key(recorded: &Recorded) -> Option<String> {
    of_registry(recorded).map(|(host, _)| host)
}

pub(crate) fn fold(rows: &mut BTreeMap<String, Registry>, events: &[Recorded]) {
    for recorded in events {
        if let Some((host, event)) = of_registry(recorded) {
            rows.entry(host.clone()).or_insert_with(|| Registry::new(host, recorded)).apply(recorded, event);
        }
    }
}

#[cfg(test)]
mod tests {
    use domain::registry::Command;

    use super::*;
    use crate::testing::{History, database, writer};

    #[tokio::test]
    async fn credentials_show_their_user_and_never_where_the_secret_lies() {
        let (_database, pool) = database().await;
        let mut history = History::default();
        let (username, secret) = ("ci".to_owned(), "registry/hidden".to_owned());
        let host = "Registry.test:5000".to_owned();
        history.registry(&host.clone(), Command::SetCredentials { host, username, secret, version: 4 });
        let mut writer = writer(&pool).await;
        writer.apply(&history.events).await.expect("applied");
        let listed = list(&pool).await.expect("listed");
        let username = listed[0].settings.as_ref().and_then(|settings| settings.username.as_deref());
        assert_eq!((listed[0].host.as_str(), username, listed[0].signed_in), ("registry.test:5000", Some("ci"), true));
        assert!(!format!("{listed:?}").contains("hidden"));

        let host = "registry.test:5000".to_owned();
        history.registry("Registry.test:5000", Command::RemoveCredentials { host });
        writer.apply(&history.events).await.expect("applied");
        assert_eq!(list(&pool).await.expect("listed"), []);
    }
}
