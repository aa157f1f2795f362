//! A websocket client.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::{SinkExt, StreamExt};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{WebSocketStream, client_async, tungstenite::Message};

const DEADLINE: Duration = Duration::from_secs(10);

/// An open websocket.
pub struct WebSocket {
    stream: WebSocketStream<TcpStream>,
}

impl WebSocket {
    /// Connects to `address` (host and port) and asks for `path` in the name of `host`.
    pub async fn connect(address: &str, host: &str, path: &str) -> Result<WebSocket> {
        let handshake = async {
            let stream = TcpStream::connect(address).await.context("connecting")?;
            client_async(format!("ws://{host}{path}"), stream).await.context("upgrading to a websocket")
        };
        let (stream, _response) = timeout(DEADLINE, handshake).await.context("waiting for the upgrade")??;
        Ok(WebSocket { stream })
    }

    /// Sends `text` and waits for the same to come back.
    pub async fn echo(&mut self, text: &str) -> Result<()> {
        self.stream.send(Message::text(text)).await.context("sending")?;
        loop {
            match timeout(DEADLINE, self.stream.next()).await.context("waiting for the echo")? {
                Some(Ok(Message::Text(answer))) if answer.as_str() == text => return Ok(()),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(other)) => bail!("{other:?} came back"),
                Some(Err(error)) => return Err(error).context("waiting for the echo"),
                None => bail!("the connection was closed"),
            }
        }
    }

    /// Waits until the other side ends the connection, one way or another.
    pub async fn closed(&mut self) {
        while let Some(Ok(message)) = self.stream.next().await {
            if message.is_close() {
                return;
            }
        }
    }
}
