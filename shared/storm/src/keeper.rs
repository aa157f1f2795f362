//! Keeps a process running, as an operator's supervisor would: whatever ends is started again.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tokio::{
    net::TcpStream,
    process::{Child, Command},
    task::JoinHandle,
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::{
    outages::{Cause, Outages},
    say,
    schedule::Part,
};

/// Before a process that ended by itself is started again.
const PAUSE: Duration = Duration::from_millis(250);
const LOOK: Duration = Duration::from_millis(2);
/// For a process that was killed to be gone.
const GONE: Duration = Duration::from_secs(30);

/// How to run a part.
pub(crate) struct Spec {
    pub(crate) part: Part,
    pub(crate) command: Box<dyn Fn() -> Command + Send + Sync>,
    pub(crate) log: PathBuf,
    /// Files that must not outlive the process: with the number of another process in them, they keep a new one from
    /// starting.
    pub(crate) pid_files: Vec<PathBuf>,
    /// Where it takes connections, for those whose absence is an outage.
    pub(crate) listens: Option<String>,
}

/// A process that is started again whenever it ends, until this is dropped.
pub(crate) struct Keeper {
    part: Part,
    now: Arc<Now>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Now {
    pid: Mutex<Option<Pid>>,
    /// Killed: not to be started before then.
    down: Mutex<Option<Instant>>,
    /// Ends that were not of the storm's making.
    exits: AtomicU64,
    /// From each start until connections were taken.
    starts: Mutex<Vec<Duration>>,
}

impl Keeper {
    pub(crate) fn start(spec: Spec, outages: Outages) -> Keeper {
        let now = Arc::new(Now::default());
        Keeper { part: spec.part, now: now.clone(), task: tokio::spawn(keep(spec, now, outages)) }
    }

    /// Kills it with all its processes, and lets it stay away until `down` has passed.
    pub(crate) fn kill(&self, down: Duration) {
        *lock(&self.now.down) = Some(Instant::now() + down);
        // One that is just being started again is not there to be killed.
        for pid in self.pids() {
            let _ = kill_process(pid, Signal::KILL);
        }
    }

    /// Its processes at this moment. Those of dockerd are not among them: containers live on without it.
    pub(crate) fn pids(&self) -> Vec<Pid> {
        let Some(pid) = *lock(&self.now.pid) else { return vec![] };
        match self.part {
            Part::Postgres => [vec![pid], children(pid)].concat(),
            _ => vec![pid],
        }
    }

    pub(crate) fn signal(pids: &[Pid], signal: Signal) {
        for pid in pids {
            // One that has ended since needs none.
            let _ = kill_process(*pid, signal);
        }
    }

    pub(crate) fn exits(&self) -> u64 {
        self.now.exits.load(Ordering::Relaxed)
    }

    /// From each start until it took connections, where that is watched.
    pub(crate) fn starts(&self) -> Vec<Duration> {
        lock(&self.now.starts).clone()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn children(pid: Pid) -> Vec<Pid> {
    let pid = pid.as_raw_pid();
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok().and_then(Pid::from_raw)).collect()
}

async fn keep(spec: Spec, now: Arc<Now>, outages: Outages) {
    let mut again = false;
    loop {
        match life(&spec, &now, &outages, std::mem::replace(&mut again, true)).await {
            Ok(status) if lock(&now.down).is_none() => {
                now.exits.fetch_add(1, Ordering::Relaxed);
                say(&format!("{} ended by itself with {status}", spec.part.name()));
                sleep(PAUSE).await;
            }
            Ok(_) => {}
            Err(error) => {
                say(&format!("{}: {error:#}", spec.part.name()));
                sleep(PAUSE).await;
            }
        }
        let down = *lock(&now.down);
        if let Some(until) = down {
            sleep_until(until).await;
            lock(&now.down).take();
        }
    }
}

/// From its start to its end.
async fn life(spec: &Spec, now: &Now, outages: &Outages, again: bool) -> Result<String> {
    let before: Vec<Pid> = spec.pid_files.iter().filter_map(|file| pid_in(file)).collect();
    let gone = async {
        while before.iter().any(|pid| test_kill_process(*pid).is_ok()) {
            sleep(LOOK).await;
        }
    };
    timeout(GONE, gone).await.context("what it started before its end lives on")?;
    for file in &spec.pid_files {
        let _ = fs::remove_file(file);
    }
    if again && spec.part == Part::Engine {
        // It ends the containers it finds, and starts them anew.
        outages.containers_end();
    }
    let started = Instant::now();
    let mut child = spawn(spec)?;
    *lock(&now.pid) = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
    let listening = async {
        if let Some(address) = &spec.listens {
            while TcpStream::connect(address).await.is_err() {
                sleep(LOOK).await;
            }
            outages.over(Cause::Killed(spec.part));
            lock(&now.starts).push(started.elapsed());
        }
        std::future::pending::<()>().await;
    };
    let status = tokio::select! {
        status = child.wait() => status,
        () = listening => unreachable!("it waits for ever"),
    };
    *lock(&now.pid) = None;
    Ok(status.context("waiting for its end")?.to_string())
}

fn pid_in(file: &Path) -> Option<Pid> {
    fs::read_to_string(file).ok()?.lines().next()?.trim().parse().ok().and_then(Pid::from_raw)
}

fn spawn(spec: &Spec) -> Result<Child> {
    let mut log = File::options().create(true).append(true).open(&spec.log).context("opening its log")?;
    let mut command = (spec.command)();
    let errors = log.try_clone().context("opening its log")?;
    writeln!(log, "--- started").context("writing its log")?;
    let command = command.stdin(Stdio::null()).stdout(log).stderr(errors).process_group(0).kill_on_drop(true);
    command.spawn().context("starting it")
}
