//! Promotion: a stage takes the very bytes that run, verified, in another.
//!
//! The decision is a pure function of evidence ([`judge`]); an accepted one leaves a [`Proof`] from which it can be
//! made again ([`verify`]).

mod gates;
mod standing;
#[cfg(test)]
mod tests;
mod verify;

use std::fmt;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use gates::{Approvals, Gates, Window};
pub use standing::Standing;
pub use verify::{Verification, verify};

use crate::{DeploymentId, PromotionId, Role, Slug, Span, stage::Lock};

/// A promotion that was asked for and is not decided yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Promotion {
    pub id: PromotionId,
    pub from: Slug,
    /// None where the source ran nothing when it was asked for.
    pub digest: Option<String>,
    /// Who asked.
    pub by: String,
    pub approvals: Vec<Approval>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Approval {
    pub by: String,
    /// What the person could do at that time.
    pub role: Role,
}

/// What a decision is made from, beside the stage that takes the release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    pub now: DateTime<Utc>,
    pub rules: Rules,
    /// None where the source runs nothing.
    pub source: Option<Standing>,
}

/// What was declared for the stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    pub from: Slug,
    pub gates: Gates,
    /// Position of the project's last event.
    pub version: u64,
}

/// Everything from which an accepted promotion can be decided again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Proof {
    /// The bytes.
    pub digest: String,
    pub source: SourceProof,
    /// The version of the gates: position of the project's last event at that time.
    pub rules: u64,
    #[serde(default)]
    pub approvals: Vec<Approval>,
    pub decided_at: DateTime<Utc>,
}

/// How the source stood.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SourceProof {
    #[schema(value_type = String)]
    pub stage: Slug,
    #[schema(value_type = uuid::Uuid)]
    pub deployment: DeploymentId,
    /// Position of the event that shows the release running there: its `deployment.succeeded`.
    pub succeeded: u64,
    pub healthy_since: DateTime<Utc>,
    /// Position of the stage's last event at that time: nothing had happened there behind it.
    pub position: u64,
}

/// What a promotion has to pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Gate {
    /// The source runs these bytes, deployed there successfully.
    Source,
    /// They are healthy there now.
    Health,
    /// They were for long enough.
    Soak,
    /// The stage is not locked.
    Lock,
    /// No frozen window holds.
    Frozen,
    /// Enough people agree.
    Approvals,
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Health => "health",
            Self::Soak => "soak",
            Self::Lock => "lock",
            Self::Frozen => "frozen",
            Self::Approvals => "approvals",
        })
    }
}

// From the most welcome to the least.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    Passed,
    /// May pass later.
    Waiting,
    /// Never will.
    Refused,
}

/// What one gate says, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Check {
    pub gate: Gate,
    pub answer: Answer,
    pub reason: String,
}

/// What all gates say, in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    pub checks: Vec<Check>,
    /// Where all have passed.
    pub proof: Option<Proof>,
}

impl Judgement {
    /// The least welcome of all.
    pub fn answer(&self) -> Answer {
        self.checks.iter().map(|check| check.answer).max().unwrap_or(Answer::Passed)
    }
}

/// Asks every gate.
pub fn judge(promotion: &Promotion, lock: Option<&Lock>, case: &Case) -> Judgement {
    let Case { now, rules, source } = case;
    let checks = vec![
        running(promotion, rules, source.as_ref()),
        healthy(source.as_ref()),
        soaked(rules.gates.soak, source.as_ref(), *now),
        unlocked(lock),
        thawed(&rules.gates, *now),
        approved(promotion, rules.gates.approvals.as_ref()),
    ];
    let mut judgement = Judgement { checks, proof: None };
    if judgement.answer() == Answer::Passed {
        judgement.proof = proof(promotion, case);
    }
    judgement
}

fn proof(promotion: &Promotion, case: &Case) -> Option<Proof> {
    let source = case.source.as_ref()?;
    Some(Proof {
        digest: source.image.digest.clone(),
        source: SourceProof {
            stage: source.stage.clone(),
            deployment: source.deployment,
            succeeded: source.succeeded,
            healthy_since: source.healthy_since?,
            position: source.position,
        },
        rules: case.rules.version,
        approvals: promotion.approvals.clone(),
        decided_at: case.now,
    })
}

