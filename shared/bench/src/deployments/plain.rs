//! `docker stop` and `docker run` with a published port.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use testkit::free_port;

use super::{IMAGES, STOP_GRACE, namespace::Namespace};

const CONTAINER: &str = "plain";
const READY_LIMIT: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(50);

pub(super) struct Plain<'a> {
    namespace: &'a Namespace,
    port: u16,
}

impl<'a> Plain<'a> {
    pub(super) fn new(namespace: &'a Namespace) -> Plain<'a> {
        Plain { namespace, port: free_port() }
    }

    pub(super) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(super) async fn create(&self) -> Result<()> {
        self.start(IMAGES[0]).await
    }

    /// Ends when the new container is healthy, as with the others, so that all are deployed at the same pace.
    pub(super) async fn update(&self, image: &str) -> Result<()> {
        self.remove().await?;
        self.start(image).await
    }

    pub(super) async fn remove(&self) -> Result<()> {
        let grace = STOP_GRACE.as_secs().to_string();
        self.namespace.docker_command(&["stop", "--time", &grace, CONTAINER]).await?;
        self.namespace.docker_command(&["rm", CONTAINER]).await.map(drop)
    }

    async fn start(&self, image: &str) -> Result<()> {
        let publish = format!("{}:8080", self.port);
        self.namespace.docker_command(&["run", "--detach", "--name", CONTAINER, "--publish", &publish, image]).await?;
        let began = Instant::now();
        let inspect = ["inspect", "--format", "{{.State.Health.Status}}", CONTAINER];
        while self.namespace.docker_command(&inspect).await? != "healthy" {
            ensure!(began.elapsed() < READY_LIMIT, "the container did not become healthy");
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }
}
