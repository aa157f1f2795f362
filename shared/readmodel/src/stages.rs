//! Stages: what serves, what is on its way, what waits, and who has locked it.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use domain::{
    DeploymentId, Event, Recorded,
    image::Image,
    project,
    settings::StageSettings,
    stage::{self, Kind, Step},
};
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgPool, types::Json};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{Error, Model, deployments::Status, fold, instances::Instance};

pub(crate) const MODEL: Model = Model { name: "stages", fill: None, apply: |to, events| Box::pin(apply(to, events)) };

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Stage {
    pub project: String,
    pub stage: String,
    /// As declared now; a release runs under the settings of its own request.
    pub settings: StageSettings,
    pub archived: bool,
    /// What serves.
    pub current: Option<Release>,
    /// What is on its way.
    pub active: Option<Active>,
    /// What waits, in order.
    pub queue: Vec<Queued>,
    pub lock: Option<Lock>,
    /// Keeps automation away.
    pub hold: Option<Hold>,
    /// The promotion that waits for its gates.
    pub promotion: Option<Uuid>,
    /// Containers that serve, are on their way, or ended by themselves; by name.
    #[serde(default)]
    pub instances: Vec<Instance>,
    /// Of the last event that changed it.
    pub sequence: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Release {
    pub deployment: Uuid,
    pub image: Image,
    pub since: DateTime<Utc>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Active {
    pub deployment: Uuid,
    pub kind: Kind,
    pub image: Image,
    pub requested_by: String,
    /// `dispatched`, `running` or `cancelling`.
    pub status: Status,
    /// The last step that was carried out.
    pub step: Option<Step>,
    /// When its turn came.
    pub since: DateTime<Utc>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Queued {
    pub deployment: Uuid,
    pub kind: Kind,
    pub image: Image,
    pub requested_by: String,
    pub requested_at: DateTime<Utc>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Lock {
    pub owner: String,
    pub reason: String,
    pub since: DateTime<Utc>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Hold {
    pub by: String,
    pub reason: String,
    pub since: DateTime<Utc>,
}

/// Of one project, or of all; by name. Archived ones are left out, unless something still serves there.
pub async fn list(database: &PgPool, project: Option<&str>) -> Result<Vec<Stage>, Error> {
    sqlx::query_scalar!(
        r#"select to_jsonb(s) || jsonb_build_object('instances', coalesce((select jsonb_agg(to_jsonb(i) order by i.name)
                from instances i where (i.project, i.stage) = (s.project, s.stage) and (current or state <> 'stopped')),
                '[]')) as "row!: Json<Stage>"
           from stages s
           where ($1::text is null or project = $1) and not (archived and current is null and active is null)
           order by project, stage"#,
        project
    )
    .fetch_all(database)
    .await
    .map(fold::unwrapped)
    .map_err(Error::during("listing the stages"))
}

/// Also finds an archived one.
pub async fn get(database: &PgPool, project: &str, stage: &str) -> Result<Option<Stage>, Error> {
    sqlx::query_scalar!(
        r#"select to_jsonb(s) || jsonb_build_object('instances', coalesce((select jsonb_agg(to_jsonb(i) order by i.name)
                from instances i where (i.project, i.stage) = (s.project, s.stage) and (current or state <> 'stopped')),
                '[]')) as "row!: Json<Stage>"
           from stages s where project = $1 and stage = $2"#,
        project,
        stage
    )
    .fetch_optional(database)
    .await
    .map(|row| row.map(|Json(stage)| stage))
    .map_err(Error::during("reading a stage"))
}

impl Stage {
    fn new((project, stage): (String, String)) -> Self {
        Self {
            project,
            stage,
            settings: StageSettings::default(),
            archived: false,
            current: None,
            active: None,
            queue: Vec::new(),
            lock: None,
            hold: None,
            promotion: None,
            instances: Vec::new(),
            sequence: 0,
        }
    }

