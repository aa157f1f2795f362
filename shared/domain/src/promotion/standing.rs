//! How a stage stands with what it runs.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use crate::{
    DeploymentId, Event, Recorded, Slug,
    image::Image,
    stage::{self, Stage},
};

/// A stage's release, as a promotion from there sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    pub stage: Slug,
    /// Position of the stage's last event.
    pub position: u64,
    pub image: Image,
    pub deployment: DeploymentId,
    /// Position of the `deployment.succeeded` that made it the current release.
    pub succeeded: u64,
    /// Since when none of its containers was down or unhealthy; none where one is.
    pub healthy_since: Option<DateTime<Utc>>,
    /// What the matter is where it is not healthy.
    pub trouble: String,
}

impl Standing {
    /// Of what `state` has as its current release. `events` are the stage's own up to `position`, at least from the
    /// last `deployment.succeeded` on. None where nothing runs.
    pub fn of<'a>(
        stage: &Slug,
        state: &Stage,
        position: u64,
        events: impl IntoIterator<Item = &'a Recorded>,
    ) -> Option<Self> {
        let current = state.current.as_ref()?;
        let mut events = events.into_iter().filter(|event| event.sequence <= position).skip_while(|event| {
            !matches!(&event.event, Event::Stage(stage::Event::Succeeded { deployment }) if *deployment == current.deployment)
        });
        let success = events.next()?;
        let mut healthy_since = Some(success.context.time);
        let mut troubles = BTreeMap::new();
        for recorded in events {
            let Event::Stage(event) = &recorded.event else { continue };
            let Some((instance, trouble)) = observed(event) else { continue };
            if !current.instances.iter().any(|known| known.name == instance) {
                continue;
            }
            match trouble {
                Some(trouble) => {
                    troubles.insert(instance, trouble);
                    healthy_since = None;
                }
                None => {
                    if troubles.remove(instance).is_some() && troubles.is_empty() {
                        healthy_since = Some(recorded.context.time);
                    }
                }
            }
        }
        let trouble: Vec<String> = troubles.into_iter().map(|(name, trouble)| format!("{name} {trouble}")).collect();
        Some(Self {
            stage: stage.clone(),
            position,
            image: current.spec.image.clone(),
            deployment: current.deployment,
            succeeded: success.sequence,
            healthy_since,
            trouble: trouble.join(", "),
        })
    }
}

/// The container that an event is about, and what is the matter with it.
fn observed(event: &stage::Event) -> Option<(&str, Option<String>)> {
    match event {
        stage::Event::InstanceStarted { instance, .. }
        | stage::Event::InstanceHealthChanged { instance, healthy: true, .. } => Some((instance, None)),
        stage::Event::InstanceHealthChanged { instance, healthy: false, .. } => {
            Some((instance, Some("is unhealthy".into())))
        }
        stage::Event::InstanceExited { instance, exit_code, .. } => {
            Some((instance, Some(format!("exited with {exit_code}"))))
        }
        stage::Event::InstanceOomKilled { instance, .. } => Some((instance, Some("ran out of memory".into()))),
        _ => None,
    }
}
