//! People: what they may do and how they stand. Who they are is sealed, here as in the log.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, SubsecRound, Utc};
use domain::{Event, Grant, Recorded, Role, Slug, user};
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgPool, types::Json};
use uuid::Uuid;

use crate::{Error, Model, fold};

pub(crate) const MODEL: Model = Model { name: "users", fill: None, apply: |to, events| Box::pin(apply(to, events)) };

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    pub id: Uuid,
    pub source: user::Source,
    pub profile: user::Sealed,
    pub role: Role,
    pub projects: Option<BTreeSet<Slug>>,
    pub disabled: bool,
    pub erased: bool,
    pub has_password: bool,
    pub setup_expires_at: Option<DateTime<Utc>>,
    pub epoch: u64,
    pub signed_in_at: Option<DateTime<Utc>>,
    pub created_by: String,
    pub created_at: DateTime<Utc>,
    /// Of the last event that changed it.
    pub sequence: u64,
}

/// In the order in which they came.
pub async fn list(database: &PgPool) -> Result<Vec<User>, Error> {
    sqlx::query_scalar!(r#"select to_jsonb(t) as "row!: Json<User>" from users t order by created_at, id"#)
        .fetch_all(database)
        .await
        .map(fold::unwrapped)
        .map_err(Error::during("listing the users"))
}

pub async fn get(database: &PgPool, id: Uuid) -> Result<Option<User>, Error> {
    sqlx::query_scalar!(r#"select to_jsonb(t) as "row!: Json<User>" from users t where id = $1"#, id)
        .fetch_optional(database)
        .await
        .map(|row| row.map(|Json(user)| user))
        .map_err(Error::during("reading a user"))
}

pub(crate) fn key(recorded: &Recorded) -> Option<Uuid> {
    let Event::User(_) = &recorded.event else { return None };
    recorded.key.first()?.parse().ok()
}

pub(crate) fn fold(rows: &mut BTreeMap<Uuid, User>, events: &[Recorded]) {
    for recorded in events {
        let (Some(id), Event::User(event)) = (key(recorded), &recorded.event) else { continue };
        if let user::Event::Created { source, profile, grant: Grant { role, projects }, .. } = event {
            let user = User {
                id,
                source: *source,
                profile: profile.clone(),
                role: *role,
                projects: projects.clone(),
                disabled: false,
                erased: false,
                has_password: false,
                setup_expires_at: None,
                epoch: 0,
                signed_in_at: None,
                created_by: recorded.context.actor.clone(),
                created_at: fold::time(recorded),
                sequence: recorded.sequence,
            };
            rows.insert(id, user);
        } else if let Some(row) = rows.get_mut(&id) {
            row.apply(recorded, event);
        }
    }
}

impl User {
    fn apply(&mut self, recorded: &Recorded, event: &user::Event) {
        use user::Event;
        self.sequence = recorded.sequence;
        match event {
            Event::Created { .. } => {}
            Event::ProfileChanged { profile } => self.profile = profile.clone(),
            Event::Granted { grant } => {
                self.role = grant.role;
                self.projects = grant.projects.clone();
            }
            Event::Disabled {} => {
                self.disabled = true;
                self.setup_expires_at = None;
                self.epoch += 1;
            }
            Event::Enabled {} => self.disabled = false,
            Event::PasswordSet { .. } => {
                self.has_password = true;
                self.setup_expires_at = None;
                self.epoch += 1;
            }
            Event::SetupIssued { expires_at, .. } => self.setup_expires_at = Some(expires_at.trunc_subsecs(6)),
            Event::SetupUsed {} => self.setup_expires_at = None,
            Event::SignedIn { .. } => self.signed_in_at = Some(fold::time(recorded)),
            Event::Erased {} => {
                self.erased = true;
                self.has_password = false;
                self.setup_expires_at = None;
                self.epoch += 1;
            }
        }
    }
}

async fn apply(to: &mut PgConnection, events: &[Recorded]) -> sqlx::Result<()> {
    let ids = fold::keys(events, key);
    if ids.is_empty() {
        return Ok(());
    }
    let mut rows: BTreeMap<Uuid, User> =
        sqlx::query_scalar!(r#"select to_jsonb(t) as "row!: Json<User>" from users t where id = any($1)"#, &ids)
            .fetch_all(&mut *to)
            .await?
            .into_iter()
            .map(|Json(user)| (user.id, user))
            .collect();
    fold(&mut rows, events);
    sqlx::query!(
        "insert into users select * from jsonb_populate_recordset(null::users, $1::text::jsonb)
         on conflict (id) do update set
         (profile, role, projects, disabled, erased, has_password, setup_expires_at, epoch, signed_in_at, sequence) =
         (excluded.profile, excluded.role, excluded.projects, excluded.disabled, excluded.erased, excluded.has_password,
          excluded.setup_expires_at, excluded.epoch, excluded.signed_in_at, excluded.sequence)",
        fold::recordset(rows.values())?
    )
    .execute(to)
    .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use domain::user::{Command, Kept, Setup};

    use super::*;
    use crate::testing::{History, database, slug, writer};

    #[tokio::test]
    async fn a_user_is_listed_as_they_stand_and_never_with_what_they_prove_themselves_by() {
        let (_database, pool) = database().await;
        let mut history = History::default();
        history.person(1, Role::Viewer);
        let kept = |secret: &str| Kept { secret: secret.into(), version: 1 };
        let expires_at = DateTime::from_timestamp(1_900_000_000, 0).expect("in range");
        history.user(1, Command::IssueSetup(Setup { kept: kept("hidden"), expires_at }));
        let mut writer = writer(&pool).await;
        writer.apply(&history.events).await.expect("applied");
        let waiting = get(&pool, Uuid::from_u128(1)).await.expect("read").expect("there");
        assert_eq!((waiting.setup_expires_at, waiting.has_password, waiting.epoch), (Some(expires_at), false, 0));
        history.user(1, Command::SetPassword(kept("hidden")));
        let projects = Some([slug("shop")].into());
        history.user(1, Command::Grant { grant: Grant { role: Role::Admin, projects } });
        history.sign_in(1, 2);
        history.user(1, Command::Disable);
        writer.apply(&history.events).await.expect("applied");
        let row = list(&pool).await.expect("listed").remove(0);
        assert_eq!((row.role, row.disabled, row.has_password, row.epoch), (Role::Admin, true, true, 2));
        assert!(row.signed_in_at.is_some() && row.projects.is_some() && row.setup_expires_at.is_none());
        assert!(!format!("{row:?}").contains("hidden"));
    }
}
