//! Deployments: one row each, from the request to its end, with every step.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use domain::{
    Recorded,
    image::Image,
    stage::{self, Failure, Kind, Origin, Step},
};
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgPool, types::Json};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{Error, Model, fold, instances::Instance};

pub(crate) const MODEL: Model =
    Model { name: "deployments", fill: None, apply: |to, events| Box::pin(apply(to, events)) };

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Deployment {
    pub id: Uuid,
    pub project: String,
    pub stage: String,
    pub kind: Kind,
    /// Why it was requested.
    pub origin: Origin,
    pub image: Image,
    /// Where it runs.
    pub node: String,
    pub status: Status,
    /// The actor that asked for it.
    pub requested_by: String,
    pub requested_at: DateTime<Utc>,
    /// When its turn came.
    pub dispatched_at: Option<DateTime<Utc>>,
    /// When a worker first took it up.
    pub started_at: Option<DateTime<Utc>>,
    pub ended_at: Option<DateTime<Utc>>,
    /// The worker that took it up last.
    pub worker: Option<String>,
    /// Why it did not succeed.
    pub failure: Option<Failure>,
    pub cancel_reason: Option<String>,
    /// The deployment that took its place in the queue.
    pub superseded_by: Option<Uuid>,
    /// The deployment that serves again.
    pub rolled_back_to: Option<Uuid>,
    /// In the order in which they ended.
    pub steps: Vec<StepRecord>,
    /// Its containers, by name.
    #[serde(default)]
    pub instances: Vec<Instance>,
    /// Position of its request in the log: deployments are listed, and paged, in this order.
    pub requested_sequence: u64,
    /// Of the last event that changed it: whoever follows the log from here misses nothing.
    pub sequence: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    Queued,
    Dispatched,
    Running,
    Cancelling,
    Succeeded,
    Failed,
    RolledBack,
    Cancelled,
    Superseded,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StepRecord {
    pub step: Step,
    pub status: StepStatus,
    /// When it ended.
    pub at: DateTime<Utc>,
    pub elapsed_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StepStatus {
    Done,
    /// The rollout turned back.
    Failed,
    /// It had trouble, and the rollout went on: there was no way back.
    Problem,
}

/// Which deployments to list. The default lists all.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only those of these projects.
    pub within: Option<Vec<String>>,
    pub project: Option<String>,
    pub stage: Option<String>,
    pub status: Option<Status>,
    /// Only those requested before this position in the log: the `next` of the page before.
    pub before: Option<u64>,
}

/// The newest request first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Page {
    pub deployments: Vec<Deployment>,
    /// Give it as `before` to read on; none on the last page.
    pub next: Option<u64>,
}

pub async fn list(database: &PgPool, filter: &Filter, limit: u16) -> Result<Page, Error> {
    let limit = usize::from(limit.max(1));
    let status = filter.status.map(status_name);
    // One more than asked for tells whether there is a next page.
    let rows = sqlx::query_scalar!(
        r#"select to_jsonb(d) || jsonb_build_object('instances', coalesce((select jsonb_agg(to_jsonb(i) order by i.name)
                from instances i where i.deployment = d.id), '[]')) as "row!: Json<Deployment>"
           from deployments d
           where ($1::text is null or project = $1) and ($2::text is null or stage = $2)
             and ($3::text is null or status = $3) and ($4::bigint is null or requested_sequence < $4)
             and ($6::text[] is null or project = any($6))
           order by requested_sequence desc limit $5"#,
        filter.project.as_deref().map(fold::text),
        filter.stage.as_deref().map(fold::text),
        status,
        filter.before.map(u64::cast_signed),
        limit as i64 + 1,
        filter.within.as_deref()
    )
    .fetch_all(database)
    .await
    .map_err(Error::during("listing the deployments"))?;
    let mut deployments = fold::unwrapped(rows);
    let more = deployments.len() > limit;
    deployments.truncate(limit);
    let next = deployments.last().filter(|_| more).map(|last| last.requested_sequence);
    Ok(Page { deployments, next })
}

