//! How each part is run: alone, in its own network, as the README describes it for each role.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result, bail};
use testkit::find_program;
use tokio::process::Command;

use crate::{
    enter,
    keeper::{Keeper, Spec},
    net::{self, address, inside, run},
    outages::Outages,
    schedule::Part,
};

pub(crate) const EDGE_PORT: u16 = 80;
pub(crate) const ENGINE_PORT: u16 = 2375;
pub(crate) const API_PORT: u16 = 7070;
const NATS_PORT: u16 = 4222;
const POSTGRES_PORT: u16 = 5432;
/// Nobody else reaches this network.
const PASSWORD: &str = "storm";
/// PostgreSQL refuses to run as root; Debian's package brings this user.
const POSTGRES_USER: &str = "postgres";
/// Mebibytes for the event log: enough for a long storm, little enough to be filled quickly.
const NATS_DISK: usize = 192;

/// Where everything is, and what runs it.
pub(crate) struct Lab {
    /// Goes with the storm.
    directory: PathBuf,
    /// Stays.
    logs: PathBuf,
    sluice: PathBuf,
    nats_server: PathBuf,
    postgres: PathBuf,
    dockerd: PathBuf,
    clock: PathBuf,
    /// The first password, and the key of sessions.
    secret: String,
}

impl Lab {
    pub(crate) fn new(directory: &Path, logs: &Path, sluice: &Path) -> Result<Lab> {
        let missing = |what: &str| format!("no {what} found: run `make storm`, which installs it");
        Ok(Lab {
            directory: directory.to_owned(),
            logs: logs.to_owned(),
            sluice: sluice.to_owned(),
            nats_server: testkit::nats_server()?,
            postgres: postgres_programs().with_context(|| missing("PostgreSQL"))?,
            dockerd: find_program("dockerd").with_context(|| missing("dockerd"))?,
            clock: clock_library().with_context(|| missing("libfaketime"))?,
            secret: format!("{:032x}", rand::random::<u128>()),
        })
    }

    /// Of the first administrator.
    pub(crate) fn password(&self) -> &str {
        &self.secret
    }

    /// The disk of the event log, to be filled.
    pub(crate) fn nats_disk(&self) -> PathBuf {
        self.directory.join("nats")
    }

    pub(crate) fn engine_socket(&self) -> String {
        format!("unix://{}", self.directory.join("docker.sock").display())
    }

    pub(crate) fn nats_url(&self) -> String {
        format!("nats://sluice:{PASSWORD}@{}:{NATS_PORT}", address(Part::Nats))
    }

    pub(crate) fn database_url(&self) -> String {
        format!("postgres://sluice:{PASSWORD}@{}:{POSTGRES_PORT}/postgres", address(Part::Postgres))
    }

    /// By how much the clock of `part` is off.
    pub(crate) fn clock_file(&self, part: Part) -> PathBuf {
        self.directory.join(format!("clock-{}", part.name()))
    }

    pub(crate) fn set_clock(&self, part: Part, seconds: i64) -> Result<()> {
        let file = self.clock_file(part);
        let fresh = file.with_extension("new");
        fs::write(&fresh, format!("{seconds:+}s\n")).context("writing a clock")?;
        fs::rename(&fresh, &file).context("setting a clock")
    }

