//! Deciding an accepted promotion again.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Answer, Case, Check, Proof, Rules, Standing, judge};
use crate::{Aggregate, Event, Recorded, Slug, project::Project, stage, stage::Stage};

/// What comes out when an accepted promotion is decided again from the events before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Verification {
    /// Whether the decision and its proof are what the events give.
    pub verified: bool,
    /// What does not agree; empty where it is verified.
    pub contradictions: Vec<String>,
    /// What each gate says.
    pub checks: Vec<Check>,
    /// The proof as it was recorded.
    pub proof: Proof,
    /// Events that were looked at.
    pub events: usize,
}

/// Decides `accepted`, a `promotion.accepted` event, again. `history` are the events of its project: of the project
/// itself, of the stage, and of the source, in order; what comes after `accepted` is not looked at. None where
/// `accepted` is another event.
pub fn verify(accepted: &Recorded, history: &[Recorded]) -> Option<Verification> {
    let Event::Stage(stage::Event::PromotionAccepted { promotion, proof, .. }) = &accepted.event else { return None };
    let (project, target) = (accepted.project()?, accepted.stage()?);
    let before: Vec<&Recorded> = history.iter().filter(|event| event.sequence < accepted.sequence).collect();
    let mut contradictions = vec![];
    let mut require = |good: bool, problem: String| {
        if !good {
            contradictions.push(problem);
        }
    };

    require(
        proof.decided_at == accepted.context.time,
        format!("it was decided at {}, and recorded at {}", proof.decided_at, accepted.context.time),
    );
    let (settings, rules) = declared(&before, project, target);
    require(rules == proof.rules, format!("the gates' version was {rules}, and the proof names {}", proof.rules));
    let source = &proof.source.stage;
    let (state, position) = folded(&before, project, source.as_str());
    require(
        position == proof.source.position,
        format!("the last event of {source} was {position}, and the proof names {}", proof.source.position),
    );
    let (taker, _) = folded(&before, project, target);

    let mut checks = vec![];
    match (settings, taker.promotion.as_ref().filter(|pending| pending.id == *promotion)) {
        (Some((from, gates)), Some(pending)) => {
            let events = before.iter().copied().filter(|event| is_of(event, project, source.as_str()));
            let standing = Standing::of(source, &state, position, events);
            let case = Case { now: proof.decided_at, rules: Rules { from, gates, version: rules }, source: standing };
            let judgement = judge(pending, taker.lock.as_ref(), &case);
            for check in judgement.checks.iter().filter(|check| check.answer != Answer::Passed) {
                require(false, format!("the gate `{}` does not pass: {}", check.gate, check.reason));
            }
            if let Some(again) = &judgement.proof {
                require(again == proof, "the proof made again differs from the one recorded".into());
            }
            checks = judgement.checks;
        }
        (None, _) => require(false, format!("{target} was not declared to promote from another stage")),
        (Some(_), None) => require(false, "the promotion was not waiting for a decision".into()),
    }
    let events = before.len();
    Some(Verification { verified: contradictions.is_empty(), contradictions, checks, proof: proof.clone(), events })
}

/// Where `stage` promotes from and by which gates, and the position of the project's last event.
fn declared(events: &[&Recorded], project: &str, stage: &str) -> (Option<(Slug, super::Gates)>, u64) {
    let mut state = Project::default();
    let mut version = 0;
    for recorded in events {
        if let Event::Project(event) = &recorded.event
            && recorded.project() == Some(project)
        {
            state.evolve(event);
            version = recorded.sequence;
        }
    }
    let settings = state.stages.iter().find(|(slug, _)| slug.as_str() == stage).map(|(_, settings)| settings);
    let rules = settings.and_then(|settings| Some((settings.promote_from.clone()?, settings.gates.clone())));
    (rules, version)
}

fn folded(events: &[&Recorded], project: &str, stage: &str) -> (Stage, u64) {
    let mut state = Stage::default();
    let mut position = 0;
    for recorded in events.iter().filter(|event| is_of(event, project, stage)) {
        if let Event::Stage(event) = &recorded.event {
            state.evolve(event);
            position = recorded.sequence;
        }
    }
    (state, position)
}

fn is_of(event: &Recorded, project: &str, stage: &str) -> bool {
    event.project() == Some(project) && event.stage() == Some(stage)
}
