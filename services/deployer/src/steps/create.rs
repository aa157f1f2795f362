//! The containers of a release.

use std::collections::HashMap;

use bollard::models::{ContainerCreateBody, HostConfig, HostConfigLogConfig, RestartPolicy, RestartPolicyNameEnum};
use domain::{
    DeploymentId,
    env::{Env, EnvValue, SecretRef},
    settings::{Check, StageSettings},
    stage::{Instance, Spec},
};
use futures::{StreamExt, TryStreamExt, stream};
use uuid::Uuid;

use super::{Job, pull};
use crate::{
    docker::{Address, EngineError, Hindrance, LocalImage, Network},
    failure::{self, Problem, StepError},
    health,
    labels::{Labels, Owner, container_name},
};

/// Containers that are started at the same time.
const AT_ONCE: usize = 4;

/// Has every container of `set` exist and run.
pub(super) async fn create(job: &Job, set: DeploymentId, spec: &Spec) -> Result<Vec<Instance>, StepError> {
    let image = pull::have_image(job, &spec.image).await?;
    let port = choose_port(&spec.settings, &image)?;
    let (owner, project) = (job.node.labels(), &job.place.project);
    let network = job.engine.ensure_network(&owner.network(project), owner.on_network(project)).await?;
    let hash = config_hash(spec);

    let mut missing: Vec<u16> = (1..=spec.settings.replicas).collect();
    for standing in job.containers(set).await? {
        // Left by an attempt under other settings, or beyond their number: never by this one.
        if standing.labels.config_hash != hash || standing.labels.replica > spec.settings.replicas {
            job.engine.remove(&standing.id).await?;
        } else {
            missing.retain(|replica| *replica != standing.labels.replica);
        }
    }
    let name = |replica| container_name(&job.place, set, replica);
    let names: Vec<String> = missing.iter().map(|replica| name(*replica)).collect();
    let addresses = job.engine.addresses(&network, &names).await?;
    let mut to_make: HashMap<u16, Option<Address>> = missing.into_iter().zip(addresses).collect();

    // What stands already needs no secret any more.
    let env = if to_make.is_empty() { vec![] } else { environment(job, &spec.settings.env).await? };
    let (network, env) = (&network, &env);
    stream::iter(1..=spec.settings.replicas)
        .map(|replica| {
            let name = name(replica);
            let to_make = to_make.remove(&replica).map(|address| {
                let labels = Labels { place: job.place.clone(), set, replica, config_hash: hash.clone(), port };
                (container(owner, &labels, spec, env.clone(), &network.id), address)
            });
            async move {
                if let Some((body, address)) = to_make {
                    make(job, &name, body, network, address).await?;
                }
                start(job, &name).await
            }
        })
        .buffer_unordered(AT_ONCE)
        .try_collect::<()>()
        .await?;

    let containers = job.containers(set).await?;
    for container in &containers {
        if !container.running {
            return Err(health::ended(job, container, None, "at once").await?.into());
        }
    }
    Ok(containers
        .into_iter()
        .map(|container| Instance { address: container.address(), name: container.name, container: container.id })
        .collect())
}

