//! The machine a figure was taken on: without it a figure means nothing.

use std::fs;

use anyhow::{Context, Result};
use serde::Serialize;

#[derive(Serialize)]
pub(crate) struct Machine {
    pub(crate) processor: String,
    pub(crate) cores: usize,
    /// Mebibytes.
    pub(crate) memory: u64,
    pub(crate) kernel: String,
}

impl Machine {
    pub(crate) fn this() -> Result<Machine> {
        let processors = fs::read_to_string("/proc/cpuinfo").context("reading /proc/cpuinfo")?;
        let memory = fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").context("reading the kernel's release")?;
        let kibibytes: u64 = field(&memory, "MemTotal").trim_end_matches(" kB").parse().context("reading MemTotal")?;
        Ok(Machine {
            processor: field(&processors, "model name"),
            cores: std::thread::available_parallelism()?.get(),
            memory: kibibytes / 1024,
            kernel: kernel.trim().to_owned(),
        })
    }

    pub(crate) fn line(&self) -> String {
        let Machine { processor, cores, memory, kernel } = self;
        format!("{processor}, {cores} cores, {memory} MiB, Linux {kernel}")
    }
}

/// Of a file of `name : value` lines; empty where it is missing, as on some architectures.
fn field(text: &str, name: &str) -> String {
    let line = text.lines().filter_map(|line| line.split_once(':')).find(|(key, _)| key.trim() == name);
    line.map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
}
