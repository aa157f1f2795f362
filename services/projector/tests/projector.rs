//! The projector between a real log and a real database.

use std::{sync::Arc, time::Duration};

use domain::{
    Key, Slug,
    project::{self, Declaration},
    settings::StageSettings,
    stage,
};
use eventlog::EventLog;
use readmodel::{PgPool, Progress};
use testkit::{Database, LossyDisk, Luck, Names, Nats, Postgres};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinHandle,
};
use tokio_util::sync::{CancellationToken, DropGuard};

const SOON: Duration = Duration::from_secs(30);

async fn connect(nats: &Nats) -> EventLog {
    let config = eventlog::Config { url: nats.url().into(), name: "test".into(), master_key: None };
    EventLog::connect(&config).await.expect("the log can be used")
}

async fn prepared(url: &str) -> PgPool {
    let database = readmodel::connect(url).await.expect("PostgreSQL can be used");
    readmodel::migrate(&database).await.expect("the schema is made");
    database
}

async fn world() -> (Nats, EventLog, Database, PgPool) {
    let nats = Nats::start().await.expect("nats-server starts");
    let log = connect(&nats).await;
    let database = Postgres::database().await.expect("PostgreSQL starts");
    let pool = prepared(database.url()).await;
    (nats, log, database, pool)
}

fn slug(text: &str) -> Slug {
    text.parse().expect("a good name")
}

/// Stage `shop.dev`, and then `count` events on it.
async fn happen(log: &EventLog, count: usize) {
    let stages = [(slug("dev"), StageSettings::default())].into();
    let command = project::Command::Apply {
        slug: slug("shop"),
        declaration: Declaration { stages, ..Declaration::default() },
        prune: false,
    };
    let context = runtime::clock::context("test");
    log.execute(&Key::project(&slug("shop")), command, &context).await.expect("declared");
    let stage = Key::stage(&slug("shop"), &slug("dev"));
    for n in 0..count {
        let command = stage::Command::Lock { owner: "ada".into(), reason: format!("reason {n}") };
        log.execute(&stage, command, &runtime::clock::context("test")).await.expect("locked");
    }
}

