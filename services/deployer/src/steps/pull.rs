//! The image: on the node, for its platform, and fit for the stage's settings.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use bollard::models::CreateImageInfo;
use domain::image::{Image, Reference, Source};

use crate::{
    container,
    docker::{EngineError, LocalImage, Version},
    failure::{self, Problem, StepError},
    health,
    job::Job,
    resolve,
};

/// Between two lines of progress.
const NEWS: Duration = Duration::from_secs(2);

pub(super) async fn pull(job: &Job) -> Result<(), StepError> {
    let spec = &job.rollout.spec;
    let image = have_image(job, &spec.image).await?;
    // Found out here, before anything that serves is touched.
    let version = job.engine.platform().await?;
    check_platform(&spec.image.requested, &image, &version)?;
    let port = container::choose_port(&spec.settings, &image)?;
    health::choose(&spec.settings.health, &image, port)?;
    Ok(())
}

/// The image as the engine has it, pulled where it does not have it yet.
pub(super) async fn have_image(job: &Job, image: &Image) -> Result<LocalImage, StepError> {
    let pinned = image.pinned();
    if let Some(found) = job.engine.image(&pinned).await? {
        return Ok(found);
    }
    let reference = match image.source {
        Source::Local => {
            return Err(Problem::new(
                "image_not_found",
                format!("the node no longer has the local image {} ({pinned})", image.requested),
                "build or load it on the node again, or push it to a registry, then deploy again",
            )
            .into());
        }
        Source::Registry => Reference::parse(&image.requested)
            .map_err(|error| Problem::new("bad_reference", error.to_string(), "deploy with a valid reference"))?,
    };
    job.note(format!("pulling {pinned}"));
    let credentials = resolve::credentials(&job.node.log, reference.registry()).await?;
    let mut news = News::default();
    let pulled = job
        .engine
        .pull(&reference.repository, &image.digest, credentials, |info| {
            if let Some(line) = news.line(info) {
                job.note(line);
            }
        })
        .await;
    match pulled {
        Ok(()) => {}
        Err(EngineError::Deadline { limit, .. }) => {
            // Either the engine hangs, or it does not and the registry does.
            job.engine.version().await?;
            return Err(failure::registry_silent(&image.requested, reference.registry(), limit).into());
        }
        Err(error) if error.is_transient() => return Err(error.into()),
        Err(error) => return Err(failure::registry(&error, &image.requested, reference.registry()).into()),
    }
    let found = job.engine.image(&pinned).await?;
    let gone = || {
        Problem::new(
            "image_not_found",
            format!("{pinned} was pulled, but the engine does not have it"),
            "another process may have removed it: deploy again",
        )
    };
    Ok(found.ok_or_else(gone)?)
}

/// An image that says nothing of its platform is taken at its word.
fn check_platform(reference: &str, image: &LocalImage, engine: &Version) -> Result<(), Problem> {
    if resolve::runs_on(&image.os, &image.arch, engine) {
        return Ok(());
    }
    Err(resolve::wrong_platform(reference, &[format!("{}/{}", image.os, image.arch)], engine))
}

/// Progress of a pull, as few lines that a person may follow.
#[derive(Default)]
struct News {
    layers: HashMap<String, (i64, i64)>,
    told: Option<Instant>,
}

impl News {
    fn line(&mut self, info: CreateImageInfo) -> Option<String> {
        let (layer, progress) = (info.id?, info.progress_detail?);
        if info.status.as_deref() != Some("Downloading") {
            return None;
        }
        self.layers.insert(layer, (progress.current?, progress.total?));
        if self.told.is_some_and(|told| told.elapsed() < NEWS) {
            return None;
        }
        self.told = Some(Instant::now());
        let (current, total) = self.layers.values().fold((0, 0), |sum, layer| (sum.0 + layer.0, sum.1 + layer.1));
        Some(format!("downloaded {} of {} MiB", current >> 20, total >> 20))
    }
}
