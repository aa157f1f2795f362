//! The life of an edge process: it begins with what the last one left, serves, and hands over to the next.

use std::{
    future::Future,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener as StdListener},
    path::Path,
    pin::pin,
    sync::{Arc, Weak},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use domain::{Slug, traffic::EdgePresence};
use tokio::{
    net::TcpListener,
    sync::watch,
    task::{JoinSet, spawn_blocking},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Config,
    control::{Answer, Asked, Control, Upgraded},
    handover::{Estate, Fate, Predecessor, Successor},
    health,
    listen::{self, Duty},
    proxy::{ANSWER_LIMIT, Proxy},
    routes::Routes,
    snapshot,
    watch::{Identity, Reached},
    workers::Workers,
};

/// NATS tells its routes within milliseconds, or it is away.
const NATS_LIMIT: Duration = Duration::from_secs(3);

/// What the parts of one edge process share.
pub(crate) struct Edge {
    config: Config,
    address: SocketAddr,
    probe_token: String,
    routes: Arc<Routes>,
    /// Held by whoever accepts.
    listener: Weak<StdListener>,
    connections: TaskTracker,
    duty: watch::Sender<Duty>,
    identity: watch::Sender<Option<Identity>>,
    reached: watch::Receiver<Reached>,
    stop: CancellationToken,
}

/// What comes after having served.
enum Next {
    HandedOver(Box<Successor>),
    Stop,
}

impl Edge {
    /// The first, or the one after a crash.
    pub(crate) async fn begin(listener: TcpListener, config: Config, stop: CancellationToken) -> Result<()> {
        let routes = Arc::new(Routes::new());
        snapshot::load(&config.snapshot, &routes);
        health::first_look(&routes).await;
        // Unguessable enough for what it buys: the id of the deployment that answered.
        let probe_token = runtime::clock::new_id().to_string();
        let (edge, listener, tasks) = Self::new(listener, config, probe_token, routes, stop)?;
        edge.live(listener, tasks, None).await
    }

    /// One that takes over from an edge that serves.
    pub(crate) async fn take_over(
        mut predecessor: Predecessor,
        listener: TcpListener,
        estate: Estate,
        config: Config,
        stop: CancellationToken,
    ) -> Result<()> {
        let routes = Arc::new(Routes::new());
        let count = estate.routes.len();
        snapshot::restore(estate.routes, &routes);
        tracing::info!(routes = count, "routes taken over");
        let begun = Self::new(listener, config, estate.probe_token, routes, stop);
        let (edge, listener, tasks) = match begun {
            Ok(begun) => begun,
            Err(error) => {
                predecessor.failed(&error).await;
                return Err(error);
            }
        };
        tokio::select! {
            () = edge.settle() => predecessor.ready().await,
            // Nobody serves while this goes on, so it has to be enough as it is.
            gone = predecessor.turn() => return edge.turn_came(gone, listener, tasks, predecessor).await,
            () = edge.stop.cancelled() => return Ok(()),
        }
        let turn = tokio::select! {
            turn = predecessor.turn() => turn,
            () = edge.stop.cancelled() => return Ok(()),
        };
        edge.turn_came(turn, listener, tasks, predecessor).await
    }

    async fn turn_came(
        self,
        turn: Result<()>,
        listener: Arc<StdListener>,
        tasks: JoinSet<()>,
        predecessor: Predecessor,
    ) -> Result<()> {
        turn?;
        self.live(listener, tasks, Some(predecessor)).await
    }

    fn new(
        listener: TcpListener,
        config: Config,
        probe_token: String,
        routes: Arc<Routes>,
        stop: CancellationToken,
    ) -> Result<(Self, Arc<StdListener>, JoinSet<()>)> {
        config.id.parse::<Slug>().context("the edge's id")?;
        let address = listener.local_addr().context("asking for the edge's own address")?;
        let listener = Arc::new(listener.into_std().context("taking the listening socket")?);
        let (identity, shown) = watch::channel(None);
        let (reach, reached) = watch::channel(Reached::default());
        // Dropped, and with it ended, when serving has ended.
        let mut tasks = JoinSet::new();
        tasks.spawn(routes.clone().enforce_deadlines());
        tasks.spawn(health::probe_all(routes.clone()));
        tasks.spawn(crate::watch::run(config.log.clone(), routes.clone(), shown, reach));
        let edge = Self {
            config,
            address,
            probe_token,
            routes,
            listener: Arc::downgrade(&listener),
            connections: TaskTracker::new(),
            duty: watch::Sender::new(Duty::StandBy),
            identity,
            reached,
            stop,
        };
        Ok((edge, listener, tasks))
    }

