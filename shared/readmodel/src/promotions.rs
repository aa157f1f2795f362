//! Promotions: one row each, from the request to the decision, with the proof of what was accepted.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use domain::{
    PromotionId, Recorded,
    promotion::{Approval, Gate, Proof},
    stage,
};
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgPool, types::Json};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{Error, Model, fold};

pub(crate) const MODEL: Model =
    Model { name: "promotions", fill: None, apply: |to, events| Box::pin(apply(to, events)) };

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Promotion {
    pub id: Uuid,
    pub project: String,
    /// The stage that takes the release.
    pub stage: String,
    /// The stage that it comes from.
    pub source: String,
    /// None where the source ran nothing.
    pub digest: Option<String>,
    pub status: Status,
    pub requested_by: String,
    pub requested_at: DateTime<Utc>,
    /// In the order in which they were given.
    pub approvals: Vec<Approval>,
    /// What its acceptance started.
    pub deployment: Option<Uuid>,
    /// The one that refused it.
    pub gate: Option<Gate>,
    /// Why it was refused or withdrawn.
    pub reason: Option<String>,
    /// Everything from which its acceptance can be decided again.
    pub proof: Option<Proof>,
    /// The actor whose command brought the decision.
    pub decided_by: Option<String>,
    pub decided_at: Option<DateTime<Utc>>,
    /// Position of its request in the log: promotions are listed, and paged, in this order.
    pub requested_sequence: u64,
    /// Of the last event that changed it.
    pub sequence: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// For gates that may pass later, or for approvals.
    Waiting,
    Accepted,
    Refused,
    Withdrawn,
}

/// Which promotions to list. The default lists all.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only those of these projects.
    pub within: Option<Vec<String>>,
    pub project: Option<String>,
    /// That takes the release.
    pub stage: Option<String>,
    /// Only those that are not decided.
    pub waiting: bool,
    /// Only those requested before this position in the log: the `next` of the page before.
    pub before: Option<u64>,
}

/// The newest request first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Page {
    pub promotions: Vec<Promotion>,
    /// Give it as `before` to read on; none on the last page.
    pub next: Option<u64>,
}

pub async fn list(database: &PgPool, filter: &Filter, limit: u16) -> Result<Page, Error> {
    let limit = usize::from(limit.max(1));
    // One more than asked for tells whether there is a next page.
    let rows = sqlx::query_scalar!(
        r#"select to_jsonb(p) as "row!: Json<Promotion>" from promotions p
           where ($1::text is null or project = $1) and ($2::text is null or stage = $2)
             and (not $3 or status = 'waiting') and ($4::bigint is null or requested_sequence < $4)
             and ($6::text[] is null or project = any($6))
           order by requested_sequence desc limit $5"#,
        filter.project.as_deref().map(fold::text),
        filter.stage.as_deref().map(fold::text),
        filter.waiting,
        filter.before.map(u64::cast_signed),
        limit as i64 + 1,
        filter.within.as_deref()
    )
    .fetch_all(database)
    .await
    .map_err(Error::during("listing the promotions"))?;
    let mut promotions = fold::unwrapped(rows);
    let more = promotions.len() > limit;
    promotions.truncate(limit);
    let next = promotions.last().filter(|_| more).map(|last| last.requested_sequence);
    Ok(Page { promotions, next })
}