fn running(promotion: &Promotion, rules: &Rules, source: Option<&Standing>) -> Check {
    let from = &promotion.from;
    let (answer, reason) = match (source, &promotion.digest) {
        _ if *from != rules.from => {
            (Answer::Refused, format!("the stage now promotes from {}, not {from}", rules.from))
        }
        (Some(source), _) if source.stage != *from => {
            (Answer::Refused, format!("{} was looked at, not {from}", source.stage))
        }
        (None, _) | (_, None) => (Answer::Refused, format!("{from} runs nothing: deploy there first")),
        (Some(source), Some(digest)) if source.image.digest != *digest => {
            (Answer::Refused, format!("{from} runs {} now, not {digest}", source.image.digest))
        }
        (Some(source), Some(digest)) => {
            let Standing { deployment, succeeded, .. } = source;
            (Answer::Passed, format!("{from} runs {digest} by deployment {deployment} (event {succeeded})"))
        }
    };
    Check { gate: Gate::Source, answer, reason }
}

fn healthy(source: Option<&Standing>) -> Check {
    let (answer, reason) = match source {
        Some(Standing { healthy_since: Some(since), .. }) => {
            (Answer::Passed, format!("healthy since {}", second(*since)))
        }
        Some(Standing { trouble, .. }) => (Answer::Waiting, format!("not healthy: {trouble}")),
        None => (Answer::Waiting, "nothing runs that could be healthy".into()),
    };
    Check { gate: Gate::Health, answer, reason }
}

fn soaked(soak: Span, source: Option<&Standing>, now: DateTime<Utc>) -> Check {
    let (answer, reason) = match source.and_then(|source| source.healthy_since) {
        _ if soak == Span::ZERO => (Answer::Passed, "no soak time is asked for".into()),
        None => (Answer::Waiting, format!("the {soak} begin when it is healthy")),
        Some(since) => {
            let length = TimeDelta::try_milliseconds(soak.as_millis().try_into().unwrap_or(i64::MAX));
            match length.and_then(|length| since.checked_add_signed(length)) {
                Some(end) if end <= now => (Answer::Passed, format!("the {soak} were over at {}", second(end))),
                Some(end) => (Answer::Waiting, format!("the {soak} are over at {}", second(end))),
                None => (Answer::Waiting, format!("the {soak} are never over")),
            }
        }
    };
    Check { gate: Gate::Soak, answer, reason }
}

fn unlocked(lock: Option<&Lock>) -> Check {
    let (answer, reason) = match lock {
        None => (Answer::Passed, "not locked".into()),
        Some(Lock { owner, reason }) => (Answer::Waiting, format!("locked by {owner}: {reason}")),
    };
    Check { gate: Gate::Lock, answer, reason }
}

fn thawed(gates: &Gates, now: DateTime<Utc>) -> Check {
    let (answer, reason) = match gates.frozen_at(now) {
        None => (Answer::Passed, "no frozen window holds".into()),
        Some((window, end)) => {
            let why = window.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
            (Answer::Waiting, format!("frozen until {}{why}", second(end)))
        }
    };
    Check { gate: Gate::Frozen, answer, reason }
}

fn approved(promotion: &Promotion, wanted: Option<&Approvals>) -> Check {
    let (answer, reason) = match wanted {
        None => (Answer::Passed, "no approval is asked for".into()),
        Some(wanted) => {
            let counting = |approval: &&Approval| approval.by != promotion.by && wanted.counts(approval.role);
            let given: Vec<&str> =
                promotion.approvals.iter().filter(counting).map(|approval| approval.by.as_str()).collect();
            let enough = given.len() >= usize::from(wanted.count);
            let by = if given.is_empty() { String::new() } else { format!(" ({})", given.join(", ")) };
            let answer = if enough { Answer::Passed } else { Answer::Waiting };
            (answer, format!("{} of {} approvals{by}", given.len(), wanted.count))
        }
    };
    Check { gate: Gate::Approvals, answer, reason }
}

fn second(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(chrono::SecondsFormat::Secs, true)
}
