//! Server-sent events, with exact resume: what was seen last is said on every new connection.

use std::{collections::VecDeque, time::Duration};

use reqwest::{Method, Response, StatusCode, Url, header};
use serde_json::Value;
use tokio::time::{Instant, timeout};

use super::{Client, Error, FIRST_PAUSE, lost, problem};

/// The server sends a comment more often than this; a connection more silent is dead.
const SILENCE: Duration = Duration::from_secs(45);
/// How long a lost stream is sought again before giving up.
const PATIENCE: Duration = Duration::from_secs(60);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Of one event; a server that sends more is not ours.
const MOST_BYTES: usize = 16 << 20;

/// One server-sent event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Message {
    /// Position of an event in its stream.
    pub(crate) id: Option<String>,
    pub(crate) event: String,
    pub(crate) data: String,
}

impl Message {
    /// The JSON that it carries, with its position as `sequence`.
    pub(crate) fn document(&self) -> Result<Value, Error> {
        let mut document: Value = super::parse(&self.data)?;
        if let (Some(fields), Some(Ok(sequence))) =
            (document.as_object_mut(), self.id.as_ref().map(|id| id.parse::<u64>()))
        {
            fields.insert("sequence".to_owned(), sequence.into());
        }
        Ok(document)
    }
}

pub(crate) struct Following<'a> {
    client: &'a Client,
    url: Url,
    response: Option<Response>,
    parser: Parser,
    ready: VecDeque<Message>,
    /// Id of the last message that was handed out.
    seen: Option<String>,
    /// Since when nothing came: from the first failed attempt to the next byte.
    trouble: Option<Trouble>,
    /// A stream that never began fails soon; one that was lost is worth waiting for.
    began: bool,
}

struct Trouble {
    since: Instant,
    pause: Duration,
}

impl<'a> Following<'a> {
    pub(super) fn new(client: &'a Client, url: Url) -> Self {
        Self {
            client,
            url,
            response: None,
            parser: Parser::default(),
            ready: VecDeque::new(),
            seen: None,
            trouble: None,
            began: false,
        }
    }

    /// The next message. Ends only with an error: a stream that the server closes is opened again.
    pub(crate) async fn next(&mut self) -> Result<Message, Error> {
        loop {
            if let Some(message) = self.ready.pop_front() {
                self.seen = message.id.clone().or(self.seen.take());
                return Ok(message);
            }
            let Some(response) = &mut self.response else {
                self.response = self.connect().await?;
                continue;
            };
            match timeout(SILENCE, response.chunk()).await {
                Ok(Ok(Some(bytes))) => {
                    self.trouble = None;
                    let unreadable =
                        |problem: &str| Error::Unreadable { url: Box::new(self.url.clone()), problem: problem.into() };
                    self.ready.extend(self.parser.feed(&bytes).map_err(unreadable)?);
                }
                Ok(Ok(None) | Err(_)) | Err(_) => {
                    self.response = None;
                    self.parser = Parser::default();
                    self.wait().await;
                }
            }
        }
    }

    /// One attempt; `None` when another is worth it, after a pause.
    async fn connect(&mut self) -> Result<Option<Response>, Error> {
        let mut request =
            self.client.request(Method::GET, self.url.clone())?.header(header::ACCEPT, "text/event-stream");
        if let Some(seen) = &self.seen {
            request = request.header("Last-Event-ID", seen);
        }
        let error = match timeout(SILENCE, request.send()).await {
            Ok(Ok(response)) if response.status().is_success() => {
                self.began = true;
                return Ok(Some(response));
            }
            Ok(Ok(response)) => {
                let status = response.status();
                let body = response.bytes().await.map_err(|source| self.client.unreachable(source))?;
                let refused = Error::Refused(problem(status, &body));
                // On its way down or up again.
                if status != StatusCode::SERVICE_UNAVAILABLE {
                    return Err(refused);
                }
                refused
            }
            Ok(Err(error)) if lost(&error) => self.client.unreachable(error),
            Ok(Err(error)) => return Err(self.client.unreachable(error)),
            Err(_) => Error::Unreadable { url: Box::new(self.url.clone()), problem: "none came".into() },
        };
        let patience = if self.began { PATIENCE } else { super::PATIENCE };
        if self.trouble.as_ref().is_some_and(|trouble| trouble.since.elapsed() > patience) {
            return Err(error);
        }
        self.wait().await;
        Ok(None)
    }

    async fn wait(&mut self) {
        let trouble = self.trouble.get_or_insert_with(|| Trouble { since: Instant::now(), pause: FIRST_PAUSE });
        let pause = trouble.pause;
        trouble.pause = (pause * 2).min(LONGEST_PAUSE);
        tokio::time::sleep(pause).await;
    }
}

/// Of the format only what the API uses: `id`, `event` and `data`, lines ended by LF or CRLF.
#[derive(Default)]
struct Parser {
    line: Vec<u8>,
    message: Message,
}

impl Parser {
    fn feed(&mut self, bytes: &[u8]) -> Result<Vec<Message>, &'static str> {
        let mut complete = Vec::new();
        for &byte in bytes {
            if byte != b'\n' {
                self.line.push(byte);
                if self.line.len() + self.message.data.len() > MOST_BYTES {
                    return Err("an event of more than 16 MiB");
                }
                continue;
            }
            let line = std::mem::take(&mut self.line);
            let line = std::str::from_utf8(&line).map_err(|_| "an event that is not UTF-8")?.trim_end_matches('\r');
            if let Some(message) = self.take(line) {
                complete.push(message);
            }
        }
        Ok(complete)
    }

    fn take(&mut self, line: &str) -> Option<Message> {
        if line.is_empty() {
            return Some(std::mem::take(&mut self.message)).filter(|message| !message.data.is_empty());
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => self.message.id = Some(value.to_owned()),
            "event" => value.clone_into(&mut self.message.event),
            "data" => {
                if !self.message.data.is_empty() {
                    self.message.data.push('\n');
                }
                self.message.data.push_str(value);
            }
            // Comments (no field name) keep the connection alive; other fields are not for us.
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_whole_however_the_bytes_are_cut() {
        let text =
            ": hello\n\nid: 7\nevent: a\ndata: one\ndata: two\n\nid:8\r\ndata:{}\r\n\r\nretry: 5\n\ndata: no end";
        let wanted = vec![
            Message { id: Some("7".into()), event: "a".into(), data: "one\ntwo".into() },
            Message { id: Some("8".into()), event: String::new(), data: "{}".into() },
        ];
        for size in 1..text.len() {
            let mut parser = Parser::default();
            let seen: Vec<_> =
                text.as_bytes().chunks(size).flat_map(|part| parser.feed(part).expect("readable")).collect();
            assert_eq!(seen, wanted, "cut every {size} bytes");
        }
    }
}
