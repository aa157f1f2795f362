//! Images.

use bollard::{
    auth::DockerCredentials,
    models::{CreateImageInfo, DistributionInspect},
    query_parameters as query,
};
use futures::StreamExt;

use super::{Engine, EngineError, Result, none_if_missing, none_if_used};

/// An image on the engine.
#[derive(Debug, Clone, Default)]
pub(crate) struct LocalImage {
    pub(crate) id: String,
    pub(crate) os: String,
    pub(crate) arch: String,
    /// As in EXPOSE, e.g. `8080/tcp`.
    pub(crate) exposed: Vec<String>,
    /// What its HEALTHCHECK runs, in Docker's form (`CMD`, ...).
    pub(crate) healthcheck: Option<Vec<String>>,
    /// For a HEALTHCHECK in shell form.
    pub(crate) shell: Option<Vec<String>>,
    /// Its own variables, as `NAME=value`.
    pub(crate) env: Vec<String>,
    /// Registries that are known to have it; zero for one that was built or loaded here.
    pub(crate) digests: usize,
}

impl Engine {
    /// `None` when the engine has no such image.
    pub(crate) async fn image(&self, reference: &str) -> Result<Option<LocalImage>> {
        let name = reference.to_owned();
        let found = self
            .call(format!("inspecting image {reference}"), self.limits().quick, |docker| async move {
                docker.inspect_image(&name).await
            })
            .await;
        let Some(image) = none_if_missing(found)? else { return Ok(None) };
        let config = image.config.unwrap_or_default();
        let test = config.healthcheck.and_then(|check| check.test);
        Ok(Some(LocalImage {
            id: image.id.unwrap_or_default(),
            os: image.os.unwrap_or_default(),
            arch: image.architecture.unwrap_or_default(),
            exposed: config.exposed_ports.unwrap_or_default(),
            healthcheck: test.filter(|test| test.first().is_some_and(|kind| kind != "NONE" && !kind.is_empty())),
            shell: config.shell,
            env: config.env.unwrap_or_default(),
            digests: image.repo_digests.map_or(0, |digests| digests.len()),
        }))
    }

    /// Pulls by digest. `progress` hears about every change. Fails with [`EngineError::Deadline`] where nothing was
    /// heard for too long; for the whole there is no deadline but the caller's.
    pub(crate) async fn pull(
        &self,
        repository: &str,
        digest: &str,
        credentials: Option<DockerCredentials>,
        mut progress: impl FnMut(CreateImageInfo),
    ) -> Result<()> {
        let operation = format!("pulling {repository}@{digest}");
        let options = query::CreateImageOptionsBuilder::default().from_image(repository).tag(digest).build();
        let limit = self.limits().pull_silence;
        let client = self.client(&operation).await?.with_timeout(limit + super::LATER);
        let mut pulling = client.create_image(Some(options), None, credentials);
        loop {
            match tokio::time::timeout(limit, pulling.next()).await {
                Ok(Some(info)) => progress(info.map_err(|cause| self.error(&operation, cause))?),
                Ok(None) => return Ok(()),
                // Letting go of the stream ends the engine's own work on it.
                Err(_) => return Err(EngineError::Deadline { operation, limit }),
            }
        }
    }

    /// What the registry says of `reference`.
    pub(crate) async fn distribution(
        &self,
        reference: &str,
        credentials: Option<DockerCredentials>,
    ) -> Result<DistributionInspect> {
        let name = reference.to_owned();
        self.call(format!("asking the registry for {reference}"), self.limits().registry, |docker| async move {
            docker.inspect_registry_image(&name, credentials).await
        })
        .await
    }

    /// Does nothing where it is gone, or where a container of anybody's still uses it.
    pub(crate) async fn remove_image(&self, reference: &str) -> Result<()> {
        let name = reference.to_owned();
        let removed = self
            .change(format!("removing image {reference}"), self.limits().slow, |docker| async move {
                docker.remove_image(&name, None::<query::RemoveImageOptions>, None).await
            })
            .await;
        none_if_used(removed.map(|_| ()))
    }
}