pub async fn get(database: &PgPool, id: Uuid) -> Result<Option<Deployment>, Error> {
    sqlx::query_scalar!(
        r#"select to_jsonb(d) || jsonb_build_object('instances', coalesce((select jsonb_agg(to_jsonb(i) order by i.name)
                from instances i where i.deployment = d.id), '[]')) as "row!: Json<Deployment>"
           from deployments d where id = $1"#,
        id
    )
    .fetch_optional(database)
    .await
    .map(|row| row.map(|Json(deployment)| deployment))
    .map_err(Error::during("reading a deployment"))
}

fn status_name(status: Status) -> &'static str {
    match status {
        Status::Queued => "queued",
        Status::Dispatched => "dispatched",
        Status::Running => "running",
        Status::Cancelling => "cancelling",
        Status::Succeeded => "succeeded",
        Status::Failed => "failed",
        Status::RolledBack => "rolled_back",
        Status::Cancelled => "cancelled",
        Status::Superseded => "superseded",
    }
}

impl StepRecord {
    fn new(step: Step, done: &stage::StepDone, at: DateTime<Utc>) -> Self {
        let status = if done.problem.is_some() { StepStatus::Problem } else { StepStatus::Done };
        Self { step, status, at, elapsed_ms: done.elapsed_ms, failure: done.problem.clone() }
    }
}

impl Deployment {
    /// None where the event is not a request.
    fn requested(recorded: &Recorded) -> Option<Self> {
        let ((project, stage), event) = fold::of_stage(recorded)?;
        let stage::Event::Requested { deployment, kind, node, spec, origin } = event else { return None };
        Some(Self {
            id: deployment.0,
            project: project.to_owned(),
            stage: stage.to_owned(),
            kind: *kind,
            origin: origin.clone(),
            image: spec.image.clone(),
            node: node.clone(),
            status: Status::Queued,
            requested_by: recorded.context.actor.clone(),
            requested_at: fold::time(recorded),
            dispatched_at: None,
            started_at: None,
            ended_at: None,
            worker: None,
            failure: None,
            cancel_reason: None,
            superseded_by: None,
            rolled_back_to: None,
            steps: Vec::new(),
            instances: Vec::new(),
            requested_sequence: recorded.sequence,
            sequence: recorded.sequence,
        })
    }

    fn apply(&mut self, recorded: &Recorded, event: &stage::Event) {
        use stage::Event;
        let at = fold::time(recorded);
        match event {
            Event::Requested { .. } => {}
            Event::Superseded { by, .. } => {
                self.superseded_by = Some(by.0);
                self.end(Status::Superseded, at);
            }
            Event::Dispatched { node, .. } => {
                self.status = Status::Dispatched;
                self.node.clone_from(node);
                self.dispatched_at = Some(at);
            }
            Event::Started { worker, .. } => {
                if self.status == Status::Dispatched {
                    self.status = Status::Running;
                }
                self.started_at = self.started_at.or(Some(at));
                self.worker = Some(worker.clone());
            }
            Event::Pulled(_)
            | Event::Held(_)
            | Event::Created { .. }
            | Event::Healthy(_)
            | Event::Switched(_)
            | Event::Baked(_)
            | Event::Drained(_)
            | Event::Retired(_)
            | Event::Reheld(_)
            | Event::Discarded(_)
            | Event::Restored(_)
            | Event::Reverted(_) => {
                self.steps.extend(event.step_done().map(|(step, done)| StepRecord::new(step, done, at)))
            }
            Event::StepFailed { elapsed_ms, failure, .. } => {
                self.steps.push(StepRecord {
                    step: failure.step,
                    status: StepStatus::Failed,
                    at,
                    elapsed_ms: *elapsed_ms,
                    failure: Some(failure.clone()),
                });
                self.failure = Some(failure.clone());
            }
            Event::CancelRequested { reason, .. } => {
                self.status = Status::Cancelling;
                self.cancel_reason.clone_from(reason);
            }
            Event::Succeeded { .. } => self.end(Status::Succeeded, at),
            Event::Failed { failure, .. } => {
                self.failure = Some(failure.clone());
                self.end(Status::Failed, at);
            }
            Event::RolledBack { to, failure, .. } => {
                self.failure = Some(failure.clone());
                self.rolled_back_to = Some(to.0);
                self.end(Status::RolledBack, at);
            }
            Event::Cancelled { .. } => self.end(Status::Cancelled, at),
            Event::Locked { .. }
            | Event::Unlocked { .. }
            | Event::PromotionRequested { .. }
            | Event::PromotionApproved { .. }
            | Event::PromotionAccepted { .. }
            | Event::PromotionRefused { .. }
            | Event::PromotionWithdrawn { .. }
            | Event::HoldSet { .. }
            | Event::HoldLifted {}
            | Event::InstanceStarted { .. }
            | Event::InstanceExited { .. }
            | Event::InstanceOomKilled { .. }
            | Event::InstanceHealthChanged { .. }
            | Event::Archived {}
            | Event::Reopened {} => return,
        }
        self.sequence = recorded.sequence;
    }

