//! PostgreSQL: one cluster for a whole test run where there is one, a private one otherwise.

use std::{
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, geteuid};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tempfile::TempDir;

use crate::{
    disk::LossyDisk,
    process::{Server, find_program, free_port, random_secret, tethered},
};

const READY_DEADLINE: Duration = Duration::from_secs(30);
/// Names the cluster that is shared by a test run, with the rights to create databases.
const SHARED_CLUSTER: &str = "TEST_DATABASE_URL";
/// PostgreSQL refuses to run as root; Debian's package brings this user.
const USER: &str = "postgres";

/// A private PostgreSQL cluster on a loopback port of its own, in a hurry rather than durable.
/// Ends, and its data with it, when dropped.
pub struct Postgres {
    server: Option<Server>,
    binaries: PathBuf,
    settings: &'static [&'static str],
    port: u16,
    url: String,
    data: PathBuf,
    directory: TempDir,
    _disk: Option<Arc<LossyDisk>>,
}

/// What a crash leaves is of no interest.
const HURRIED: &[&str] = &["max_connections=200", "fsync=off", "full_page_writes=off"];
/// Those of `sluice up`, for measuring.
const AS_INSTALLED: &[&str] = &["max_connections=60", "shared_buffers=32MB", "synchronous_commit=off"];

impl Postgres {
    /// Creates and starts a cluster (about a second).
    pub async fn start() -> Result<Postgres> {
        Self::start_with(HURRIED, None).await
    }

    /// The same as durable as the one of `sluice up`, for measuring.
    pub async fn start_like_sluice_up() -> Result<Postgres> {
        Self::start_with(AS_INSTALLED, None).await
    }

    /// The same with its data on `disk`.
    pub async fn start_on(disk: &Arc<LossyDisk>) -> Result<Postgres> {
        Self::start_with(AS_INSTALLED, Some(disk.clone())).await
    }

    async fn start_with(settings: &'static [&'static str], disk: Option<Arc<LossyDisk>>) -> Result<Postgres> {
        let binaries = find_binaries()?;
        let directory =
            TempDir::with_prefix("sluice-postgres-").context("creating the data directory of PostgreSQL")?;
        let home = disk.as_ref().map_or(directory.path().to_owned(), |disk| disk.path().join("postgres"));
        std::fs::create_dir_all(&home).context("creating the data directory of PostgreSQL")?;
        if let Some(user) = other_user() {
            let (uid, gid) = ids_of(user)?;
            for owned in [directory.path(), &home] {
                chown(owned, Some(uid), Some(gid)).context("handing the data directory to PostgreSQL's user")?;
            }
        }
        let password = random_secret();
        let data = home.join("data");
        create_cluster(&binaries, directory.path(), &data, disk.is_some(), &password)?;
        let port = free_port();
        let url = format!("postgres://postgres:{password}@127.0.0.1:{port}/postgres");
        let mut postgres = Postgres { server: None, binaries, settings, port, url, data, directory, _disk: disk };
        postgres.restart().await?;
        Ok(postgres)
    }

    /// The URL of the maintenance database, with all rights.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// A fresh, empty database: in the run's shared cluster where there is one (`make test` starts it, and it goes
    /// with the run), else in a private one, which goes with the returned value.
    ///
    /// In a shared cluster it is not dropped: that waits for every backend of the cluster, also for one whose client,
    /// another test, happens to be stopped in the middle of signing in.
    pub async fn database() -> Result<Database> {
        let (server_url, cluster) = match std::env::var(SHARED_CLUSTER) {
            Ok(url) => (url, None),
            Err(_) => {
                let cluster = Postgres::start().await?;
                (cluster.url.clone(), Some(cluster))
            }
        };
        let name = format!("test_{}", random_secret());
        execute(&server_url, format!("create database {name}")).await?;
        let base = server_url.rsplit_once('/').map_or(server_url.as_str(), |(base, _)| base);
        Ok(Database { url: format!("{base}/{name}"), _cluster: cluster })
    }

    /// The processes that end with its disk's power (see [`LossyDisk::power_loss`]).
    pub fn processes(&self) -> Vec<Pid> {
        let Some(server) = &self.server else { return vec![] };
        let main = server.pid().as_raw_pid();
        let children = std::fs::read_to_string(format!("/proc/{main}/task/{main}/children")).unwrap_or_default();
        let children = children.split(' ').filter_map(|pid| pid.parse().ok().and_then(Pid::from_raw));
        std::iter::once(server.pid()).chain(children).collect()
    }

    /// Ends the server at once, as a crash would. The data stays for [`Postgres::restart`].
    pub fn kill(&mut self) {
        self.server = None;
    }

    /// Starts the server again on the same port and data; a stop comes first where it still runs.
    pub async fn restart(&mut self) -> Result<()> {
        self.server = None;
        let mut command = tethered(&self.binaries.join("postgres"), "QUIT", other_user());
        command.current_dir("/").arg("-D").arg(&self.data);
        let port = self.port.to_string();
        let own = ["listen_addresses=127.0.0.1", &format!("port={port}"), "unix_socket_directories="];
        for setting in own.iter().chain(self.settings) {
            command.args(["-c", setting]);
        }
        let log = self.directory.path().join("postgres.log");
        // Immediate shutdown: the data is about to go, and a kill would leave shared memory behind.
        let mut server = Server::spawn("PostgreSQL", &mut command, log, Signal::QUIT)?;
        server.ready(READY_DEADLINE, async || PgConnection::connect(&self.url).await.is_ok()).await?;
        self.server = Some(server);
        Ok(())
    }
}

