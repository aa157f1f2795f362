//! What stands on the node of a stage, beside what its release says.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use domain::{
    DeploymentId,
    difference::Difference,
    drift::{Found, FoundContainer, spoken},
    env::EnvValue,
    node::{self, Inspect, Inspected},
    stage::{Keep, Release, Stage},
};
use futures::StreamExt;
use serde_json::{Value, json};

use crate::{
    Node, Place,
    container::{choose_port, config_hash},
    docker::{Container, Facts, LocalImage},
    failure::{Problem, StepError},
    resolve::{reply, said},
};

/// Stages that are looked at at the same time; further ones wait.
const AT_ONCE: usize = 8;
/// Who asks waits half a minute.
const ANSWER: Duration = Duration::from_secs(25);
/// Stands for a variable's value on a container: whoever set it may have meant it to be a secret.
const ANOTHER: &str = "another value";

pub(crate) async fn serve(node: Arc<Node>) -> anyhow::Result<()> {
    let asked = node.log.serve(&node::inspect_subject(&node.name)).await?;
    asked
        .for_each_concurrent(AT_ONCE, |request| {
            let node = node.clone();
            async move {
                let answer = answer(&node, &request.payload).await;
                reply(request, serde_json::to_vec(&answer)).await;
            }
        })
        .await;
    Ok(())
}

async fn answer(node: &Node, question: &[u8]) -> Inspected {
    let Inspect { project, stage } = serde_json::from_slice(question)
        .map_err(|error| Problem::new("bad_request", error.to_string(), "ask with {\"project\": .., \"stage\": ..}"))
        .map_err(said)?;
    let place = Place { project, stage };
    let found = tokio::time::timeout(ANSWER, inspect(node, &place)).await;
    let late = || {
        let message = format!("the containers of {place} could not be looked at within {}s", ANSWER.as_secs());
        Problem::new("engine_unavailable", message, "look at the node's load (`docker info`), then try again")
    };
    found.unwrap_or_else(|_| Err(late().into())).map_err(|error| match error {
        StepError::Failed(problem) | StepError::Transient(problem) => said(problem),
        StepError::Fenced => said(Problem::new("internal", "fenced", "try again")),
    })
}

async fn inspect(node: &Node, place: &Place) -> Result<Found, StepError> {
    let loaded = node.log.fold(&place.key()).await?;
    let stage = &loaded.state;
    let owner = node.labels();
    let standing = node.engine.containers(owner, owner.of_stage(place)).await?;
    let Some(current) = &stage.current else {
        return Ok(Found { differences: vec![], containers: strangers(stage, &standing) });
    };
    let expected = Expected::of(node, place, current).await?;
    let mut containers = Vec::new();
    for container in standing.iter().filter(|container| container.labels.set == current.set) {
        // One that went in this moment is counted as missing.
        let Some(facts) = node.engine.facts(&container.id).await? else { continue };
        containers.push(found(stage, container, expected.compare(container, &facts)));
    }
    let wanted = usize::from(current.spec.settings.replicas);
    let running = containers.iter().filter(|container| container.running).count();
    let differences = Difference::between("replicas", Some(json!(wanted)), Some(json!(running))).into_iter().collect();
    containers.extend(strangers(stage, &standing));
    Ok(Found { differences, containers })
}

/// Containers that run and that no release wants to run.
fn strangers(stage: &Stage, standing: &[Container]) -> Vec<FoundContainer> {
    let unwanted = |container: &&Container| match stage.keeps(container.labels.set) {
        Keep::Running | Keep::InProgress => false,
        Keep::Stopped | Keep::Nothing => container.running,
    };
    let told = |container: &Container| {
        let runs = format!("runs for deployment {}, which does not serve", deployment(stage, container));
        found(stage, container, Difference::between("container", None, Some(json!(runs))).into_iter().collect())
    };
    standing.iter().filter(unwanted).map(told).collect()
}

/// The one that runs on it, or did last; where nobody remembers, the one that made it.
fn deployment(stage: &Stage, container: &Container) -> DeploymentId {
    stage.runs_on(container.labels.set).unwrap_or(container.labels.set)
}

fn found(stage: &Stage, container: &Container, differences: Vec<Difference>) -> FoundContainer {
    FoundContainer {
        name: container.name.clone(),
        deployment: deployment(stage, container),
        replica: container.labels.replica,
        running: container.running,
        differences,
    }
}

/// What a release says of each of its containers.
struct Expected {
    config_hash: String,
    /// The reference by digest.
    image: String,
    /// What the engine has under it; none where the image was removed.
    local: Option<LocalImage>,
    port: Option<u16>,
    /// Name and, where it exists, id.
    network: (String, Option<String>),
    env: BTreeMap<String, Variable>,
    memory: i64,
    nano_cpus: i64,
    pids: i64,
}

struct Variable {
    /// None for a secret that the vault has no more.
    value: Option<String>,
    /// As it may be told.
    spoken: String,
}

