//! Instances: the containers of deployments and how they fare.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use domain::{DeploymentId, Recorded, stage};
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, types::Json};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{Model, deployments, fold};

pub(crate) const MODEL: Model =
    Model { name: "instances", fill: None, apply: |to, events| Box::pin(apply(to, events)) };

/// A container of a deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Instance {
    /// Container name, unique on its node.
    pub name: String,
    pub deployment: Uuid,
    pub project: String,
    pub stage: String,
    /// The engine's id; none while only its first signs of life are known.
    pub container: Option<String>,
    /// `ip:port` at which the edge reaches it; none where the stage has no port.
    pub address: Option<String>,
    pub state: State,
    /// None before the first verdict.
    pub healthy: Option<bool>,
    pub exit_code: Option<i64>,
    /// Whether it belongs to the release that serves.
    pub current: bool,
    pub changed_at: DateTime<Utc>,
    /// Of the last event that changed it.
    pub sequence: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = InstanceState)]
pub enum State {
    Running,
    /// It ended by itself.
    Exited,
    /// The kernel ended it at its memory limit.
    OomKilled,
    /// A rollout stopped it; it may have been removed since.
    Stopped,
}

impl Instance {
    fn new(recorded: &Recorded, (project, stage): (&str, &str), deployment: DeploymentId, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            deployment: deployment.0,
            project: project.to_owned(),
            stage: stage.to_owned(),
            container: None,
            address: None,
            state: State::Running,
            healthy: None,
            exit_code: None,
            current: false,
            changed_at: fold::time(recorded),
            sequence: recorded.sequence,
        }
    }
}

/// The instances of one stage that may still change. Some events change one of them, some all of a deployment,
/// and some those of every other deployment.
#[derive(Default)]
pub(crate) struct Rows(pub(crate) BTreeMap<(Uuid, String), Instance>);

impl Rows {
    pub(crate) fn insert(&mut self, row: Instance) {
        self.0.insert((row.deployment, row.name.clone()), row);
    }

    /// The row of one container, which is about to change.
    fn one(&mut self, recorded: &Recorded, of: (&str, &str), deployment: DeploymentId, name: &str) -> &mut Instance {
        let row = self
            .0
            .entry((deployment.0, name.to_owned()))
            .or_insert_with(|| Instance::new(recorded, of, deployment, name));
        row.changed_at = fold::time(recorded);
        row.sequence = recorded.sequence;
        row
    }

    /// Where `change` says that it changed something.
    fn each(&mut self, recorded: &Recorded, change: impl Fn(&mut Instance) -> bool) {
        for row in self.0.values_mut() {
            if change(row) {
                row.changed_at = fold::time(recorded);
                row.sequence = recorded.sequence;
            }
        }
    }

