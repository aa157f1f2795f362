//! Logs: to standard error, as text for people or as JSON for machines.

use std::io::IsTerminal;

use anyhow::{Context, Result};
use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

use crate::env;

/// What our own crates say, and the warnings of others.
const DEFAULT: &str = "info,async_nats=warn,sqlx=warn";

/// Reads `LOG` (a filter such as `info` or `info,deployer=debug`) and `LOG_FORMAT` (`text` or `json`).
pub fn init() -> Result<()> {
    let filter = env::optional("LOG").unwrap_or_else(|| DEFAULT.into());
    let filter = EnvFilter::try_new(&filter).with_context(|| format!("LOG: `{filter}` is not a log filter"))?;
    let registry = tracing_subscriber::registry().with(filter);
    match env::optional("LOG_FORMAT").as_deref() {
        None | Some("text") => {
            let colours = std::io::stderr().is_terminal();
            registry.with(fmt::layer().with_ansi(colours).with_writer(std::io::stderr)).init();
        }
        Some("json") => registry.with(fmt::layer().json().with_writer(std::io::stderr)).init(),
        Some(other) => anyhow::bail!("LOG_FORMAT: `{other}` is neither text nor json"),
    }
    Ok(())
}