pub async fn get(database: &PgPool, id: Uuid) -> Result<Option<Promotion>, Error> {
    sqlx::query_scalar!(r#"select to_jsonb(p) as "row!: Json<Promotion>" from promotions p where id = $1"#, id)
        .fetch_optional(database)
        .await
        .map(|row| row.map(|Json(promotion)| promotion))
        .map_err(Error::during("reading a promotion"))
}

impl Promotion {
    /// None where the event is not a request.
    fn requested(recorded: &Recorded) -> Option<Self> {
        let ((project, stage), event) = fold::of_stage(recorded)?;
        let stage::Event::PromotionRequested { promotion, from, digest, by } = event else { return None };
        Some(Self {
            id: promotion.0,
            project: project.to_owned(),
            stage: stage.to_owned(),
            source: from.to_string(),
            digest: digest.clone(),
            status: Status::Waiting,
            requested_by: by.clone(),
            requested_at: fold::time(recorded),
            approvals: Vec::new(),
            deployment: None,
            gate: None,
            reason: None,
            proof: None,
            decided_by: None,
            decided_at: None,
            requested_sequence: recorded.sequence,
            sequence: recorded.sequence,
        })
    }

    fn apply(&mut self, recorded: &Recorded, event: &stage::Event) {
        use stage::Event;
        match event {
            Event::PromotionApproved { by, role, .. } => {
                self.approvals.push(Approval { by: by.clone(), role: *role });
            }
            Event::PromotionAccepted { deployment, proof, .. } => {
                self.deployment = Some(deployment.0);
                self.proof = Some(proof.clone());
                self.decide(recorded, Status::Accepted);
            }
            Event::PromotionRefused { gate, reason, .. } => {
                self.gate = Some(*gate);
                self.reason = Some(reason.clone());
                self.decide(recorded, Status::Refused);
            }
            Event::PromotionWithdrawn { reason, .. } => {
                self.reason = Some(reason.clone());
                self.decide(recorded, Status::Withdrawn);
            }
            _ => return,
        }
        self.sequence = recorded.sequence;
    }

    fn decide(&mut self, recorded: &Recorded, status: Status) {
        self.status = status;
        self.decided_by = Some(recorded.context.actor.clone());
        self.decided_at = Some(fold::time(recorded));
    }
}

/// The promotion that an event is about.
fn promotion(event: &stage::Event) -> Option<PromotionId> {
    use stage::Event;
    match event {
        Event::PromotionRequested { promotion, .. }
        | Event::PromotionApproved { promotion, .. }
        | Event::PromotionAccepted { promotion, .. }
        | Event::PromotionRefused { promotion, .. }
        | Event::PromotionWithdrawn { promotion, .. } => Some(*promotion),
        _ => None,
    }
}

async fn apply(to: &mut PgConnection, events: &[Recorded]) -> sqlx::Result<()> {
    let ids = fold::keys(events, key);
    if ids.is_empty() {
        return Ok(());
    }
    let mut rows: BTreeMap<Uuid, Promotion> = sqlx::query_scalar!(
        r#"select to_jsonb(p) as "row!: Json<Promotion>" from promotions p where id = any($1)"#,
        &ids
    )
    .fetch_all(&mut *to)
    .await?
    .into_iter()
    .map(|Json(promotion)| (promotion.id, promotion))
    .collect();
    fold(&mut rows, events);
    sqlx::query!(
        "insert into promotions select * from jsonb_populate_recordset(null::promotions, $1::text::jsonb)
         on conflict (id) do update set
            (status, approvals, deployment, gate, reason, proof, decided_by, decided_at, sequence)
            = (excluded.status, excluded.approvals, excluded.deployment, excluded.gate, excluded.reason,
            excluded.proof, excluded.decided_by, excluded.decided_at, excluded.sequence)",
        fold::recordset(rows.values())?
    )
    .execute(to)
    .await?;
    Ok(())
}

pub(crate) fn key(recorded: &Recorded) -> Option<Uuid> {
    fold::of_stage(recorded).and_then(|(_, event)| promotion(event)).map(|id| id.0)
}

pub(crate) fn fold(rows: &mut BTreeMap<Uuid, Promotion>, events: &[Recorded]) {
    for recorded in events {
        if let Some(request) = Promotion::requested(recorded) {
            rows.insert(request.id, request);
        } else if let Some((_, event)) = fold::of_stage(recorded)
            && let Some(row) = promotion(event).and_then(|id| rows.get_mut(&id.0))
        {
            row.apply(recorded, event);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{History, database, writer};

    #[tokio::test]
    async fn a_promotion_is_told_from_its_request_to_its_end() {
        let (_database, pool) = database().await;
        let mut history = History::promoting(2);
        let mut writer = writer(&pool).await;
        history.promote(1, "ada");
        history.approve(1, "bob");
        writer.apply(&history.events).await.expect("applied");
        let waiting = get(&pool, Uuid::from_u128(1)).await.expect("read").expect("it is there");
        assert_eq!((waiting.status, waiting.source.as_str(), waiting.approvals.len()), (Status::Waiting, "dev", 1));
        let filter = Filter { waiting: true, ..Filter::default() };
        assert_eq!(list(&pool, &filter, 10).await.expect("listed").promotions, [waiting]);

        history.approve(1, "carol");
        history.promote(2, "ada");
        writer.apply(&history.events).await.expect("applied");
        let accepted = get(&pool, Uuid::from_u128(1)).await.expect("read").expect("it is there");
        assert_eq!((accepted.status, accepted.approvals.len()), (Status::Accepted, 2));
        assert!(accepted.proof.is_some() && accepted.deployment.is_some());

        let page = list(&pool, &Filter::default(), 1).await.expect("listed");
        assert_eq!(page.promotions[0].id, Uuid::from_u128(2));
        let rest = list(&pool, &Filter { before: page.next, ..Filter::default() }, 1).await.expect("listed");
        assert_eq!((rest.promotions, rest.next), (vec![accepted], None));
    }
}