    fn declared(&mut self, event: &project::Event) {
        match event {
            project::Event::StageAdded { settings, .. } => {
                self.settings = StageSettings::clone(settings);
                self.archived = false;
            }
            project::Event::StageChanged { settings, .. } => self.settings = StageSettings::clone(settings),
            project::Event::StageArchived { .. } => self.archived = true,
            project::Event::Created { .. }
            | project::Event::Renamed { .. }
            | project::Event::AutoPromotionSwitched { .. }
            | project::Event::EnvChanged { .. }
            | project::Event::SecretSet { .. }
            | project::Event::SecretRemoved { .. }
            | project::Event::Archived {} => {}
        }
    }

    fn apply(&mut self, recorded: &Recorded, event: &stage::Event) {
        use stage::Event;
        let at = fold::time(recorded);
        match event {
            Event::Requested { deployment, kind, spec, .. } => self.queue.push(Queued {
                deployment: deployment.0,
                kind: *kind,
                image: spec.image.clone(),
                requested_by: recorded.context.actor.clone(),
                requested_at: at,
            }),
            Event::Dispatched { deployment, .. } => self.dispatch(deployment.0, at),
            Event::Started { deployment, .. } => self.on_its_way(*deployment, |active| {
                if active.status == Status::Dispatched {
                    active.status = Status::Running;
                }
            }),
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
                if let Some((step, done)) = event.step_done() {
                    self.on_its_way(done.deployment, |active| active.step = Some(step));
                }
            }
            Event::CancelRequested { deployment, .. } => {
                self.on_its_way(*deployment, |active| active.status = Status::Cancelling);
            }
            Event::Succeeded { deployment } => {
                if let Some(active) = self.active.take_if(|active| active.deployment == deployment.0) {
                    self.current = match active.kind {
                        Kind::Release => Some(Release { deployment: deployment.0, image: active.image, since: at }),
                        Kind::Removal => None,
                    };
                }
            }
            Event::Superseded { deployment, .. }
            | Event::Failed { deployment, .. }
            | Event::RolledBack { deployment, .. }
            | Event::Cancelled { deployment } => {
                self.queue.retain(|queued| queued.deployment != deployment.0);
                self.active.take_if(|active| active.deployment == deployment.0);
            }
            Event::Locked { owner, reason } => {
                self.lock = Some(Lock { owner: owner.clone(), reason: reason.clone(), since: at });
            }
            Event::Unlocked { .. } => self.lock = None,
            Event::PromotionRequested { promotion, .. } => self.promotion = Some(promotion.0),
            Event::PromotionAccepted { promotion, .. }
            | Event::PromotionRefused { promotion, .. }
            | Event::PromotionWithdrawn { promotion, .. } => {
                self.promotion.take_if(|waiting| *waiting == promotion.0);
            }
            Event::HoldSet { by, reason } => {
                self.hold = Some(Hold { by: by.clone(), reason: reason.clone(), since: at });
            }
            Event::HoldLifted {} => self.hold = None,
            Event::Archived {} => self.archived = true,
            Event::Reopened {} => self.archived = false,
            Event::StepFailed { .. }
            | Event::PromotionApproved { .. }
            | Event::InstanceStarted { .. }
            | Event::InstanceExited { .. }
            | Event::InstanceOomKilled { .. }
            | Event::InstanceHealthChanged { .. } => {}
        }
    }

    fn dispatch(&mut self, deployment: Uuid, since: DateTime<Utc>) {
        if let Some(at) = self.queue.iter().position(|queued| queued.deployment == deployment) {
            let Queued { deployment, kind, image, requested_by, .. } = self.queue.remove(at);
            let status = Status::Dispatched;
            self.active = Some(Active { deployment, kind, image, requested_by, status, step: None, since });
        }
    }

    fn on_its_way(&mut self, deployment: DeploymentId, change: impl FnOnce(&mut Active)) {
        if let Some(active) = self.active.as_mut().filter(|active| active.deployment == deployment.0) {
            change(active);
        }
    }
}

