//! A deployment as the API tells it.

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, TimeDelta, Utc};
use serde::Deserialize;
use serde_json::Value;

#[derive(Debug, Deserialize)]
pub(crate) struct Deployed {
    pub(crate) status: String,
    pub(crate) failure: Option<Value>,
    pub(crate) steps: Vec<Step>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Step {
    pub(crate) step: String,
    /// Its end.
    pub(crate) at: DateTime<Utc>,
    elapsed_ms: i64,
}

impl Deployed {
    /// From an answer of the API; an error unless the deployment has succeeded.
    pub(crate) fn read(answer: &Value) -> Result<Deployed> {
        let deployed = Deployed::deserialize(answer).context("reading a deployment")?;
        let failure = &deployed.failure;
        ensure!(deployed.status == "succeeded", "a deployment {}: {failure:?}", deployed.status);
        Ok(deployed)
    }

    pub(crate) fn step(&self, name: &str) -> Result<&Step> {
        self.steps.iter().find(|step| step.step == name).with_context(|| format!("a deployment has no step {name}"))
    }
}

impl Step {
    pub(crate) fn began(&self) -> DateTime<Utc> {
        self.at - TimeDelta::milliseconds(self.elapsed_ms)
    }

    pub(crate) fn milliseconds(&self) -> f64 {
        self.elapsed_ms as f64
    }
}
