//! Questions between services that are no facts: asked, answered, forgotten.

use std::time::Duration;

use async_nats::{Subscriber, client::RequestErrorKind, header::HeaderMap};
use futures::{Stream, StreamExt};

use crate::{EventLog, error::Error, nats};

/// A question that waits for its answer.
pub struct Request {
    pub payload: Vec<u8>,
    client: async_nats::Client,
    reply: async_nats::Subject,
}

impl EventLog {
    /// Asks whoever serves `subject`. [`Error::NobodyAnswers`] at once where nobody does.
    pub async fn request(&self, subject: &str, payload: Vec<u8>, deadline: Duration) -> Result<Vec<u8>, Error> {
        let client = &self.inner.client;
        match nats::request(client, "asking another service", subject, HeaderMap::new(), payload.into(), deadline).await
        {
            Ok(message) => Ok(message.payload.to_vec()),
            Err(Error::Unavailable { source, .. }) if nobody(&source) => {
                Err(Error::NobodyAnswers { subject: subject.to_owned() })
            }
            Err(error) => Err(error),
        }
    }

    /// The questions on `subject`, from now on and through any outage of NATS, until the stream is dropped or the
    /// log is closed. Every one who serves a subject gets each question.
    pub async fn serve(&self, subject: &str) -> Result<impl Stream<Item = Request> + Send + use<>, Error> {
        let messages = self.inner.client.subscribe(subject.to_owned()).await;
        self.questions(messages.map_err(|e| serving(Box::new(e)))?).await
    }

    /// Like [`EventLog::serve`], where each question goes to one of those who serve the subject so.
    pub async fn share(&self, subject: &str) -> Result<impl Stream<Item = Request> + Send + use<>, Error> {
        let messages = self.inner.client.queue_subscribe(subject.to_owned(), subject.to_owned()).await;
        self.questions(messages.map_err(|e| serving(Box::new(e)))?).await
    }

    async fn questions(&self, messages: Subscriber) -> Result<impl Stream<Item = Request> + Send + use<>, Error> {
        let client = self.inner.client.clone();
        // A round trip behind the subscription, so that who asks right after this finds somebody. The client's own
        // `flush` only empties its buffer.
        self.healthy().await?;
        Ok(messages.filter_map(move |message| {
            let client = client.clone();
            let reply = message.reply;
            let payload = message.payload.to_vec();
            std::future::ready(reply.map(|reply| Request { payload, client, reply }))
        }))
    }
}

impl Request {
    pub async fn reply(self, answer: Vec<u8>) -> Result<(), Error> {
        let sent = self.client.publish(self.reply, answer.into()).await;
        sent.map_err(|e| Error::Unavailable { operation: "answering a question", source: Box::new(e) })
    }
}

fn serving(source: crate::error::Source) -> Error {
    Error::Unavailable { operation: "serving questions", source }
}

fn nobody(source: &crate::error::Source) -> bool {
    let error = source.downcast_ref::<async_nats::client::RequestError>();
    error.is_some_and(|error| error.kind() == RequestErrorKind::NoResponders)
}
