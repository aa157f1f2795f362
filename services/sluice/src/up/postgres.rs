//! The embedded PostgreSQL: a real one, a supervised child on loopback, never as root.

use std::{
    ffi::OsString,
    fs,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use tokio::{process::Command, time::timeout};

use super::{
    data::{DataDir, Generated},
    supervise::Spec,
    tools,
};

/// The system user that Debian's package creates; root cannot run PostgreSQL.
const USER: &str = "postgres";
const INITDB_LIMIT: Duration = Duration::from_secs(120);

/// How to run it, and the URL at which it will answer. Creates the cluster at the first start.
pub(super) async fn embedded(data: &DataDir, generated: &Generated) -> Result<(Spec, String)> {
    let home = data.create_dir("postgres")?;
    let account = if rustix::process::geteuid().is_root() { Some(account()?) } else { None };
    if let Some(account) = &account {
        chown(&home, Some(account.uid), Some(account.gid))
            .with_context(|| format!("giving {} to {USER}", home.display()))?;
    }
    let cluster = home.join("cluster");
    let bin = binaries(&cluster)?;
    if !cluster.join("PG_VERSION").exists() {
        create(&bin, &home, &cluster, account.as_ref(), &generated.postgres_password).await?;
    }
    let (program, mut args) = run_as(account.as_ref(), bin.join("postgres"));
    args.extend([OsString::from("-D"), cluster.into()]);
    let port = format!("port={}", generated.postgres_port);
    for setting in [
        "listen_addresses=127.0.0.1",
        &port,
        "unix_socket_directories=",
        "max_connections=60",
        "shared_buffers=32MB",
        "log_min_messages=warning",
        // Everything in it can be rebuilt from the event log, checkpoints included.
        "synchronous_commit=off",
    ] {
        args.extend([OsString::from("-c"), setting.into()]);
    }
    let url =
        format!("postgres://sluice:{}@127.0.0.1:{}/postgres", generated.postgres_password, generated.postgres_port);
    let spec = Spec {
        name: "postgres",
        program,
        args,
        env: vec![],
        output: Some(data.path("postgres.log")),
        // Fast shutdown: clients are disconnected, nothing is lost.
        stop: Signal::INT,
        grace: Duration::from_secs(20),
        tied: false,
        pid_file: None,
    };
    Ok((spec, url))
}

/// Into a directory beside it first: an interrupted start leaves nothing that looks finished.
async fn create(bin: &Path, home: &Path, cluster: &Path, account: Option<&Account>, password: &str) -> Result<()> {
    let fresh = home.join("cluster.new");
    if fresh.exists() {
        fs::remove_dir_all(&fresh).with_context(|| format!("removing the unfinished {}", fresh.display()))?;
    }
    let password_file = home.join("password");
    runtime::files::replace(&password_file, password.as_bytes(), 0o600).context("writing the password for initdb")?;
    if let Some(account) = account {
        chown(&password_file, Some(account.uid), Some(account.gid)).context("handing the password to initdb")?;
    }
    let (program, args) = run_as(account, bin.join("initdb"));
    let mut initdb = Command::new(program);
    initdb.args(args).arg("-D").arg(&fresh).arg("--pwfile").arg(&password_file);
    initdb.args(["-U", "sluice", "-A", "scram-sha-256", "-E", "UTF8", "--locale", "C.UTF-8"]);
    initdb.current_dir("/").kill_on_drop(true).stdin(std::process::Stdio::null());
    let output = timeout(INITDB_LIMIT, initdb.output()).await;
    fs::remove_file(&password_file).context("removing the password for initdb")?;
    let output = output.context("initdb did not finish in two minutes")?.context("starting initdb")?;
    if !output.status.success() {
        bail!(
            "initdb failed: {}. If it may not enter {}, choose a DATA_DIR that the user {USER} can reach",
            String::from_utf8_lossy(&output.stderr).trim(),
            home.display()
        );
    }
    fs::rename(&fresh, cluster).with_context(|| format!("naming the new cluster {}", cluster.display()))
}

fn run_as(account: Option<&Account>, program: PathBuf) -> (OsString, Vec<OsString>) {
    match account {
        Some(_) => tools::tied_as(USER, "INT", program),
        None => tools::tied_to_us("INT", program),
    }
}

/// PostgreSQL's programs: of the version that made the cluster, else the newest installed.
fn binaries(cluster: &Path) -> Result<PathBuf> {
    let made_by = fs::read_to_string(cluster.join("PG_VERSION")).ok().map(|text| text.trim().to_owned());
    let mut versions: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .filter(|(_, bin)| tools::is_program(&bin.join("postgres")) && tools::is_program(&bin.join("initdb")))
        .collect();
    versions.sort();
    let wanted = match &made_by {
        Some(made_by) => versions.iter().rfind(|(version, _)| version.to_string() == *made_by),
        None => versions.last(),
    };
    let elsewhere =
        || tools::on_path("initdb").and_then(|path| Some(fs::canonicalize(path).ok()?.parent()?.to_owned()));
    match (wanted.map(|(_, bin)| bin.clone()).or_else(elsewhere), made_by) {
        (Some(bin), _) => Ok(bin),
        (None, Some(version)) => bail!(
            "{} was made by PostgreSQL {version}, which is not installed: install it (apt-get install postgresql-{version})",
            cluster.display()
        ),
        (None, None) => bail!("no PostgreSQL found: `make up` installs it; or set DATABASE_URL to a server that runs"),
    }
}

struct Account {
    uid: u32,
    gid: u32,
}

fn account() -> Result<Account> {
    let users = fs::read_to_string("/etc/passwd").context("reading /etc/passwd")?;
    let fields =
        users.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| fields.first() == Some(&USER));
    let account = fields.and_then(|f| Some(Account { uid: f.get(2)?.parse().ok()?, gid: f.get(3)?.parse().ok()? }));
    account.with_context(|| {
        format!("PostgreSQL does not run as root, and there is no user {USER} to run it: install it with `make up`, or set DATABASE_URL")
    })
}