    /// Until the upstreams are known and NATS has told its routes, if it is there.
    async fn settle(&self) {
        let mut reached = self.reached.clone();
        let told = timeout(NATS_LIMIT, reached.wait_for(|reached| reached.routes));
        let (told, ()) = tokio::join!(told, health::first_look(&self.routes));
        if told.is_err() {
            tracing::warn!("NATS is away, taking over with the routes of the edge before");
        }
    }

    /// Serves to the end.
    async fn live(
        self,
        listener: Arc<StdListener>,
        mut tasks: JoinSet<()>,
        predecessor: Option<Predecessor>,
    ) -> Result<()> {
        tracing::info!(address = %self.address, "edge listens");
        let proxy = Proxy {
            routes: self.routes.clone(),
            probe_token: self.probe_token.clone(),
            max_waiting: self.config.max_waiting,
            answer_limit: ANSWER_LIMIT,
        };
        let workers = Workers::start(self.config.threads).context("starting the edge's threads")?;
        let serving = listen::serve(listener, proxy, workers, self.duty.subscribe(), self.connections.clone());
        let mut serving = pin!(serving);
        let both = async { tokio::join!(&mut serving, self.conduct(predecessor)) };
        let ended = tokio::select! {
            _ = both => None,
            ended = tasks.join_next() => Some(ended),
        };
        if let Some(ended) = ended {
            // None of them ends by itself, so it panicked. A new process is better than stale routes.
            self.duty.send_replace(Duty::Stop(self.config.grace));
            serving.await;
            bail!("a task of the edge ended: {ended:?}")
        }
        self.say_goodbye().await;
        Ok(())
    }

    /// Serves and stands by in turn, and leaves [`Duty::Stop`] behind.
    async fn conduct(&self, mut predecessor: Option<Predecessor>) {
        loop {
            match self.serve(&mut predecessor).await {
                Next::Stop => {
                    self.forget_pid();
                    if let Some(predecessor) = &mut predecessor {
                        predecessor.stopped().await;
                    }
                    self.duty.send_replace(Duty::Stop(self.config.grace));
                    return;
                }
                Next::HandedOver(successor) => match self.stand_by(*successor).await {
                    Some(grace) => {
                        self.duty.send_replace(Duty::Stop(grace));
                        return;
                    }
                    None => tracing::warn!("the edge that took over is gone, serving again"),
                },
            }
        }
    }

    /// Accepts connections until told to stop, or until another does.
    async fn serve(&self, predecessor: &mut Option<Predecessor>) -> Next {
        self.connections.reopen();
        self.duty.send_replace(Duty::Accept);
        self.appear(&self.config.id, false);
        self.write_pid().await;
        let control = Control::open(self.config.control.as_deref());
        if let Some(predecessor) = predecessor {
            predecessor.serving().await;
        }
        loop {
            let stop = CancellationToken::new();
            let keeper = tokio::spawn(snapshot::keep(self.config.snapshot.clone(), self.routes.clone(), stop.clone()));
            let asked = tokio::select! {
                asked = control.next() => Some(asked),
                () = self.stop.cancelled() => None,
            };
            let Some(asked) = asked else {
                stop.cancel();
                let _ = keeper.await;
                return Next::Stop;
            };
            let quiet = async {
                stop.cancel();
                // What it writes last is older than what the successor writes.
                let _ = keeper.await;
            };
            let replaced = tokio::select! {
                replaced = self.replace(asked, quiet) => replaced,
                () = control.refuse("another upgrade is under way") => None,
            };
            if let Some(successor) = replaced {
                if let Some(predecessor) = predecessor {
                    predecessor.replaced().await;
                }
                return Next::HandedOver(Box::new(successor));
            }
        }
    }

    /// `None` when it failed: then this process serves on.
    async fn replace(&self, mut asked: Asked, quiet: impl Future<Output = ()>) -> Option<Successor> {
        tracing::info!(program = %asked.program.display(), "another edge is to take over");
        match self.hand_over(&mut asked, quiet).await {
            Ok(successor) => {
                self.duty.send_replace(Duty::StandBy);
                let upgraded = Upgraded {
                    old_pid: std::process::id(),
                    new_pid: successor.pid,
                    connections: self.connections.len(),
                    until: runtime::clock::now() + self.config.grace,
                };
                tracing::info!(
                    new_pid = upgraded.new_pid,
                    connections = upgraded.connections,
                    "handed over, serving what is open"
                );
                asked.answer(&Answer::Done(upgraded)).await;
                Some(successor)
            }
            Err(error) => {
                let reason = format!("{error:#}");
                tracing::error!(%reason, "handing over failed, serving on");
                self.appear(&self.config.id, false);
                self.write_pid().await;
                asked.answer(&Answer::Failed { reason }).await;
                None
            }
        }
    }

