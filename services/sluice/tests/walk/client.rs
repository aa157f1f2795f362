//! A careful client: it asks with an idempotency key, and again until it is answered.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use storm::verdict::{Accepted, Asked};
use testkit::Sluice;
use tokio::time::sleep;

use crate::lane::PROJECT;

/// For one answer.
const ANSWER: Duration = Duration::from_secs(40);
/// For an answer that is one, whatever is killed meanwhile.
const LIMIT: Duration = Duration::from_secs(300);
const PAUSE: Duration = Duration::from_millis(100);

#[derive(Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: String,
    token: String,
    accepted: Arc<Mutex<Vec<Accepted>>>,
}

impl Client {
    pub(crate) async fn new(sluice: &Sluice) -> Result<Client> {
        let token = sluice.token("walk").await?;
        let http = reqwest::Client::builder().no_proxy().timeout(ANSWER).build()?;
        let base = format!("http://{}/api/v1", sluice.api());
        Ok(Client { http, base, token, accepted: Arc::default() })
    }

    /// Everything that was answered with 202 so far.
    pub(crate) fn accepted(&self) -> Vec<Accepted> {
        self.accepted.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) async fn deploy(self, stage: String, image: String, key: String) -> Result<()> {
        let path = format!("/projects/{PROJECT}/stages/{stage}/deployments");
        let answer = self.ask(&path, &key, serde_json::json!({ "image": image })).await?;
        let deployment = answer["deployment"].as_str().context("the answer names no deployment")?;
        self.note(key, Asked::Deploy, deployment, &answer)
    }

    pub(crate) async fn cancel(self, deployment: String, key: String) -> Result<()> {
        let path = format!("/deployments/{deployment}/cancel");
        let answer = self.ask(&path, &key, serde_json::json!({ "reason": "called off by the walk" })).await?;
        self.note(key, Asked::Cancel, &deployment, &answer)
    }

    fn note(&self, idempotency_key: String, asked: Asked, deployment: &str, answer: &Value) -> Result<()> {
        let sequence = answer["sequence"].as_u64().context("the answer names no position")?;
        let accepted = Accepted { idempotency_key, asked, deployment: deployment.parse()?, sequence };
        self.accepted.lock().unwrap_or_else(PoisonError::into_inner).push(accepted);
        Ok(())
    }

    /// The body of a 202.
    async fn ask(&self, path: &str, key: &str, body: Value) -> Result<Value> {
        let end = Instant::now() + LIMIT;
        loop {
            let request = self.http.post(format!("{}{path}", self.base)).bearer_auth(&self.token);
            let last = match request.header("idempotency-key", key).json(&body).send().await {
                Ok(answer) if answer.status() == 202 => match answer.json().await {
                    Ok(answer) => return Ok(answer),
                    // Accepted, and the answer was cut off: ask for it again.
                    Err(error) => format!("{error:#}"),
                },
                Ok(answer) if answer.status().is_server_error() => answer.text().await.unwrap_or_default(),
                Ok(answer) => {
                    let (status, text) = (answer.status(), answer.text().await.unwrap_or_default());
                    // "Too many changes at once: try again."
                    if !text.contains("\"conflict\"") {
                        bail!("request {key} was refused with {status}: {text}");
                    }
                    text
                }
                Err(error) => format!("{error:#}"),
            };
            if Instant::now() > end {
                bail!("request {key} got no answer within {}s; the last was: {last}", LIMIT.as_secs());
            }
            sleep(PAUSE).await;
        }
    }
}
