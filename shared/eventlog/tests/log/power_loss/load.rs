//! Clients that write, read and work without a pause, and remember what they were told.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
};

use domain::{
    DeploymentId, Event, Key, Recorded,
    image::{Image, Source},
    settings::StageSettings,
    stage::{self, Spec},
};
use eventlog::{CommitError, Committed, EventLog, ExecuteError, Secret};
use futures::StreamExt;
use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
};
use uuid::Uuid;

use crate::{claim, context, host, id, slug};

const SINGLES: usize = 4;
const BATCHES: usize = 2;
pub(crate) const BATCH: usize = 3;
/// Large enough that the server's blocks (8 MB) fill up and new files are begun while the power goes.
const SPEC_BYTES: usize = 150_000;

/// What clients were told and may rely on.
#[derive(Default, Clone)]
pub(crate) struct Told {
    /// Event by position: of an acknowledged append, or seen by a reader.
    pub(crate) events: BTreeMap<u64, Recorded>,
    /// Commands that were acknowledged, with how many events each has.
    pub(crate) commands: BTreeMap<Uuid, usize>,
    /// By bucket and key: the number of the last acknowledged value.
    pub(crate) values: BTreeMap<(&'static str, String), u64>,
    /// Deployments that a worker took up and was told are off its queue.
    pub(crate) done: BTreeSet<DeploymentId>,
}

pub(crate) struct Load {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

struct Shared {
    told: Mutex<Told>,
    /// How many commands were acknowledged, to a writer or by the worker.
    acknowledged: watch::Sender<u64>,
    stop: watch::Sender<bool>,
    /// How many commands the worker may take up.
    work: Semaphore,
}

impl Shared {
    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().expect("no client panicked")
    }

    fn committed(&self, command: Uuid, count: usize, committed: Committed) {
        let mut told = self.told();
        told.commands.insert(command, count);
        told.events.extend(committed.events.into_iter().map(|event| (event.sequence, event)));
        drop(told);
        self.acknowledged.send_modify(|count| *count += 1);
    }

    fn kept(&self, bucket: &'static str, key: String, number: u64) {
        self.told().values.insert((bucket, key), number);
    }

    fn stopped(&self) -> bool {
        *self.stop.borrow()
    }
}

impl Load {
    /// Starts all clients, over several connections.
    pub(crate) fn start(logs: [EventLog; 3]) -> Load {
        let shared = Arc::new(Shared {
            told: Mutex::default(),
            acknowledged: watch::Sender::new(0),
            stop: watch::Sender::new(false),
            work: Semaphore::new(0),
        });
        let mut tasks = JoinSet::new();
        let log = |n: usize| logs[n % logs.len()].clone();
        for n in 0..SINGLES {
            tasks.spawn(singles(shared.clone(), log(n), n));
        }
        for n in 0..BATCHES {
            tasks.spawn(batches(shared.clone(), log(n), n));
        }
        for n in 0..2 {
            tasks.spawn(requests(shared.clone(), log(n), n));
        }
        tasks.spawn(values(shared.clone(), log(0)));
        tasks.spawn(worker(shared.clone(), log(1)));
        tasks.spawn(reader(shared.clone(), log(2)));
        Load { shared, tasks }
    }

    /// What clients have been told up to now.
    pub(crate) fn told(&self) -> Told {
        self.shared.told().clone()
    }

    /// Waits until `more` commands have been acknowledged.
    pub(crate) async fn acknowledged(&self, more: u64) {
        let mut acknowledged = self.shared.acknowledged.subscribe();
        let wanted = *acknowledged.borrow() + more;
        acknowledged.wait_for(|count| *count >= wanted).await.expect("the load runs");
    }

    /// Ends the clients as they stand.
    pub(crate) async fn abort(mut self) -> Told {
        self.tasks.shutdown().await;
        self.told()
    }

