//! Every read model in memory, by the same folds: for comparisons, not for use. It grows without bound.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use domain::Recorded;
use serde::Serialize;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    deployments::{self, Deployment},
    fold,
    hooks::{self, Hook},
    instances::{self, Instance, State},
    projects::{self, Project},
    promotions::{self, Promotion},
    proxies::{self, Proxy},
    registries::{self, Registry},
    sessions::{self, Session},
    stages::{self, Stage},
    tokens::{self, Token},
    users::{self, User},
};

#[derive(Default)]
pub struct ReadModels {
    projects: BTreeMap<String, Project>,
    stages: BTreeMap<(String, String), Stage>,
    deployments: BTreeMap<Uuid, Deployment>,
    promotions: BTreeMap<Uuid, Promotion>,
    registries: BTreeMap<String, Registry>,
    proxies: BTreeMap<String, Proxy>,
    tokens: BTreeMap<Uuid, Token>,
    users: BTreeMap<Uuid, User>,
    sessions: BTreeMap<Uuid, Session>,
    hooks: BTreeMap<String, Hook>,
    instances: BTreeMap<(String, String), instances::Rows>,
    /// Instances that only an event about their own deployment can change.
    history: HashMap<Uuid, Vec<Instance>>,
}

impl ReadModels {
    /// Folds `events` in. Gives the rows that changed, by table, as they are now.
    pub fn apply(&mut self, events: &[Recorded]) -> serde_json::Result<Vec<(&'static str, Vec<Value>)>> {
        let first = events.first().map_or(0, |recorded| recorded.sequence);
        projects::fold(&mut self.projects, events);
        stages::fold(&mut self.stages, events);
        deployments::fold(&mut self.deployments, events);
        promotions::fold(&mut self.promotions, events);
        registries::fold(&mut self.registries, events);
        proxies::fold(&mut self.proxies, events);
        tokens::fold(&mut self.tokens, events);
        users::fold(&mut self.users, events);
        sessions::fold(&mut self.sessions, events);
        hooks::fold(&mut self.hooks, events);
        let instances = self.instances(events, first);
        Ok(vec![
            ("projects", changed(&self.projects, events, projects::key, |row| row.sequence >= first)?),
            ("stages", changed(&self.stages, events, stages::key, |row| row.sequence >= first)?),
            ("deployments", changed(&self.deployments, events, deployments::key, |row| row.sequence >= first)?),
            ("promotions", changed(&self.promotions, events, promotions::key, |row| row.sequence >= first)?),
            ("instances", rows(instances.iter())?),
            ("registries", changed(&self.registries, events, registries::key, |row| row.sequence >= first)?),
            ("proxies", changed(&self.proxies, events, proxies::key, |row| row.sequence >= first)?),
            ("tokens", changed(&self.tokens, events, tokens::key, |row| row.sequence >= first)?),
            ("users", changed(&self.users, events, users::key, |row| row.sequence >= first)?),
            ("sessions", changed(&self.sessions, events, sessions::key, |row| row.sequence >= first)?),
            ("hooks", changed(&self.hooks, events, hooks::key, |row| row.sequence >= first)?),
            ("events", events.iter().map(event).collect::<Result<_, _>>()?),
        ])
    }

    fn instances(&mut self, events: &[Recorded], first: u64) -> Vec<Instance> {
        for deployment in fold::keys(events, deployments::key) {
            for instance in self.history.remove(&deployment).unwrap_or_default() {
                let stage = (instance.project.clone(), instance.stage.clone());
                self.instances.entry(stage).or_default().insert(instance);
            }
        }
        instances::fold(&mut self.instances, events);
        let mut changed = vec![];
        for stage in fold::keys(events, instances::key) {
            let rows = self.instances.entry(stage).or_default();
            changed.extend(rows.0.values().filter(|row| row.sequence >= first).cloned());
            let gone = rows.0.extract_if(.., |_, row| !row.current && row.state == State::Stopped);
            for ((deployment, _), row) in gone {
                self.history.entry(deployment).or_default().push(row);
            }
        }
        changed
    }
}

fn changed<K: Ord, R: Serialize>(
    all: &BTreeMap<K, R>,
    events: &[Recorded],
    key: impl Fn(&Recorded) -> Option<K>,
    is_new: impl Fn(&R) -> bool,
) -> serde_json::Result<Vec<Value>> {
    let keys: BTreeSet<K> = events.iter().filter_map(key).collect();
    rows(keys.iter().filter_map(|key| all.get(key)).filter(|row| is_new(row)))
}

fn rows<R: Serialize>(rows: impl Iterator<Item = R>) -> serde_json::Result<Vec<Value>> {
    rows.map(|row| {
        let text = serde_json::to_string(&row)?;
        serde_json::from_str(&fold::storable(&text))
    })
    .collect()
}

fn event(recorded: &Recorded) -> serde_json::Result<Value> {
    Ok(json!({
        "sequence": recorded.sequence, "id": recorded.id, "time": fold::time(recorded), "subject": recorded.subject,
        "type": recorded.kind, "project": recorded.project(), "stage": recorded.stage(),
        "actor": fold::text(&recorded.context.actor), "correlation_id": recorded.context.correlation_id,
        "event": fold::storable(&recorded.body),
    }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sqlx::AssertSqlSafe;

    use super::*;
    use crate::testing::{database, histories, writer};

    proptest! {
        #![proptest_config(ProptestConfig { cases: 8, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn the_rows_are_those_of_the_database(history in histories(), size in 1..40_usize) {
            let runtime = tokio::runtime::Runtime::new().expect("a runtime");
            runtime.block_on(async {
                let (_database, pool) = database().await;
                writer(&pool).await.apply(&history.events).await.expect("applied");
                let mut models = ReadModels::default();
                let mut latest: BTreeMap<&str, BTreeMap<String, Value>> = BTreeMap::new();
                for batch in history.events.chunks(size) {
                    for (table, rows) in models.apply(batch).expect("they encode") {
                        for row in rows {
                            latest.entry(table).or_default().insert(id(table, &row), row);
                        }
                    }
                }
                for (table, rows) in latest {
                    let read = format!("select to_jsonb(t) from {table} t");
                    let stored: Vec<Value> =
                        sqlx::query_scalar(AssertSqlSafe(read)).fetch_all(&pool).await.expect("read");
                    assert_eq!(stored.len(), rows.len(), "{table}");
                    for row in stored {
                        let ours = &rows[&id(table, &row)];
                        assert_eq!(row["sequence"], ours["sequence"], "{table}");
                        assert_eq!(row["status"], ours["status"], "{table}");
                        assert_eq!(row["state"], ours["state"], "{table}");
                    }
                }
            });
        }
    }

    fn id(table: &str, row: &Value) -> String {
        let columns: &[&str] = match table {
            "projects" => &["slug"],
            "stages" => &["project", "stage"],
            "deployments" | "promotions" | "tokens" | "users" | "sessions" => &["id"],
            "instances" => &["deployment", "name"],
            "registries" => &["host"],
            "hooks" => &["name"],
            "proxies" => &["name"],
            "events" => &["sequence"],
            other => panic!("{other} is new: say here what its key is"),
        };
        columns.iter().map(|column| row[column].to_string()).collect::<Vec<_>>().join(" ")
    }
}
