//! Promotions, and the two ways past them: a hotfix forward, a rollback back.

use super::{Decision, Event, Origin, Rejection, Spec, Stage, decide::request};
use crate::{
    Aggregate as _, DeploymentId, PromotionId, Role,
    promotion::{Answer, Case, Gate, Judgement, judge},
    settings::StageSettings,
};

/// A look at a promotion, with everything that its acceptance takes.
#[derive(Debug, Clone)]
pub struct Attempt {
    pub promotion: PromotionId,
    /// What its deployment would be called.
    pub deployment: DeploymentId,
    pub case: Case,
    /// What the release would run with here.
    pub settings: StageSettings,
    /// Whether the project promotes by itself.
    pub auto_promote: bool,
    pub node: String,
}

pub(super) fn promote(
    stage: &Stage,
    digest: Option<String>,
    by: String,
    wait: bool,
    attempt: Attempt,
) -> Result<Vec<Event>, Rejection> {
    let promotion = attempt.promotion;
    if stage.knows_promotion(promotion) {
        return Ok(vec![]);
    }
    if stage.archived {
        return Err(Rejection::Archived);
    }
    let digest = digest.or_else(|| Some(attempt.case.source.as_ref()?.image.digest.clone()));
    let mut events = vec![];
    if let Some(waiting) = &stage.promotion {
        if waiting.digest == digest {
            return Err(Rejection::PromotionWaits(waiting.id));
        }
        let reason = format!("promotion {promotion} was asked for");
        events.push(Event::PromotionWithdrawn { promotion: waiting.id, reason });
    }
    events.push(Event::PromotionRequested { promotion, from: attempt.case.rules.from.clone(), digest, by });
    decided(stage, events, attempt, wait)
}

pub(super) fn automatically(stage: &Stage, by: String, attempt: Attempt) -> Result<Vec<Event>, Rejection> {
    if !attempt.auto_promote {
        return Err(Rejection::NotAutomatic);
    }
    if let Some(hold) = &stage.hold {
        return Err(Rejection::OnHold { by: hold.by.clone(), reason: hold.reason.clone() });
    }
    let source = attempt.case.source.as_ref().ok_or(Rejection::NothingToPromote)?;
    let digest = &source.image.digest;
    let runs = stage.current.as_ref().is_some_and(|current| current.spec.image.digest == *digest);
    let waits = stage.promotion.as_ref().is_some_and(|waiting| waiting.digest.as_ref() == Some(digest));
    if runs || waits || stage.settled.as_ref() == Some(digest) {
        return Err(Rejection::NothingToPromote);
    }
    let events = promote(stage, None, by, false, attempt)?;
    // Nobody asked, so nobody needs to know that it is too soon.
    let refused = events.iter().any(|event| matches!(event, Event::PromotionRefused { .. }));
    Ok(if refused { vec![] } else { events })
}

pub(super) fn approve(stage: &Stage, by: String, role: Role, attempt: Attempt) -> Result<Vec<Event>, Rejection> {
    let pending = stage.pending(attempt.promotion)?;
    if pending.by == by {
        return Err(Rejection::OwnPromotion);
    }
    if pending.approvals.iter().any(|approval| approval.by == by) {
        return Ok(vec![]);
    }
    if let Some(approvals) = attempt.case.rules.gates.approvals.as_ref().filter(|wanted| !wanted.counts(role)) {
        return Err(Rejection::ApprovalDoesNotCount { needed: approvals.least() });
    }
    let events = vec![Event::PromotionApproved { promotion: attempt.promotion, by, role }];
    decided(stage, events, attempt, true)
}

pub(super) fn reconsider(stage: &Stage, attempt: Attempt) -> Result<Vec<Event>, Rejection> {
    if stage.pending(attempt.promotion).is_err() {
        return Ok(vec![]);
    }
    decided(stage, vec![], attempt, true)
}

/// Adds to `events`, which are about to happen, what the gates say to the promotion that then waits. Without `wait`,
/// it is refused by every gate but the approvals that has not passed.
fn decided(stage: &Stage, mut events: Vec<Event>, attempt: Attempt, wait: bool) -> Result<Vec<Event>, Rejection> {
    let mut after = stage.clone();
    events.iter().for_each(|event| after.evolve(event));
    let Some(pending) = &after.promotion else { return Ok(events) };
    let Attempt { promotion, deployment, case, settings, node, auto_promote: _ } = attempt;
    let judgement = judge(pending, after.lock.as_ref(), &case);
    if let (Some(proof), Some(source)) = (judgement.proof.clone(), case.source) {
        events.push(Event::PromotionAccepted { promotion, deployment, proof });
        // A person chose this release: from here on, automation may go on.
        if after.hold.is_some() {
            events.push(Event::HoldLifted {});
        }
        let spec = Spec { image: source.image, settings };
        events.extend(request(&after, deployment, spec, node, Origin::Promotion { promotion })?);
    } else if let Some((gate, reason)) = refusal(judgement, wait) {
        events.push(Event::PromotionRefused { promotion, gate, reason });
    }
    Ok(events)
}

