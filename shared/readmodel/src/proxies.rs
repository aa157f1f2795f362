//! Proxies of the user's own. The password for an admin API lies in the vault and is never shown.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use domain::{
    Aggregate, Event, Recorded,
    proxy::{self, Settings},
};
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgPool, types::Json};
use utoipa::ToSchema;

use crate::{Error, Model, fold};

pub(crate) const MODEL: Model = Model { name: "proxies", fill: None, apply: |to, events| Box::pin(apply(to, events)) };

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Proxy {
    pub name: String,
    /// None where it was removed.
    pub settings: Option<Settings>,
    /// As whom Sluice signs in to its admin API; none where no password is kept.
    pub username: Option<String>,
    /// The actor that last changed it.
    pub changed_by: String,
    pub changed_at: DateTime<Utc>,
    /// Of the last event that changed it.
    pub sequence: u64,
}

/// Those that are declared, by name.
pub async fn list(database: &PgPool) -> Result<Vec<Proxy>, Error> {
    sqlx::query_scalar!(
        r#"select to_jsonb(p) as "row!: Json<Proxy>" from proxies p where settings is not null order by name"#
    )
    .fetch_all(database)
    .await
    .map(fold::unwrapped)
    .map_err(Error::during("listing the proxies"))
}

impl Proxy {
    fn new(name: String, recorded: &Recorded) -> Self {
        Self {
            name,
            settings: None,
            username: None,
            changed_by: recorded.context.actor.clone(),
            changed_at: fold::time(recorded),
            sequence: recorded.sequence,
        }
    }

    fn apply(&mut self, recorded: &Recorded, event: &proxy::Event) {
        // The rule by which credentials are dropped is the aggregate's; where they lie does not matter here.
        let known =
            |username: &String| proxy::Credentials { username: username.clone(), secret: String::new(), version: 0 };
        let mut state = proxy::Proxy { settings: self.settings.take(), credentials: self.username.as_ref().map(known) };
        state.evolve(event);
        self.settings = state.settings;
        self.username = state.credentials.map(|credentials| credentials.username);
        self.changed_by.clone_from(&recorded.context.actor);
        self.changed_at = fold::time(recorded);
        self.sequence = recorded.sequence;
    }
}

pub(crate) fn key(recorded: &Recorded) -> Option<String> {
    let Event::Proxy(_) = &recorded.event else { return None };
    recorded.key.first().cloned()
}

pub(crate) fn fold(rows: &mut BTreeMap<String, Proxy>, events: &[Recorded]) {
    for recorded in events {
        if let (Some(name), Event::Proxy(event)) = (key(recorded), &recorded.event) {
            rows.entry(name.clone()).or_insert_with(|| Proxy::new(name, recorded)).apply(recorded, event);
        }
    }
}

async fn apply(to: &mut PgConnection, events: &[Recorded]) -> sqlx::Result<()> {
    let names = fold::keys(events, key);
    if names.is_empty() {
        return Ok(());
    }
    let mut rows: BTreeMap<String, Proxy> =
        sqlx::query_scalar!(r#"select to_jsonb(p) as "row!: Json<Proxy>" from proxies p where name = any($1)"#, &names)
            .fetch_all(&mut *to)
            .await?
            .into_iter()
            .map(|Json(proxy)| (proxy.name.clone(), proxy))
            .collect();
    fold(&mut rows, events);
    sqlx::query!(
        "insert into proxies select * from jsonb_populate_recordset(null::proxies, $1::text::jsonb)
         on conflict (name) do update set
            (settings, username, changed_by, changed_at, sequence)
            = (excluded.settings, excluded.username, excluded.changed_by, excluded.changed_at, excluded.sequence)",
        fold::recordset(rows.values())?
    )
    .execute(to)
    .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use domain::proxy::{Command, Credentials};

    use super::*;
    use crate::testing::{History, database, proxy_settings, writer};

    #[tokio::test]
    async fn a_proxy_is_listed_until_it_is_removed_and_never_with_where_its_password_lies() {
        let (_database, pool) = database().await;
        let mut history = History::default();
        let settings = proxy_settings("http://127.0.0.1:81");
        history.proxy("front", Command::Configure(settings.clone()));
        let credentials = Credentials { username: "admin".into(), secret: "proxy/hidden".into(), version: 4 };
        history.proxy("front", Command::SetCredentials(credentials));
        let mut writer = writer(&pool).await;
        writer.apply(&history.events).await.expect("applied");
        let listed = list(&pool).await.expect("listed");
        assert_eq!((listed[0].name.as_str(), listed[0].username.as_deref()), ("front", Some("admin")));
        assert_eq!(listed[0].settings, Some(settings));
        assert!(!format!("{listed:?}").contains("hidden"));

        history.proxy("front", Command::Configure(proxy_settings("http://127.0.0.1:82")));
        writer.apply(&history.events).await.expect("applied");
        assert_eq!(list(&pool).await.expect("listed")[0].username, None, "another server, another password");
        history.proxy("front", Command::Remove);
        writer.apply(&history.events).await.expect("applied");
        assert_eq!(list(&pool).await.expect("listed"), []);
    }
}
