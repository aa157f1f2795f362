//! What the kernel tells of a process.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};
use rustix::process::Pid;

/// Memory of a process, in bytes.
#[derive(Clone, Copy, Default)]
pub(crate) struct Memory {
    /// Shared pages in equal parts with all who share them.
    pub(crate) proportional: u64,
    /// Shared pages in full.
    pub(crate) resident: u64,
}

impl std::iter::Sum for Memory {
    fn sum<I: Iterator<Item = Memory>>(all: I) -> Memory {
        all.fold(Memory::default(), |sum, one| Memory {
            proportional: sum.proportional + one.proportional,
            resident: sum.resident + one.resident,
        })
    }
}

pub(crate) fn memory(pid: Pid) -> Result<Memory> {
    let text = read(pid, "smaps_rollup")?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let kibibytes: u64 = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok())?;
        Some(kibibytes * 1024)
    };
    let missing = || format!("process {pid} has no such figures: {text}");
    Ok(Memory { proportional: field("Pss").with_context(missing)?, resident: field("Rss").with_context(missing)? })
}

/// The most that a process ever held, in megabytes.
pub(crate) fn peak_memory(pid: Pid) -> Result<f64> {
    let text = read(pid, "status")?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("its peak memory")?;
    let kibibytes: u32 = line.trim().trim_end_matches(" kB").parse().context("a size")?;
    Ok(f64::from(kibibytes) * 1024.0 / 1e6)
}

/// Processor time since its start, in the kernel's ticks of 10 ms.
pub(crate) fn ticks(pid: Pid) -> Result<u64> {
    let text = read(pid, "stat")?;
    // Its name, in parentheses, may hold anything.
    let fields = text.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
    let times: Vec<u64> = fields.skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
    let [user, system] = times[..] else { anyhow::bail!("process {pid} has no such figures: {text}") };
    Ok(user + system)
}

pub(crate) fn children(pid: Pid) -> Result<Vec<Pid>> {
    let text = read(pid, &format!("task/{}/children", pid.as_raw_pid()))?;
    Ok(text.split_whitespace().filter_map(|child| child.parse().ok().and_then(Pid::from_raw)).collect())
}

/// Program and arguments.
pub(crate) fn command_line(pid: Pid) -> Result<Vec<String>> {
    let text = read(pid, "cmdline")?;
    Ok(text.split_terminator('\0').map(str::to_owned).collect())
}

fn read(pid: Pid, name: &str) -> Result<String> {
    let path = PathBuf::from(format!("/proc/{}/{name}", pid.as_raw_pid()));
    fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_knows_this_process() {
        let me = rustix::process::getpid();
        let before = ticks(me).expect("read");
        let held = std::hint::black_box(vec![1_u8; 50_000_000]);
        let memory = memory(me).expect("read");
        assert!(memory.proportional >= held.len() as u64 && memory.proportional <= memory.resident);
        while ticks(me).expect("read") == before {}
        assert!(command_line(me).expect("read")[0].contains("bench"));
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("starts");
        // A child is listed under the thread that started it.
        let thread = rustix::thread::gettid();
        let listed = children(me).expect("read").contains(&Pid::from_child(&child));
        child.kill().and_then(|()| child.wait()).expect("ended");
        assert!(listed || thread != me);
    }
}
