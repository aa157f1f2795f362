//! Sessions: who is signed in. What decides is the log; this is for people to look at.

use std::collections::BTreeMap;

use chrono::{DateTime, SubsecRound, Utc};
use domain::{
    Event, Recorded,
    session::{self, Method},
};
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgPool, types::Json};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{Error, Model, fold};

pub(crate) const MODEL: Model = Model { name: "sessions", fill: None, apply: |to, events| Box::pin(apply(to, events)) };

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Session {
    pub id: Uuid,
    pub user_id: Uuid,
    /// Of the user at the sign-in; it is over once theirs is a later one.
    #[schema(ignore)]
    pub epoch: u64,
    pub method: Method,
    pub opened_at: DateTime<Utc>,
    /// The end of it, whatever is done with it.
    pub expires_at: DateTime<Utc>,
    pub ended_at: Option<DateTime<Utc>>,
    /// Of the last event that changed it.
    pub sequence: u64,
}

/// The ones that are open at `now`, the newest first. With a `user`, only theirs.
pub async fn open(database: &PgPool, now: DateTime<Utc>, user: Option<Uuid>) -> Result<Vec<Session>, Error> {
    sqlx::query_scalar!(
        r#"select to_jsonb(t) as "row!: Json<Session>" from sessions t join users u on u.id = t.user_id
           where t.ended_at is null and t.expires_at > $1 and t.epoch = u.epoch
           and ($2::uuid is null or t.user_id = $2)
           order by t.opened_at desc, t.id"#,
        now,
        user
    )
    .fetch_all(database)
    .await
    .map(fold::unwrapped)
    .map_err(Error::during("listing the sessions"))
}

pub(crate) fn key(recorded: &Recorded) -> Option<Uuid> {
    let Event::Session(_) = &recorded.event else { return None };
    recorded.key.first()?.parse().ok()
}

pub(crate) fn fold(rows: &mut BTreeMap<Uuid, Session>, events: &[Recorded]) {
    for recorded in events {
        let (Some(id), Event::Session(event)) = (key(recorded), &recorded.event) else { continue };
        match event {
            session::Event::Opened(opening) => {
                let session = Session {
                    id,
                    user_id: opening.user.0,
                    epoch: opening.epoch,
                    method: opening.method,
                    opened_at: fold::time(recorded),
                    expires_at: opening.expires_at.trunc_subsecs(6),
                    ended_at: None,
                    sequence: recorded.sequence,
                };
                rows.insert(id, session);
            }
            session::Event::Ended { .. } => {
                if let Some(row) = rows.get_mut(&id) {
                    row.ended_at = Some(fold::time(recorded));
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
    let mut rows: BTreeMap<Uuid, Session> =
        sqlx::query_scalar!(r#"select to_jsonb(t) as "row!: Json<Session>" from sessions t where id = any($1)"#, &ids)
            .fetch_all(&mut *to)
            .await?
            .into_iter()
            .map(|Json(session)| (session.id, session))
            .collect();
    fold(&mut rows, events);
    sqlx::query!(
        "insert into sessions select * from jsonb_populate_recordset(null::sessions, $1::text::jsonb)
         on conflict (id) do update set (ended_at, sequence) = (excluded.ended_at, excluded.sequence)",
        fold::recordset(rows.values())?
    )
    .execute(to)
    .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use domain::{
        Role,
        session::{Command, Reason},
        user,
    };

    use super::*;
    use crate::testing::{History, database, writer};

    #[tokio::test]
    async fn a_session_is_listed_until_it_ends_in_one_of_its_ways() {
        let (_database, pool) = database().await;
        let mut history = History::default();
        for id in [1, 2] {
            history.person(id, Role::Viewer);
        }
        for (user, session) in [(1, 11), (1, 12), (2, 21)] {
            history.sign_in(user, session);
        }
        let mut writer = writer(&pool).await;
        writer.apply(&history.events).await.expect("applied");
        let at = |second| DateTime::from_timestamp(second, 0).expect("in range");
        let listed = async |now, user: Option<u128>| -> Vec<u128> {
            let sessions = open(&pool, at(now), user.map(Uuid::from_u128)).await.expect("listed");
            sessions.iter().map(|session| session.id.as_u128()).collect()
        };
        assert_eq!(listed(0, None).await, [21, 12, 11]);
        assert_eq!(listed(0, Some(1)).await, [12, 11]);
        assert_eq!(listed(1_900_000_000, None).await, [0_u128; 0], "all are over");
        history.session(11, Command::End { reason: Reason::Logout });
        history.user(2, user::Command::Disable);
        writer.apply(&history.events).await.expect("applied");
        assert_eq!(listed(0, None).await, [12]);
    }
}
