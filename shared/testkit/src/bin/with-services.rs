//! `with-services [postgres] [docker] -- COMMAND...` runs COMMAND with these services (both when none is named) and
//! ends them afterwards, whatever becomes of the command. Services that are already there are used as they are.
//!
//! Sets `TEST_DATABASE_URL` for the testkit, `DATABASE_URL` for `#[sqlx::test]`, and `DOCKER_HOST`.
#![expect(clippy::print_stderr, reason = "a command line tool")]

use std::{
    process::{ExitCode, ExitStatus},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal as Kill, kill_process};
use testkit::{Docker, Postgres};
use tokio::{
    process::{Child, Command},
    signal::unix::{Signal, SignalKind, signal},
    time::timeout,
};

/// How long a terminated command may take to end.
const STOP_DEADLINE: Duration = Duration::from_secs(30);

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run().await {
        Ok(status) => ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)),
        Err(error) => {
            eprintln!("with-services: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<ExitStatus> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (services, command) = arguments.split_at(arguments.iter().position(|argument| argument == "--").unwrap_or(0));
    let Some((program, arguments)) = command.get(1..).and_then(<[String]>::split_first) else {
        bail!("usage: with-services [postgres] [docker] -- COMMAND...");
    };
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let started = tokio::select! {
        started = start(services) => started?,
        _ = interrupt.recv() => bail!("interrupted"),
        _ = terminate.recv() => bail!("terminated"),
    };
    let mut command = Command::new(program);
    command.args(arguments).envs(started.environment());
    let mut child = command.spawn().with_context(|| format!("starting {program}"))?;
    let status = wait(&mut child, &mut interrupt, &mut terminate).await;
    drop(started);
    status
}

struct Started {
    postgres: Option<Postgres>,
    docker: Option<Docker>,
}

async fn start(services: &[String]) -> Result<Started> {
    if let Some(unknown) = services.iter().find(|service| !["postgres", "docker"].contains(&service.as_str())) {
        bail!("there is no service {unknown}: choose from postgres and docker");
    }
    let wanted = |name: &str| services.is_empty() || services.iter().any(|service| service == name);
    let mut started = Started { postgres: None, docker: None };
    if wanted("postgres") && std::env::var_os("TEST_DATABASE_URL").is_none() {
        started.postgres = Some(Postgres::start().await?);
    }
    if wanted("docker") {
        match Docker::connect_or_start().await {
            Ok(docker) => started.docker = Some(docker),
            // What does not need Docker can still run; what does says so itself.
            Err(error) => eprintln!("with-services: going on without Docker: {error:#}"),
        }
    }
    Ok(started)
}

impl Started {
    fn environment(&self) -> Vec<(&'static str, String)> {
        let postgres = self.postgres.iter().flat_map(|postgres| {
            [("TEST_DATABASE_URL", postgres.url().to_owned()), ("DATABASE_URL", postgres.url().to_owned())]
        });
        let docker = self.docker.iter().map(|docker| ("DOCKER_HOST", docker.host().to_owned()));
        postgres.chain(docker).collect()
    }
}

/// A terminal's Ctrl-C reaches the command by itself; SIGTERM is passed on.
async fn wait(child: &mut Child, interrupt: &mut Signal, terminate: &mut Signal) -> Result<ExitStatus> {
    tokio::select! {
        status = child.wait() => return status.context("waiting for the command"),
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {
            if let Some(pid) = child.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
                kill_process(pid, Kill::TERM).context("passing SIGTERM on")?;
            }
        }
    }
    if let Ok(status) = timeout(STOP_DEADLINE, child.wait()).await {
        return status.context("waiting for the command");
    }
    child.kill().await.context("killing the command")?;
    bail!("the command did not end within {STOP_DEADLINE:?} and was killed")
}
