//! Containers: made, started, stopped, watched.

use std::{collections::HashMap, time::Duration};

use bollard::{
    container::LogOutput,
    errors::Error as Cause,
    exec::{CreateExecOptions, StartExecResults},
    models::{
        ContainerCreateBody, ContainerInspectResponse, ContainerSummary, ContainerUpdateBody, EndpointIpamConfig,
        EndpointSettings, EventMessage, NetworkingConfig, RestartPolicy, RestartPolicyNameEnum,
    },
    query_parameters as query,
};
use futures::{Stream, StreamExt, TryStreamExt};

use super::{Address, Engine, EngineError, Network, Result, none_if_missing};
use crate::labels::{Labels, Owner};

/// Between two looks whether a removal that another began has ended.
const REMOVAL: Duration = Duration::from_millis(100);

/// A container of ours, as listed.
#[derive(Debug, Clone)]
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) labels: Labels,
    pub(crate) running: bool,
    /// The reference it was made from.
    pub(crate) image: String,
    ip: Option<String>,
}

impl Container {
    /// `ip:port` at which it is reached while it runs.
    pub(crate) fn address(&self) -> Option<String> {
        Some(format!("{}:{}", self.ip.as_ref()?, self.labels.port?))
    }

    #[cfg(test)]
    pub(crate) fn sample(set: domain::DeploymentId, running: bool) -> Self {
        let name = "dev".parse::<domain::Slug>().expect("a good name");
        let place = crate::Place { project: name.clone(), stage: name };
        let labels = Labels { place, set, replica: 1, config_hash: String::new(), port: None };
        Self { id: set.to_string(), name: "c".into(), labels, running, image: String::new(), ip: None }
    }
}

/// What the engine says of a container that exists.
#[derive(Debug, Clone, Default)]
pub(crate) struct Facts {
    /// The reference it was made from.
    pub(crate) image: String,
    /// What that reference meant.
    pub(crate) image_id: String,
    /// `NAME=value`, those of its image among them.
    pub(crate) env: Vec<String>,
    /// Id and name of each; the id is empty where it never ran.
    pub(crate) networks: Vec<(String, String)>,
    /// Published on the node, as `8080->80/tcp`.
    pub(crate) published: Vec<String>,
    /// Zero where there is no limit.
    pub(crate) memory: i64,
    pub(crate) nano_cpus: i64,
    pub(crate) pids: i64,
}

/// How a container ended.
#[derive(Debug, Clone)]
pub(crate) struct Ended {
    pub(crate) exit_code: i64,
    pub(crate) oom_killed: bool,
    /// Why it could not be started, in the engine's words.
    pub(crate) error: String,
}

impl Engine {
    /// All containers that carry `filter`'s labels and are `owner`'s, by name.
    pub(crate) async fn containers(&self, owner: Owner<'_>, filter: Vec<String>) -> Result<Vec<Container>> {
        let filters = HashMap::from([("label", filter)]);
        let options = query::ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        let found = self
            .call("listing containers".into(), self.limits().quick, |docker| async move {
                docker.list_containers(Some(options)).await
            })
            .await?;
        let mut ours: Vec<_> = found.into_iter().filter_map(|summary| listed(owner, summary)).collect();
        ours.sort_by_key(|container| (container.labels.set, container.labels.replica));
        Ok(ours)
    }

    /// How it ended last; `None` when it does not exist (any more).
    pub(crate) async fn ended(&self, container: &str) -> Result<Option<Ended>> {
        let id = container.to_owned();
        let found = self
            .call(format!("inspecting container {container}"), self.limits().quick, |docker| async move {
                docker.inspect_container(&id, None).await
            })
            .await;
        Ok(none_if_missing(found)?.map(|found| {
            let state = found.state.unwrap_or_default();
            Ended {
                exit_code: state.exit_code.unwrap_or_default(),
                oom_killed: state.oom_killed.unwrap_or_default(),
                error: state.error.unwrap_or_default(),
            }
        }))
    }

    /// `None` when it does not exist (any more).
    pub(crate) async fn facts(&self, container: &str) -> Result<Option<Facts>> {
        let id = container.to_owned();
        let found = self
            .call(format!("inspecting container {container}"), self.limits().quick, |docker| async move {
                docker.inspect_container(&id, None).await
            })
            .await;
        Ok(none_if_missing(found)?.map(facts))
    }