/// The stage that an event changes.
pub(crate) fn key(recorded: &Recorded) -> Option<(String, String)> {
    let stage = match &recorded.event {
        Event::Project(event) => match event {
            project::Event::StageAdded { stage, .. }
            | project::Event::StageChanged { stage, .. }
            | project::Event::StageArchived { stage } => stage.as_str(),
            project::Event::Created { .. }
            | project::Event::Renamed { .. }
            | project::Event::AutoPromotionSwitched { .. }
            | project::Event::EnvChanged { .. }
            | project::Event::SecretSet { .. }
            | project::Event::SecretRemoved { .. }
            | project::Event::Archived {} => {
                return None;
            }
        },
        Event::Stage(_) => recorded.stage()?,
        Event::Route(_)
        | Event::Registry(_)
        | Event::Token(_)
        | Event::Proxy(_)
        | Event::Hook(_)
        | Event::User(_)
        | Event::Handle(_)
        | Event::Administrators(_)
        | Event::Session(_)
        | Event::Login(_)
        | Event::Sso(_) => return None,
    };
    Some((recorded.project()?.to_owned(), stage.to_owned()))
}

async fn apply(to: &mut PgConnection, events: &[Recorded]) -> sqlx::Result<()> {
    let (projects, stages): (Vec<String>, Vec<String>) = fold::keys(events, key).into_iter().unzip();
    if projects.is_empty() {
        return Ok(());
    }
    let mut rows: BTreeMap<(String, String), Stage> = sqlx::query_scalar!(
        r#"select to_jsonb(s) as "row!: Json<Stage>" from stages s
           where (project, stage) in (select * from unnest($1::text[], $2::text[]))"#,
        &projects,
        &stages
    )
    .fetch_all(&mut *to)
    .await?
    .into_iter()
    .map(|Json(stage)| ((stage.project.clone(), stage.stage.clone()), stage))
    .collect();
    fold(&mut rows, events);
    sqlx::query!(
        "insert into stages select * from jsonb_populate_recordset(null::stages, $1::text::jsonb)
         on conflict (project, stage) do update set
            (settings, archived, current, active, queue, lock, hold, promotion, sequence) = (excluded.settings,
            excluded.archived, excluded.current, excluded.active, excluded.queue, excluded.lock, excluded.hold,
            excluded.promotion, excluded.sequence)",
        fold::recordset(rows.values())?
    )
    .execute(to)
    .await?;
    Ok(())
}

pub(crate) fn fold(rows: &mut BTreeMap<(String, String), Stage>, events: &[Recorded]) {
    for recorded in events {
        let Some(key) = key(recorded) else { continue };
        let row = rows.entry(key).or_insert_with_key(|key| Stage::new(key.clone()));
        match &recorded.event {
            Event::Project(event) => row.declared(event),
            Event::Stage(event) => row.apply(recorded, event),
            Event::Route(_)
            | Event::Registry(_)
            | Event::Token(_)
            | Event::Proxy(_)
            | Event::Hook(_)
            | Event::User(_)
            | Event::Handle(_)
            | Event::Administrators(_)
            | Event::Session(_)
            | Event::Login(_)
            | Event::Sso(_) => {}
        }
        row.sequence = recorded.sequence;
    }
}

#[cfg(test)]
mod tests {
    use domain::stage::Command;
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{History, database, histories, id, images, slug, writer};

    fn folded(history: &History) -> BTreeMap<(String, String), Stage> {
        let mut rows = BTreeMap::new();
        fold(&mut rows, &history.events);
        rows
    }

    fn dev(history: &History) -> Stage {
        folded(history).remove(&("shop".to_owned(), "dev".to_owned())).expect("the stage is there")
    }

    #[test]
    fn a_release_serves_until_the_next_has_succeeded() {
        let mut history = History::released();
        history.request("dev", 2);
        history.start("dev", 2);
        history.step("dev", 2);
        let stage = dev(&history);
        assert_eq!(stage.current.map(|current| current.deployment), Some(id(1).0));
        let active = stage.active.expect("on its way");
        assert_eq!((active.deployment, active.status, active.step), (id(2).0, Status::Running, Some(Step::Pull)));
        while history.step("dev", 2) {}
        let stage = dev(&history);
        assert_eq!(stage.current.map(|current| current.deployment), Some(id(2).0));
        assert_eq!(stage.active, None);
    }

