//! The second act: a push that a policy takes, then from stage to stage, through gates, with a proof, and back.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use testkit::{Docker, Load, Registry};
use tokio::time::{Instant, sleep, timeout};

use crate::{push, settle, sluice::Sluice};

pub(crate) const HOST: &str = "prod.localhost";
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(100);

/// What the second act saw.
pub(crate) struct Release {
    pub(crate) load: testkit::Report,
    /// The gate that refused the first promotion, and why.
    pub(crate) refused: (String, String),
    /// Events from which each acceptance was decided again.
    pub(crate) verified: Vec<u64>,
}

/// `dev` runs version 2; `staging` and `prod` run nothing yet.
pub(crate) async fn act(
    sluice: &Sluice,
    docker: &Docker,
    registry: &mut Registry,
    say: &impl Fn(&str),
) -> Result<Release> {
    sluice.follow_pushes(registry).await?;
    say("dev takes the newest number by itself now, and the registry tells of pushes by a webhook");
    let bob = sluice.token("bob").await?;
    let (mut refused, mut verified) = (None, vec![]);
    for version in ["2", "4"] {
        if version == "4" {
            push(docker, registry, version).await?;
            let pushed = Instant::now();
            let deployment = sluice.taken(version).await?;
            let seen = pushed.elapsed().as_millis();
            let outcome = sluice.follow(&["deployment", &deployment]).await?;
            ensure!(outcome == "succeeded", "version 4 {outcome} on dev");
            say(&format!("pushed version 4: its deployment to dev was seen {seen} ms later, and {outcome}"));
            let asked = sluice.ask(&["promote", "shop", "staging"]).await?;
            let (gate, reason) = (word(&asked, "gate")?, word(&asked, "reason")?);
            say(&format!("staging refused version 4: the gate `{gate}`: {reason}"));
            refused = Some((gate, reason));
        }
        let staged = sluice.promote("staging", None).await?;
        say(&format!("version {version} soaked on dev and was promoted to staging"));
        let released = sluice.promote("prod", Some(&bob)).await?;
        say(&format!("version {version} was approved by bob and promoted to prod"));
        for promotion in [staged, released] {
            verified.push(sluice.verify(&promotion).await?);
        }
    }
    let load = Load::new(sluice.edge(), HOST).connections(8).rate(200).start();
    settle(std::slice::from_ref(&load)).await;
    let outcome = sluice.roll_back("prod").await?;
    ensure!(outcome == "succeeded", "the rollback {outcome}");
    settle(std::slice::from_ref(&load)).await;
    let load = load.stop().await;
    say("rolled prod back to version 2 under load");
    Ok(Release { load, refused: refused.context("nothing was refused")?, verified })
}

impl Release {
    /// Good: it was refused by the soak gate, every proof holds, and the way back lost no request.
    pub(crate) fn judge(&self) -> Result<()> {
        ensure!(self.refused.0 == "soak", "refused by the gate {}, not by soak", self.refused.0);
        ensure!(self.verified.len() == 4, "{} promotions were verified, not 4", self.verified.len());
        ensure!(self.load.failed == 0, "{} of {} requests failed", self.load.failed, self.load.requests);
        let answered: Vec<&str> = self.load.versions.keys().map(String::as_str).collect();
        ensure!(answered == ["2", "4"], "the versions that answered are {answered:?}, not 2 and 4");
        Ok(())
    }
}

impl Sluice {
    /// Gives `dev` a policy, and the registry a webhook to tell of what is pushed.
    async fn follow_pushes(&self, registry: &mut Registry) -> Result<()> {
        let host = registry.address().to_owned();
        let made = self.ask(&["hook", "set", "images", "--source", "distribution", "--registry", &host]).await?;
        let url = format!("http://{}/hooks/distribution/images", self.api());
        registry.notify(&url, &format!("Bearer {}", word(&made, "secret")?)).await?;
        // Only what is told of is taken: nobody asks.
        self.run(&["registry", "set", &host, "--poll", "0s"]).await?;
        let exported = self.export().await?;
        let dev = exported.find("      dev:\n").context("the export holds the stage dev")? + "      dev:\n".len();
        let (before, after) = exported.split_at(dev);
        let policy = "        policy: {pattern: '[0-9]+', order: numeric}\n";
        self.apply_all(&format!("{before}{policy}{after}")).await
    }

    /// The deployment of `version` to dev, as soon as there is one.
    async fn taken(&self, version: &str) -> Result<String> {
        let taken = async {
            loop {
                let newest = self.ask(&["deployments", "shop", "dev"]).await?[0].clone();
                let wanted =
                    newest["image"]["requested"].as_str().is_some_and(|image| image.ends_with(&format!(":{version}")));
                if wanted && newest["origin"]["kind"] == "policy" {
                    return word(&newest, "id");
                }
                sleep(LOOK).await;
            }
        };
        timeout(PATIENCE, taken).await.with_context(|| format!("waiting for the deployment of version {version}"))?
    }

    async fn token(&self, name: &str) -> Result<String> {
        let created = self.ask(&["token", "create", name, "--role", "operator"]).await?;
        word(&created, "token")
    }

    /// Promotes to `stage` as soon as its gates let it pass, with the approval of another where that is asked for.
    async fn promote(&self, stage: &str, other: Option<&str>) -> Result<String> {
        let asked = self.ask(&["promote", "shop", stage, "--wait"]).await?;
        let promotion = word(&asked, "promotion")?;
        if let Some(other) = other {
            self.run_as(other, &["promotion", "approve", &promotion]).await?;
        }
        let accepted = async {
            loop {
                let shown = self.ask(&["promotion", "show", &promotion]).await?;
                match word(&shown, "status")?.as_str() {
                    "accepted" => return word(&shown, "deployment"),
                    "waiting" => sleep(LOOK).await,
                    other => bail!("the promotion to {stage} is {other}: {shown}"),
                }
            }
        };
        let deployment = timeout(PATIENCE, accepted).await.with_context(|| format!("promoting to {stage}"))??;
        let outcome = self.follow(&["deployment", &deployment]).await?;
        ensure!(outcome == "succeeded", "the deployment to {stage} {outcome}");
        Ok(promotion)
    }

    /// The number of events from which it was decided again.
    async fn verify(&self, promotion: &str) -> Result<u64> {
        let verification = self.ask(&["promotion", "verify", promotion]).await?;
        ensure!(verification["verified"] == true, "a proof does not hold: {verification}");
        verification["events"].as_u64().context("a verification counts its events")
    }

    async fn roll_back(&self, stage: &str) -> Result<String> {
        self.follow(&["rollback", "shop", stage]).await
    }
}

fn word(answer: &Value, name: &str) -> Result<String> {
    answer[name].as_str().map(str::to_owned).with_context(|| format!("`{name}` is missing in {answer}"))
}