    /// Directories, disks, configurations and the database cluster.
    pub(crate) async fn prepare(&self) -> Result<()> {
        // PostgreSQL's user has to pass.
        fs::set_permissions(&self.directory, Permissions::from_mode(0o755)).context("opening the directory")?;
        for part in Part::RUNNING {
            fs::create_dir_all(self.directory.join(part.name())).context("creating the directory of a part")?;
            self.set_clock(part, 0)?;
        }
        let disk = self.nats_disk();
        let size = format!("size={NATS_DISK}m");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "storm"]).arg(&disk)).await?;
        let configuration = include_str!("../../../nats/server.conf")
            .replace("127.0.0.1:{{port}}", &format!("0.0.0.0:{NATS_PORT}"))
            .replace("{{store_dir}}", &disk.join("store").to_string_lossy())
            .replace("{{user}}", "sluice")
            .replace("{{password}}", PASSWORD)
            // Else the server takes what is free when it starts for all there will ever be.
            .replace("sync_interval: always", "sync_interval: always\n  max_file_store: 10GB");
        fs::write(self.directory.join("nats.conf"), configuration).context("configuring nats-server")?;
        self.create_cluster().await
    }

    async fn create_cluster(&self) -> Result<()> {
        let home = self.directory.join(Part::Postgres.name());
        let entry = fs::read_to_string("/etc/passwd").context("reading /etc/passwd")?;
        let entry = entry.lines().find_map(|line| line.strip_prefix(&format!("{POSTGRES_USER}:x:")));
        let mut ids = entry.unwrap_or_default().split(':').map(|id| id.parse().ok());
        let (Some(Some(user)), Some(Some(group))) = (ids.next(), ids.next()) else {
            bail!("there is no user {POSTGRES_USER}: install Debian's postgresql package");
        };
        chown(&home, Some(user), Some(group)).context("handing a directory to PostgreSQL's user")?;
        let password = home.join("password");
        fs::write(&password, PASSWORD).context("writing the password of PostgreSQL")?;
        fs::set_permissions(&password, Permissions::from_mode(0o644))?;
        let cluster = home.join("cluster");
        let mut initdb = as_postgres(Command::new("setpriv"), &self.postgres.join("initdb"));
        initdb.arg("-D").arg(&cluster).arg("--pwfile").arg(&password).arg("--no-sync").current_dir("/");
        run(initdb.args(["-U", "sluice", "-A", "scram-sha-256", "-E", "UTF8", "--locale", "C.UTF-8"])).await?;
        let access = cluster.join("pg_hba.conf");
        let known = fs::read_to_string(&access).context("reading pg_hba.conf")?;
        fs::write(&access, format!("{known}\nhost all all 10.77.0.0/24 scram-sha-256\n")).context("writing pg_hba.conf")
    }

    /// Starts `part` and keeps it running.
    pub(crate) fn start(self: &Arc<Self>, part: Part, outages: &Outages) -> Keeper {
        let lab = self.clone();
        let pid_files = match part {
            Part::Engine => vec!["docker.pid".into(), "exec/containerd/containerd.pid".into()],
            Part::Postgres => vec!["cluster/postmaster.pid".into()],
            _ => vec![],
        };
        let spec = Spec {
            part,
            command: Box::new(move || lab.command(part)),
            log: self.logs.join(format!("{}.log", part.name())),
            pid_files: pid_files.into_iter().map(|file: PathBuf| self.directory.join(part.name()).join(file)).collect(),
            listens: (part == Part::Edge).then(|| format!("{}:{EDGE_PORT}", address(Part::Edge))),
        };
        Keeper::start(spec, outages.clone())
    }

    fn command(&self, part: Part) -> Command {
        let home = self.directory.join(part.name());
        match part {
            Part::Nats => {
                let mut command = inside(part, &self.nats_server);
                command.arg("-c").arg(self.directory.join("nats.conf"));
                command
            }
            Part::Postgres => {
                // The clock's library as its user only: what root has made before would be closed to it.
                let mut command = as_postgres(inside(part, Path::new("setpriv")), Path::new("env"));
                command.args(self.clock(part).map(|(name, value)| format!("{name}={value}")));
                command.arg(self.postgres.join("postgres")).current_dir("/").arg("-D").arg(home.join("cluster"));
                let port = format!("port={POSTGRES_PORT}");
                let settings = ["listen_addresses=*", &port, "unix_socket_directories=", "max_connections=60"];
                // As `sluice up` runs it.
                for setting in settings.into_iter().chain(["shared_buffers=32MB", "synchronous_commit=off"]) {
                    command.args(["-c", setting]);
                }
                command
            }
            Part::Engine => self.dockerd(&home),
            Part::Projector | Part::Deployer | Part::Watcher | Part::Edge | Part::Api => {
                // An API without it says so, and ends.
                eventlog::vault::create_key(&home.join("vault.key")).ok();
                let mut command = inside(part, &self.sluice);
                command.arg(part.name()).env_clear();
                command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
                command.envs([
                    ("NATS_URL", self.nats_url()),
                    ("DATABASE_URL", self.database_url()),
                    ("DATA_DIR", home.display().to_string()),
                    ("DOCKER_HOST", format!("tcp://{}:{ENGINE_PORT}", address(Part::Engine))),
                    ("EDGE_LISTEN", format!("{}:{EDGE_PORT}", address(Part::Edge))),
                    ("API_LISTEN", format!("127.0.0.1:{API_PORT}")),
                    ("JWT_SECRET_KEY", self.secret.clone()),
                    ("ADMIN_PASSWORD", self.secret.clone()),
                ]);
                command.envs(self.clock(part));
                command
            }
            Part::Clients => unreachable!("clients are no process"),
        }
    }

    /// As testkit runs a private one, but reached through its network, and with its containers in groups of the storm's.
    fn dockerd(&self, home: &Path) -> Command {
        let mut command = inside(Part::Engine, &self.dockerd);
        command.arg("--data-root").arg(home.join("data")).arg("--exec-root").arg(home.join("exec"));
        command.arg("--pidfile").arg(home.join("docker.pid"));
        command.args(["--host", &self.engine_socket()]);
        command.args(["--host", &format!("tcp://{}:{ENGINE_PORT}", address(Part::Engine)), "--tls=false"]);
        command.arg("--cgroup-parent").arg(enter::control_group(&self.directory));
        // systemd, where it runs, knows these processes by other numbers.
        command.args(["--exec-opt", "native.cgroupdriver=cgroupfs"]);
        command.args(["--default-address-pool", &format!("base={},size=25", net::CONTAINERS)]);
        command.args(["--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-masq=false"]);
        command.args(["--shutdown-timeout=5", "--log-level=warn"]);
        command
    }

    /// What a process needs to have a clock of its own. The monotonic one stays as it is, as it would when an operator
    /// sets the time.
    fn clock(&self, part: Part) -> [(&'static str, String); 6] {
        [
            ("LD_PRELOAD", self.clock.display().to_string()),
            ("FAKETIME_TIMESTAMP_FILE", self.clock_file(part).display().to_string()),
            ("FAKETIME_CACHE_DURATION", "1".to_owned()),
            ("DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("NO_FAKE_STAT", "1".to_owned()),
        ]
    }
}

fn as_postgres(mut command: Command, program: &Path) -> Command {
    command.args(["--reuid", POSTGRES_USER, "--regid", POSTGRES_USER, "--init-groups", "--"]).arg(program);
    command
}

/// The newest that is installed.
fn postgres_programs() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    versions
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse::<u32>().ok()?, entry.path().join("bin"))))
        .filter(|(_, programs)| programs.join("initdb").is_file())
        .max()
        .map(|(_, programs)| programs)
}

/// Debian keeps it in the directory of the machine's architecture.
fn clock_library() -> Option<PathBuf> {
    let directories = fs::read_dir("/usr/lib").into_iter().flatten().flatten().map(|entry| entry.path());
    directories.map(|directory| directory.join("faketime/libfaketimeMT.so.1")).find(|library| library.is_file())
}