/// A database of a test's own.
pub struct Database {
    url: String,
    _cluster: Option<Postgres>,
}

impl Database {
    /// Where clients connect, credentials included.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Every row of a table, as text.
    pub async fn dump(&self, table: &str) -> Result<String> {
        let mut connection = PgConnection::connect(&self.url).await.context("connecting to the test database")?;
        let read = format!("select coalesce(string_agg(t::text, E'\\n'), '') from {table} t");
        let text =
            sqlx::query_scalar(AssertSqlSafe(read)).fetch_one(&mut connection).await.context("dumping a table")?;
        connection.close().await.context("closing the connection to the test database")?;
        Ok(text)
    }
}

async fn execute(url: &str, statement: String) -> Result<()> {
    let mut connection = PgConnection::connect(url).await.context("connecting to the test cluster")?;
    sqlx::raw_sql(AssertSqlSafe(statement.clone())).execute(&mut connection).await.context(statement)?;
    connection.close().await.context("closing the connection to the test cluster")
}

fn create_cluster(binaries: &Path, directory: &Path, data: &Path, durable: bool, password: &str) -> Result<()> {
    let password_file = directory.join("password");
    std::fs::write(&password_file, password).context("writing the password of the test cluster")?;
    let output = tethered(&binaries.join("initdb"), "KILL", other_user())
        .arg("-D")
        .arg(data)
        .args(["--username", "postgres", "--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C.UTF-8"])
        .arg("--no-instructions")
        .args((!durable).then_some("--no-sync"))
        .arg("--pwfile")
        .arg(&password_file)
        // The other user may not enter ours.
        .current_dir("/")
        .stdin(Stdio::null())
        .output()
        .context("starting initdb")?;
    if !output.status.success() {
        bail!("initdb ended with {}:\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// The user to change to before PostgreSQL starts.
fn other_user() -> Option<&'static str> {
    geteuid().is_root().then_some(USER)
}

fn ids_of(user: &str) -> Result<(u32, u32)> {
    let output = Command::new("getent").args(["passwd", user]).output().context("starting getent")?;
    let entry = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut fields = entry.split(':').skip(2);
    let mut id = || fields.next()?.parse().ok();
    id().zip(id()).with_context(|| format!("there is no user {user}: install Debian's postgresql package"))
}

/// The directory of the newest PostgreSQL that is installed.
fn find_binaries() -> Result<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    versions
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse::<u32>().ok()?, entry.path().join("bin"))))
        .filter(|(_, binaries)| binaries.join("initdb").is_file())
        .max()
        .map(|(_, binaries)| binaries)
        .or_else(|| Some(find_program("initdb")?.canonicalize().ok()?.parent()?.to_path_buf()))
        .context("no PostgreSQL server found: run `make tools`, or install Debian's postgresql package")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_database_is_fresh() {
        let database = Postgres::database().await.expect("a database");
        execute(database.url(), "create table one (id int)".into()).await.expect("a table");
        let other = Postgres::database().await.expect("another database");
        execute(other.url(), "create table one (id int)".into()).await.expect("the same table");
    }

    #[tokio::test]
    async fn a_cluster_survives_a_kill() {
        let mut postgres = Postgres::start().await.expect("PostgreSQL starts");
        execute(postgres.url(), "create table one (id int)".into()).await.expect("a table");
        postgres.kill();
        assert!(PgConnection::connect(postgres.url()).await.is_err());
        postgres.restart().await.expect("PostgreSQL starts again");
        execute(postgres.url(), "insert into one values (1)".into()).await.expect("the table is still there");
    }
}
