use std::time::Duration;

use chrono::DateTime;
use domain::DeploymentId;
use eventlog::{EventLog, LogEntry, LogFilter, LogLine, LogRef, LogStream};
use futures::{StreamExt, TryStreamExt};

use crate::{connect, id, slug, soon, start};

fn from(deployment: DeploymentId, source: &str) -> LogRef {
    LogRef { project: slug("shop"), stage: slug("dev"), deployment, source: source.into() }
}

fn line(text: impl Into<String>) -> LogLine {
    let time = DateTime::from_timestamp_millis(1_700_000_000_000).expect("a time");
    LogLine { time, stream: LogStream::Stdout, text: text.into() }
}

fn filter(deployment: Option<DeploymentId>) -> LogFilter {
    LogFilter { project: slug("shop"), stage: slug("dev"), deployment }
}

fn texts(entries: &[LogEntry]) -> Vec<&str> {
    entries.iter().map(|entry| entry.line.text.as_str()).collect()
}

async fn tail(log: &EventLog, deployment: Option<DeploymentId>, tail: usize) -> Vec<LogEntry> {
    soon(log.logs().read(filter(deployment), tail, false).try_collect()).await.expect("readable")
}

/// The last `count` lines, as soon as so many are there.
async fn first(log: &EventLog, deployment: Option<DeploymentId>, count: usize) -> Vec<LogEntry> {
    soon(log.logs().read(filter(deployment), usize::MAX, true).take(count).try_collect()).await.expect("readable")
}

#[tokio::test]
async fn lines_are_gathered_kept_and_followed() {
    let (_nats, log) = start().await;
    let (one, two) = (DeploymentId(id()), DeploymentId(id()));
    let following = tokio::spawn({
        let log = log.clone();
        async move { first(&log, Some(one), 6).await }
    });
    log.logs().append(&from(one, "step"), vec![line("a"), line("b")]);
    log.logs().append(&from(one, "shop.dev.1"), vec![line("c")]);
    log.logs().append(&from(two, "step"), vec![line("other")]);
    assert_eq!(first(&log, None, 4).await.len(), 4);
    log.logs().append(&from(one, "step"), vec![line("d"), line("e"), line("f")]);
    let followed = soon(following).await.expect("no panic");
    assert_eq!(followed.len(), 6);
    assert_eq!(texts(&followed[3..]), ["d", "e", "f"]);
    assert_eq!(followed[3].sequence, followed[5].sequence, "one message for what came together");
    assert!(followed.iter().any(|entry| entry.source == "shop.dev.1" && entry.line.text == "c"));

    let last = async |from: LogRef| log.logs().last(&from).await.expect("readable");
    assert_eq!(last(from(one, "shop.dev.1")).await, Some(line("c").time));
    assert_eq!(last(from(two, "shop.dev.1")).await, Some(line("c").time), "a container may change its deployment");
    assert_eq!(last(from(two, "shop.dev.2")).await, None);

    assert_eq!(texts(&tail(&log, Some(one), 2).await), ["e", "f"]);
    assert_eq!(texts(&tail(&log, Some(two), 100).await), ["other"]);
    assert_eq!(tail(&log, Some(DeploymentId(id())), 10).await, []);
    assert_eq!(tail(&log, None, 0).await, []);
}

#[tokio::test]
async fn a_line_without_end_is_cut_and_a_flood_is_counted() {
    let (_nats, log) = start().await;
    let deployment = DeploymentId(id());
    log.logs().append(&from(deployment, "long"), vec![line("ä".repeat(1 << 20)), line("\u{1}".repeat(16 * 1024))]);
    let kept = first(&log, None, 2).await;
    assert!(kept.iter().all(|entry| entry.line.text.len() <= 16 * 1024 + 10));
    assert!(kept[0].line.text.ends_with("[cut]"));

    let many = 50_000;
    log.logs().append(&from(deployment, "flood"), (0..many).map(|n| line(n.to_string())).collect());
    let mut read = Box::pin(log.logs().read(filter(Some(deployment)), usize::MAX, true));
    let (mut lines, mut dropped) = (0, 0);
    while lines + dropped < many {
        let entry = soon(read.next()).await.expect("open").expect("readable");
        match entry.line.text.strip_suffix(" lines dropped: they came faster than they could be kept]") {
            Some(count) => dropped += count.trim_start_matches('[').parse::<usize>().expect("a number"),
            None if entry.source == "flood" => lines += 1,
            None => {}
        }
    }
    assert_eq!(lines + dropped, many);
    assert!(dropped > 0 && lines > 1000, "{lines} kept, {dropped} dropped");
}

#[tokio::test]
async fn closing_the_log_sends_what_waits() {
    let (nats, log) = start().await;
    let deployment = DeploymentId(id());
    log.logs().append(&from(deployment, "step"), vec![line("last words")]);
    soon(log.close()).await;
    assert_eq!(texts(&first(&connect(&nats).await, None, 1).await), ["last words"]);
}

#[tokio::test]
async fn without_nats_nobody_waits_for_output() {
    let (mut nats, log) = start().await;
    nats.kill();
    let deployment = DeploymentId(id());
    for _ in 0..100 {
        log.logs().append(&from(deployment, "step"), (0..1000).map(|n| line(n.to_string())).collect());
    }
    tokio::time::timeout(Duration::from_secs(15), log.close()).await.expect("closing does not hang");
}