/// Past the event log, which writes no such thing.
async fn publish(nats: &Nats, subject: &str, body: &str) {
    let url = nats.url().strip_prefix("nats://").expect("a NATS URL");
    let (credentials, server) = url.split_once('@').expect("with credentials");
    let (user, password) = credentials.split_once(':').expect("of two parts");
    let mut connection = tokio::net::TcpStream::connect(server).await.expect("it listens");
    let connect = format!(r#"CONNECT {{"user":"{user}","pass":"{password}","verbose":false}}"#);
    let publish = format!("{connect}\r\nPUB {subject} {}\r\n{body}\r\n", body.len());
    connection.write_all(publish.as_bytes()).await.expect("sent");
    connection.shutdown().await.expect("all of it");
    connection.read_to_end(&mut Vec::new()).await.expect("the server closes the connection when it has read all");
}

struct Running {
    stop: DropGuard,
    task: JoinHandle<anyhow::Result<()>>,
}

fn start(log: &EventLog, pool: &PgPool) -> Running {
    let token = CancellationToken::new();
    let task = tokio::spawn(projector::run(log.clone(), pool.clone(), token.clone()));
    Running { stop: token.drop_guard(), task }
}

impl Running {
    async fn stop(self) {
        drop(self.stop);
        let ended = tokio::time::timeout(SOON, self.task).await.expect("it ends");
        ended.expect("no panic").expect("no error");
    }
}

/// Waits until every event shows.
async fn caught_up(log: &EventLog, pool: &PgPool) -> u64 {
    let last = log.last_sequence().await.expect("the log answers");
    let (progress, listening) = Progress::follow(pool.clone());
    let listening = tokio::spawn(listening);
    progress.reached(last, SOON).await.expect("the projector catches up");
    listening.abort();
    last
}

#[tokio::test]
async fn a_projector_that_is_killed_loses_and_repeats_nothing() {
    let (_nats, log, _database, pool) = world().await;
    let writing = tokio::spawn({
        let log = log.clone();
        async move { happen(&log, 300).await }
    });
    while !writing.is_finished() {
        let running = start(&log, &pool);
        tokio::time::sleep(Duration::from_millis(30)).await;
        running.task.abort();
    }
    writing.await.expect("no panic");
    let running = start(&log, &pool);
    let last = caught_up(&log, &pool).await;
    let live = projector::checksum(&pool).await.expect("computed");
    assert!(live.iter().all(|model| model.sequence == last), "{live:?}");
    assert!(live.iter().any(|model| model.model == "events" && model.rows == last), "{live:?}");
    assert_eq!(projector::rebuild(&log, &pool, None).await.expect("rebuilt"), last);
    assert_eq!(projector::checksum(&pool).await.expect("computed"), live);
    running.stop().await;
}

#[tokio::test]
async fn a_rebuild_while_the_projector_works_gives_the_live_checksum() {
    let (_nats, log, _database, pool) = world().await;
    let running = start(&log, &pool);
    let writing = happen(&log, 400);
    let rebuilding = async {
        for model in [None, Some("stages"), None, Some("events")] {
            projector::rebuild(&log, &pool, model).await.expect("rebuilt");
        }
    };
    tokio::join!(writing, rebuilding);
    caught_up(&log, &pool).await;
    let live = projector::checksum(&pool).await.expect("computed");
    running.stop().await;
    // Nobody works now.
    projector::rebuild(&log, &pool, None).await.expect("rebuilt");
    assert_eq!(projector::checksum(&pool).await.expect("computed"), live);
    let error = projector::rebuild(&log, &pool, Some("nonsense")).await.expect_err("no such model");
    assert!(error.to_string().contains("nonsense"), "{error}");
}

#[tokio::test]
async fn an_event_of_another_version_stops_the_projector_which_says_so() {
    let (nats, log, _database, pool) = world().await;
    happen(&log, 3).await;
    let known = log.last_sequence().await.expect("the log answers");
    let subject = "sluice.events.stage.shop.other.deployment.teleported";
    let body = r#"{"specversion":"1.0","type":"dev.sluice.stage.deployment.teleported.v1","data":{}}"#;
    publish(&nats, subject, body).await;
    while log.last_sequence().await.expect("the log answers") == known {}
    happen(&log, 2).await;

    let running = start(&log, &pool);
    let ended = tokio::time::timeout(SOON, running.task).await.expect("it stops").expect("no panic");
    let error = format!("{:#}", ended.expect_err("it does not go on"));
    assert!(error.contains(subject) && error.contains(&format!("event {}", known + 1)), "{error}");
    let state = readmodel::state(&pool).await.expect("read");
    assert_eq!(state.sequence, known, "what came before is applied, and nothing behind");
    assert!(state.error.expect("it says why").contains(subject));
    let error = projector::rebuild(&log, &pool, None).await.expect_err("it cannot be read in a rebuild either");
    assert!(format!("{error:#}").contains(subject), "{error:#}");
    assert_eq!(readmodel::state(&pool).await.expect("read").sequence, known, "the live tables are as they were");
}

#[tokio::test]
async fn a_second_projector_takes_over_from_the_first() {
    let (_nats, log, _database, pool) = world().await;
    let first = start(&log, &pool);
    happen(&log, 20).await;
    caught_up(&log, &pool).await;
    let second = start(&log, &pool);
    happen(&log, 20).await;
    caught_up(&log, &pool).await;
    first.stop().await;
    happen(&log, 20).await;
    let last = caught_up(&log, &pool).await;
    let live = projector::checksum(&pool).await.expect("computed");
    assert!(live.iter().any(|model| model.model == "events" && model.rows == last), "{live:?}");
    second.stop().await;
}

#[tokio::test]
async fn outages_of_the_database_and_of_nats_lose_nothing() {
    let mut nats = Nats::start().await.expect("nats-server starts");
    let log = connect(&nats).await;
    let mut postgres = Postgres::start().await.expect("PostgreSQL starts");
    let pool = prepared(postgres.url()).await;
    let running = start(&log, &pool);
    happen(&log, 10).await;
    caught_up(&log, &pool).await;

    postgres.kill();
    happen(&log, 10).await;
    postgres.restart().await.expect("PostgreSQL starts again");
    caught_up(&log, &pool).await;

    nats.kill();
    nats.restart().await.expect("nats-server starts again");
    happen(&log, 10).await;
    let last = caught_up(&log, &pool).await;
    let live = projector::checksum(&pool).await.expect("computed");
    assert!(live.iter().any(|model| model.model == "events" && model.rows == last), "{live:?}");
    assert_eq!(readmodel::state(&pool).await.expect("read").error, None, "an outage is no reason to stop");
    running.stop().await;
}

#[tokio::test]
async fn read_models_of_another_log_are_left_alone_until_they_are_rebuilt() {
    let (_nats, log, _database, pool) = world().await;
    let running = start(&log, &pool);
    happen(&log, 20).await;
    caught_up(&log, &pool).await;
    running.stop().await;

    let other = Nats::start().await.expect("nats-server starts");
    let log = connect(&other).await;
    happen(&log, 2).await;
    let running = start(&log, &pool);
    let noted = async {
        loop {
            if let Some(error) = readmodel::state(&pool).await.expect("read").error {
                return error;
            }
        }
    };
    let error = tokio::time::timeout(SOON, noted).await.expect("it says what is wrong");
    assert!(error.contains("DATABASE_URL") && error.contains("projector rebuild"), "{error}");
    projector::rebuild(&log, &pool, None).await.expect("rebuilt");
    happen(&log, 5).await;
    let last = caught_up(&log, &pool).await;
    let live = projector::checksum(&pool).await.expect("computed");
    assert!(live.iter().any(|model| model.model == "events" && model.rows == last), "{live:?}");
    running.stop().await;
}

/// The disk is of both servers, and forgets what they did not sync. The projector's PostgreSQL commits before it syncs,
/// as the one of `sluice up` does: a checkpoint may be lost with the rows it speaks of, never one without the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_power_loss_of_both_servers_it_goes_on_where_the_database_stands() {
    let disk = Arc::new(LossyDisk::mount(Names::Journaled).expect("mounts"));
    let mut nats = Nats::start_on(&disk).await.expect("nats-server starts");
    let mut postgres = Postgres::start_on(&disk).await.expect("PostgreSQL starts");
    let log = connect(&nats).await;
    let mut pool = prepared(postgres.url()).await;
    for loss in 0..2 {
        let running = start(&log, &pool);
        let writing = tokio::spawn({
            let log = log.clone();
            async move { happen(&log, 150).await }
        });
        let (progress, listening) = Progress::follow(pool.clone());
        let listening = tokio::spawn(listening);
        progress.reached(150 * loss + 50, SOON).await.expect("the projector works");
        listening.abort();
        let processes = [nats.processes(), postgres.processes()].concat();
        disk.power_loss(&processes, Luck::Seeded(loss)).expect("the power comes back");
        running.task.abort();
        nats.restart().await.expect("nats-server starts again");
        postgres.restart().await.expect("PostgreSQL starts again");
        pool = prepared(postgres.url()).await;
        tokio::time::timeout(SOON, writing).await.expect("in time").expect("nothing fails for good");

        let running = start(&log, &pool);
        let last = caught_up(&log, &pool).await;
        let live = projector::checksum(&pool).await.expect("computed");
        assert_eq!(projector::rebuild(&log, &pool, None).await.expect("rebuilt"), last);
        assert_eq!(projector::checksum(&pool).await.expect("computed"), live, "loss {loss}");
        running.stop().await;
    }
}

/// The projector's PostgreSQL commits before it syncs, so a crash takes commits along that the projector has seen done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_crash_of_the_database_took_back_is_projected_again_though_nothing_happens() {
    let nats = Nats::start().await.expect("nats-server starts");
    let log = connect(&nats).await;
    let disk = Arc::new(LossyDisk::mount(Names::Journaled).expect("mounts"));
    let mut postgres = Postgres::start_on(&disk).await.expect("PostgreSQL starts");
    let pool = prepared(postgres.url()).await;
    let running = start(&log, &pool);
    // What was not synced by chance is lost; that all of it was in every round is as good as impossible.
    for _ in 0..4 {
        happen(&log, 5).await;
        caught_up(&log, &pool).await;
        disk.power_loss(&postgres.processes(), Luck::None).expect("the power comes back");
        postgres.restart().await.expect("PostgreSQL starts again");
        caught_up(&log, &pool).await;
    }
    running.stop().await;
}