    fn apply(&mut self, recorded: &Recorded, of: (&str, &str), event: &stage::Event) {
        use stage::Event;
        match event {
            Event::Created { step, instances } => {
                for created in instances {
                    let row = self.one(recorded, of, step.deployment, &created.name);
                    // It may have ended before its creation was reported.
                    row.container = Some(created.container.clone());
                    row.address.clone_from(&created.address);
                }
            }
            Event::Healthy(done) => {
                self.each(recorded, |row| row.deployment == done.deployment.0 && set(&mut row.healthy, Some(true)))
            }
            Event::Retired(done) => {
                self.each(recorded, |row| row.deployment != done.deployment.0 && set(&mut row.state, State::Stopped))
            }
            Event::Discarded(done) => {
                self.each(recorded, |row| row.deployment == done.deployment.0 && set(&mut row.state, State::Stopped))
            }
            // The old release's containers, which this deployment had stopped.
            Event::Restored(_) => self.each(recorded, |row| {
                let stopped = row.current && row.state == State::Stopped;
                if stopped {
                    row.state = State::Running;
                    row.exit_code = None;
                }
                stopped
            }),
            Event::Succeeded { deployment } => {
                self.each(recorded, |row| set(&mut row.current, row.deployment == deployment.0));
            }
            Event::InstanceStarted { deployment, instance, address } => {
                let row = self.one(recorded, of, *deployment, instance);
                row.state = State::Running;
                row.address.clone_from(address);
                row.exit_code = None;
                row.healthy = None;
            }
            Event::InstanceExited { deployment, instance, exit_code } => {
                let row = self.one(recorded, of, *deployment, instance);
                row.exit_code = Some(*exit_code);
                match row.state {
                    State::Running => row.state = State::Exited,
                    // An end that was wanted, or that the kernel brought about, is told as such.
                    State::Exited | State::OomKilled | State::Stopped => {}
                }
            }
            Event::InstanceOomKilled { deployment, instance } => {
                self.one(recorded, of, *deployment, instance).state = State::OomKilled;
            }
            Event::InstanceHealthChanged { deployment, instance, healthy } => {
                self.one(recorded, of, *deployment, instance).healthy = Some(*healthy);
            }
            Event::Requested { .. }
            | Event::Superseded { .. }
            | Event::Dispatched { .. }
            | Event::Started { .. }
            | Event::Pulled(_)
            | Event::Held(_)
            | Event::Switched(_)
            | Event::Baked(_)
            | Event::Drained(_)
            | Event::StepFailed { .. }
            | Event::CancelRequested { .. }
            | Event::Reheld(_)
            | Event::Reverted(_)
            | Event::Failed { .. }
            | Event::RolledBack { .. }
            | Event::Cancelled { .. }
            | Event::Locked { .. }
            | Event::Unlocked { .. }
            | Event::PromotionRequested { .. }
            | Event::PromotionApproved { .. }
            | Event::PromotionAccepted { .. }
            | Event::PromotionRefused { .. }
            | Event::PromotionWithdrawn { .. }
            | Event::HoldSet { .. }
            | Event::HoldLifted {}
            | Event::Archived {}
            | Event::Reopened {} => {}
        }
    }
}

/// Whether that is news.
fn set<T: PartialEq>(field: &mut T, value: T) -> bool {
    let news = *field != value;
    *field = value;
    news
}

async fn apply(to: &mut PgConnection, events: &[Recorded]) -> sqlx::Result<()> {
    let (projects, stages): (Vec<String>, Vec<String>) = fold::keys(events, key).into_iter().unzip();
    if projects.is_empty() {
        return Ok(());
    }
    let loaded = sqlx::query_scalar!(
        r#"select to_jsonb(i) as "row!: Json<Instance>" from instances i
           where (project, stage) in (select * from unnest($1::text[], $2::text[])) and (current or state <> 'stopped')
           union
           select to_jsonb(i) from instances i where deployment = any($3)"#,
        &projects,
        &stages,
        &fold::keys(events, deployments::key)
    )
    .fetch_all(&mut *to)
    .await?;
    let mut rows: BTreeMap<(String, String), Rows> = BTreeMap::new();
    for Json(row) in loaded {
        rows.entry((row.project.clone(), row.stage.clone())).or_default().insert(row);
    }
    fold(&mut rows, events);
    let first = events.first().map_or(0, |recorded| recorded.sequence);
    let changed = rows.values().flat_map(|stage| stage.0.values()).filter(|row| row.sequence >= first);
    sqlx::query!(
        "insert into instances select * from jsonb_populate_recordset(null::instances, $1::text::jsonb)
         on conflict (deployment, name) do update set
            (container, address, state, healthy, exit_code, current, changed_at, sequence) = (excluded.container,
            excluded.address, excluded.state, excluded.healthy, excluded.exit_code, excluded.current,
            excluded.changed_at, excluded.sequence)",
        fold::recordset(changed)?
    )
    .execute(to)
    .await?;
    Ok(())
}

/// The stage whose instances an event may change.
pub(crate) fn key(recorded: &Recorded) -> Option<(String, String)> {
    fold::of_stage(recorded).map(|((project, stage), _)| (project.to_owned(), stage.to_owned()))
}

pub(crate) fn fold(rows: &mut BTreeMap<(String, String), Rows>, events: &[Recorded]) {
    for recorded in events {
        if let Some((of @ (project, stage), event)) = fold::of_stage(recorded) {
            rows.entry((project.to_owned(), stage.to_owned())).or_default().apply(recorded, of, event);
        }
    }
}

