//! Settings from environment variables, each with an error that names the variable.

use std::{env, fmt::Display, path::PathBuf, str::FromStr};

use anyhow::{Context, Result, anyhow};

/// The value of `name`, `None` where it is unset or empty.
pub fn optional(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

pub fn required(name: &str) -> Result<String> {
    optional(name).ok_or_else(|| anyhow!("{name} is not set: set it, or start everything with `sluice up`"))
}

/// The value of `name`, or `default` where it is unset.
pub fn parse<T>(name: &str, default: T) -> Result<T>
where
    T: FromStr,
    T::Err: Display,
{
    match optional(name) {
        None => Ok(default),
        Some(text) => text.parse().map_err(|error: T::Err| anyhow!("{name}: {error}")),
    }
}

/// Where state lies: `DATA_DIR`, or `/var/lib/sluice` for root, `~/.local/share/sluice` for others.
pub fn data_dir() -> Result<PathBuf> {
    if let Some(dir) = optional("DATA_DIR") {
        return std::path::absolute(dir).context("DATA_DIR");
    }
    if rustix::process::geteuid().is_root() {
        return Ok("/var/lib/sluice".into());
    }
    let home = required("HOME")?;
    let share = optional("XDG_DATA_HOME").map_or_else(|| PathBuf::from(home).join(".local/share"), PathBuf::from);
    Ok(share.join("sluice"))
}