    /// Returns with its exit code when the container does not run (any more); with none when it is gone.
    pub(crate) async fn exited(&self, container: &str) -> Result<Option<i64>> {
        let operation = format!("waiting for container {container}");
        let options = query::WaitContainerOptionsBuilder::default().condition("not-running").build();
        let client = self.client(&operation).await?;
        let mut waiting = std::pin::pin!(client.wait_container(container, Some(options)));
        match waiting.next().await {
            Some(Ok(ended)) => Ok(Some(ended.status_code)),
            Some(Err(Cause::DockerContainerWaitError { code, .. })) => Ok(Some(code)),
            Some(Err(cause)) => none_if_missing(Err(self.error(&operation, cause))),
            // Only an engine that goes away ends the wait without an answer.
            None => Err(self.error(&operation, Cause::RequestTimeoutError)),
        }
    }

    /// On `network`, at `address` for life.
    pub(crate) async fn create(
        &self,
        name: &str,
        mut body: ContainerCreateBody,
        network: &Network,
        address: Option<Address>,
    ) -> Result<()> {
        let options = query::CreateContainerOptionsBuilder::default().name(name).build();
        let told = address
            .as_ref()
            .map(|address| EndpointIpamConfig { ipv4_address: Some(address.ip.to_string()), ..Default::default() });
        let endpoint = EndpointSettings { ipam_config: told, ..Default::default() };
        body.networking_config =
            Some(NetworkingConfig { endpoints_config: Some(HashMap::from([(network.id.clone(), endpoint)])) });
        self.change(format!("creating container {name}"), self.limits().slow, move |docker| async move {
            let made = docker.create_container(Some(options), body).await.map(|_| ());
            // Promised until then, even where the caller did not stay for the answer.
            drop(address);
            made
        })
        .await
    }

    /// Does nothing to one that runs.
    pub(crate) async fn start(&self, container: &str) -> Result<()> {
        let id = container.to_owned();
        self.change(format!("starting container {container}"), self.limits().slow, move |docker| async move {
            docker.start_container(&id, None).await
        })
        .await
    }

    /// Its stop signal, and SIGKILL after `grace`. Does nothing to one that is stopped or gone.
    pub(crate) async fn stop(&self, container: &str, grace: Duration) -> Result<()> {
        let id = container.to_owned();
        // Docker counts in whole seconds; zero would mean SIGKILL at once.
        let seconds = i32::try_from(grace.as_millis().div_ceil(1000)).unwrap_or(i32::MAX);
        let options = query::StopContainerOptionsBuilder::default().t(seconds).build();
        let stopped = self
            .change(format!("stopping container {container}"), grace + self.limits().slow, move |docker| async move {
                docker.stop_container(&id, Some(options)).await
            })
            .await;
        none_if_missing(stopped).map(|_| ())
    }

    /// With its anonymous volumes; returns when it is gone. Does nothing to one that is gone already.
    pub(crate) async fn remove(&self, container: &str) -> Result<()> {
        let id = container.to_owned();
        let options = query::RemoveContainerOptionsBuilder::default().force(true).v(true).build();
        let limit = self.limits().slow;
        let removed = self
            .change(format!("removing container {container}"), limit, move |docker| async move {
                docker.remove_container(&id, Some(options)).await
            })
            .await;
        match removed {
            // Its removal is already under way.
            Err(error) if error.status() == Some(409) => {
                tokio::time::timeout(limit, self.removed(container)).await.unwrap_or_else(|_| {
                    Err(EngineError::Deadline { operation: format!("removing container {container}"), limit })
                })
            }
            other => none_if_missing(other).map(|_| ()),
        }
    }

    async fn removed(&self, container: &str) -> Result<()> {
        while self.ended(container).await?.is_some() {
            tokio::time::sleep(REMOVAL).await;
        }
        Ok(())
    }

    /// Whether the engine starts it again after an exit, and after its own restart.
    pub(crate) async fn set_restart(&self, container: &str, always: bool) -> Result<()> {
        let id = container.to_owned();
        let name = if always { RestartPolicyNameEnum::ALWAYS } else { RestartPolicyNameEnum::NO };
        let policy = RestartPolicy { name: Some(name), maximum_retry_count: None };
        let body = ContainerUpdateBody { restart_policy: Some(policy), ..Default::default() };
        let updated = self
            .change(format!("updating container {container}"), self.limits().quick, move |docker| async move {
                docker.update_container(&id, body).await
            })
            .await;
        match updated {
            // Its removal was begun before, and has failed: it will not be started again.
            Err(EngineError::Refused { message, .. }) if !always && message.contains("marked for removal") => Ok(()),
            other => none_if_missing(other).map(|_| ()),
        }
    }

