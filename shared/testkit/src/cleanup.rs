//! Leaves an engine as it was found.

use std::collections::{BTreeSet, HashMap};

use anyhow::{Context, Result};
use bollard::{
    Docker,
    query_parameters::{
        ListContainersOptions, ListImagesOptions, RemoveContainerOptionsBuilder, RemoveImageOptionsBuilder,
    },
};
use futures::future::join_all;

/// The label on images that are loaded for one test, and so on their containers. Its value tells the tests apart.
pub(crate) const MARK: &str = "dev.sluice.test";

/// Networks that every engine has.
const STANDARD_NETWORKS: [&str; 3] = ["bridge", "host", "none"];

/// Removes the images that are marked with `mark`, their containers, and the networks these were in.
pub(crate) async fn remove_marked(engine: &Docker, mark: &str) -> Result<()> {
    let filters = HashMap::from([("label".to_owned(), vec![format!("{MARK}={mark}")])]);
    let networks = remove_containers(engine, Some(filters.clone())).await?;
    join_all(networks.iter().map(|network| async {
        // One that others are in stays.
        engine.remove_network(network).await.ok()
    }))
    .await;
    let all = ListImagesOptions { all: true, filters: Some(filters), ..Default::default() };
    for image in engine.list_images(Some(all)).await.context("listing the images of a test")? {
        let options = RemoveImageOptionsBuilder::default().force(true).build();
        engine.remove_image(&image.id, Some(options), None).await.context("removing an image of a test")?;
    }
    Ok(())
}

/// Removes all containers that pass `filters`, again and again, for whoever makes them may not have ended yet.
/// Answers the networks they were in.
pub(crate) async fn remove_containers(
    engine: &Docker,
    filters: Option<HashMap<String, Vec<String>>>,
) -> Result<BTreeSet<String>> {
    let mut networks = BTreeSet::new();
    loop {
        let all = ListContainersOptions { all: true, filters: filters.clone(), ..Default::default() };
        let containers = engine.list_containers(Some(all)).await.context("listing the containers of a test")?;
        if containers.is_empty() {
            return Ok(networks);
        }
        let mut ids = Vec::new();
        for container in containers {
            let joined = container.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
            networks.extend(joined.into_keys().filter(|name| !STANDARD_NETWORKS.contains(&name.as_str())));
            ids.extend(container.id);
        }
        join_all(ids.iter().map(|id| async move {
            let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
            // One that resists is tried again.
            engine.remove_container(id, Some(options)).await.ok()
        }))
        .await;
    }
}
