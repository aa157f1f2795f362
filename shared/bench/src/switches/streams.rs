//! Server-sent events that should never end.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::{task::JoinSet, time::timeout};

const OPEN_LIMIT: Duration = Duration::from_secs(10);
/// Ten events a second come; one that stays silent for so long is cut.
const SILENCE: Duration = Duration::from_secs(5);

pub(super) struct Streams(JoinSet<()>);

impl Streams {
    /// Opens `count` streams at `address` in the name of `host`, and listens to them.
    pub(super) async fn open(address: &str, host: &str, count: usize) -> Result<Streams> {
        let client = reqwest::Client::builder().no_proxy().build()?;
        let mut streams = JoinSet::new();
        for _ in 0..count {
            let opening = client.get(format!("http://{address}/events")).header("host", host).send();
            let mut stream = timeout(OPEN_LIMIT, opening).await.context("opening an event stream")??;
            let kind = stream.headers().get("content-type").and_then(|kind| kind.to_str().ok());
            ensure!(kind == Some("text/event-stream"), "an event stream was answered {} {kind:?}", stream.status());
            streams.spawn(async move { while matches!(timeout(SILENCE, stream.chunk()).await, Ok(Ok(Some(_)))) {} });
        }
        Ok(Streams(streams))
    }

    /// How many have ended by now.
    pub(super) async fn close(mut self) -> usize {
        let mut ended = 0;
        while self.0.try_join_next().is_some() {
            ended += 1;
        }
        self.0.shutdown().await;
        ended
    }
}