async fn make(
    job: &Job,
    name: &str,
    body: ContainerCreateBody,
    network: &Network,
    address: Option<Address>,
) -> Result<(), StepError> {
    match job.engine.create(name, body, network, address).await {
        Ok(()) => job.note(format!("created container {name}")),
        // It stands already; its name holds the deployment, so it can be no other's.
        Err(error) if error.status() == Some(409) => {}
        // The end of another stage's release took the image along in this moment: the next try pulls it again.
        Err(EngineError::Refused { message, status: 404, .. }) if message.contains("No such image") => {
            return Err(StepError::Transient(failure::start(name, &message)));
        }
        Err(EngineError::Refused { message, .. }) => return Err(failure::start(name, &message).into()),
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

async fn start(job: &Job, name: &str) -> Result<(), StepError> {
    match job.engine.start(name).await {
        Ok(()) => Ok(()),
        // The last container of another stage took the network along in this moment.
        Err(EngineError::Refused { message, status: 404, .. }) if message.contains("network") => {
            job.engine.remove(name).await?;
            Err(StepError::Transient(failure::start(name, &message)))
        }
        // Its name is taken, but it is not there yet: an earlier call of ours is still at work in the engine.
        Err(EngineError::Refused { message, status: 404, .. }) => {
            Err(StepError::Transient(failure::start(name, &message)))
        }
        Err(EngineError::Refused { message, .. }) => match Hindrance::of(&message) {
            Some(hindrance) => {
                job.engine.give_up(name, hindrance).await?;
                Err(StepError::Transient(failure::start(name, &message)))
            }
            None => Err(failure::start(name, &message).into()),
        },
        Err(error) => Err(error.into()),
    }
}

/// The port that answers: the declared one, else the only one that the image exposes. None where the
/// stage needs none.
pub(crate) fn choose_port(settings: &StageSettings, image: &LocalImage) -> Result<Option<u16>, Problem> {
    if settings.port.is_some() {
        return Ok(settings.port);
    }
    let mut exposed: Vec<u16> =
        image.exposed.iter().filter_map(|port| port.strip_suffix("/tcp").unwrap_or(port).parse().ok()).collect();
    exposed.sort_unstable();
    let needed = settings.route.is_some() || matches!(settings.health.check, Check::Http | Check::Tcp);
    match (exposed.as_slice(), needed) {
        ([port], _) => Ok(Some(*port)),
        (_, false) => Ok(None),
        ([], true) => Err(Problem::new(
            "no_port",
            "the image exposes no port, and the stage declares none",
            "set the stage's `port` to the one that the program listens on, or add EXPOSE to the image",
        )),
        (several, true) => {
            let list = several.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
            Err(Problem::new(
                "no_port",
                format!("the image exposes several ports ({list}), and the stage declares none"),
                "set the stage's `port` to the one that takes requests",
            ))
        }
    }
}

/// Tells whether a container would be made the same way again. What only says how it is looked after may change.
pub(crate) fn config_hash(spec: &Spec) -> String {
    let StageSettings { port, env, resources, .. } = &spec.settings;
    // Maps in it are sorted, so equal ones have equal text; it always becomes JSON.
    let text = serde_json::to_vec(&(spec.image.pinned(), port, env, resources)).unwrap_or_default();
    Uuid::new_v5(&Uuid::NAMESPACE_OID, &text).simple().to_string()
}

/// Variables as the engine takes them, with the secrets that the vault keeps.
async fn environment(job: &Job, env: &Env) -> Result<Vec<String>, StepError> {
    let mut variables = Vec::with_capacity(env.len());
    for (name, value) in env {
        let value = match value {
            EnvValue::Plain(text) => text.clone(),
            EnvValue::Secret(reference) => secret(job, name, reference).await?,
        };
        variables.push(format!("{name}={value}"));
    }
    Ok(variables)
}

async fn secret(job: &Job, variable: &str, reference: &SecretRef) -> Result<String, StepError> {
    let SecretRef { secret, version, vault } = reference;
    let kept = match vault {
        Some(vault) => job.node.log.vault().get(vault).await?,
        None => None,
    };
    let value = kept.and_then(|kept| String::from_utf8(kept.expose().to_vec()).ok());
    value.ok_or_else(|| {
        let project = &job.place.project;
        let version = version.map(|version| format!(" (version {version})")).unwrap_or_default();
        let message = format!("the secret `{secret}`{version} for {variable} is not in the vault");
        Problem::new("secret_missing", message, format!("`sluice secret set {project} {secret}`, then deploy again"))
            .into()
    })
}

fn container(owner: Owner<'_>, labels: &Labels, spec: &Spec, env: Vec<String>, network: &str) -> ContainerCreateBody {
    let settings = &spec.settings;
    let resources = &settings.resources;
    let memory = resources.memory.map(|memory| i64::try_from(memory.get()).unwrap_or(i64::MAX));
    // The engine's default may keep nothing that can be read back, or grow until the disk is full.
    let log = [("max-size", "10m"), ("max-file", "3")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    ContainerCreateBody {
        image: Some(spec.image.pinned()),
        env: Some(env),
        labels: Some(owner.on_container(labels)),
        host_config: Some(HostConfig {
            network_mode: Some(network.to_owned()),
            memory,
            // Equal to the memory: no swap beyond the limit.
            memory_swap: memory,
            nano_cpus: resources.cpus.map(|cpus| i64::from(cpus.milli()) * 1_000_000),
            pids_limit: resources.pids.map(i64::from),
            // One that fails must stay down to be seen; once healthy it becomes `always`.
            restart_policy: Some(RestartPolicy { name: Some(RestartPolicyNameEnum::NO), maximum_retry_count: None }),
            log_config: Some(HostConfigLogConfig { typ: Some("json-file".into()), config: Some(HashMap::from(log)) }),
            security_opt: Some(vec!["no-new-privileges".into()]),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    }
}

#[cfg(test)]
mod tests {
    use domain::{
        Bytes, Cpus,
        image::{Image, Source},
        settings::RouteSettings,
    };

    use super::*;
    use crate::Place;

    fn spec() -> Spec {
        let image =
            Image { requested: "r:5000/shop:v1".into(), digest: format!("sha256:{:064}", 1), source: Source::Registry };
        Spec { image, settings: StageSettings::default() }
    }

    fn exposing(ports: &[&str]) -> LocalImage {
        LocalImage { exposed: ports.iter().map(|port| (*port).to_owned()).collect(), ..LocalImage::default() }
    }

    #[test]
    fn the_declared_port_wins_then_the_only_one_exposed() {
        let route = Some(RouteSettings { host: "a.test".into(), path: "/".into(), proxy: None });
        let routed = StageSettings { route, ..StageSettings::default() };
        let declared = StageSettings { port: Some(9000), ..routed.clone() };
        assert_eq!(choose_port(&declared, &exposing(&["80/tcp"])), Ok(Some(9000)));
        assert_eq!(choose_port(&routed, &exposing(&["80/tcp", "53/udp"])), Ok(Some(80)));
        for ports in [&[][..], &["80/tcp", "443/tcp"], &["53/udp"]] {
            assert_eq!(choose_port(&routed, &exposing(ports)).expect_err("no port to take").code, "no_port");
            assert_eq!(choose_port(&StageSettings::default(), &exposing(ports)), Ok(None), "no route, no need");
        }
    }

    #[test]
    fn the_hash_tells_what_would_be_made_otherwise() {
        let hash = |change: fn(&mut Spec)| {
            let mut spec = spec();
            change(&mut spec);
            config_hash(&spec)
        };
        let same = hash(|_| {});
        assert_eq!(hash(|_| {}), same);
        assert_eq!(hash(|spec| (spec.settings.keep, spec.settings.replicas) = (9, 9)), same, "looked after otherwise");
        for other in [
            hash(|spec| drop(spec.settings.env.insert("A".into(), "b".into()))),
            hash(|spec| spec.settings.port = Some(81)),
            hash(|spec| spec.settings.resources.pids = Some(1)),
            hash(|spec| spec.image.digest = format!("sha256:{:064}", 2)),
        ] {
            assert_ne!(other, same);
        }
    }

    #[test]
    fn limits_and_safeguards_reach_the_engine() {
        let mut spec = spec();
        spec.settings.resources.memory = Some(Bytes::new(64 << 20));
        spec.settings.resources.cpus = Some(Cpus::from_milli(500));
        spec.settings.resources.pids = Some(100);
        let place = Place { project: "shop".parse().expect("good"), stage: "dev".parse().expect("good") };
        let labels =
            Labels { place, set: DeploymentId(Uuid::nil()), replica: 1, config_hash: "x".into(), port: Some(80) };
        let owner = Owner { installation: Uuid::nil(), node: "local" };
        let body = container(owner, &labels, &spec, vec!["A=b=c".into()], "net");
        assert_eq!(body.image, Some(format!("r:5000/shop@sha256:{:064}", 1)));
        assert_eq!(body.env, Some(vec!["A=b=c".to_owned()]));
        let host = body.host_config.expect("set");
        assert_eq!((host.memory, host.memory_swap), (Some(64 << 20), Some(64 << 20)));
        assert_eq!((host.nano_cpus, host.pids_limit), (Some(500_000_000), Some(100)));
        assert_eq!(host.security_opt, Some(vec!["no-new-privileges".to_owned()]));
        assert_eq!(host.restart_policy.and_then(|p| p.name), Some(RestartPolicyNameEnum::NO));
        assert!(host.port_bindings.is_none(), "nothing is published on the node");
    }
}
