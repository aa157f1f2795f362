//! How long the second start of `sluice up` takes, beside its two servers alone: the same programs with the same
//! arguments on the same data.

use std::{
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, geteuid, kill_process};
use serde::Deserialize;
use sqlx::{Connection, PgConnection};
use testkit::{Docker, SampleImage, Sluice};
use tokio::{
    process::{Child, Command},
    time::timeout,
};

use crate::{
    Bench, procfs,
    row::{Row, Target, Unit},
};

const IMAGE: &str = "sluice-bench-start:1";
const DECLARATION: &str = "
project: bench
stages:
  dev:
    port: 8080
    health: {check: http, path: /healthz}
    route: {host: bench.localhost}
";
const LIMIT: Duration = Duration::from_secs(60);
/// Between two questions whether a server is ready.
const PAUSE: Duration = Duration::from_millis(2);
const TOGETHER: &str = "NATS and PostgreSQL, together";
const IN_TURN: &str = "NATS, then PostgreSQL";
const MOST_OVER: f64 = 2.0;

/// Both servers as `sluice up` runs them.
struct Servers {
    nats: Vec<String>,
    postgres: Vec<String>,
    urls: Urls,
}

#[derive(Deserialize)]
struct Urls {
    nats_url: String,
    database_url: String,
}

pub(crate) async fn run(bench: &Bench) -> Result<Vec<Row>> {
    let docker = Docker::connect_or_start().await?;
    SampleImage::new("1").load(&docker, IMAGE).await?;
    let mut sluice = Sluice::prepare(&bench.sluice, docker.host())?;
    sluice.start().await?;
    sluice.apply(DECLARATION).await?;
    sluice.run(&["deploy", "bench", "dev", IMAGE, "--follow"]).await?;
    let servers = Servers::of(&sluice)?;
    sluice.stop().await?;

    let (mut ours, mut together, mut in_turn) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=bench.rounds {
        let began = Instant::now();
        sluice.start().await?;
        ours.push(began.elapsed().as_secs_f64());
        sluice.stop().await?;
        together.push(servers.start(true).await?.as_secs_f64());
        in_turn.push(servers.start(false).await?.as_secs_f64());
        bench.say(&format!("round {round}: {:.3} s, the servers alone {:.3} s", ours[round - 1], together[round - 1]));
    }
    Ok(vec![
        Row::new("second start of `sluice up`, to ready", Unit::Seconds)
            .ours(ours)
            .peer(TOGETHER, together)
            .peer(IN_TURN, in_turn)
            .target(Target::AtMostOver { peer: TOGETHER, plus: MOST_OVER })
            .bound("PostgreSQL's start, and the roles' first connections to both")
            .note("to its line `Sluice is running`, when the API answers and finds NATS, PostgreSQL and the projector well; the servers to the first answer of JetStream and the first row; judged by the stricter: both started at the same moment, as `sluice up` does"),
    ])
}

impl Servers {
    fn of(sluice: &Sluice) -> Result<Servers> {
        let connection = std::fs::read(sluice.data_dir().join("connection.json")).context("reading connection.json")?;
        Ok(Servers {
            nats: procfs::command_line(sluice.pid("nats-server")?)?,
            postgres: procfs::command_line(sluice.pid("postgres")?)?,
            urls: serde_json::from_slice(&connection).context("reading connection.json")?,
        })
    }

    /// Starts both, at the same moment or one after the other, and ends them again. How long until both answer.
    async fn start(&self, together: bool) -> Result<Duration> {
        let began = Instant::now();
        let mut nats = spawn(&self.nats, None)?;
        if !together {
            ready(&mut nats, async || jetstream_answers(&self.urls.nats_url).await).await?;
        }
        let user = geteuid().is_root().then_some("postgres");
        let mut postgres = spawn(&self.postgres, user)?;
        if together {
            ready(&mut nats, async || jetstream_answers(&self.urls.nats_url).await).await?;
        }
        ready(&mut postgres, async || one_row(&self.urls.database_url).await).await?;
        let took = began.elapsed();
        // The signals that `sluice up` sends.
        end(postgres, Signal::INT).await?;
        end(nats, Signal::TERM).await?;
        Ok(took)
    }
}

/// Like `sluice up`: in the same directory, tied to our life, as the same user.
fn spawn(command_line: &[String], user: Option<&str>) -> Result<Child> {
    let program = command_line.first().context("a server without a command line")?;
    let mut command = Command::new("setpriv");
    if let Some(user) = user {
        command.args(["--reuid", user, "--regid", user, "--init-groups"]);
    }
    command.args(["--pdeathsig", "INT", "--"]).args(command_line).current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    command.spawn().with_context(|| format!("starting {}", Path::new(program).display()))
}

async fn ready(server: &mut Child, answers: impl AsyncFn() -> bool) -> Result<()> {
    let asking = async {
        while !answers().await {
            if let Some(status) = server.try_wait()? {
                bail!("a server ended at start with {status}");
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    };
    timeout(LIMIT, asking).await.context("a server does not become ready")?
}

async fn jetstream_answers(url: &str) -> bool {
    let asked = async {
        let (credentials, server) = url.trim_start_matches("nats://").split_once('@')?;
        let (user, password) = credentials.split_once(':')?;
        let options = async_nats::ConnectOptions::with_user_and_password(user.into(), password.into());
        let client = options.connect(server).await.ok()?;
        let answer = client.request("$JS.API.STREAM.INFO.EVENTS", "".into()).await.ok()?;
        let answer: serde_json::Value = serde_json::from_slice(&answer.payload).ok()?;
        answer["state"]["last_seq"].as_u64().filter(|last| *last > 0)
    };
    asked.await.is_some()
}

async fn one_row(url: &str) -> bool {
    let asked = async {
        let mut connection = PgConnection::connect(url).await.ok()?;
        sqlx::raw_sql("select 1").execute(&mut connection).await.ok()?;
        connection.close().await.ok()
    };
    asked.await.is_some()
}

async fn end(mut server: Child, signal: Signal) -> Result<()> {
    let pid = server.id().and_then(|pid| Pid::from_raw(pid.cast_signed())).context("a server has ended by itself")?;
    kill_process(pid, signal).context("stopping a server")?;
    let status = timeout(LIMIT, server.wait()).await.context("a server does not stop")??;
    ensure!(status.success() || signal == Signal::TERM, "a server ended with {status}");
    Ok(())
}
