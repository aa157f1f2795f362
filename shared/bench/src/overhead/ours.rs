//! Deployments through the API, watched through the edge.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bollard::query_parameters as query;
use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use testkit::{Docker, Sluice};

use super::{HEALTH_PATH, HOST};
use crate::{Bench, deployed::Deployed};

const LIMIT: Duration = Duration::from_secs(60);
/// Between two questions which version serves.
const PAUSE: Duration = Duration::from_millis(1);

pub(super) struct Ours<'a> {
    installation: Sluice,
    docker: &'a Docker,
    http: reqwest::Client,
    token: String,
}

/// How long a deployment took.
pub(super) struct Served {
    /// From the request to the 202.
    pub(super) accepted: Duration,
    /// From the 202 to the first answer of the new version.
    pub(super) serves: Duration,
    /// From the 202 to the begin of the first step.
    pub(super) dispatched: Duration,
    pub(super) pull: Duration,
    pub(super) create: Duration,
    pub(super) await_healthy: Duration,
    pub(super) switch: Duration,
    /// From the end of a step to the begin of the next, the first to the fourth together.
    pub(super) between: Duration,
}

impl Ours<'_> {
    pub(super) async fn start<'a>(bench: &Bench, docker: &'a Docker) -> Result<Ours<'a>> {
        let mut installation = Sluice::prepare(&bench.sluice, docker.host())?;
        installation.set("LOG", "error");
        installation.start().await?;
        let stage = |name: &str| {
            format!(
                "  {name}:
    port: 8080
    health: {{ check: http, path: {HEALTH_PATH}, interval: 500ms, start_period: 10s }}
    drain: 500ms
    stop_grace: 1s
    keep: 0
    route: {{ host: {name}.{HOST} }}
"
            )
        };
        let declaration = format!("project: bench\nstages:\n{}{}", stage("present"), stage("pulled"));
        installation.apply(&declaration).await?;
        let token = installation.token("bench").await?;
        let http = reqwest::Client::builder().no_proxy().build()?;
        Ok(Ours { installation, docker, http, token })
    }

    /// Deploys and waits for the end; the stage is idle then, and the engine without what is no longer needed.
    pub(super) async fn deploy(&self, stage: &str, image: &str) -> Result<Served> {
        let before = self.serving(stage).await?;
        let asked = Instant::now();
        let path = format!("projects/bench/stages/{stage}/deployments");
        let answer = self.http.post(self.url(&path)).bearer_auth(&self.token).json(&json!({ "image": image }));
        let answer: Value = answer.send().await?.error_for_status()?.json().await?;
        let (accepted, accepted_at) = (Instant::now(), runtime::clock::now());
        while self.serving(stage).await? == before {
            ensure!(accepted.elapsed() < LIMIT, "the new version does not serve");
            tokio::time::sleep(PAUSE).await;
        }
        let serves = accepted.elapsed();
        let deployed = self.ended(answer["deployment"].as_str().context("a deployment has an id")?).await?;
        self.tidied(stage).await?;
        let [pull, create, await_healthy, switch] =
            ["pull", "create", "await_healthy", "switch"].map(|name| deployed.step(name));
        let steps = [pull?, create?, await_healthy?, switch?];
        let between = steps.windows(2).map(|pair| since(pair[0].at, pair[1].began())).sum();
        let [pull, create, await_healthy, switch] =
            steps.map(|step| Duration::from_secs_f64(step.milliseconds() / 1000.0));
        let dispatched = since(accepted_at, steps[0].began());
        Ok(Served { accepted: accepted - asked, serves, dispatched, pull, create, await_healthy, switch, between })
    }

    /// Does `work` under the same questions that a deployment is watched with, which cost the machine something too.
    pub(super) async fn watching<T>(&self, stage: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
        let watch = async {
            loop {
                self.serving(stage).await?;
                tokio::time::sleep(PAUSE).await;
            }
        };
        tokio::select! { done = work => done, failed = watch => failed }
    }

    pub(super) async fn stop(mut self) -> Result<()> {
        self.installation.run(&["project", "archive", "bench"]).await?;
        self.installation.stop().await
    }

    /// The deployment that answers; none where none does.
    async fn serving(&self, stage: &str) -> Result<Option<String>> {
        let url = format!("http://{}/", self.installation.edge());
        let answer = self.http.get(url).header("host", format!("{stage}.{HOST}")).send().await;
        let answer = answer.context("asking the edge")?;
        let version = answer.headers().get("x-version").and_then(|version| version.to_str().ok()).map(str::to_owned);
        answer.bytes().await.context("asking the edge")?;
        Ok(version)
    }

    async fn ended(&self, deployment: &str) -> Result<Deployed> {
        let began = Instant::now();
        loop {
            let answer = self.http.get(self.url(&format!("deployments/{deployment}"))).bearer_auth(&self.token);
            let answer: Value = answer.send().await?.error_for_status()?.json().await?;
            if answer["ended_at"].is_string() {
                return Deployed::read(&answer);
            }
            ensure!(began.elapsed() < LIMIT, "the deployment does not end: {answer}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until the stage has one container left, and no image but that one's.
    async fn tidied(&self, stage: &str) -> Result<()> {
        let began = Instant::now();
        let label = |name: &str, value: &str| format!("dev.sluice.{name}={value}");
        let filters = HashMap::from([("label", vec![label("project", "bench"), label("stage", stage)])]);
        let options = query::ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        loop {
            let containers = self.docker.client().list_containers(Some(options.clone())).await?;
            let images = self
                .docker
                .client()
                .list_images(Some(query::ListImagesOptionsBuilder::default().digests(true).build()))
                .await?;
            let repository = containers.first().and_then(|container| container.image.as_deref()?.split_once('@'));
            let pulled = repository.map_or(0, |(repository, _)| {
                images.iter().filter(|image| image.repo_digests.iter().any(|one| one.starts_with(repository))).count()
            });
            if containers.len() == 1 && pulled <= 1 {
                return Ok(());
            }
            ensure!(began.elapsed() < LIMIT, "{} containers and {pulled} images stay", containers.len());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}/api/v1/{path}", self.installation.api())
    }
}

fn since(from: DateTime<Utc>, to: DateTime<Utc>) -> Duration {
    (to - from).to_std().unwrap_or_default()
}
