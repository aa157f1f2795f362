//! The containers of a release.

use std::collections::HashMap;

use bollard::models::ContainerCreateBody;
use domain::{
    DeploymentId,
    env::{Env, EnvValue, SecretRef},
    stage::{Instance, Spec},
};
use futures::{StreamExt, TryStreamExt, stream};

use super::pull;
use crate::{
    container,
    docker::{Address, EngineError, Hindrance, Network},
    failure::{self, Problem, StepError},
    health,
    job::Job,
    labels::{Labels, container_name},
};

/// Containers that are started at the same time.
const AT_ONCE: usize = 4;

/// Has every container of `set` exist and run.
pub(super) async fn create(job: &Job, set: DeploymentId, spec: &Spec) -> Result<Vec<Instance>, StepError> {
    let image = pull::have_image(job, &spec.image).await?;
    let port = container::choose_port(&spec.settings, &image)?;
    let (owner, project) = (job.node.labels(), &job.place.project);
    let network = job.engine.ensure_network(&owner.network(project), owner.on_network(project)).await?;
    let hash = container::config_hash(spec);

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
                (container::body(owner, &labels, spec, env.clone(), &network.id), address)
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
    health::all_run(job, &containers, "at once").await?;
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
