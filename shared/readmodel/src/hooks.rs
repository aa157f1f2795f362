//! Webhooks: who may tell of images. Their secrets lie in the vault and are never shown.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use domain::{
    Event, Recorded,
    hook::{self, HookSettings},
};
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgPool, types::Json};
use utoipa::ToSchema;

use crate::{Error, Model, fold};

pub(crate) const MODEL: Model = Model { name: "hooks", fill: None, apply: |to, events| Box::pin(apply(to, events)) };

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Hook {
    pub name: String,
    /// None once it was removed.
    pub settings: Option<HookSettings>,
    /// Without a secret, it takes no message.
    pub has_secret: bool,
    /// The actor that last changed it.
    pub changed_by: String,
    pub changed_at: DateTime<Utc>,
    /// Of the last event that changed it.
    pub sequence: u64,
}

/// Those that are there, by name.
pub async fn list(database: &PgPool) -> Result<Vec<Hook>, Error> {
    sqlx::query_scalar!(
        r#"select to_jsonb(h) as "row!: Json<Hook>" from hooks h where settings is not null order by name"#
    )
    .fetch_all(database)
    .await
    .map(fold::unwrapped)
    .map_err(Error::during("listing the hooks"))
}

pub(crate) fn key(recorded: &Recorded) -> Option<String> {
    let Event::Hook(_) = &recorded.event else { return None };
    recorded.key.first().cloned()
}

pub(crate) fn fold(rows: &mut BTreeMap<String, Hook>, events: &[Recorded]) {
    for recorded in events {
        let (Some(name), Event::Hook(event)) = (key(recorded), &recorded.event) else { continue };
        let row = rows.entry(name.clone()).or_insert_with(|| Hook {
            name,
            settings: None,
            has_secret: false,
            changed_by: String::new(),
            changed_at: fold::time(recorded),
            sequence: recorded.sequence,
        });
        match event {
            hook::Event::Configured { settings } => row.settings = Some(settings.clone()),
            hook::Event::SecretSet { .. } => row.has_secret = true,
            hook::Event::Removed {} => (row.settings, row.has_secret) = (None, false),
        }
        row.changed_by.clone_from(&recorded.context.actor);
        row.changed_at = fold::time(recorded);
        row.sequence = recorded.sequence;
    }
}

async fn apply(to: &mut PgConnection, events: &[Recorded]) -> sqlx::Result<()> {
    let names = fold::keys(events, key);
    if names.is_empty() {
        return Ok(());
    }
    let mut rows: BTreeMap<String, Hook> =
        sqlx::query_scalar!(r#"select to_jsonb(h) as "row!: Json<Hook>" from hooks h where name = any($1)"#, &names)
            .fetch_all(&mut *to)
            .await?
            .into_iter()
            .map(|Json(hook)| (hook.name.clone(), hook))
            .collect();
    fold(&mut rows, events);
    sqlx::query!(
        "insert into hooks select * from jsonb_populate_recordset(null::hooks, $1::text::jsonb)
         on conflict (name) do update set
            (settings, has_secret, changed_by, changed_at, sequence)
            = (excluded.settings, excluded.has_secret, excluded.changed_by, excluded.changed_at, excluded.sequence)",
        fold::recordset(rows.values())?
    )
    .execute(to)
    .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use domain::hook::{Command, Source};

    use super::*;
    use crate::testing::{History, database, writer};

    #[tokio::test]
    async fn a_hook_is_listed_until_it_is_removed_and_never_with_its_secret() {
        let (_database, pool) = database().await;
        let mut history = History::default();
        let settings = HookSettings { source: Source::Github, registry: None, project: None, stage: None };
        history.hook("images", Command::Configure { settings: settings.clone() });
        history.hook("images", Command::SetSecret { secret: "hook/hidden".into(), version: 1 });
        let mut writer = writer(&pool).await;
        writer.apply(&history.events).await.expect("applied");
        let listed = list(&pool).await.expect("listed");
        assert_eq!(
            (listed[0].name.as_str(), &listed[0].settings, listed[0].has_secret),
            ("images", &Some(settings), true)
        );
        assert!(!format!("{listed:?}").contains("hidden"));
        history.hook("images", Command::Remove);
        writer.apply(&history.events).await.expect("applied");
        assert_eq!(list(&pool).await.expect("listed"), []);
    }
}
