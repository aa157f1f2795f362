//! The embedded nats-server: a real one, a supervised child on loopback.

use std::{path::PathBuf, time::Duration};

use anyhow::{Result, bail};
use eventlog::{ServerConfig, server_config};
use rustix::process::Signal;

use super::{
    data::{DataDir, Generated},
    supervise::Spec,
    tools,
};

/// How to run it, and the URL at which it will answer.
pub(super) fn embedded(data: &DataDir, generated: &Generated) -> Result<(Spec, String)> {
    let config = server_config(&ServerConfig {
        port: generated.nats_port,
        store_dir: data.create_dir("nats")?,
        user: "sluice".into(),
        password: generated.nats_password.clone(),
    });
    let config = data.write_private("nats.conf", config.as_bytes())?;
    let (program, mut args) = tools::tied_to_us("TERM", binary()?);
    args.extend(["-c".into(), config.into()]);
    let url = format!("nats://sluice:{}@127.0.0.1:{}", generated.nats_password, generated.nats_port);
    let spec = Spec {
        name: "nats-server",
        program,
        args,
        env: vec![],
        output: Some(data.path("nats.log")),
        stop: Signal::TERM,
        grace: Duration::from_secs(15),
        tied: false,
        pid_file: None,
    };
    Ok((spec, url))
}

fn binary() -> Result<PathBuf> {
    if let Some(path) = runtime::env::optional("NATS_SERVER") {
        let path = PathBuf::from(path);
        if !path.is_file() {
            bail!("NATS_SERVER: {} is not a file", path.display());
        }
        return Ok(path);
    }
    match tools::on_path("nats-server") {
        Some(path) => Ok(path),
        None => bail!(
            "no nats-server found: `make up` installs one; or put it on the PATH, name it in NATS_SERVER, or set NATS_URL to a server that runs"
        ),
    }
}