    /// Lets writers finish what they began, and the worker work until it has done all of `dispatched`.
    pub(crate) async fn finish(mut self, dispatched: impl AsyncFn() -> BTreeSet<DeploymentId>) -> Told {
        self.shared.stop.send_replace(true);
        self.shared.work.add_permits(100_000);
        let dispatched = dispatched().await;
        while !self.shared.told().done.is_superset(&dispatched) {
            let mut acknowledged = self.shared.acknowledged.subscribe();
            tokio::select! {
                _ = acknowledged.changed() => {}
                Some(ended) = self.tasks.join_next() => ended.expect("no client panicked"),
            }
        }
        self.abort().await
    }
}

/// One event after the other, each in a message of its own.
async fn singles(shared: Arc<Shared>, log: EventLog, writer: usize) {
    for n in 0.. {
        if shared.stopped() {
            return;
        }
        let once = context();
        let key = host(&format!("single-{writer}-{}.test", n / 50));
        match log.execute(&key, claim(format!("/{n}"), "dev"), &once).await {
            Ok(committed) => shared.committed(once.command_id, 1, committed),
            Err(ExecuteError::Log(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// Atomic batches over several aggregates.
async fn batches(shared: Arc<Shared>, log: EventLog, writer: usize) {
    for n in 0.. {
        if shared.stopped() {
            return;
        }
        let once = context();
        let keys: Vec<_> = (0..BATCH).map(|part| host(&format!("batch-{writer}-{}-{part}.test", n / 50))).collect();
        let written = log.transact(&once, |mut tx| {
            let keys = &keys;
            async move {
                for key in keys {
                    tx.decide(key, claim(format!("/{n}"), "dev")).await.expect("no rival");
                }
                Ok::<_, CommitError>(tx)
            }
        });
        if let Ok(committed) = written.await {
            shared.committed(once.command_id, BATCH, committed);
        }
    }
}

/// Deployments of stages that are idle: each is dispatched in the batch that accepts it.
async fn requests(shared: Arc<Shared>, log: EventLog, writer: usize) {
    for n in 0.. {
        if shared.stopped() {
            return;
        }
        let once = context();
        let (key, command) = request(&format!("stage-{writer}-{n}"), DeploymentId(id()));
        match log.execute(&key, command, &once).await {
            Ok(committed) => shared.committed(once.command_id, 2, committed),
            Err(ExecuteError::Log(_)) => {}
            Err(error) => panic!("{error}"),
        }
        // The worker falls behind, so that at any moment some wait.
        shared.work.add_permits(n % 2);
    }
}

pub(crate) fn request(stage: &str, deployment: DeploymentId) -> (Key<stage::Stage>, stage::Command) {
    let image =
        Image { requested: "shop:v1".into(), digest: format!("sha256:{}", "a".repeat(64)), source: Source::Registry };
    let env = BTreeMap::from([("FILLER".to_owned(), "x".repeat(SPEC_BYTES).as_str().into())]);
    let spec = Spec { image, settings: StageSettings { env, ..StageSettings::default() } };
    let command = stage::Command::Request { deployment, spec, node: "local".into(), by: "ana".into() };
    (Key::stage(&slug("shop"), &slug(stage)), command)
}

/// Secrets and routes: of each key the newest counts.
async fn values(shared: Arc<Shared>, log: EventLog) {
    for n in 1.. {
        if shared.stopped() {
            return;
        }
        let key = format!("key-{}", n % 8);
        if log.vault().put(&key, &Secret::new(n.to_string())).await.is_ok() {
            shared.kept("vault", key.clone(), n);
        }
        if log.bucket("routes").put(&key, n.to_string()).await.is_ok() {
            shared.kept("routes", key, n);
        }
    }
}

/// Works until it is aborted.
async fn worker(shared: Arc<Shared>, log: EventLog) {
    let mut commands = log.commands("local").await.expect("opens");
    loop {
        shared.work.acquire().await.expect("open").forget();
        let command = commands.next().await.expect("delivered");
        let Event::Stage(stage::Event::Dispatched { deployment, .. }) = command.recorded.event.clone() else {
            panic!("{command:?}", command = command.recorded);
        };
        match command.done().await {
            Ok(()) => {
                shared.told().done.insert(deployment);
                shared.acknowledged.send_modify(|count| *count += 1);
            }
            // It comes again.
            Err(_) => shared.work.add_permits(1),
        }
    }
}

/// Follows all events until it is aborted: what a projector or a subscriber has seen must not be unsaid.
async fn reader(shared: Arc<Shared>, log: EventLog) {
    let events = log.follow("sluice.events.>", 0);
    let mut events = std::pin::pin!(events);
    while let Some(event) = events.next().await {
        let Ok(event) = event else { return };
        shared.told().events.insert(event.sequence, event);
    }
}
