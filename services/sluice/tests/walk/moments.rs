//! What happens to deployments, as it happens: every event in the log, and what the engine does between two of them.

use std::{
    collections::HashMap,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use bollard::{
    models::EventMessage,
    query_parameters::{EventsOptionsBuilder, ListContainersOptions},
};
use domain::DeploymentId;
use eventlog::EventLog;
use futures::StreamExt;
use storm::verdict::Sightings;
use tokio::{sync::mpsc::UnboundedSender, task::JoinSet};

/// Between two tries to reach an engine that is away.
const PAUSE: Duration = Duration::from_millis(50);

#[derive(Debug, Clone)]
pub(crate) struct Moment {
    pub(crate) stage: String,
    pub(crate) deployment: DeploymentId,
    pub(crate) what: What,
    pub(crate) at: Instant,
}

#[derive(Debug, Clone)]
pub(crate) enum What {
    /// An event of the deployment, e.g. `created`.
    Event(String),
    /// Something the engine did to a container of it, e.g. `start`.
    Container(String),
}

pub(crate) type Seen = Arc<Mutex<Sightings>>;

/// Watches both until the returned tasks are dropped.
pub(crate) fn watch(log: EventLog, engine: bollard::Docker, to: UnboundedSender<Moment>) -> (JoinSet<()>, Seen) {
    let seen = Seen::default();
    let mut tasks = JoinSet::new();
    tasks.spawn(containers(engine, log.installation().to_string(), seen.clone(), to.clone()));
    tasks.spawn(events(log, to));
    (tasks, seen)
}

async fn events(log: EventLog, to: UnboundedSender<Moment>) {
    let mut events = pin!(log.follow("sluice.events.stage.*.*.deployment.>", 0));
    while let Some(event) = events.next().await {
        let event = event.expect("the log can be read");
        let name = event.kind.strip_prefix("dev.sluice.stage.deployment.").and_then(|kind| kind.strip_suffix(".v1"));
        let body: serde_json::Value = serde_json::from_str(&event.body).expect("an event is JSON");
        let deployment = body["data"]["deployment"].as_str().and_then(|id| id.parse().ok());
        let (Some(name), Some(deployment), Some(stage)) = (name, deployment, event.stage()) else { continue };
        let what = What::Event(name.to_owned());
        // Nobody listens any more at the end of the walk.
        let _ = to.send(Moment { stage: stage.to_owned(), deployment, what, at: Instant::now() });
    }
}

async fn containers(engine: bollard::Docker, installation: String, seen: Seen, to: UnboundedSender<Moment>) {
    let label = vec![format!("dev.sluice.installation={installation}")];
    let actions = ["create", "start", "kill", "die", "destroy"].map(str::to_owned).to_vec();
    loop {
        let filters = HashMap::from([
            ("type", vec!["container".to_owned()]),
            ("event", actions.clone()),
            ("label", label.clone()),
        ]);
        let mut events = engine.events(Some(EventsOptionsBuilder::default().filters(&filters).build()));
        // What was made while the engine or its events were away.
        look(&engine, &label, &seen).await;
        while let Some(Ok(event)) = events.next().await {
            let made = event.action.as_deref() == Some("create");
            if let Some(moment) = moment(event) {
                let _ = to.send(moment);
            }
            if made {
                look(&engine, &label, &seen).await;
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Takes note of the containers that are there now. An engine that is away is asked again later.
async fn look(engine: &bollard::Docker, label: &[String], seen: &Seen) {
    let filters = HashMap::from([("label".to_owned(), label.to_vec())]);
    let all = ListContainersOptions { all: true, filters: Some(filters), ..Default::default() };
    if let Ok(containers) = engine.list_containers(Some(all)).await {
        seen.lock().unwrap_or_else(PoisonError::into_inner).note(containers);
    }
}

fn moment(event: EventMessage) -> Option<Moment> {
    let labels = event.actor?.attributes?;
    let deployment = labels.get("dev.sluice.deployment")?.parse().ok()?;
    let stage = labels.get("dev.sluice.stage")?.clone();
    Some(Moment { stage, deployment, what: What::Container(event.action?), at: Instant::now() })
}
