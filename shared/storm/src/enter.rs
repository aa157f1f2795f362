//! A world of the storm's own: network, mounts and processes in namespaces that end with it, however it ends.
//!
//! The program starts itself anew, twice: once as the first process of the new namespaces, which does nothing but
//! collect the processes that lost their parents, and under that as the storm itself.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, exit},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, WaitOptions, geteuid, kill_process};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::timeout,
};

/// Says to a process of the storm which one it is.
const PLACE: &str = "SLUICE_STORM";
const PREFIX: &str = "sluice-storm-";
/// For the storm to end in good order once it was told to.
const FAREWELL: Duration = Duration::from_secs(20);

const LOOK: Duration = Duration::from_millis(50);

/// Where this process stands.
pub(crate) enum Place {
    /// On the machine.
    Outside,
    /// The first process of the namespaces.
    First,
    /// The storm, with an empty directory that goes with it.
    Inside(PathBuf),
}

impl Place {
    pub(crate) fn here() -> Place {
        match env::var(PLACE).as_deref() {
            Ok("first") => Place::First,
            Ok("inside") => Place::Inside(env::temp_dir()),
            _ => Place::Outside,
        }
    }
}

/// Runs this program with the same arguments inside; whether it ended well.
pub(crate) fn outside() -> Result<bool> {
    if !geteuid().is_root() {
        bail!("a storm needs network namespaces and an engine of its own, which only root can have: run it with sudo");
    }
    sweep();
    let name = format!("{PREFIX}{}", std::process::id());
    let directory = env::temp_dir().join(&name);
    fs::create_dir(&directory).with_context(|| format!("creating {}", directory.display()))?;
    let mut inner = tokio::process::Command::new("setpriv");
    inner
        .args(["--pdeathsig", "KILL", "--", "unshare", "--net", "--mount", "--pid", "--fork", "--kill-child"])
        .args(["--mount-proc", "--propagation", "private", "--"])
        .arg(env::current_exe().context("finding this program")?)
        .args(env::args_os().skip(1))
        .env(PLACE, "first")
        .env("TMPDIR", &directory)
        // Where Debian keeps what sets up networks; not every root has it on the path.
        .env("PATH", format!("{}:/usr/sbin:/sbin", env::var("PATH").unwrap_or_default()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    let ended = runtime.block_on(async {
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let mut child = inner.spawn().context("starting `unshare`, of Debian's util-linux")?;
        let status = tokio::select! {
            status = child.wait() => status?,
            _ = async { tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} } } => {
                // A terminal tells everybody inside as well.
                if timeout(FAREWELL, child.wait()).await.is_err() {
                    child.kill().await?;
                }
                child.wait().await?
            }
        };
        anyhow::Ok(status.success())
    });
    remains(&name);
    ended
}

/// What a storm that was killed left behind: an empty directory and empty control groups.
fn sweep() {
    let left = [env::temp_dir(), "/sys/fs/cgroup".into(), "/sys/fs/cgroup/pids".into()];
    let left = left.into_iter().filter_map(|place| fs::read_dir(place).ok()).flatten().flatten();
    for name in left.filter_map(|entry| entry.file_name().into_string().ok()) {
        let pid = name.strip_prefix(PREFIX).and_then(|pid| pid.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            remains(&name);
        }
    }
}

/// Everything else of a storm ends with its namespaces.
fn remains(name: &str) {
    let roots = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
    let groups: Vec<PathBuf> = roots.chain(["/sys/fs/cgroup".into()]).map(|root| root.join(name)).collect();
    // The kernel takes a moment to let go of processes that have ended.
    let end = Instant::now() + FAREWELL;
    while groups.iter().any(|group| group.exists()) && Instant::now() < end {
        groups.iter().for_each(|group| remove_groups(group));
        thread::sleep(LOOK);
    }
    // The next storm tries again what resists.
    let _ = fs::remove_dir(env::temp_dir().join(name));
}

/// A control group is removed as an empty directory, whatever files it shows.
fn remove_groups(group: &Path) {
    for below in fs::read_dir(group).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir()) {
        remove_groups(&below.path());
    }
    let _ = fs::remove_dir(group);
}

/// Starts the storm and collects orphans until it has ended; then the kernel ends whatever is left.
pub(crate) fn first() -> Result<bool> {
    let mut storm = Command::new(env::current_exe().context("finding this program")?);
    let storm = storm.args(env::args_os().skip(1)).env(PLACE, "inside").spawn().context("starting the storm")?;
    let storm = Pid::from_child(&storm);
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == storm => {
                return Ok(status.exit_status() == Some(0));
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                let _ = kill_process(storm, Signal::KILL);
                return Err(error).context("waiting for processes");
            }
        }
    }
}

/// The name of the control groups for containers.
pub(crate) fn control_group(directory: &Path) -> String {
    format!("/{}", directory.file_name().unwrap_or_default().to_string_lossy())
}

/// Ends this process, which is not the one that was started by a person.
pub(crate) fn leave(ended: Result<bool>) -> ! {
    #[expect(clippy::print_stderr, reason = "what a person sees of an error")]
    let good = ended.unwrap_or_else(|error| {
        eprintln!("storm: {error:#}");
        false
    });
    exit(if good { 0 } else { 1 })
}
