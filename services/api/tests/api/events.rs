//! Events: searched, and followed without a gap or a repetition.

use std::{collections::VecDeque, time::Duration};

use reqwest::{Method, Response};
use serde_json::{Value, json};

use crate::app::App;

/// A reader of server-sent events, as strict as the tests need it.
pub(crate) struct Sse {
    response: Response,
    text: String,
    ready: VecDeque<Message>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) id: String,
    pub(crate) event: String,
    pub(crate) data: String,
}

impl Sse {
    pub(crate) fn new(response: Response) -> Self {
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { response, text: String::new(), ready: VecDeque::new() }
    }

    pub(crate) async fn open(app: &App, query: &str, last: Option<u64>) -> Self {
        let mut request = app.request(Method::GET, &format!("/events/stream{query}"));
        if let Some(last) = last {
            request = request.header("last-event-id", last.to_string());
        }
        Self::new(request.send().await.expect("a stream"))
    }

    /// None at the end of the stream.
    pub(crate) async fn next(&mut self) -> Option<Message> {
        loop {
            if let Some(message) = self.ready.pop_front() {
                return Some(message);
            }
            let chunk = self.response.chunk().await.ok().flatten()?;
            self.text.push_str(std::str::from_utf8(&chunk).expect("UTF-8"));
            while let Some((message, rest)) = self.text.split_once("\n\n") {
                self.ready.extend(parse(message));
                self.text = rest.to_owned();
            }
        }
    }

    pub(crate) async fn soon(&mut self) -> Message {
        let next = tokio::time::timeout(Duration::from_secs(20), self.next()).await;
        next.expect("in time").expect("not the end")
    }

    pub(crate) async fn json(&mut self) -> Value {
        serde_json::from_str(&self.soon().await.data).expect("JSON")
    }

    async fn take(&mut self, count: usize) -> Vec<Message> {
        let mut messages = vec![];
        while messages.len() < count {
            messages.push(self.soon().await);
        }
        messages
    }
}

impl Message {
    fn sequence(&self) -> u64 {
        self.id.parse().expect("a sequence")
    }
}

fn parse(text: &str) -> Option<Message> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
    Some(Message { id: field("id: ")?, event: field("event: ")?, data: field("data: ")? })
}

fn ids(messages: &[Message]) -> Vec<u64> {
    messages.iter().map(Message::sequence).collect()
}

#[tokio::test]
async fn events_are_found_by_subject_type_text_and_position() {
    let app = App::start().await;
    app.project("shop").await;
    let last = app.project("blog").await;
    let find = async |query: &str| app.get(&format!("/events?at_least={last}&{query}")).await.ok()["events"].clone();
    let all = find("limit=500").await;
    assert_eq!(all.as_array().map(Vec::len), Some(last as usize));
    assert_eq!((&all[0]["sequence"], &all[0]["actor"]), (&json!(last), &json!(app.admin)));
    assert_eq!(find("subject=sluice.events.project.shop.>").await.as_array().map(Vec::len), Some(3));
    assert_eq!(find("subject=sluice.events.project.*.created").await.as_array().map(Vec::len), Some(2));
    assert_eq!(find("project=blog&type=dev.sluice.project.created.v1").await.as_array().map(Vec::len), Some(1));
    assert_eq!(find("q=registry.test/blog").await.as_array().map(Vec::len), Some(2));
    let page = app.get("/events?limit=2&after=0").await.ok();
    assert_eq!((&page["events"][0]["sequence"], &page["next"]), (&json!(1), &json!(2)));
    app.stop().await;
}

#[tokio::test]
async fn a_listener_gets_the_stored_event_with_its_sequence_and_type() {
    let app = App::start().await;
    let mut stream = Sse::open(&app, "", None).await;
    let sequence = app.put("/projects/shop", json!({})).await.accepted();
    let message = stream.soon().await;
    assert_eq!((message.sequence(), message.event.as_str()), (sequence, "dev.sluice.project.created.v1"));
    let event: Value = serde_json::from_str(&message.data).expect("JSON");
    assert_eq!((&event["specversion"], &event["type"]), (&json!("1.0"), &json!("dev.sluice.project.created.v1")));
    assert_eq!((&event["subject"], &event["data"]), (&json!("project.shop"), &json!({ "name": "shop" })));
    assert_eq!(event["actor"], *app.admin);
    assert!(event["requestid"].is_string() && event["commandid"].is_string());
    app.stop().await;
}

#[tokio::test]
async fn listeners_come_and_go_during_writes_and_miss_and_repeat_nothing() {
    let app = App::start().await;
    app.project("shop").await;
    const WRITES: u64 = 300;
    let first = app.log.last_sequence().await.expect("an end");
    let last = first + WRITES;
    let write = async {
        for n in 0..WRITES {
            app.put("/projects/shop/stages/dev", json!({ "env": { "N": n.to_string() } })).await.accepted();
        }
    };
    // Each listener reads a little, breaks off, and comes back with the last id it saw.
    let listen = async |each: usize| {
        let mut seen: Vec<u64> = vec![];
        while seen.last() != Some(&last) {
            let at = seen.last().copied().unwrap_or(first);
            let mut stream = Sse::open(&app, "?after=1", Some(at)).await;
            seen.extend(ids(&stream.take(each.min((last - at) as usize)).await));
        }
        seen
    };
    let (seven, fifty, one, ()) = tokio::join!(listen(7), listen(50), listen(WRITES as usize), write);
    let expected: Vec<u64> = (first + 1..=last).collect();
    for seen in [seven, fifty, one] {
        assert_eq!(seen, expected);
    }
    // All of history, from the beginning, in one go.
    let mut stream = Sse::open(&app, "?after=0", None).await;
    assert_eq!(ids(&stream.take(last as usize).await), (1..=last).collect::<Vec<_>>());
    app.stop().await;
}

#[tokio::test]
async fn a_subject_filters_history_and_what_comes() {
    let app = App::start().await;
    app.project("shop").await;
    app.project("blog").await;
    let mut stream = Sse::open(&app, "?subject=sluice.events.project.*.stage.>&after=0", None).await;
    let before = stream.take(4).await;
    assert!(before.iter().all(|message| message.event == "dev.sluice.project.stage.added.v1"), "{before:?}");
    app.put("/projects/shop", json!({ "name": "Shop" })).await.accepted();
    let sequence = app.put("/projects/shop/stages/dev", json!({ "replicas": 2 })).await.accepted();
    assert_eq!(stream.soon().await.sequence(), sequence);
    app.stop().await;
}

#[tokio::test]
async fn a_bad_position_is_refused() {
    let app = App::start().await;
    let request = app.request(Method::GET, "/events/stream").header("last-event-id", "abc");
    assert_eq!(crate::app::Answer::of(request).await.fields(422, "invalid"), ["Last-Event-ID"]);
    app.stop().await;
}
