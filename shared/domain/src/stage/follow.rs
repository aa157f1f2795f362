//! Releases that a stage takes by itself, and how a person's own choice stands beside them.

use super::{Event, Origin, Rejection, Spec, Stage, decide::request};
use crate::{DeploymentId, image::Reference};

pub(super) fn follow(
    stage: &Stage,
    deployment: DeploymentId,
    spec: Spec,
    node: String,
    after: Option<DeploymentId>,
    origin: Origin,
) -> Result<Vec<Event>, Rejection> {
    if stage.knows(deployment) {
        return Ok(vec![]);
    }
    if let Some(hold) = &stage.hold {
        return Err(Rejection::OnHold { by: hold.by.clone(), reason: hold.reason.clone() });
    }
    if let Some(newest) = &stage.newest {
        // Whatever became of them: what has failed, or was cancelled, is not tried for ever.
        if newest.image.digest == spec.image.digest {
            return Err(Rejection::NothingNew);
        }
        if Some(newest.deployment) != after {
            return Err(Rejection::Overtaken);
        }
    }
    request(stage, deployment, spec, node, origin)
}

/// A person's request. On a stage with a policy it is a choice that automation must not undo, unless it is what the
/// policy wants as well.
pub(super) fn by_hand(
    stage: &Stage,
    deployment: DeploymentId,
    spec: Spec,
    node: String,
    by: String,
) -> Result<Vec<Event>, Rejection> {
    let policy = spec.settings.policy.as_ref();
    let asked = Reference::parse(&spec.image.requested).ok();
    let followed = policy.is_some_and(|policy| {
        asked.as_ref().is_some_and(|asked| asked.digest.is_none() && asked.tag.is_some() && asked.tag == policy.tag)
    });
    let again = stage.newest.as_ref().is_some_and(|newest| newest.image.digest == spec.image.digest);
    let pinned =
        (policy.is_some() && !followed && !again).then(|| format!("{} was deployed by hand", spec.image.requested));
    let mut events = request(stage, deployment, spec, node, Origin::Direct)?;
    if events.is_empty() {
        return Ok(events);
    }
    if let Some(reason) = pinned {
        events.push(Event::HoldSet { by, reason });
    } else if followed && stage.hold.is_some() {
        events.push(Event::HoldLifted {});
    }
    Ok(events)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::{
        Aggregate as _, Slug,
        image::{Image, Source},
        policy::TagPolicy,
        settings::StageSettings,
        stage::Command,
    };

    fn id(n: u128) -> DeploymentId {
        DeploymentId(Uuid::from_u128(n))
    }

    /// A release of the tag `v<n>`, on a stage that follows the tag `v9`.
    fn spec(n: u8) -> Spec {
        let policy = TagPolicy { tag: Some("v9".into()), ..TagPolicy::default() };
        Spec {
            image: Image {
                requested: format!("registry.test/shop:v{n}"),
                digest: format!("sha256:{}", format!("{n:02x}").repeat(32)),
                source: Source::Registry,
            },
            settings: StageSettings {
                image: Some("registry.test/shop".into()),
                policy: Some(Box::new(policy)),
                ..StageSettings::default()
            },
        }
    }

    fn by_policy(deployment: u128, release: u8, after: Option<u128>) -> Command {
        let origin = Origin::Policy { tag: format!("v{release}") };
        let (spec, node, after) = (spec(release), "local".into(), after.map(id));
        Command::Follow { deployment: id(deployment), spec, node, after, origin }
    }

    fn by_ana(deployment: u128, release: u8) -> Command {
        Command::Request { deployment: id(deployment), spec: spec(release), node: "local".into(), by: "ana".into() }
    }

    fn when(stage: &mut Stage, command: Command) -> Result<Vec<Event>, Rejection> {
        let events = stage.decide(command)?;
        events.iter().for_each(|event| stage.evolve(event));
        Ok(events)
    }

    fn requests(events: &[Event]) -> usize {
        events.iter().filter(|event| matches!(event, Event::Requested { .. })).count()
    }

    #[test]
    fn what_several_see_is_requested_once() {
        let mut stage = Stage::default();
        assert_eq!(when(&mut stage, by_policy(1, 1, None)).map(|events| requests(&events)), Ok(1));
        assert_eq!(when(&mut stage, by_policy(1, 1, None)), Ok(vec![]), "the same command");
        assert_eq!(when(&mut stage, by_policy(2, 1, None)), Err(Rejection::NothingNew), "another watcher, as early");
        assert_eq!(when(&mut stage, by_policy(3, 1, Some(1))), Err(Rejection::NothingNew), "another look, later");
    }

    #[test]
    fn an_answer_that_is_older_than_the_last_request_is_not_taken() {
        let mut stage = Stage::default();
        when(&mut stage, by_policy(1, 1, None)).expect("requested");
        when(&mut stage, by_policy(2, 2, Some(1))).expect("a push is told of");
        assert_eq!(when(&mut stage, by_policy(3, 1, None)), Err(Rejection::Overtaken));
        assert_eq!(when(&mut stage, by_policy(4, 3, Some(2))).map(|events| requests(&events)), Ok(1));
    }

    #[test]
    fn what_was_called_off_is_not_asked_for_again() {
        let mut stage = Stage::default();
        when(&mut stage, by_policy(1, 1, None)).expect("requested");
        when(&mut stage, Command::Cancel { deployment: id(1), reason: None }).expect("cancelled");
        assert_eq!(when(&mut stage, by_policy(2, 1, Some(1))), Err(Rejection::NothingNew));
    }

    #[test]
    fn a_pin_holds_until_it_is_lifted_or_the_followed_tag_is_deployed() {
        for lift in [Command::LiftHold, by_ana(8, 9)] {
            let mut stage = Stage::default();
            when(&mut stage, by_policy(1, 1, None)).expect("requested");
            when(&mut stage, by_ana(2, 1)).expect("the same bytes again");
            assert_eq!(stage.hold, None, "that is no choice against the policy");
            when(&mut stage, by_ana(3, 3)).expect("requested");
            assert_eq!(stage.hold.as_ref().map(|hold| hold.by.as_str()), Some("ana"));
            assert!(matches!(when(&mut stage, by_policy(4, 1, Some(3))), Err(Rejection::OnHold { .. })));
            when(&mut stage, lift).expect("lifted");
            let newest = stage.newest.as_ref().map(|newest| newest.deployment.0.as_u128());
            assert_eq!(when(&mut stage, by_policy(9, 1, newest)).map(|events| requests(&events)), Ok(1));
        }
    }

    #[test]
    fn neither_a_policy_nor_a_webhook_goes_past_a_promotion() {
        let from: Slug = "dev".parse().expect("a good name");
        for origin in [Origin::Policy { tag: "v1".into() }, Origin::Hook { hook: "ci".into() }] {
            let mut spec = spec(1);
            spec.settings = StageSettings { promote_from: Some(from.clone()), ..StageSettings::default() };
            let command = Command::Follow { deployment: id(1), spec, node: "local".into(), after: None, origin };
            assert_eq!(Stage::default().decide(command), Err(Rejection::PromotionOnly { from: from.clone() }));
        }
    }

    proptest! {
        /// However many look at a registry, whenever, and whatever each of them saw: no two requests in a row are for
        /// the same bytes, and none happens against a hold.
        #[test]
        fn automation_repeats_nothing_and_respects_a_hold(
            looks in prop::collection::vec((1u8..4, 0u128..6, 0u8..10), 1..24)
        ) {
            let mut stage = Stage::default();
            let mut last = None;
            for (n, (release, after, kind)) in looks.into_iter().enumerate() {
                let n = n as u128 + 1;
                let held = stage.hold.is_some();
                let automatic = kind < 7;
                let command = match kind {
                    0..7 => by_policy(n, release, (after > 0).then_some(after)),
                    7 => by_ana(n, release),
                    8 => Command::Hold { by: "ana".into(), reason: "wait".into() },
                    _ => Command::LiftHold,
                };
                let requested = when(&mut stage, command).map(|events| requests(&events)).unwrap_or(0);
                if automatic && requested > 0 {
                    prop_assert!(!held);
                    prop_assert_ne!(last, Some(release));
                }
                if requested > 0 {
                    last = Some(release);
                }
            }
        }
    }
}
