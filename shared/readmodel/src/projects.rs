//! Projects, as declared.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use domain::{Event, Recorded, env::Env, project, settings::StageSettings};
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgPool, types::Json};
use utoipa::ToSchema;

use crate::{Error, Model, fold};

pub(crate) const MODEL: Model = Model { name: "projects", fill: None, apply: |to, events| Box::pin(apply(to, events)) };

/// A project and what it declares for its stages. What runs on them is in [`crate::stages`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Project {
    pub slug: String,
    /// For people.
    pub name: String,
    pub archived: bool,
    /// Whether stages take what their source runs by themselves.
    pub auto_promote: bool,
    /// Variables of all stages, which may set them otherwise.
    #[schema(value_type = BTreeMap<String, domain::env::EnvValue>)]
    pub env: Env,
    /// By name; never with their values.
    pub secrets: BTreeMap<String, Secret>,
    /// By name; archived stages are left out.
    pub stages: BTreeMap<String, StageSettings>,
    pub created_at: DateTime<Utc>,
    pub changed_at: DateTime<Utc>,
    /// Of the last event that changed it.
    pub sequence: u64,
}

/// The newest value of a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Secret {
    /// 1, 2, 3, ...
    pub version: u64,
    pub set_by: String,
    pub set_at: DateTime<Utc>,
}

/// By slug. Archived ones are left out unless asked for.
pub async fn list(database: &PgPool, archived: bool) -> Result<Vec<Project>, Error> {
    sqlx::query_scalar!(
        r#"select to_jsonb(p) as "row!: Json<Project>" from projects p where $1 or not archived order by slug"#,
        archived
    )
    .fetch_all(database)
    .await
    .map(fold::unwrapped)
    .map_err(Error::during("listing the projects"))
}