    async fn hand_over(&self, asked: &mut Asked, quiet: impl Future<Output = ()>) -> Result<Successor> {
        let estate = Estate { probe_token: self.probe_token.clone(), routes: self.routes.saved() };
        let listener = self.listener.upgrade().context("the listening socket is closed already")?;
        let mut successor = Successor::start(&asked.program, &listener, estate).await?;
        asked.answer(&Answer::Started { pid: successor.pid }).await;
        let steps = self.let_go(&mut successor, asked, quiet);
        match self.stop.run_until_cancelled(steps).await {
            Some(done) => done?,
            None => return Err(successor.kill("the edge is told to stop".into()).await),
        }
        Ok(successor)
    }

    /// An error means that `successor` has ended.
    async fn let_go(
        &self,
        successor: &mut Successor,
        asked: &mut Asked,
        quiet: impl Future<Output = ()>,
    ) -> Result<()> {
        successor.ready().await?;
        asked.answer(&Answer::Ready).await;
        quiet.await;
        // Whoever asks whether a route is in force must hear it from both processes, so each has a name of its own
        // before the other one speaks under the name of both.
        let mine = format!("{}-{}", self.config.id, std::process::id());
        self.appear(&mine, true);
        let mut reached = self.reached.clone();
        if reached.borrow().answers_as.is_some() {
            let renamed = reached.wait_for(|reached| reached.answers_as.as_ref() == Some(&mine));
            if timeout(NATS_LIMIT, renamed).await.is_err() {
                tracing::warn!("NATS is away, handing over without it");
            }
        }
        successor.go().await
    }

    /// Serves what is open while `successor` accepts. How long what is then still open may last; `None` when this
    /// process has to accept again.
    async fn stand_by(&self, mut successor: Successor) -> Option<Duration> {
        let deadline = Instant::now() + self.config.grace;
        self.connections.close();
        let mut left = false;
        loop {
            let fate = tokio::select! {
                // Not zero: a thread that is slow to stop accepting may be taking one more in this moment.
                () = self.connections.wait() => return Some(deadline.duration_since(Instant::now())),
                () = sleep_until(deadline) => return Some(Duration::ZERO),
                () = self.stop.cancelled() => return Some(deadline.duration_since(Instant::now())),
                fate = successor.fate(), if !left => fate,
            };
            match fate {
                Fate::Gone => return None,
                Fate::Stopped => return Some(deadline.duration_since(Instant::now())),
                Fate::Replaced => {
                    // Who serves now has the socket from there, and is watched from there.
                    left = true;
                    self.duty.send_replace(Duty::Leave);
                }
            }
        }
    }

    /// Shows this process to the deployer under the name `id`.
    fn appear(&self, id: &str, temporary: bool) {
        let presence = EdgePresence {
            id: id.to_owned(),
            version: env!("CARGO_PKG_VERSION").into(),
            address: reachable(self.address).to_string(),
            probe_token: self.probe_token.clone(),
        };
        self.identity.send_replace(Some(Identity { presence, temporary }));
    }

    /// A process that stood by takes its name back.
    async fn say_goodbye(&self) {
        let temporary = self.identity.borrow().as_ref().is_some_and(|identity| identity.temporary);
        let mut reached = self.reached.clone();
        if temporary && reached.borrow().answers_as.is_some() {
            self.identity.send_replace(None);
            let _ = timeout(NATS_LIMIT, reached.wait_for(|reached| reached.answers_as.is_none())).await;
        }
    }

    /// Others find out by this file which process it is that accepts.
    async fn write_pid(&self) {
        let Some(path) = self.config.pid_file.clone() else { return };
        let write = move || runtime::files::replace(&path, std::process::id().to_string().as_bytes(), 0o600);
        if let Ok(Err(error)) = spawn_blocking(write).await {
            tracing::error!(%error, "the pid file cannot be written");
        }
    }

    fn forget_pid(&self) {
        if let Some(path) = &self.config.pid_file
            && let Err(error) = remove_own(path)
        {
            tracing::warn!(%error, path = %path.display(), "the pid file cannot be removed");
        }
    }
}

fn remove_own(path: &Path) -> io::Result<()> {
    match std::fs::read_to_string(path) {
        Ok(pid) if pid == std::process::id().to_string() => std::fs::remove_file(path),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// An address at which a listener on every address can be reached from this machine.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}
