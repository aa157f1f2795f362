use std::time::Duration;

use eventlog::Error;
use futures::StreamExt;

use crate::{connect, soon, start};

#[tokio::test]
async fn a_question_finds_its_answer_or_learns_that_nobody_is_there() {
    let (mut nats, log) = start().await;
    let nobody = log.request("sluice.node.local.health", vec![], Duration::from_secs(5)).await;
    assert!(
        matches!(&nobody, Err(Error::NobodyAnswers { subject }) if subject == "sluice.node.local.health"),
        "{nobody:?}"
    );

    let server = connect(&nats).await;
    let questions = server.serve("sluice.node.local.health").await.expect("serves");
    let answering = tokio::spawn(questions.for_each(|question| async move {
        let answer = [b"you said ", &question.payload[..]].concat();
        question.reply(answer).await.expect("answered");
    }));
    let answer = log.request("sluice.node.local.health", b"hello".to_vec(), Duration::from_secs(5)).await;
    assert_eq!(answer.expect("answered"), b"you said hello");

    // Both sides find each other again after a crash.
    nats.kill();
    nats.restart().await.expect("starts again");
    soon(async {
        while log.request("sluice.node.local.health", vec![], Duration::from_secs(1)).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    server.close().await;
    soon(answering).await.expect("ends with its log");
}

#[tokio::test]
async fn a_question_that_stays_unanswered_ends_at_its_deadline() {
    let (_nats, log) = start().await;
    let _questions = log.serve("sluice.deaf").await.expect("serves");
    let unanswered = log.request("sluice.deaf", vec![], Duration::from_millis(100)).await;
    assert!(matches!(unanswered, Err(Error::Unavailable { .. })), "{unanswered:?}");
}
