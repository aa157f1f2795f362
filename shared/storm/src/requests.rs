//! Requests to deploy, to go back and to cancel, as a careful client makes them: with an idempotency key, and again until answered.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use domain::DeploymentId;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::{
    schedule::Deploy,
    stages::STAGES,
    verdict::{Accepted, Asked},
};

/// For one answer.
const ANSWER: Duration = Duration::from_secs(12);
const PAUSE: Duration = Duration::from_millis(300);
/// In which every request must have been answered, whatever is down meanwhile.
const LIMIT: Duration = Duration::from_secs(180);

/// The API's caller.
#[derive(Clone)]
pub(crate) struct Caller {
    api: String,
    token: String,
    http: reqwest::Client,
    noted: Arc<Mutex<Noted>>,
}

/// What was answered.
#[derive(Default)]
pub(crate) struct Noted {
    pub(crate) accepted: Vec<Accepted>,
    /// By code: answers that say no.
    pub(crate) refused: BTreeMap<String, u64>,
    /// Answers that say to try again, and calls that got none.
    pub(crate) repeated: u64,
}

enum Answer {
    Accepted(Value),
    Refused,
}

impl Caller {
    /// Without a token: it may ask how everything is.
    pub(crate) fn new(api: &str) -> Result<Caller> {
        let http = reqwest::Client::builder().no_proxy().timeout(ANSWER).build().context("preparing a client")?;
        Ok(Caller { api: format!("http://{api}/api/v1"), token: String::new(), http, noted: Arc::default() })
    }

    pub(crate) fn with_token(self, token: String) -> Caller {
        Caller { token, ..self }
    }

    pub(crate) fn noted(&self) -> std::sync::MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends well where every part is well, by the API's own word; else with what it says.
    pub(crate) async fn healthy(&self) -> Result<(), String> {
        let answer = self.http.get(format!("{}/health", self.api)).send().await.map_err(|error| error.to_string())?;
        match answer.status().is_success() {
            true => Ok(()),
            false => Err(answer.text().await.unwrap_or_default()),
        }
    }

    /// Requests a deployment or a rollback, and cancels it where that is wanted. `number` tells this request from all others.
    pub(crate) async fn deploy(&self, number: usize, deploy: &Deploy) -> Result<()> {
        let stage = &STAGES[deploy.stage];
        let (what, body) = match deploy.image {
            Some(image) => ("deployments", json!({ "image": image.reference() })),
            None => ("rollback", json!({})),
        };
        let path = format!("/projects/{}/stages/{}/{what}", stage.project, stage.stage);
        let key = format!("deploy-{number}");
        let Answer::Accepted(answer) = self.ask(&path, &key, body).await? else { return Ok(()) };
        let deployment: DeploymentId = answer["deployment"].as_str().context("an answer without id")?.parse()?;
        self.note(key, Asked::Deploy, deployment, &answer);
        let Some(after) = deploy.cancel_after_ms else { return Ok(()) };
        sleep(Duration::from_millis(after)).await;
        let key = format!("cancel-{number}");
        let path = format!("/deployments/{deployment}/cancel");
        if let Answer::Accepted(answer) = self.ask(&path, &key, json!({ "reason": "called off by the storm" })).await? {
            self.note(key, Asked::Cancel, deployment, &answer);
        }
        Ok(())
    }

    fn note(&self, idempotency_key: String, asked: Asked, deployment: DeploymentId, answer: &Value) {
        let sequence = answer["sequence"].as_u64().unwrap_or_default();
        self.noted().accepted.push(Accepted { idempotency_key, asked, deployment, sequence });
    }

    async fn ask(&self, path: &str, key: &str, body: Value) -> Result<Answer> {
        let end = Instant::now() + LIMIT;
        let mut last = String::new();
        while Instant::now() < end {
            let request = self.http.post(format!("{}{path}", self.api)).bearer_auth(&self.token);
            match request.header("idempotency-key", key).json(&body).send().await {
                Ok(answer) => {
                    let status = answer.status();
                    // One that breaks off is none.
                    let answer: Value = match answer.json().await {
                        Ok(answer) => answer,
                        Err(error) => {
                            last = format!("{status}, and then {error:#}");
                            self.noted().repeated += 1;
                            sleep(PAUSE).await;
                            continue;
                        }
                    };
                    let code = answer["code"].as_str().unwrap_or("none").to_owned();
                    if status == 202 {
                        return Ok(Answer::Accepted(answer));
                    }
                    if status.is_client_error() && code != "conflict" {
                        *self.noted().refused.entry(code).or_default() += 1;
                        return Ok(Answer::Refused);
                    }
                    last = format!("{status} {answer}");
                }
                Err(error) => last = format!("{error:#}"),
            }
            self.noted().repeated += 1;
            sleep(PAUSE).await;
        }
        bail!("request {key} got no answer within {}s; the last: {last}", LIMIT.as_secs())
    }
}
