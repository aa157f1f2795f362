//! What is killed, and how it comes back.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use testkit::{Docker, Sluice};
use tokio::time::sleep;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    Deployer,
    Projector,
    Api,
    Edge,
    Nats,
    Postgres,
    Dockerd,
    /// Every part, the supervisor, the edge and the engine.
    All,
}

/// For the supervisor to start a part again.
const BACK: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(5);

impl Target {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Target::Deployer => "deployer",
            Target::Projector => "projector",
            Target::Api => "api",
            Target::Edge => "edge",
            Target::Nats => "nats-server",
            Target::Postgres => "postgres",
            Target::Dockerd => "dockerd",
            Target::All => "all",
        }
    }

    /// Whether requests may break off in the middle, since what carries them dies.
    pub(crate) fn cuts_connections(self) -> bool {
        matches!(self, Target::Edge | Target::Dockerd | Target::All)
    }

    /// Whether the containers that serve end with it: an engine that starts again without live restore stops and
    /// starts them.
    pub(crate) fn stops_containers(self) -> bool {
        matches!(self, Target::Dockerd | Target::All)
    }

    /// How long it lives at least between two kills. One that lives shorter is taken by its supervisor for one that dies
    /// of its start, and waits ever longer; and an engine that starts has all containers to stop and to start first.
    pub(crate) fn life(self) -> Duration {
        if self.stops_containers() { Duration::from_secs(10) } else { Duration::from_millis(1100) }
    }

    /// Kills it with SIGKILL, and returns once it has been started again; whether it works by then is its own affair.
    pub(crate) async fn strike(self, sluice: &mut Sluice, docker: &mut Docker) -> Result<()> {
        match self {
            Target::Deployer | Target::Projector | Target::Api | Target::Edge | Target::Nats | Target::Postgres => {
                let part = self.name();
                let before = running(sluice, part).await?;
                kill(before)?;
                let end = Instant::now() + BACK;
                while !sluice.pid(part).is_ok_and(|pid| pid != before && lives(pid)) {
                    ensure!(Instant::now() < end, "{part} was not started again within {}s", BACK.as_secs());
                    sleep(LOOK).await;
                }
                Ok(())
            }
            Target::Dockerd => {
                docker.kill().await?;
                docker.restart().await
            }
            Target::All => {
                // The supervisor first, or it would begin to start the others again.
                let parts = ["up", "deployer", "watcher", "projector", "api", "edge", "nats-server", "postgres"];
                // One that is being started again at this moment has no process to kill.
                let pids: Vec<Pid> = parts.into_iter().filter_map(|part| sluice.pid(part).ok()).collect();
                for pid in pids {
                    kill(pid)?;
                }
                docker.kill().await?;
                sluice.kill().await?;
                docker.restart().await?;
                sluice.start().await
            }
        }
    }
}

async fn running(sluice: &Sluice, part: &str) -> Result<Pid> {
    let end = Instant::now() + BACK;
    loop {
        match sluice.pid(part) {
            Ok(pid) if lives(pid) => return Ok(pid),
            Ok(_) | Err(_) if Instant::now() < end => sleep(LOOK).await,
            Ok(_) => anyhow::bail!("{part} does not run"),
            Err(error) => return Err(error),
        }
    }
}

fn kill(pid: Pid) -> Result<()> {
    match kill_process(pid, Signal::KILL) {
        // It had ended by itself: its supervisor's end reached it first.
        Err(rustix::io::Errno::SRCH) => Ok(()),
        killed => killed.context("killing a part"),
    }
}

fn lives(pid: Pid) -> bool {
    test_kill_process(pid).is_ok()
}