#[cfg(test)]
mod tests {
    use domain::stage::{Command, Observed};
    use sqlx::PgPool;

    use super::*;
    use crate::testing::{History, database, id, writer};

    fn observe(history: &mut History, deployment: u128, instance: &str, observed: Observed) {
        let (set, instance) = (id(deployment), instance.to_owned());
        history.stage("dev", Command::Observe { set, instance, observed });
    }

    /// Applied one by one, so that every row has been stored and loaded in between.
    async fn stored(history: &History) -> BTreeMap<String, Instance> {
        let (_database, pool) = database().await;
        let mut writer = writer(&pool).await;
        for event in &history.events {
            writer.apply(std::slice::from_ref(event)).await.expect("applied");
        }
        all(&pool).await
    }

    async fn all(pool: &PgPool) -> BTreeMap<String, Instance> {
        let rows: Vec<Json<Instance>> =
            sqlx::query_scalar("select to_jsonb(i) from instances i").fetch_all(pool).await.expect("read");
        fold::unwrapped(rows).into_iter().map(|row| (row.name.clone(), row)).collect()
    }

    #[tokio::test]
    async fn containers_of_a_release_run_and_the_replaced_ones_are_stopped() {
        let mut history = History::released();
        history.deploy("dev", 2);
        let rows = stored(&history).await;
        let old = &rows["c1-1"];
        assert_eq!((old.state, old.current, old.healthy), (State::Stopped, false, Some(true)));
        let new = &rows["c2-2"];
        assert_eq!((new.state, new.current, new.healthy), (State::Running, true, Some(true)));
        assert_eq!(new.address.as_deref(), Some("10.0.0.2:80"));
        assert!(new.container.is_some());
    }

    #[tokio::test]
    async fn a_container_that_ends_before_its_creation_was_reported_stays_ended() {
        let mut history = History::released();
        history.request("dev", 2);
        history.start("dev", 2);
        history.step("dev", 2);
        observe(&mut history, 2, "c2-1", Observed::Started { address: None });
        observe(&mut history, 2, "c2-1", Observed::Exited { exit_code: 3 });
        history.step("dev", 2);
        let rows = stored(&history).await;
        assert_eq!((rows["c2-1"].state, rows["c2-1"].exit_code), (State::Exited, Some(3)));
        assert!(rows["c2-1"].container.is_some());
        assert_eq!(rows["c2-2"].state, State::Running);
    }

    #[tokio::test]
    async fn an_out_of_memory_kill_is_not_taken_for_a_plain_exit_and_a_restart_ends_both() {
        let mut history = History::released();
        observe(&mut history, 1, "c1-1", Observed::HealthChanged { healthy: false });
        observe(&mut history, 1, "c1-1", Observed::OomKilled);
        observe(&mut history, 1, "c1-1", Observed::Exited { exit_code: 137 });
        let row = stored(&history).await.remove("c1-1").expect("it is there");
        assert_eq!((row.state, row.exit_code, row.healthy), (State::OomKilled, Some(137), Some(false)));
        observe(&mut history, 1, "c1-1", Observed::Started { address: Some("10.0.0.7:80".into()) });
        let row = stored(&history).await.remove("c1-1").expect("it is there");
        assert_eq!((row.state, row.exit_code, row.healthy), (State::Running, None, None));
        assert_eq!(row.address.as_deref(), Some("10.0.0.7:80"));
    }

    #[tokio::test]
    async fn a_failed_deployments_containers_are_stopped_and_the_serving_ones_are_not() {
        let mut history = History::released();
        history.request("dev", 2);
        history.start("dev", 2);
        history.step("dev", 2);
        history.step("dev", 2);
        history.fail("dev", 2);
        while history.step("dev", 2) {}
        let rows = stored(&history).await;
        assert_eq!((rows["c2-1"].state, rows["c2-1"].current), (State::Stopped, false));
        assert_eq!((rows["c1-1"].state, rows["c1-1"].current), (State::Running, true));
    }
}