impl Expected {
    async fn of(node: &Node, place: &Place, release: &Release) -> Result<Self, StepError> {
        let settings = &release.spec.settings;
        let image = release.spec.image.pinned();
        let local = node.engine.image(&image).await?;
        let network = node.labels().network(&place.project);
        let id = node.engine.network(&network).await?.map(|network| network.id);
        let mut env = BTreeMap::new();
        for (name, value) in &settings.env {
            let plain = match value {
                EnvValue::Plain(text) => Some(text.clone()),
                EnvValue::Secret(reference) => match &reference.vault {
                    Some(vault) => {
                        let kept = node.log.vault().get(vault).await?;
                        kept.and_then(|kept| String::from_utf8(kept.expose().to_vec()).ok())
                    }
                    None => None,
                },
            };
            env.insert(name.clone(), Variable { value: plain, spoken: spoken(value) });
        }
        let resources = &settings.resources;
        Ok(Self {
            config_hash: config_hash(&release.spec),
            port: local.as_ref().and_then(|local| choose_port(settings, local).ok().flatten()).or(settings.port),
            image,
            local,
            network: (network, id),
            env,
            memory: resources.memory.map_or(0, |memory| i64::try_from(memory.get()).unwrap_or(i64::MAX)),
            nano_cpus: resources.cpus.map_or(0, |cpus| i64::from(cpus.milli()) * 1_000_000),
            pids: resources.pids.map_or(0, i64::from),
        })
    }

    /// The hash of the specification first: where that is the same, only what was done to the container since can differ.
    fn compare(&self, container: &Container, facts: &Facts) -> Vec<Difference> {
        let hash = Difference::between("config_hash", text(&self.config_hash), text(&container.labels.config_hash));
        let port = Difference::between("port", self.port.map(Value::from), container.labels.port.map(Value::from));
        let published = (!facts.published.is_empty()).then(|| json!(facts.published));
        let limit = |name: &str, wanted: i64, set: i64| {
            let shown = |limit: i64| (limit > 0).then(|| json!(limit));
            Difference::between(format!("resources.{name}"), shown(wanted), shown(set))
        };
        hash.into_iter()
            .chain(self.image(facts))
            .chain(self.environment(facts))
            .chain(port)
            .chain(Difference::between("ports_published", None, published))
            .chain(self.networks(facts))
            .chain(limit("memory_bytes", self.memory, facts.memory))
            .chain(limit("nano_cpus", self.nano_cpus, facts.nano_cpus))
            .chain(limit("pids", self.pids, facts.pids))
            .collect()
    }

    /// The same bytes under another name are the same image.
    fn image(&self, facts: &Facts) -> Option<Difference> {
        let same = match &self.local {
            Some(local) => local.id == facts.image_id,
            None => self.image == facts.image,
        };
        let there = format!("{} ({})", facts.image, facts.image_id);
        (!same).then(|| Difference { field: "image".into(), from: text(&self.image), to: text(&there) })
    }

    fn environment(&self, facts: &Facts) -> Vec<Difference> {
        let split = |line: &String| {
            let (name, value) = line.split_once('=').unwrap_or((line, ""));
            (name.to_owned(), value.to_owned())
        };
        let set: BTreeMap<String, String> = facts.env.iter().map(split).collect();
        let of_image: BTreeMap<String, String> = self.local.iter().flat_map(|local| &local.env).map(split).collect();
        let declared = self.env.iter().filter_map(|(name, wanted)| {
            let there = match set.get(name) {
                None => None,
                Some(there) if wanted.value.as_ref().is_none_or(|value| value == there) => return None,
                Some(_) => text(ANOTHER),
            };
            Difference::between(format!("env.{name}"), text(&wanted.spoken), there)
        });
        // Without its image nobody can say whose these are.
        let known = self.local.is_some();
        let more = set.iter().filter(|(name, _)| known && !self.env.contains_key(*name));
        let more = more.filter_map(|(name, there)| {
            let image = of_image.get(name);
            (image != Some(there)).then(|| Difference {
                field: format!("env.{name}"),
                from: image.and_then(|value| text(value)),
                to: text(ANOTHER),
            })
        });
        let gone = of_image.iter().filter(|(name, _)| !set.contains_key(*name) && !self.env.contains_key(*name));
        let gone = gone.map(|(name, value)| Difference { field: format!("env.{name}"), from: text(value), to: None });
        declared.chain(more).chain(gone).collect()
    }

    fn networks(&self, facts: &Facts) -> Option<Difference> {
        let (name, id) = &self.network;
        let ours = |(on, key): &(String, String)| key == name || id.as_ref().is_some_and(|id| on == id || key == id);
        let mut there: Vec<&str> =
            facts.networks.iter().map(|on| if ours(on) { name.as_str() } else { on.1.as_str() }).collect();
        there.sort_unstable();
        Difference::between("networks", Some(json!([name])), Some(json!(there)))
    }
}

fn text(text: &str) -> Option<Value> {
    Some(json!(text))
}
