//! Websockets that chat through everything that happens.

use std::{collections::BTreeMap, time::Duration};

use testkit::WebSocket;
use tokio::{task::JoinSet, time::sleep};
use tokio_util::sync::CancellationToken;

const PAUSE: Duration = Duration::from_millis(100);

/// Clients that each send a message ten times a second and open a new websocket when theirs ends.
pub(crate) struct Sockets {
    stop: CancellationToken,
    clients: JoinSet<Chat>,
}

/// What the clients saw.
#[derive(Default)]
pub(crate) struct Chat {
    /// Websockets opened.
    pub(crate) opened: u64,
    /// Messages that came back.
    pub(crate) echoes: u64,
    /// Websockets ended by the other side, as they are when a drain is over, by reason.
    pub(crate) ended: BTreeMap<String, u64>,
    /// Attempts to open one that failed, each with its reason.
    pub(crate) refused: Vec<String>,
}

impl Sockets {
    pub(crate) fn open(address: &str, host: &str, count: usize) -> Sockets {
        let stop = CancellationToken::new();
        let clients = (0..count).map(|_| chat(address.to_owned(), host.to_owned(), stop.clone())).collect();
        Sockets { stop, clients }
    }

    pub(crate) async fn close(mut self) -> Chat {
        self.stop.cancel();
        let mut total = Chat::default();
        while let Some(chat) = self.clients.join_next().await {
            match chat {
                Ok(chat) => {
                    total.opened += chat.opened;
                    total.echoes += chat.echoes;
                    for (reason, count) in chat.ended {
                        *total.ended.entry(reason).or_default() += count;
                    }
                    total.refused.extend(chat.refused);
                }
                Err(error) => total.refused.push(error.to_string()),
            }
        }
        total
    }
}

async fn chat(address: String, host: String, stop: CancellationToken) -> Chat {
    let mut chat = Chat::default();
    while !stop.is_cancelled() {
        match WebSocket::connect(&address, &host, "/ws").await {
            Ok(mut socket) => {
                chat.opened += 1;
                while !stop.is_cancelled() {
                    if let Err(error) = socket.echo(&chat.echoes.to_string()).await {
                        *chat.ended.entry(format!("{error:#}")).or_default() += 1;
                        break;
                    }
                    chat.echoes += 1;
                    pause(&stop).await;
                }
            }
            Err(error) => {
                chat.refused.push(format!("{error:#}"));
                pause(&stop).await;
            }
        }
    }
    chat
}

async fn pause(stop: &CancellationToken) {
    tokio::select! { () = sleep(PAUSE) => {}, () = stop.cancelled() => {} }
}