    /// Runs `command` in a container; its exit code and the end of its output.
    pub(crate) async fn exec(&self, container: &str, command: Vec<String>, limit: Duration) -> Result<(i64, String)> {
        let id = container.to_owned();
        let options = CreateExecOptions {
            cmd: Some(command),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            ..Default::default()
        };
        self.call(format!("running the health check of {container}"), limit, |docker| async move {
            let exec = docker.create_exec(&id, options).await?.id;
            let mut text = Vec::new();
            if let StartExecResults::Attached { mut output, input: _ } = docker.start_exec(&exec, None).await? {
                while let Some(chunk) = output.try_next().await? {
                    text.extend_from_slice(&chunk.into_bytes());
                    // The end tells most; a chatty check must not fill the memory.
                    text.drain(..text.len().saturating_sub(4096));
                }
            }
            let code = docker.inspect_exec(&exec).await?.exit_code.unwrap_or(-1);
            Ok((code, String::from_utf8_lossy(&text).trim().to_owned()))
        })
        .await
    }

    /// Output so far: the last `lines` lines, with the engine's time before each.
    pub(crate) async fn log_tail(&self, container: &str, lines: usize) -> Result<Vec<LogOutput>> {
        let id = container.to_owned();
        let options = query::LogsOptionsBuilder::default().stdout(true).stderr(true).tail(&lines.to_string()).build();
        self.call(format!("reading the output of {container}"), self.limits().quick, |docker| async move {
            docker.logs(&id, Some(options)).try_collect().await
        })
        .await
    }

    /// Output from `since` (Unix seconds) on, as it comes, with the engine's time before each line.
    /// Ends with the container.
    pub(crate) async fn follow_log(
        &self,
        container: &str,
        since: i32,
    ) -> Result<impl Stream<Item = Result<LogOutput>> + use<>> {
        let operation = format!("following the output of {container}");
        let options = query::LogsOptionsBuilder::default()
            .stdout(true)
            .stderr(true)
            .follow(true)
            .timestamps(true)
            .since(since)
            .build();
        let engine = self.clone();
        let output = self.client(&operation).await?.logs(container, Some(options));
        Ok(output.map_err(move |cause| engine.error(&operation, cause)))
    }

    /// What happens to containers with `labels`, from `since` (Unix seconds) on. Ends when the engine does.
    pub(crate) async fn events(
        &self,
        labels: Vec<String>,
        since: i64,
    ) -> Result<impl Stream<Item = Result<EventMessage>> + use<>> {
        let operation = "following the engine's events".to_owned();
        let filters = HashMap::from([
            ("type", vec!["container".to_owned()]),
            ("event", ["start", "die", "oom", "health_status"].map(str::to_owned).to_vec()),
            ("label", labels),
        ]);
        let options = query::EventsOptionsBuilder::default().since(&since.to_string()).filters(&filters).build();
        let engine = self.clone();
        let events = self.client(&operation).await?.events(Some(options));
        Ok(events.map_err(move |cause| engine.error(&operation, cause)))
    }
}

fn facts(found: ContainerInspectResponse) -> Facts {
    let config = found.config.unwrap_or_default();
    let host = found.host_config.unwrap_or_default();
    let networks = found.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
    let bound = host.port_bindings.unwrap_or_default().into_iter().flat_map(|(port, bindings)| {
        let bindings = bindings.unwrap_or_default().into_iter();
        bindings.map(move |binding| format!("{}->{port}", binding.host_port.unwrap_or_default()))
    });
    let mut published: Vec<String> = bound.collect();
    published.sort_unstable();
    Facts {
        image: config.image.unwrap_or_default(),
        image_id: found.image.unwrap_or_default(),
        env: config.env.unwrap_or_default(),
        networks: networks.into_iter().map(|(name, on)| (on.network_id.unwrap_or_default(), name)).collect(),
        published,
        memory: host.memory.unwrap_or_default(),
        nano_cpus: host.nano_cpus.unwrap_or_default(),
        pids: host.pids_limit.unwrap_or_default(),
    }
}

fn listed(owner: Owner<'_>, summary: ContainerSummary) -> Option<Container> {
    let labels = owner.read(&summary.labels?)?;
    let networks = summary.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
    let ip = networks.into_values().find_map(|network| network.ip_address.filter(|ip| !ip.is_empty()));
    Some(Container {
        id: summary.id?,
        name: summary.names?.first()?.trim_start_matches('/').to_owned(),
        running: summary.state.is_some_and(|state| state.to_string() == "running"),
        image: summary.image.unwrap_or_default(),
        labels,
        ip,
    })
}
