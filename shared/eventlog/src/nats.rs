//! Requests that async-nats has no call for, and reading what comes back.

use std::time::Duration;

use async_nats::{
    Message,
    client::{Request, RequestErrorKind},
    header::HeaderMap,
};
use bytes::Bytes;
use futures::StreamExt;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{Inner, error::Error};

/// How long NATS may take for one answer; disks have hiccups of nearly a second.
pub(crate) const DEADLINE: Duration = Duration::from_secs(5);

/// How long closing waits for NATS to take what is left.
pub(crate) const FAREWELL: Duration = Duration::from_secs(2);

pub(crate) const EVENTS: &str = "EVENTS";

/// Messages of one page of a direct read.
const PAGE: usize = 1000;

#[derive(Debug, Deserialize)]
pub(crate) struct ApiError {
    pub(crate) err_code: u64,
    #[serde(default)]
    pub(crate) description: String,
}

impl ApiError {
    pub(crate) fn refused(self, operation: &'static str) -> Error {
        Error::Refused { operation, code: self.err_code, description: self.description }
    }
}

/// A message as it lies in a stream.
pub(crate) struct Stored {
    pub(crate) sequence: u64,
    pub(crate) subject: String,
    pub(crate) message: Message,
}

/// One request to the JetStream API; `Err` inside is the server's own refusal.
pub(crate) async fn api<T: DeserializeOwned>(
    client: &async_nats::Client,
    operation: &'static str,
    subject: &str,
    body: &impl Serialize,
) -> Result<Result<T, ApiError>, Error> {
    #[derive(Deserialize)]
    struct Failed {
        error: ApiError,
    }
    let body = serde_json::to_vec(body).map_err(Error::Encode)?;
    let reply =
        request(client, operation, &format!("$JS.API.{subject}"), HeaderMap::new(), body.into(), DEADLINE).await?;
    if let Ok(Failed { error }) = serde_json::from_slice(&reply.payload) {
        return Ok(Err(error));
    }
    serde_json::from_slice(&reply.payload).map(Ok).map_err(|e| Error::Protocol { operation, detail: e.to_string() })
}

/// One request and its reply.
pub(crate) async fn request(
    client: &async_nats::Client,
    operation: &'static str,
    subject: &str,
    headers: HeaderMap,
    payload: Bytes,
    deadline: Duration,
) -> Result<Message, Error> {
    let mut request = Request::new().payload(payload).timeout(Some(deadline));
    if !headers.is_empty() {
        request = request.headers(headers);
    }
    client.send_request(subject.to_owned(), request).await.map_err(|error| match error.kind() {
        RequestErrorKind::InvalidSubject | RequestErrorKind::MaxPayloadExceeded => {
            Error::Protocol { operation, detail: error.to_string() }
        }
        RequestErrorKind::TimedOut | RequestErrorKind::NoResponders | RequestErrorKind::Other => {
            Error::Unavailable { operation, source: Box::new(error) }
        }
    })
}

impl Inner {
    /// Hands every message of `stream` that matches `filter`, from sequence `from` on, to `each`, in order.
    /// Needs no consumer, so it leaves nothing behind on the server.
    pub(crate) async fn scan(
        &self,
        stream: &str,
        filter: &str,
        from: u64,
        each: impl FnMut(Stored) -> Result<(), Error>,
    ) -> Result<(), Error> {
        const OPERATION: &str = "reading a stream";
        self.connected(OPERATION, self.pages(OPERATION, stream, filter, from, each)).await
    }

