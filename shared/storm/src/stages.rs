//! What is deployed: projects with stages of every sort, and images good and bad.

use anyhow::Result;
use serde::Serialize;
use testkit::{Docker, SampleImage};

/// A stage, in the words of the project file.
#[derive(Debug, Clone, Copy)]
pub struct Stage {
    pub project: &'static str,
    pub stage: &'static str,
    pub strategy: &'static str,
    pub replicas: u16,
    pub queue: &'static str,
    pub bake_ms: u64,
}

pub const STAGES: [Stage; 5] = [
    Stage { project: "shop", stage: "dev", strategy: "blue-green", replicas: 2, queue: "supersede", bake_ms: 0 },
    Stage { project: "shop", stage: "prod", strategy: "blue-green", replicas: 1, queue: "keep", bake_ms: 1_000 },
    Stage { project: "blog", stage: "live", strategy: "recreate", replicas: 1, queue: "keep", bake_ms: 0 },
    Stage { project: "wiki", stage: "main", strategy: "recreate", replicas: 2, queue: "supersede", bake_ms: 1_000 },
    Stage { project: "mail", stage: "prod", strategy: "blue-green", replicas: 1, queue: "keep", bake_ms: 0 },
];

impl Stage {
    pub fn host(&self) -> String {
        format!("{}-{}.test", self.project, self.stage)
    }

    /// `<project>.<stage>`.
    pub fn key(&self) -> String {
        format!("{}.{}", self.project, self.stage)
    }
}

/// A project file for each project.
pub(crate) fn declarations() -> Vec<String> {
    let mut projects: Vec<&str> = STAGES.iter().map(|stage| stage.project).collect();
    projects.dedup();
    projects.into_iter().map(declaration).collect()
}

fn declaration(project: &str) -> String {
    let mut text = format!("project: {project}\nstages:\n");
    for stage in STAGES.iter().filter(|stage| stage.project == project) {
        let Stage { stage: name, strategy, replicas, queue, bake_ms, .. } = stage;
        let (host, key) = (stage.host(), stage.key());
        text += &format!(
            "  {name}:\n    route: {{host: {host}}}\n    strategy: {strategy}\n    replicas: {replicas}\n    queue: {queue}\n    \
             bake: {bake_ms}ms\n    drain: 3s\n    stop_grace: 2s\n    keep: 1\n    env: {{STAGE: {key}}}\n    \
             health: {{check: http, path: /healthz, interval: 250ms, timeout: 2s, retries: 4, start_period: 2s}}\n"
        );
    }
    text
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Image {
    V1,
    V2,
    V3,
    V4,
    /// Comes up after a second and a half.
    Slow,
    /// Never healthy.
    Broken,
    /// Ends as soon as it starts.
    Exits,
    /// Becomes unhealthy while it is watched.
    Flaky,
}

impl Image {
    const ALL: [Image; 8] =
        [Image::V1, Image::V2, Image::V3, Image::V4, Image::Slow, Image::Broken, Image::Exits, Image::Flaky];

    /// How often each is deployed; a flaky one only where it is noticed.
    pub(crate) fn weighted(baked: bool) -> [(Image, u64); 8] {
        Image::ALL.map(|image| {
            let weight = match image {
                Image::V1 | Image::V2 | Image::V3 | Image::V4 => 18,
                Image::Slow | Image::Broken => 9,
                Image::Exits => 5,
                Image::Flaky => {
                    if baked {
                        5
                    } else {
                        0
                    }
                }
            };
            (image, weight)
        })
    }

    pub(crate) fn reference(self) -> String {
        format!("storm:{self:?}").to_lowercase()
    }

    fn sample(self) -> SampleImage {
        let image = SampleImage::new(&format!("{self:?}").to_lowercase());
        match self {
            Image::V1 | Image::V2 | Image::V3 | Image::V4 => image,
            Image::Slow => image.env("START_DELAY_MS", 1_500),
            Image::Broken => image.broken(),
            Image::Exits => image.exits_at_once(),
            Image::Flaky => image.env("UNHEALTHY_AFTER_MS", 800),
        }
    }
}

pub(crate) async fn load_images(docker: &Docker) -> Result<()> {
    for image in Image::ALL {
        image.sample().load(docker, &image.reference()).await?;
    }
    Ok(())
}