/// Also finds an archived one.
pub async fn get(database: &PgPool, slug: &str) -> Result<Option<Project>, Error> {
    sqlx::query_scalar!(r#"select to_jsonb(p) as "row!: Json<Project>" from projects p where slug = $1"#, slug)
        .fetch_optional(database)
        .await
        .map(|row| row.map(|Json(project)| project))
        .map_err(Error::during("reading a project"))
}

impl Project {
    fn new(slug: String, event: &Recorded) -> Self {
        let at = fold::time(event);
        Self {
            name: slug.clone(),
            slug,
            archived: false,
            auto_promote: false,
            env: Env::new(),
            secrets: BTreeMap::new(),
            stages: BTreeMap::new(),
            created_at: at,
            changed_at: at,
            sequence: event.sequence,
        }
    }

    fn apply(&mut self, recorded: &Recorded, event: &project::Event) {
        match event {
            project::Event::Created { name } | project::Event::Renamed { name } => self.name.clone_from(name),
            project::Event::Archived {} => self.archived = true,
            project::Event::AutoPromotionSwitched { on } => self.auto_promote = *on,
            project::Event::EnvChanged { env } => self.env = env.clone(),
            project::Event::SecretSet { name, version, .. } => {
                let (set_by, set_at) = (recorded.context.actor.clone(), fold::time(recorded));
                self.secrets.insert(name.clone(), Secret { version: *version, set_by, set_at });
            }
            project::Event::SecretRemoved { name } => {
                self.secrets.remove(name);
            }
            project::Event::StageAdded { stage, settings } | project::Event::StageChanged { stage, settings } => {
                self.stages.insert(stage.to_string(), StageSettings::clone(settings));
            }
            project::Event::StageArchived { stage } => {
                self.stages.remove(stage.as_str());
            }
        }
        self.changed_at = fold::time(recorded);
        self.sequence = recorded.sequence;
    }
}

fn of_project(recorded: &Recorded) -> Option<(&str, &project::Event)> {
    let Event::Project(event) = &recorded.event else { return None };
    Some((recorded.project()?, event))
}

async fn apply(to: &mut PgConnection, events: &[Recorded]) -> sqlx::Result<()> {
    let slugs = fold::keys(events, key);
    if slugs.is_empty() {
        return Ok(());
    }
    let mut rows: BTreeMap<String, Project> = sqlx::query_scalar!(
        r#"select to_jsonb(p) as "row!: Json<Project>" from projects p where slug = any($1)"#,
        &slugs
    )
    .fetch_all(&mut *to)
    .await?
    .into_iter()
    .map(|Json(project)| (project.slug.clone(), project))
    .collect();
    fold(&mut rows, events);
    sqlx::query!(
        "insert into projects select * from jsonb_populate_recordset(null::projects, $1::text::jsonb)
         on conflict (slug) do update set
            (name, archived, auto_promote, env, secrets, stages, created_at, changed_at, sequence) = (excluded.name,
            excluded.archived, excluded.auto_promote, excluded.env, excluded.secrets, excluded.stages,
            excluded.created_at, excluded.changed_at, excluded.sequence)",
        fold::recordset(rows.values())?
    )
    .execute(to)
    .await?;
    Ok(())
}

pub(crate) fn key(recorded: &Recorded) -> Option<String> {
    of_project(recorded).map(|(slug, _)| slug.to_owned())
}

pub(crate) fn fold(rows: &mut BTreeMap<String, Project>, events: &[Recorded]) {
    for recorded in events {
        if let Some((slug, event)) = of_project(recorded) {
            let row = rows.entry(slug.to_owned()).or_insert_with(|| Project::new(slug.to_owned(), recorded));
            row.apply(recorded, event);
        }
    }
}

#[cfg(test)]
mod tests {
    use domain::project::{Command, Declaration};

    use super::*;
    use crate::testing::{History, database, slug, writer};

    #[tokio::test]
    async fn a_project_is_shown_as_last_declared() {
        let (_database, pool) = database().await;
        let mut history = History::default();
        history.declare("shop", "dev", StageSettings::default());
        history.declare("shop", "prod", StageSettings { replicas: 2, ..StageSettings::default() });
        history.declare("shop", "dev", StageSettings { replicas: 3, ..StageSettings::default() });
        let mut writer = writer(&pool).await;
        writer.apply(&history.events).await.expect("applied");
        let shop = get(&pool, "shop").await.expect("read").expect("it is there");
        let replicas: Vec<_> = shop.stages.iter().map(|(name, stage)| (name.as_str(), stage.replicas)).collect();
        assert_eq!(replicas, [("dev", 3), ("prod", 2)]);
        assert_eq!((shop.name.as_str(), shop.sequence), ("shop", 4));

        history.project("shop", Command::ArchiveStage { stage: slug("dev") });
        history.declare("blog", "dev", StageSettings::default());
        history.project("blog", Command::Archive);
        writer.apply(&history.events).await.expect("applied");
        let listed = list(&pool, false).await.expect("listed");
        assert_eq!(listed.iter().map(|p| (p.slug.as_str(), p.stages.len())).collect::<Vec<_>>(), [("shop", 1)]);
        assert_eq!(list(&pool, true).await.expect("listed").len(), 2);
        assert!(get(&pool, "blog").await.expect("read").expect("it is there").archived);
        assert_eq!(get(&pool, "none").await.expect("read"), None);
    }

    #[tokio::test]
    async fn secrets_are_shown_by_version_and_never_where_they_lie() {
        let (_database, pool) = database().await;
        let mut history = History::default();
        let declare = |env: Env| Command::Apply {
            slug: slug("shop"),
            declaration: Declaration { auto_promote: Some(true), env: Some(env), ..Declaration::default() },
            prune: false,
        };
        history.project("shop", declare(Env::from([("A".into(), "x".into())])));
        for vault in ["hidden-1", "hidden-2"] {
            history.project("shop", Command::SetSecret { name: "db".into(), vault: vault.into() });
        }
        let mut writer = writer(&pool).await;
        writer.apply(&history.events).await.expect("applied");
        let shop = get(&pool, "shop").await.expect("read").expect("it is there");
        assert_eq!((shop.auto_promote, &shop.env["A"], shop.secrets["db"].version), (true, &"x".into(), 2));
        assert!(!format!("{shop:?}").contains("hidden"));

        history.project("shop", Command::RemoveSecret { name: "db".into() });
        history.project("shop", declare(Env::new()));
        writer.apply(&history.events).await.expect("applied");
        let shop = get(&pool, "shop").await.expect("read").expect("it is there");
        assert!(shop.secrets.is_empty() && shop.env.is_empty());
    }
}
