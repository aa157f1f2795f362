//! The same container by hand: the fewest calls of the Engine API that bring it up and find it healthy.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bollard::{
    models::{ContainerCreateBody, HostConfig, HostConfigLogConfig, NetworkCreateRequest},
    query_parameters as query,
};
use futures::TryStreamExt;
use testkit::Docker;

use super::HEALTH_PATH;

const NETWORK: &str = "sluice-bench-bare";
const CONTAINER: &str = "sluice-bench-bare";
const HEALTHY_LIMIT: Duration = Duration::from_secs(30);
/// Between two probes, as the deployer has it at first.
const PAUSE: Duration = Duration::from_millis(50);

pub(super) struct Bare<'a> {
    docker: &'a Docker,
    http: reqwest::Client,
}

/// How long each call took.
pub(super) struct Brought {
    pub(super) pull: Duration,
    pub(super) create: Duration,
    pub(super) start: Duration,
    /// With the question for the container's address.
    pub(super) healthy: Duration,
}

impl Brought {
    pub(super) fn whole(&self) -> Duration {
        self.pull + self.create + self.start + self.healthy
    }
}

impl Bare<'_> {
    pub(super) async fn start(docker: &Docker) -> Result<Bare<'_>> {
        let request =
            NetworkCreateRequest { name: NETWORK.into(), driver: Some("bridge".into()), ..Default::default() };
        docker.client().create_network(request).await.context("creating a network")?;
        let http = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build()?;
        Ok(Bare { docker, http })
    }

    /// With an image that the engine does not have, neither before nor after.
    pub(super) async fn pull_and_bring_up(&self, image: &str) -> Result<Brought> {
        let began = Instant::now();
        pull_image(self.docker, image).await?;
        let pull = began.elapsed();
        let brought = self.bring_up(image).await?;
        remove_image(self.docker, image).await?;
        Ok(Brought { pull, ..brought })
    }

    pub(super) async fn bring_up(&self, image: &str) -> Result<Brought> {
        let client = self.docker.client();
        let began = Instant::now();
        let options = query::CreateContainerOptionsBuilder::default().name(CONTAINER).build();
        client.create_container(Some(options), body(image)).await.context("creating a container")?;
        let created = Instant::now();
        client.start_container(CONTAINER, None).await.context("starting a container")?;
        let started = Instant::now();
        let address = self.address().await?;
        let url = format!("http://{address}:8080{HEALTH_PATH}");
        while !self.http.get(&url).send().await.is_ok_and(|answer| answer.status().is_success()) {
            ensure!(started.elapsed() < HEALTHY_LIMIT, "the container did not become healthy");
            tokio::time::sleep(PAUSE).await;
        }
        let brought = Brought {
            pull: Duration::ZERO,
            create: created - began,
            start: started - created,
            healthy: started.elapsed(),
        };
        let options = query::RemoveContainerOptionsBuilder::default().force(true).build();
        client.remove_container(CONTAINER, Some(options)).await.context("removing a container")?;
        Ok(brought)
    }

    pub(super) async fn stop(self) -> Result<()> {
        self.docker.client().remove_network(NETWORK).await.context("removing a network")
    }

    async fn address(&self) -> Result<String> {
        let found = self.docker.client().inspect_container(CONTAINER, None).await.context("inspecting a container")?;
        let networks = found.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
        networks.into_values().find_map(|network| network.ip_address).context("a container without an address")
    }
}

async fn pull_image(docker: &Docker, image: &str) -> Result<()> {
    let (repository, tag) = image.rsplit_once(':').context("a reference has a tag")?;
    let options = query::CreateImageOptionsBuilder::default().from_image(repository).tag(tag).build();
    let pulling = docker.client().create_image(Some(options), None, None);
    pulling.try_for_each(async |_| Ok(())).await.with_context(|| format!("pulling {image}"))
}

pub(super) async fn remove_image(docker: &Docker, image: &str) -> Result<()> {
    let options = query::RemoveImageOptionsBuilder::default().force(true).build();
    docker
        .client()
        .remove_image(image, Some(options), None)
        .await
        .map(drop)
        .with_context(|| format!("removing {image}"))
}

/// As the deployer makes them.
fn body(image: &str) -> ContainerCreateBody {
    let log = [("max-size", "10m"), ("max-file", "3")].map(|(name, value)| (name.to_owned(), value.to_owned()));
    ContainerCreateBody {
        image: Some(image.to_owned()),
        host_config: Some(HostConfig {
            network_mode: Some(NETWORK.to_owned()),
            log_config: Some(HostConfigLogConfig { typ: Some("json-file".into()), config: Some(HashMap::from(log)) }),
            security_opt: Some(vec!["no-new-privileges".into()]),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    }
}