    async fn pages(
        &self,
        operation: &'static str,
        stream: &str,
        filter: &str,
        mut from: u64,
        mut each: impl FnMut(Stored) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let unavailable = |source| Error::Unavailable { operation, source };
        let inbox = self.client.new_inbox();
        let mut replies = self.client.subscribe(inbox.clone()).await.map_err(|e| unavailable(Box::new(e)))?;
        loop {
            let page = json!({ "batch": PAGE, "seq": from, "next_by_subj": filter }).to_string();
            let subject = format!("$JS.API.DIRECT.GET.{stream}");
            self.client
                .publish_with_reply(subject, inbox.clone(), page.into())
                .await
                .map_err(|e| unavailable(Box::new(e)))?;
            let end = loop {
                let message = tokio::time::timeout(DEADLINE, replies.next())
                    .await
                    .map_err(|e| unavailable(Box::new(e)))?
                    .ok_or(Error::Closed)?;
                match message.status.map(|status| status.as_u16()) {
                    None => {
                        let stored = stored(operation, message)?;
                        from = stored.sequence + 1;
                        each(stored)?;
                    }
                    Some(204) => break message,
                    Some(404) => return Ok(()),
                    Some(503) => return Err(unavailable("no stream answers".into())),
                    Some(code) => {
                        let description = message.description.unwrap_or_default();
                        return Err(Error::Refused { operation, code: code.into(), description });
                    }
                }
            };
            if header_number(&end, "Nats-Num-Pending") == Some(0) {
                return Ok(());
            }
        }
    }

    /// The last message on `subject`, which may hold wildcards.
    pub(crate) async fn last_on(&self, stream: &str, subject: &str) -> Result<Option<Stored>, Error> {
        self.one("reading a key", stream, &json!({ "last_by_subj": subject })).await
    }

    /// The first message that matches `filter`, from sequence `from` on.
    pub(crate) async fn next_on(&self, stream: &str, filter: &str, from: u64) -> Result<Option<Stored>, Error> {
        self.one("reading a stream", stream, &json!({ "seq": from, "next_by_subj": filter })).await
    }

    async fn one(&self, operation: &'static str, stream: &str, question: &Value) -> Result<Option<Stored>, Error> {
        let subject = format!("$JS.API.DIRECT.GET.{stream}");
        let message =
            request(&self.client, operation, &subject, HeaderMap::new(), question.to_string().into(), DEADLINE);
        let message = self.connected(operation, message).await?;
        match message.status.map(|status| status.as_u16()) {
            None => stored(operation, message).map(Some),
            Some(404) => Ok(None),
            Some(code) => {
                let description = message.description.unwrap_or_default();
                Err(Error::Refused { operation, code: code.into(), description })
            }
        }
    }

    /// `work`, which is given up as soon as the connection is renewed: what was asked over the old one may never be
    /// answered, and whether it had an effect is unknown.
    pub(crate) async fn connected<T>(
        &self,
        operation: &'static str,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let mut connections = self.connections.clone();
        connections.mark_unchanged();
        tokio::select! {
            biased;
            done = work => done,
            _ = connections.changed() => Err(Error::Unavailable { operation, source: "the connection was lost".into() }),
        }
    }

    /// Resolves when a connection is made or the log is closed, at the latest after a tenth of a second: what to wait
    /// for before trying again.
    pub(crate) async fn breathe(&self) {
        let mut connections = self.connections.clone();
        connections.mark_unchanged();
        tokio::select! {
            _ = connections.changed() => {}
            () = self.closed.cancelled() => {}
            () = tokio::time::sleep(Duration::from_millis(100)) => {}
        }
    }
}

fn stored(operation: &'static str, message: Message) -> Result<Stored, Error> {
    let subject = message.headers.as_ref().and_then(|h| h.get("Nats-Subject")).map(|s| s.as_str().to_owned());
    match (header_number(&message, "Nats-Sequence"), subject) {
        (Some(sequence), Some(subject)) => Ok(Stored { sequence, subject, message }),
        _ => Err(Error::Protocol { operation, detail: "a message without its sequence or subject".into() }),
    }
}

pub(crate) fn header_number(message: &Message, name: &str) -> Option<u64> {
    message.headers.as_ref()?.get(name)?.as_str().parse().ok()
}