    fn end(&mut self, status: Status, at: DateTime<Utc>) {
        self.status = status;
        self.ended_at = Some(at);
    }
}

async fn apply(to: &mut PgConnection, events: &[Recorded]) -> sqlx::Result<()> {
    let ids = fold::keys(events, key);
    if ids.is_empty() {
        return Ok(());
    }
    let mut rows: BTreeMap<Uuid, Deployment> = sqlx::query_scalar!(
        r#"select to_jsonb(d) as "row!: Json<Deployment>" from deployments d where id = any($1)"#,
        &ids
    )
    .fetch_all(&mut *to)
    .await?
    .into_iter()
    .map(|Json(deployment)| (deployment.id, deployment))
    .collect();
    fold(&mut rows, events);
    sqlx::query!(
        "insert into deployments select * from jsonb_populate_recordset(null::deployments, $1::text::jsonb)
         on conflict (id) do update set
            (node, status, dispatched_at, started_at, ended_at, worker, failure, cancel_reason, superseded_by,
            rolled_back_to, steps, sequence) = (excluded.node, excluded.status, excluded.dispatched_at,
            excluded.started_at, excluded.ended_at, excluded.worker, excluded.failure, excluded.cancel_reason,
            excluded.superseded_by, excluded.rolled_back_to, excluded.steps, excluded.sequence)",
        fold::recordset(rows.values())?
    )
    .execute(to)
    .await?;
    Ok(())
}

/// The deployment that an event is about.
pub(crate) fn key(recorded: &Recorded) -> Option<Uuid> {
    fold::of_stage(recorded).and_then(|(_, event)| fold::deployment(event)).map(|id| id.0)
}

pub(crate) fn fold(rows: &mut BTreeMap<Uuid, Deployment>, events: &[Recorded]) {
    for recorded in events {
        if let Some(request) = Deployment::requested(recorded) {
            rows.insert(request.id, request);
        } else if let Some((_, event)) = fold::of_stage(recorded)
            && let Some(row) = fold::deployment(event).and_then(|id| rows.get_mut(&id.0))
        {
            row.apply(recorded, event);
        }
    }
}

#[cfg(test)]
mod tests {
    use domain::stage::{Command, Kind};

    use super::*;
    use crate::testing::{History, database, id, writer};

    fn folded(history: &History) -> BTreeMap<u128, Deployment> {
        let mut rows = BTreeMap::new();
        fold(&mut rows, &history.events);
        rows.into_iter().map(|(id, row)| (id.as_u128(), row)).collect()
    }

    fn steps(deployment: &Deployment) -> Vec<(Step, StepStatus)> {
        deployment.steps.iter().map(|record| (record.step, record.status)).collect()
    }

