//! The network between the parts: one bridge, and a namespace for each part.

use std::{
    fs::File,
    net::SocketAddr,
    os::fd::AsFd,
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Context, Result, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    process::Command,
};

use crate::schedule::Part;

/// Where the storm itself stands, and with it the clients of the edge.
const HERE: &str = "10.77.0.1";
/// Networks of containers are cut from this, behind the engine.
pub(crate) const CONTAINERS: &str = "198.18.0.0/16";

pub(crate) fn address(part: Part) -> String {
    match part {
        Part::Clients => HERE.to_owned(),
        Part::Nats
        | Part::Postgres
        | Part::Engine
        | Part::Projector
        | Part::Deployer
        | Part::Watcher
        | Part::Edge
        | Part::Api => {
            format!("10.77.0.{}", 10 + part as u8)
        }
    }
}

fn namespace(part: Part) -> PathBuf {
    Path::new("/run/netns").join(part.name())
}

/// Private mounts over what would otherwise be the machine's, then the bridge and the namespaces.
pub(crate) async fn set_up(directory: &Path) -> Result<()> {
    for place in [Path::new("/run"), Path::new("/dev/shm"), directory] {
        run(Command::new("mount").args(["-t", "tmpfs", "-o", "mode=1777", "storm"]).arg(place)).await?;
    }
    for line in [
        "link set lo up",
        "link add bridge0 type bridge",
        &format!("address add {HERE}/24 dev bridge0"),
        "link set bridge0 up",
        &format!("route add {CONTAINERS} via {}", address(Part::Engine)),
    ] {
        ip(line).await?;
    }
    for part in Part::RUNNING {
        let (name, address) = (part.name(), address(part));
        ip(&format!("netns add {name}")).await?;
        ip(&format!("link add {name} type veth peer name eth0 netns {name}")).await?;
        ip(&format!("link set {name} master bridge0 up")).await?;
        ip(&format!("-n {name} address add {address}/24 dev eth0")).await?;
        ip(&format!("-n {name} link set lo up")).await?;
        ip(&format!("-n {name} link set eth0 up")).await?;
        if part != Part::Engine {
            ip(&format!("-n {name} route add {CONTAINERS} via {}", self::address(Part::Engine))).await?;
        }
    }
    Ok(())
}

async fn ip(arguments: &str) -> Result<()> {
    run(Command::new("ip").args(arguments.split(' '))).await
}

pub(crate) async fn run(command: &mut Command) -> Result<()> {
    let what = format!("{:?}", command.as_std());
    let output = command.kill_on_drop(true).output().await.with_context(|| format!("starting {what}"))?;
    ensure!(
        output.status.success(),
        "{what} ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// What `arguments` say, run in the network of `part`: `nsenter` leaves the mounts alone, as `ip netns` would not.
pub(crate) fn inside(part: Part, program: &Path) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", namespace(part).display())).arg("--").arg(program);
    command
}

/// Whether nothing that `from` sends arrives at `to`.
pub(crate) async fn cut(from: Part, to: Part, closed: bool) -> Result<()> {
    let mut sources = vec![address(from)];
    if from == Part::Engine {
        sources.push(CONTAINERS.to_owned());
    }
    // What is for a container only passes through.
    let chains: &[&str] = if to == Part::Engine { &["INPUT", "FORWARD"] } else { &["INPUT"] };
    for source in &sources {
        for chain in chains {
            let mut command = match to {
                Part::Clients => Command::new("iptables"),
                _ => inside(to, Path::new("iptables")),
            };
            let action = if closed { "--insert" } else { "--delete" };
            run(command.args(["--wait", action, chain, "--source", source, "--jump", "DROP"])).await?;
        }
    }
    Ok(())
}

/// Lets the storm reach, at `listen`, what `part` offers at `to` within its own network (its loopback too).
pub(crate) async fn relay(listen: &str, part: Part, to: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(listen).await.with_context(|| format!("listening on {listen}"))?;
    let listener = listener.into_std().context("handing over a listener")?;
    let namespace = File::open(namespace(part)).context("opening a network namespace")?;
    // A thread belongs to one network; what it opened before, or got from others, stays where it was.
    thread::spawn(move || -> Result<()> {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).context("entering a network")?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let listener = TcpListener::from_std(listener)?;
            loop {
                let (mut client, _) = listener.accept().await?;
                tokio::spawn(async move {
                    // Its end, good or bad, ends the other side as well.
                    if let Ok(mut server) = TcpStream::connect(to).await {
                        let _ = copy_bidirectional(&mut client, &mut server).await;
                    }
                });
            }
        })
    });
    Ok(())
}
