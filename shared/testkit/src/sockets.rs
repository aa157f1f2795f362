//! Websockets that chat through everything that happens.

use std::time::{Duration, Instant};

use tokio::{task::JoinSet, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::WebSocket;

const PAUSE: Duration = Duration::from_millis(100);

/// Clients that each send a message ten times a second and open a new websocket when theirs ends. Dropping it ends
/// them.
pub struct Sockets {
    stop: CancellationToken,
    clients: JoinSet<Chat>,
}

/// What the clients saw.
#[derive(Debug, Default)]
pub struct Chat {
    /// Websockets opened.
    pub opened: u64,
    /// Messages that came back.
    pub echoes: u64,
    /// Websockets ended by the other side, as they are when a drain is over.
    pub ended: Vec<Ended>,
    /// Attempts to open one that failed, each with its reason.
    pub refused: Vec<String>,
}

/// The life of one websocket that the other side ended.
#[derive(Debug)]
pub struct Ended {
    pub opened: Instant,
    pub ended: Instant,
    pub reason: String,
}

impl Sockets {
    /// Starts `count` clients of `address` (host and port) that ask for `/ws` in the name of `host`.
    pub fn open(address: &str, host: &str, count: usize) -> Sockets {
        let stop = CancellationToken::new();
        let clients = (0..count).map(|_| chat(address.to_owned(), host.to_owned(), stop.clone())).collect();
        Sockets { stop, clients }
    }

    /// Ends the clients and tells what they saw.
    pub async fn close(mut self) -> Chat {
        self.stop.cancel();
        let mut total = Chat::default();
        while let Some(chat) = self.clients.join_next().await {
            match chat {
                Ok(chat) => {
                    total.opened += chat.opened;
                    total.echoes += chat.echoes;
                    total.ended.extend(chat.ended);
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
                let opened = Instant::now();
                chat.opened += 1;
                while !stop.is_cancelled() {
                    if let Err(error) = socket.echo(&chat.echoes.to_string()).await {
                        chat.ended.push(Ended { opened, ended: Instant::now(), reason: format!("{error:#}") });
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
