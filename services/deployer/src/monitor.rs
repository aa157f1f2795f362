//! What happens to containers outside of rollouts: recorded as events, and answered where an address
//! changed. Survives the engine.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bollard::models::EventMessage;
use domain::stage::{Command, Observed};
use eventlog::ExecuteError;
use futures::{Stream, StreamExt};
use uuid::Uuid;

use crate::{
    Node,
    docker::EngineError,
    failure::{StepError, chain},
    labels::Labels,
    logs::Followers,
    steps, sweep,
};

/// The engine keeps its last few hundred events: those of a short absence are still there.
const LOOK_BACK: i64 = 600;
/// An engine that hangs does not close its streams.
const HEARTBEAT: Duration = Duration::from_secs(20);
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Never ends.
pub(crate) async fn run(node: Arc<Node>) -> anyhow::Result<()> {
    let mut since = runtime::clock::now().timestamp() - LOOK_BACK;
    let mut followers = Followers::new(node.clone());
    let mut pause = FIRST_PAUSE;
    loop {
        let began = since;
        let Err(error) = session(&node, &mut since, &mut followers).await;
        if pause == FIRST_PAUSE || since != began {
            tracing::warn!(error = chain(&error), "the Docker engine is away; trying again");
            pause = FIRST_PAUSE;
        }
        node.engine.forget();
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Follows the engine until it goes away.
async fn session(
    node: &Arc<Node>,
    since: &mut i64,
    followers: &mut Followers,
) -> Result<std::convert::Infallible, EngineError> {
    node.engine.version().await?;
    let owner = node.labels();
    let mut events = std::pin::pin!(node.engine.events(owner.all(), *since).await?);
    // At once, for what was missed before the events began to flow; later, for what nobody has told.
    let mut sweeps = std::pin::pin!(sweeps(node));
    let mut first = true;
    let mut heartbeat = tokio::time::interval(HEARTBEAT);
    loop {
        tokio::select! {
            Some(()) = sweeps.next() => {
                let containers = node.engine.containers(owner, owner.all()).await?;
                followers.retain(&containers);
                for container in containers.iter().filter(|container| container.running) {
                    if first {
                        // What was followed before may hang with the engine's former self.
                        followers.follow(container).await;
                    } else {
                        followers.keep_following(container).await;
                    }
                }
                first = false;
            }
            event = events.next() => {
                let Some(event) = event.transpose()? else {
                    let message = "the stream ended".into();
                    return Err(EngineError::Refused { operation: "following events".into(), status: 0, message });
                };
                if let Some(time) = event.time {
                    *since = time;
                }
                observe(node, followers, event).await?;
            }
            _ = heartbeat.tick() => { node.engine.version().await?; }
        }
    }
}

/// One item after each sweep; never ends.
fn sweeps(node: &Arc<Node>) -> impl Stream<Item = ()> {
    futures::stream::unfold(Duration::ZERO, async |pause| {
        tokio::time::sleep(pause).await;
        sweep(node).await;
        Some(((), node.deadlines.sweep))
    })
}

/// Until it has come to its end once.
async fn sweep(node: &Arc<Node>) {
    let mut pause = FIRST_PAUSE;
    while let Err(problem) = sweep::node(node).await {
        tracing::warn!(problem = problem.message, "looking after containers was interrupted; trying again");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

async fn observe(node: &Node, followers: &mut Followers, event: EventMessage) -> Result<(), EngineError> {
    let (Some(action), Some(actor)) = (event.action, event.actor) else { return Ok(()) };
    let (Some(id), Some(attributes)) = (actor.id, actor.attributes) else { return Ok(()) };
    let Some(labels) = node.labels().read(&attributes) else { return Ok(()) };
    let Some(name) = attributes.get("name") else { return Ok(()) };
    let observed = if action == "start" {
        let owner = node.labels();
        let listed = node.engine.containers(owner, owner.of_set(&labels.place, labels.set)).await?;
        let container = listed.into_iter().find(|container| container.id == id);
        if let Some(container) = container.as_ref().filter(|container| container.running) {
            followers.follow(container).await;
        }
        Some(Observed::Started { address: container.and_then(|container| container.address()) })
    } else {
        meaning(&action, &attributes)
    };
    let Some(observed) = observed else { return Ok(()) };
    let started = matches!(observed, Observed::Started { .. });
    record(node, &labels, name, observed, command_id(&id, event.time_nano, &action)).await;
    if started {
        match steps::refresh_route(node, &labels.place).await {
            Ok(()) | Err(StepError::Fenced) => {}
            Err(StepError::Transient(problem) | StepError::Failed(problem)) => {
                tracing::warn!(place = %labels.place, problem = problem.message, "a route may have an old address");
            }
        }
    }
    Ok(())
}

/// What an engine's event other than a start says; none for what nobody has to know.
fn meaning(action: &str, attributes: &HashMap<String, String>) -> Option<Observed> {
    match action {
        "die" => {
            Some(Observed::Exited { exit_code: attributes.get("exitCode").and_then(|c| c.parse().ok()).unwrap_or(-1) })
        }
        "oom" => Some(Observed::OomKilled),
        "health_status: healthy" => Some(Observed::HealthChanged { healthy: true }),
        "health_status: unhealthy" => Some(Observed::HealthChanged { healthy: false }),
        _ => None,
    }
}

/// The same event of the engine, told twice, is one command.
fn command_id(container: &str, nanos: Option<i64>, action: &str) -> Uuid {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("{container} {} {action}", nanos.unwrap_or_default()).as_bytes())
}

/// Tries until NATS is back: what was seen is not lost.
async fn record(node: &Node, labels: &Labels, instance: &str, observed: Observed, command_id: Uuid) {
    let context = domain::Context { command_id, correlation_id: command_id, ..node.context() };
    let command = Command::Observe { set: labels.set, instance: instance.to_owned(), observed };
    let mut pause = FIRST_PAUSE;
    loop {
        match node.log.execute(&labels.place.key(), command.clone(), &context).await {
            Ok(_) => return,
            Err(ExecuteError::Conflict | ExecuteError::Log(eventlog::Error::Unavailable { .. })) => {}
            Err(error) => {
                tracing::warn!(error = chain(&error), place = %labels.place, instance, "an observation was not recorded");
                return;
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engines_words_become_observations() {
        let attributes = HashMap::from([("exitCode".to_owned(), "137".to_owned())]);
        assert_eq!(meaning("die", &attributes), Some(Observed::Exited { exit_code: 137 }));
        assert_eq!(meaning("health_status: unhealthy", &attributes), Some(Observed::HealthChanged { healthy: false }));
        assert_eq!(meaning("exec_start: sh", &attributes), None);
    }

    #[test]
    fn an_event_told_twice_is_one_command() {
        assert_eq!(command_id("c", Some(1), "die"), command_id("c", Some(1), "die"));
        assert_ne!(command_id("c", Some(1), "die"), command_id("c", Some(2), "die"));
        assert_ne!(command_id("c", Some(1), "die"), command_id("c", Some(1), "oom"));
    }
}
