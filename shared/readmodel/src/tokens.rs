//! API tokens: who holds which, never what they look like.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, SubsecRound, Utc};
use domain::{Event, Recorded, Role, Slug, token};
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgPool, types::Json};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{Error, Model, fold};

pub(crate) const MODEL: Model = Model { name: "tokens", fill: None, apply: |to, events| Box::pin(apply(to, events)) };

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Token {
    pub id: Uuid,
    /// The actor of everything that is done with it.
    pub name: String,
    pub role: Role,
    /// The projects that the role is good for; left out, it is good for all.
    #[schema(value_type = Option<Vec<String>>)]
    pub projects: Option<BTreeSet<Slug>>,
    /// The user whose personal token it is: it is worth no more than they are.
    pub owner: Option<Uuid>,
    pub expires_at: Option<DateTime<Utc>>,
    pub created_by: String,
    pub created_at: DateTime<Utc>,
    pub revoked_at: Option<DateTime<Utc>>,
    /// Of the last event that changed it.
    pub sequence: u64,
}

/// By name; without those that were revoked. With an `owner`, only theirs.
pub async fn list(database: &PgPool, owner: Option<Uuid>) -> Result<Vec<Token>, Error> {
    sqlx::query_scalar!(
        r#"select to_jsonb(t) as "row!: Json<Token>" from tokens t
           where revoked_at is null and ($1::uuid is null or owner = $1)
           order by name, created_at"#,
        owner
    )
    .fetch_all(database)
    .await
    .map(fold::unwrapped)
    .map_err(Error::during("listing the tokens"))
}

pub(crate) fn key(recorded: &Recorded) -> Option<Uuid> {
    let Event::Token(_) = &recorded.event else { return None };
    recorded.key.first()?.parse().ok()
}

pub(crate) fn fold(rows: &mut BTreeMap<Uuid, Token>, events: &[Recorded]) {
    for recorded in events {
        let (Some(id), Event::Token(event)) = (key(recorded), &recorded.event) else { continue };
        match event {
            token::Event::Created(holder) => {
                let token = Token {
                    id,
                    name: holder.name.to_string(),
                    role: holder.grant.role,
                    projects: holder.grant.projects.clone(),
                    owner: holder.owner.map(|owner| owner.user.0),
                    expires_at: holder.expires_at.map(|end| end.trunc_subsecs(6)),
                    created_by: recorded.context.actor.clone(),
                    created_at: fold::time(recorded),
                    revoked_at: None,
                    sequence: recorded.sequence,
                };
                rows.insert(id, token);
            }
            token::Event::Revoked {} => {
                if let Some(row) = rows.get_mut(&id) {
                    row.revoked_at = Some(fold::time(recorded));
                    row.sequence = recorded.sequence;
                }
            }
        }
    }
}

async fn apply(to: &mut PgConnection, events: &[Recorded]) -> sqlx::Result<()> {
    let ids = fold::keys(events, key);
    if ids.is_empty() {
        return Ok(());
    }
    let mut rows: BTreeMap<Uuid, Token> =
        sqlx::query_scalar!(r#"select to_jsonb(t) as "row!: Json<Token>" from tokens t where id = any($1)"#, &ids)
            .fetch_all(&mut *to)
            .await?
            .into_iter()
            .map(|Json(token)| (token.id, token))
            .collect();
    fold(&mut rows, events);
    sqlx::query!(
        "insert into tokens (id, name, role, projects, owner, expires_at, created_by, created_at, revoked_at, sequence)
         select id, name, role, projects, owner, expires_at, created_by, created_at, revoked_at, sequence
         from jsonb_populate_recordset(null::tokens, $1::text::jsonb)
         on conflict (id) do update set (revoked_at, sequence) = (excluded.revoked_at, excluded.sequence)",
        fold::recordset(rows.values())?
    )
    .execute(to)
    .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use domain::{
        Grant, UserId,
        token::{Command, Holder, Owner},
    };

    use super::*;
    use crate::testing::{History, database, slug, writer};

    #[tokio::test]
    async fn a_token_is_listed_until_it_is_revoked_and_never_with_its_secret() {
        let (_database, pool) = database().await;
        let mut history = History::default();
        let holder = Holder {
            name: slug("ci"),
            grant: Grant { role: Role::Operator, projects: Some([slug("shop")].into()) },
            owner: Some(Owner { user: UserId(Uuid::from_u128(9)), epoch: 0 }),
            secret: "token/hidden".into(),
            version: 1,
            expires_at: None,
        };
        history.token(1, Command::Create(holder));
        let mut writer = writer(&pool).await;
        writer.apply(&history.events).await.expect("applied");
        let listed = list(&pool, None).await.expect("listed");
        assert_eq!((listed[0].id, listed[0].name.as_str(), listed[0].role), (Uuid::from_u128(1), "ci", Role::Operator));
        assert_eq!(
            (listed[0].projects.clone(), listed[0].owner),
            (Some([slug("shop")].into()), Some(Uuid::from_u128(9)))
        );
        assert!(!format!("{listed:?}").contains("hidden"));
        assert_eq!(list(&pool, Some(Uuid::from_u128(9))).await.expect("listed"), listed);
        assert_eq!(list(&pool, Some(Uuid::from_u128(8))).await.expect("listed"), []);
        history.token(1, Command::Revoke);
        writer.apply(&history.events).await.expect("applied");
        assert_eq!(list(&pool, None).await.expect("listed"), []);
    }
}