    #[test]
    fn a_deployment_is_told_step_by_step() {
        let history = History::released();
        let row = &folded(&history)[&1];
        assert_eq!((row.status, row.kind, row.node.as_str()), (Status::Succeeded, Kind::Release, "local"));
        assert_eq!((row.project.as_str(), row.stage.as_str(), row.requested_by.as_str()), ("shop", "dev", "admin"));
        assert_eq!(row.worker.as_deref(), Some("w1"));
        let done = [Step::Pull, Step::Create, Step::AwaitHealthy, Step::Retire];
        assert_eq!(steps(row), done.map(|step| (step, StepStatus::Done)));
        assert!(row.started_at > row.dispatched_at && row.ended_at > row.started_at);
        assert_eq!(row.sequence, history.events.len() as u64);
    }

    #[test]
    fn a_failure_names_its_step_and_keeps_the_last_lines() {
        let mut history = History::released();
        history.request("dev", 2);
        history.start("dev", 2);
        history.step("dev", 2);
        history.fail("dev", 2);
        while history.step("dev", 2) {}
        let row = &folded(&history)[&2];
        assert_eq!(row.status, Status::Failed);
        let failure = row.failure.as_ref().expect("it says why");
        assert_eq!((failure.step, failure.log.len()), (Step::Create, 1));
        assert_eq!(
            steps(row),
            [(Step::Pull, StepStatus::Done), (Step::Create, StepStatus::Failed), (Step::Discard, StepStatus::Done)]
        );
    }

    #[test]
    fn the_queue_shows_who_waits_and_who_was_replaced() {
        let mut history = History::released();
        history.request("dev", 2);
        history.request("dev", 3);
        history.request("dev", 4);
        let rows = folded(&history);
        assert_eq!([2, 3, 4].map(|n| rows[&n].status), [Status::Dispatched, Status::Superseded, Status::Queued]);
        assert_eq!(rows[&3].superseded_by, Some(id(4).0));
        history.start("dev", 2);
        history.step("dev", 2);
        history.step("dev", 2);
        history.stage("dev", Command::Cancel { deployment: id(2), reason: Some("a typo".into()) });
        let rows = folded(&history);
        assert_eq!((rows[&2].status, rows[&2].cancel_reason.as_deref()), (Status::Cancelling, Some("a typo")));
    }

    #[tokio::test]
    async fn pages_follow_one_another_without_gap() {
        let (_database, pool) = database().await;
        let mut history = History::released();
        for n in 2..=7 {
            history.deploy(if n % 3 == 0 { "prod" } else { "dev" }, n);
        }
        writer(&pool).await.apply(&history.events).await.expect("applied");

        let mut filter = Filter { stage: Some("dev".into()), ..Filter::default() };
        let mut seen = vec![];
        loop {
            let page = list(&pool, &filter, 2).await.expect("listed");
            seen.extend(page.deployments.iter().map(|deployment| deployment.id.as_u128()));
            let Some(next) = page.next else { break };
            filter.before = Some(next);
        }
        assert_eq!(seen, [7, 5, 4, 2, 1]);
        let failed = Filter { status: Some(Status::Failed), ..Filter::default() };
        assert_eq!(list(&pool, &failed, 10).await.expect("listed"), Page { deployments: vec![], next: None });
    }

    #[tokio::test]
    async fn a_stored_row_is_the_folded_one_with_its_instances() {
        let (_database, pool) = database().await;
        let mut history = History::released();
        history.request("dev", 2);
        history.start("dev", 2);
        history.step("dev", 2);
        history.fail("dev", 2);
        writer(&pool).await.apply(&history.events).await.expect("even a null character in a log line is stored");
        let mut stored = get(&pool, id(2).0).await.expect("read").expect("it is there");
        let log = stored.failure.as_mut().map(|failure| std::mem::take(&mut failure.log));
        assert_eq!(log, Some(vec!["tick\u{fffd}tock".to_owned()]));
        assert_eq!(stored.steps.len(), 2);

        let release = get(&pool, id(1).0).await.expect("read").expect("it is there");
        let names: Vec<&str> = release.instances.iter().map(|instance| instance.name.as_str()).collect();
        assert_eq!(names, ["c1-1", "c1-2"]);
        let folded = Deployment { instances: release.instances.clone(), ..folded(&history)[&1].clone() };
        assert_eq!(release, folded);
        assert_eq!(get(&pool, id(9).0).await.expect("read"), None);
    }
}