fn refusal(judgement: Judgement, wait: bool) -> Option<(Gate, String)> {
    let refuses = |answer: Answer, gate: Gate| match answer {
        Answer::Passed => false,
        Answer::Waiting => !wait && gate != Gate::Approvals,
        Answer::Refused => true,
    };
    let refusing = judgement.checks.into_iter().find(|check| refuses(check.answer, check.gate))?;
    Some((refusing.gate, refusing.reason))
}

pub(super) fn withdraw(stage: &Stage, promotion: PromotionId, reason: String) -> Result<Vec<Event>, Rejection> {
    if stage.decision(promotion) == Some(Decision::Withdrawn) {
        return Ok(vec![]);
    }
    stage.pending(promotion)?;
    Ok(vec![Event::PromotionWithdrawn { promotion, reason: good_reason(reason)? }])
}

pub(super) fn hotfix(
    stage: &Stage,
    deployment: DeploymentId,
    spec: Spec,
    node: String,
    by: String,
    reason: String,
) -> Result<Vec<Event>, Rejection> {
    let reason = good_reason(reason)?;
    let mut events = request(stage, deployment, spec, node, Origin::Hotfix { reason: reason.clone() })?;
    if !events.is_empty() {
        events.push(Event::HoldSet { by, reason: format!("hotfix: {reason}") });
    }
    Ok(events)
}

pub(super) fn rollback(
    stage: &Stage,
    deployment: DeploymentId,
    to: Option<DeploymentId>,
    settings: StageSettings,
    node: String,
    by: String,
) -> Result<Vec<Event>, Rejection> {
    if stage.knows(deployment) {
        return Ok(vec![]);
    }
    let current = stage.current.as_ref();
    let release = match to {
        Some(to) if current.is_some_and(|current| current.deployment == to) => return Err(Rejection::AlreadyCurrent),
        Some(to) => stage.earlier.iter().find(|release| release.deployment == to).ok_or(Rejection::ReleaseForgotten)?,
        None => {
            let other = |digest: &str| current.is_none_or(|current| current.spec.image.digest != digest);
            let found = stage.earlier.iter().find(|release| other(&release.spec.image.digest));
            found.ok_or(Rejection::NoEarlierRelease)?
        }
    };
    let to = release.deployment;
    let Spec { image, settings: ran } = release.spec.clone();
    let reason = format!("rolled back to {}", image.requested);
    let spec = Spec { image, settings: ran.again(settings) };
    let mut events = request(stage, deployment, spec, node, Origin::Rollback { to })?;
    events.push(Event::HoldSet { by, reason });
    Ok(events)
}

pub(super) fn hold(stage: &Stage, by: String, reason: String) -> Result<Vec<Event>, Rejection> {
    let reason = good_reason(reason)?;
    match &stage.hold {
        Some(hold) if hold.by == by && hold.reason == reason => Ok(vec![]),
        Some(_) | None => Ok(vec![Event::HoldSet { by, reason }]),
    }
}

pub(super) fn lift_hold(stage: &Stage) -> Result<Vec<Event>, Rejection> {
    match stage.hold {
        Some(_) => Ok(vec![Event::HoldLifted {}]),
        None => Err(Rejection::NotOnHold),
    }
}

fn good_reason(reason: String) -> Result<String, Rejection> {
    if (1..=500).contains(&reason.trim().chars().count()) { Ok(reason) } else { Err(Rejection::NoReason) }
}

impl Stage {
    pub fn knows_promotion(&self, promotion: PromotionId) -> bool {
        self.promotion.as_ref().is_some_and(|pending| pending.id == promotion) || self.decision(promotion).is_some()
    }

    fn decision(&self, promotion: PromotionId) -> Option<Decision> {
        self.decided.iter().find(|decided| decided.promotion == promotion).map(|decided| decided.decision)
    }

    fn pending(&self, promotion: PromotionId) -> Result<&crate::promotion::Promotion, Rejection> {
        match &self.promotion {
            Some(pending) if pending.id == promotion => Ok(pending),
            Some(_) | None => Err(self.decision(promotion).map_or(Rejection::UnknownPromotion, Rejection::Decided)),
        }
    }
}
