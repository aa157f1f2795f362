use std::{net::TcpListener, path::Path, process::Stdio};

use eventlog::{Config, ConnectError, EventLog, ServerConfig, server_config};
use futures::future::join_all;
use serde_json::json;
use testkit::{Nats, free_port};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, Command},
};

use crate::{bare, config, connect, soon, start};

#[tokio::test]
async fn many_roles_that_start_at_once_agree() {
    let nats = Nats::start().await.expect("starts");
    let logs = soon(join_all((0..6).map(|_| connect(&nats)))).await;
    let installation = logs[0].installation();
    assert!(logs.iter().all(|log| log.installation() == installation));
    assert_eq!(connect(&nats).await.installation(), installation);
}

#[tokio::test]
async fn a_password_may_hold_anything() {
    let directory = tempfile::tempdir().expect("a directory");
    let (port, odd) = (free_port(), "p\"a\\s#s} w@rd/\u{e4}");
    let text = server_config(&ServerConfig {
        port,
        store_dir: directory.path().join("a \"store\""),
        user: "us\"er".into(),
        password: odd.into(),
    });
    let _server = spawn(directory.path(), &text).await;
    let url = format!("nats://us%22er:p%22a%5Cs%23s%7D%20w%40rd%2F%C3%A4@127.0.0.1:{port}");
    let config = Config { url, name: "test".into(), master_key: None };
    EventLog::connect(&config).await.expect("opens");
    let wrong = Config { url: format!("nats://us%22er:secret@127.0.0.1:{port}"), ..config };
    let refused = EventLog::connect(&wrong).await.err().expect("refused");
    assert!(matches!(refused, ConnectError::Unauthorized { .. }), "{refused:?}");
    assert!(!format!("{refused} {refused:?}").contains("secret"));
}

#[tokio::test]
async fn a_stream_that_drifted_is_named_with_both_values_and_left_alone() {
    let (nats, log) = start().await;
    log.close().await;
    let client = bare(&nats).await;
    let jetstream = async_nats::jetstream::new(client.clone());
    let info = jetstream.get_stream("LOGS").await.expect("is there");
    let mut changed = info.cached_info().config.clone();
    changed.max_bytes = 1000;
    jetstream.update_stream(&changed).await.expect("updated");
    let refused = EventLog::connect(&config(&nats)).await.err().expect("refused");
    let ConnectError::Drift(drift) = &refused else { panic!("{refused:?}") };
    assert_eq!((drift.stream.as_str(), drift.field.as_str()), ("LOGS", "max_bytes"));
    assert_eq!((drift.declared.as_str(), drift.actual.as_str()), ("1073741824", "1000"));
    assert_eq!(jetstream.get_stream("LOGS").await.expect("is there").cached_info().config.max_bytes, 1000);
}

#[tokio::test]
async fn a_log_that_may_be_trimmed_is_refused() {
    let nats = Nats::start().await.expect("starts");
    let theirs =
        json!({ "name": "EVENTS", "subjects": ["sluice.events.>"], "allow_direct": true, "allow_atomic": true });
    bare(&nats).await.request("$JS.API.STREAM.CREATE.EVENTS", theirs.to_string().into()).await.expect("created");
    let refused = EventLog::connect(&config(&nats)).await.err().expect("refused");
    assert!(matches!(&refused, ConnectError::Drift(drift) if drift.stream == "EVENTS"), "{refused:?}");
}

#[tokio::test]
async fn a_server_that_acknowledges_before_the_disk_has_it_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let port = free_port();
    let text = configured(directory.path(), port).replace("sync_interval: always", "sync_interval: \"2m\"");
    let _server = spawn(directory.path(), &text).await;
    let refused = EventLog::connect(&at(port)).await.err().expect("refused");
    assert!(matches!(refused, ConnectError::SyncOff), "{refused:?}");
}