    #[test]
    fn a_lock_names_its_owner_until_it_is_lifted() {
        let mut history = History::released();
        history.stage("dev", Command::Lock { owner: "ada".into(), reason: "freeze".into() });
        let lock = dev(&history).lock.expect("locked");
        assert_eq!((lock.owner.as_str(), lock.reason.as_str()), ("ada", "freeze"));
        history.stage("dev", Command::Unlock { owner: "ada".into(), force: false });
        assert_eq!(dev(&history).lock, None);
    }

    #[test]
    fn an_archived_stage_serves_until_its_removal() {
        let mut history = History::released();
        history.project("shop", project::Command::ArchiveStage { stage: slug("dev") });
        history.stage("dev", Command::Archive { removal: id(2) });
        let stage = dev(&history);
        assert!(stage.archived && stage.current.is_some());
        assert_eq!(stage.active.map(|active| active.kind), Some(Kind::Removal));
        history.start("dev", 2);
        while history.step("dev", 2) {}
        assert_eq!(dev(&history).current, None);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
        /// The row tells what the aggregate that decides believes.
        #[test]
        fn any_history_shows_the_stage_as_it_is(history in histories()) {
            let rows = folded(&history);
            for (key, truth) in &history.stages {
                let row = rows.get(key).cloned().unwrap_or_else(|| Stage::new(key.clone()));
                let shown = |kind, deployment, image: &Image| (deployment, kind, image.clone());
                let current = truth.current.iter().map(|r| (r.deployment, Kind::Release, &r.spec));
                let active = truth.active.iter().map(|r| (r.deployment, r.kind, &r.spec));
                let queue = truth.queue.iter().map(|q| (q.deployment, q.kind, &*q.spec));
                let row_current: Vec<_> =
                    row.current.iter().map(|r| shown(Kind::Release, r.deployment, &r.image)).collect();
                let row_active: Vec<_> = row.active.iter().map(|a| shown(a.kind, a.deployment, &a.image)).collect();
                let row_queue: Vec<_> = row.queue.iter().map(|q| shown(q.kind, q.deployment, &q.image)).collect();
                prop_assert_eq!(row_current, images(current));
                prop_assert_eq!(row_active, images(active));
                prop_assert_eq!(row_queue, images(queue));
                prop_assert_eq!(row.lock.map(|lock| (lock.owner, lock.reason)),
                    truth.lock.clone().map(|lock| (lock.owner, lock.reason)));
                prop_assert_eq!(row.hold.map(|hold| (hold.by, hold.reason)),
                    truth.hold.clone().map(|hold| (hold.by, hold.reason)));
                prop_assert_eq!(row.promotion, truth.promotion.as_ref().map(|waiting| waiting.id.0));
            }
        }
    }

    #[tokio::test]
    async fn the_overview_shows_containers_that_matter() {
        let (_database, pool) = database().await;
        let mut history = History::released();
        history.deploy("dev", 2);
        history.declare("shop", "prod", StageSettings::default());
        history.declare("blog", "dev", StageSettings { replicas: 3, ..StageSettings::default() });
        writer(&pool).await.apply(&history.events).await.expect("applied");

        let all = list(&pool, None).await.expect("listed");
        let names: Vec<_> = all.iter().map(|stage| (stage.project.as_str(), stage.stage.as_str())).collect();
        assert_eq!(names, [("blog", "dev"), ("shop", "dev"), ("shop", "prod")]);
        assert_eq!(all[0].settings.replicas, 3);
        let containers: Vec<_> = all[1].instances.iter().map(|instance| instance.name.as_str()).collect();
        assert_eq!(containers, ["c2-1", "c2-2"]);
        assert_eq!(list(&pool, Some("shop")).await.expect("listed"), all[1..]);
        assert_eq!(get(&pool, "shop", "dev").await.expect("read").as_ref(), Some(&all[1]));
        assert_eq!(get(&pool, "shop", "none").await.expect("read"), None);
    }
}
