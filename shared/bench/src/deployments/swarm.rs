//! `docker service update --update-order start-first`, as people use it on one machine.
//!
//! The kernel of a small virtual machine often lacks IPVS, without which Swarm's published ports do not answer. So
//! Traefik takes the requests, the usual companion of Swarm, on the same machine: it hears from the engine at once
//! when a container has become healthy or has ended, and tries another one where it could not connect.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use testkit::{Load, find_program, free_port};
use tokio::process::Child;

use super::{HOST, IMAGES, STOP_GRACE, namespace::Namespace};

const SERVICE: &str = "shop";
const NETWORK: &str = "shop";
const READY_LIMIT: Duration = Duration::from_secs(30);

pub(super) struct Swarm<'a> {
    namespace: &'a Namespace,
    address: String,
    _proxy: Child,
}

impl<'a> Swarm<'a> {
    pub(super) async fn start(namespace: &'a Namespace) -> Result<Swarm<'a>> {
        namespace.docker_command(&["swarm", "init", "--advertise-addr", "127.0.0.1"]).await?;
        // On this machine alone, so that the proxy reaches the tasks' own addresses.
        let network = ["network", "create", "--scope", "swarm", "--driver", "bridge", NETWORK];
        namespace.docker_command(&network).await?;
        let address = format!("127.0.0.1:{}", free_port());
        let traefik = find_program("traefik").context("no traefik found: run `scripts/install peers`")?;
        let arguments = [
            format!("--entrypoints.web.address={address}"),
            format!("--providers.docker.endpoint={}", namespace.docker().host()),
            format!("--providers.docker.network={NETWORK}"),
            "--providers.docker.exposedbydefault=false".to_owned(),
            // Two seconds between two changes, unless told: too long beside a container that ends at once.
            "--providers.providersthrottleduration=10ms".to_owned(),
            "--global.checknewversion=false".to_owned(),
            "--global.sendanonymoususage=false".to_owned(),
        ];
        let proxy = namespace.spawn(&traefik, &arguments)?;
        Ok(Swarm { namespace, address, _proxy: proxy })
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// Starts the service anew.
    pub(super) async fn create(&self) -> Result<()> {
        let rule = format!("traefik.http.routers.{SERVICE}.rule=Host(`{HOST}`)");
        let port = format!("traefik.http.services.{SERVICE}.loadbalancer.server.port=8080");
        let middleware = format!("traefik.http.routers.{SERVICE}.middlewares=again");
        let labels =
            ["traefik.enable=true", &rule, &port, &middleware, "traefik.http.middlewares.again.retry.attempts=3"];
        let grace = format!("{}s", STOP_GRACE.as_secs());
        let mut command = vec!["service", "create", "--quiet", "--no-resolve-image", "--name", SERVICE];
        command.extend(["--network", NETWORK, "--endpoint-mode", "dnsrr", "--stop-grace-period", &grace]);
        // How long a new task is watched; five seconds unless told. Ours is told to watch it for no time at all.
        command.extend(["--update-monitor", "1ms"]);
        command.extend(labels.iter().flat_map(|label| ["--container-label", label]));
        command.push(IMAGES[0]);
        self.namespace.docker_command(&command).await?;
        self.ready().await
    }

    pub(super) async fn update(&self, image: &str) -> Result<()> {
        let command = ["service", "update", "--quiet", "--no-resolve-image", "--update-order", "start-first"];
        self.namespace.docker_command(&[&command[..], &["--image", image, SERVICE]].concat()).await.map(drop)
    }

    pub(super) async fn remove(&self) -> Result<()> {
        self.namespace.docker_command(&["service", "rm", SERVICE]).await.map(drop)
    }

    async fn ready(&self) -> Result<()> {
        let began = Instant::now();
        loop {
            let load = {
                let _inside = self.namespace.enter();
                Load::new(&self.address, HOST).connections(1).rate(20).start()
            };
            load.more(1).await;
            let report = load.stop().await;
            if report.failed == 0 {
                return Ok(());
            }
            let failures = report.failures;
            ensure!(began.elapsed() < READY_LIMIT, "the service is not reached through Traefik: {failures:?}");
        }
    }
}