#[tokio::test]
async fn a_server_that_does_not_say_how_it_syncs_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let port = free_port();
    let text = configured(directory.path(), port).replace("to: \"sluice.system.varz\"", "to: \"elsewhere\"");
    let _server = spawn(directory.path(), &text).await;
    let refused = EventLog::connect(&at(port)).await.err().expect("refused");
    assert!(matches!(refused, ConnectError::SyncUnknown), "{refused:?}");
    assert!(refused.to_string().contains("sluice.system.varz"), "{refused}");
}

#[tokio::test]
async fn a_server_without_jetstream_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let port = free_port();
    let text = configured(directory.path(), port);
    let (before, rest) = text.split_once("jetstream {").expect("a block");
    let (_, after) = rest.split_once("\n}").expect("its end");
    let _server = spawn(directory.path(), &format!("{before}{after}").replace("jetstream: enabled", "")).await;
    let refused = EventLog::connect(&at(port)).await.err().expect("refused");
    assert!(matches!(refused, ConnectError::JetStreamOff), "{refused:?}");
}

/// There is no old server to try, so this one only greets like one.
#[tokio::test]
async fn a_server_too_old_is_refused() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let old = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("a client");
        let (read, mut write) = stream.into_split();
        let greeting = json!({
            "server_id": "old", "server_name": "old", "version": "2.9.10", "go": "go1.19", "host": "127.0.0.1",
            "port": port, "headers": true, "max_payload": 1_048_576, "proto": 1, "client_id": 1,
        });
        write.write_all(format!("INFO {greeting}\r\n").as_bytes()).await.expect("greeted");
        let mut lines = BufReader::new(read).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            if line == "PING" {
                write.write_all(b"PONG\r\n").await.expect("answered");
            }
        }
    });
    let refused = EventLog::connect(&at(port)).await.err().expect("refused");
    assert!(matches!(&refused, ConnectError::ServerTooOld { version } if version == "2.9.10"), "{refused:?}");
    soon(old).await.expect("the connection ends");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_waited_for_and_then_named() {
    let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port();
    let refused = soon(EventLog::connect(&at(port))).await.err().expect("refused");
    assert!(matches!(&refused, ConnectError::Unreachable { server, .. } if *server == format!("127.0.0.1:{port}")));
    assert!(!format!("{refused} {refused:?}").contains("secret"));

    let directory = tempfile::tempdir().expect("a directory");
    let config = at(port);
    let (late, _server) = tokio::join!(EventLog::connect(&config), async {
        let text = configured(directory.path(), port);
        spawn(directory.path(), &text).await
    });
    late.expect("opens");
}

fn at(port: u16) -> Config {
    Config { url: format!("nats://sluice:secret@127.0.0.1:{port}"), name: "test".into(), master_key: None }
}

fn configured(directory: &Path, port: u16) -> String {
    let store_dir = directory.join("store");
    server_config(&ServerConfig { port, store_dir, user: "sluice".into(), password: "secret".into() })
}

/// A server with a configuration that testkit has no use for.
async fn spawn(directory: &Path, configuration: &str) -> Child {
    let file = directory.join("nats.conf");
    std::fs::write(&file, configuration).expect("written");
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools/venv/bin/nats-server");
    let program = std::env::var_os("NATS_SERVER").map_or(own, Into::into);
    let program = if program.is_file() { program } else { "nats-server".into() };
    let mut server = Command::new(program)
        .arg("-c")
        .arg(&file)
        .kill_on_drop(true)
        .stderr(Stdio::piped())
        .spawn()
        .expect("nats-server starts");
    let mut lines = BufReader::new(server.stderr.take().expect("piped")).lines();
    soon(async {
        while let Some(line) = lines.next_line().await.expect("readable") {
            if line.contains("Server is ready") {
                // Whoever reads on keeps the server from stumbling over a full pipe.
                tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
                return;
            }
        }
        panic!("nats-server ended");
    })
    .await;
    server
}
