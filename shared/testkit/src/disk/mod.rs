//! A disk that forgets what was not synced.
//!
//! A file system of ours (FUSE), kept in memory, under the store of a real server. It keeps apart what programs have
//! written and what they have synced; [`LossyDisk::power_loss`] leaves them with the second.

mod fuse;
mod store;

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use fuser::{BackgroundSession, Config, MountOption, SessionACL};
use rustix::process::{Pid, Signal, getegid, geteuid, kill_process};
use store::{Node, Store};
use tempfile::TempDir;

const SOURCE: &str = "sluice-lossy-disk";
const END_DEADLINE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(1);

/// What makes the name of a file durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Names {
    /// A sync of the file or of its directory, as on ext4, XFS and btrfs.
    Journaled,
    /// A sync of the directory and nothing else: all that POSIX promises.
    Posix,
}

/// What survives besides what was synced.
#[derive(Debug, Clone, Copy)]
pub enum Luck {
    /// Nothing.
    None,
    /// A part, chosen by the seed: of a file any pages and any of its lengths, of the changes of directories the
    /// first few where they are [`Names::Journaled`], any of them otherwise.
    Seeded(u64),
}

/// A disk whose power can be cut. Its content goes when dropped.
pub struct LossyDisk {
    shared: Arc<Shared>,
    session: Option<BackgroundSession>,
    directory: TempDir,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    store: Store,
    power: Power,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Power {
    On,
    /// Nothing more is done, and nothing answered.
    Cut,
    /// Whoever still asks is being killed, and gets an error that it does not live to see.
    Off,
}

impl LossyDisk {
    /// Mounts an empty disk, writable by everyone. Needs /dev/fuse, and root or `fusermount3`.
    pub fn mount(names: Names) -> Result<LossyDisk> {
        unmount_leftovers();
        let directory = TempDir::with_prefix("sluice-disk-").context("creating a mount point")?;
        // PostgreSQL's user has to get through.
        std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755))?;
        let root = Node::directory(0o777, geteuid().as_raw(), getegid().as_raw());
        let state = State { store: Store::new(names, root), power: Power::On };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName(SOURCE.into()),
            MountOption::DefaultPermissions,
            MountOption::NoAtime,
            MountOption::NoSuid,
            MountOption::NoDev,
        ];
        if geteuid().is_root() {
            config.acl = SessionACL::All;
        }
        let session = fuser::spawn_mount(fuse::Fuse(shared.clone()), directory.path(), &config).context(
            "mounting a FUSE file system: it needs /dev/fuse (`modprobe fuse`), and root or Debian's package fuse3",
        )?;
        Ok(LossyDisk { shared, session: Some(session), directory })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Cuts the power, of the disk and of the processes `users` at the same instant, and puts it on again once they
    /// are gone. They must be all that use the disk.
    pub fn power_loss(&self, users: &[Pid], luck: Luck) -> Result<()> {
        self.power_loss_until(users, luck, || true)
    }

    /// The same where this process is a user too: everything that it asks for fails until `settled`.
    pub fn power_loss_until(&self, users: &[Pid], luck: Luck, settled: impl Fn() -> bool) -> Result<()> {
        self.shared.lock().power = Power::Cut;
        let killed: Vec<_> = users.iter().map(|pid| kill_process(*pid, Signal::KILL)).collect();
        // A process cannot die while it waits for an answer of ours.
        self.shared.lock().power = Power::Off;
        self.shared.changed.notify_all();
        let ended = killed.into_iter().zip(users).try_for_each(|(killed, pid)| {
            match killed {
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(error) => return Err(error).context("killing what uses the disk"),
            }
            await_end(*pid)
        });
        let end = Instant::now() + END_DEADLINE;
        while !settled() && Instant::now() < end {
            std::thread::sleep(PAUSE);
        }
        let mut state = self.shared.lock();
        state.store.lose_power(luck);
        state.power = Power::On;
        ended
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Each operation leaves a whole state behind before anything in it can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state while there is power; `None` for who was cut off.
    fn powered(&self) -> Option<MutexGuard<'_, State>> {
        let waited = self.changed.wait_while(self.lock(), |state| state.power == Power::Cut);
        let state = waited.unwrap_or_else(PoisonError::into_inner);
        (state.power == Power::On).then_some(state)
    }
}

impl Drop for LossyDisk {
    fn drop(&mut self) {
        let Some(session) = self.session.take() else { return };
        // A user that was not stopped first keeps the mount busy.
        if session.umount_and_join().is_err() {
            unmount(self.directory.path());
        }
    }
}

/// Waits until the process has no files open any more: it is gone, or waits for its parent to hear of its end.
fn await_end(pid: Pid) -> Result<()> {
    let stat = PathBuf::from(format!("/proc/{}/stat", pid.as_raw_pid()));
    let end = Instant::now() + END_DEADLINE;
    while let Ok(line) = std::fs::read_to_string(&stat) {
        let state = line.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
        if matches!(state, Some('Z' | 'X')) {
            return Ok(());
        }
        if Instant::now() > end {
            bail!("process {pid} was killed and did not end within {END_DEADLINE:?}");
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

fn unmount(path: &Path) {
    let _ = if geteuid().is_root() {
        Command::new("umount").arg("--lazy").arg(path).output()
    } else {
        Command::new("fusermount3").args(["-u", "-z"]).arg(path).output()
    };
}

/// Takes away what a killed test run left mounted: nobody answers there any more.
fn unmount_leftovers() {
    let table = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let ours = table.lines().filter_map(|line| line.strip_prefix(SOURCE)?.split(' ').nth(1));
    for path in ours.map(Path::new) {
        if path.metadata().is_err_and(|error| error.raw_os_error() == Some(rustix::io::Errno::NOTCONN.raw_os_error())) {
            unmount(path);
            let _ = std::fs::remove_dir(path);
        }
    }
}

#[cfg(test)]
mod tests;
