//! Images of the sample application, FROM scratch, handed to the engine in its archive format.

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::{Context, Result, bail};
use bollard::{
    body_full,
    query_parameters::{ImportImageOptionsBuilder, UploadToContainerOptionsBuilder},
};
use futures::TryStreamExt;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{cleanup::MARK, docker::Docker, process::workspace};

const PROGRAM: &str = "sample-app";

/// An image of the sample application, to be described and then [loaded](SampleImage::load). The application's
/// behaviour is set by environment variables, listed at the head of `bin/sample-app.rs`.
#[derive(Clone)]
pub struct SampleImage {
    environment: BTreeMap<String, String>,
    exposed_port: Option<u16>,
    healthcheck: bool,
    architecture: String,
    /// Mebibytes that cannot be compressed.
    ballast: usize,
}

impl SampleImage {
    /// Port 8080 exposed, no HEALTHCHECK, this machine's architecture. `version` is what it says of itself.
    pub fn new(version: &str) -> SampleImage {
        SampleImage {
            environment: BTreeMap::from([("VERSION".into(), version.into())]),
            exposed_port: Some(8080),
            healthcheck: false,
            architecture: if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }.into(),
            ballast: 0,
        }
    }

    /// Sets one of the application's environment variables.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl ToString) -> SampleImage {
        self.environment.insert(name.into(), value.to_string());
        self
    }

    /// Listens at once, but answers its health check with 500.
    #[must_use]
    pub fn broken(self) -> SampleImage {
        self.env("HEALTH_STATUS", 500)
    }

    /// Ends with exit code 3 and a line on stderr before it listens.
    #[must_use]
    pub fn exits_at_once(self) -> SampleImage {
        self.env("START_DELAY_MS", 60_000).env("EXIT_AFTER_MS", 0).env("EXIT_CODE", 3)
    }

    /// An image without EXPOSE. It listens on 8080 all the same.
    #[must_use]
    pub fn without_exposed_port(mut self) -> SampleImage {
        self.exposed_port = None;
        self
    }

    /// Adds a HEALTHCHECK that asks the application's `/healthz` twice a second.
    #[must_use]
    pub fn with_healthcheck(mut self) -> SampleImage {
        self.healthcheck = true;
        self
    }

    /// Claims another architecture, as Go names it (`arm64`).
    #[must_use]
    pub fn architecture(mut self, architecture: &str) -> SampleImage {
        self.architecture = architecture.into();
        self
    }

    /// Makes it larger by so many mebibytes that cannot be compressed.
    #[must_use]
    pub fn ballast(mut self, mebibytes: usize) -> SampleImage {
        self.ballast = mebibytes;
        self
    }

    /// Loads the image into the engine under `reference` (such as `sample:1`).
    pub async fn load(&self, docker: &Docker, reference: &str) -> Result<()> {
        let program = std::fs::read(sample_program()?).context("reading the sample application")?;
        let archive = self.archive(&program, reference, docker.mark())?;
        docker
            .client()
            .import_image(ImportImageOptionsBuilder::default().quiet(true).build(), body_full(archive.into()), None)
            .try_for_each(async |_| Ok(()))
            .await
            .with_context(|| format!("loading the image {reference}"))
    }

    /// Puts something that cannot be run in the place of the program of `container`, which was made from such an image.
    pub async fn spoil(docker: &Docker, container: &str) -> Result<()> {
        let archive = tar_of(&[(PROGRAM, 0o755, b"not a program")])?;
        let options = UploadToContainerOptionsBuilder::default().path("/").build();
        let spoilt = docker.client().upload_to_container(container, Some(options), body_full(archive.into())).await;
        spoilt.with_context(|| format!("writing into container {container}"))
    }

    /// The format of `docker save`: one layer, one configuration, one manifest.
    fn archive(&self, program: &[u8], reference: &str, mark: Option<&str>) -> Result<Vec<u8>> {
        let mut ballast = vec![0; self.ballast << 20];
        rand::fill(&mut ballast[..]);
        let layer = tar_of(&[(PROGRAM, 0o755, program), ("ballast", 0o644, &ballast)])?;
        let configuration = serde_json::to_vec(&self.configuration(&hex::encode(Sha256::digest(&layer)), mark))?;
        let name = format!("{}.json", hex::encode(Sha256::digest(&configuration)));
        let manifest =
            serde_json::to_vec(&json!([{ "Config": name, "RepoTags": [reference], "Layers": ["layer.tar"] }]))?;
        tar_of(&[(&name, 0o644, &configuration), ("layer.tar", 0o644, &layer), ("manifest.json", 0o644, &manifest)])
    }

    fn configuration(&self, layer: &str, mark: Option<&str>) -> Value {
        let environment: Vec<String> = self.environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let second = 1_000_000_000_u64;
        let mut config = json!({ "Env": environment, "Entrypoint": [format!("/{PROGRAM}")] });
        if let Some(mark) = mark {
            config["Labels"] = json!({ MARK: mark });
        }
        if let Some(port) = self.exposed_port {
            config["ExposedPorts"] = json!({ format!("{port}/tcp"): {} });
        }
        if self.healthcheck {
            config["Healthcheck"] = json!({
                "Test": ["CMD", format!("/{PROGRAM}"), "healthcheck"],
                "Interval": second / 2, "Timeout": 2 * second, "Retries": 2,
            });
        }
        json!({
            "architecture": self.architecture, "os": "linux", "created": "2026-01-01T00:00:00Z", "config": config,
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{layer}")] },
            "history": [{ "created": "2026-01-01T00:00:00Z", "created_by": "testkit" }],
        })
    }
}

/// Linked statically by `make sample-app`; a build of the usual kind would not run in an empty image.
pub fn sample_program() -> Result<PathBuf> {
    let program = workspace().join("target/sample-app/sample-app");
    if !program.is_file() {
        bail!("the sample application is not built: run `make sample-app`");
    }
    Ok(program)
}

fn tar_of(files: &[(&str, u32, &[u8])]) -> Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, mode, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(*mode);
        header.set_size(content.len() as u64);
        archive.append_data(&mut header, name, *content).with_context(|| format!("packing {name}"))?;
    }
    archive.into_inner().context("packing an image")
}
