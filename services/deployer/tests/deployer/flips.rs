//! Rollbacks on the containers that were kept.

use std::collections::BTreeSet;

use domain::{
    DeploymentId, Span,
    settings::{StageSettings, Strategy},
    stage::{self, Command, Outcome, Step},
};
use testkit::SampleImage;

use crate::lab::Lab;

/// Two releases of two containers each, one after the other; the ids of their containers.
struct Two {
    deployments: [DeploymentId; 2],
    containers: [BTreeSet<String>; 2],
}

async fn two(lab: &Lab, settings: &StageSettings) -> Two {
    let mut deployments = vec![];
    for version in ["1", "2"] {
        let image = lab.image(version, SampleImage::new(version)).await;
        let run = lab.deploy(image, settings.clone()).await;
        assert_eq!(run.outcome, Outcome::Succeeded, "{run:?}");
        deployments.push(run.deployment);
    }
    let deployments = [deployments[0], deployments[1]];
    lab.stands("one set runs, the other is kept", |standing| {
        deployments.map(|id| standing.get(&id).copied()) == [Some((0, 2)), Some((2, 2))]
    })
    .await;
    Two { deployments, containers: [made_by(lab, deployments[0]).await, made_by(lab, deployments[1]).await] }
}

/// Ids of the containers that carry the label of `set`.
async fn made_by(lab: &Lab, set: DeploymentId) -> BTreeSet<String> {
    let all = lab.containers().await.into_iter();
    all.filter(|(of, _)| *of == set).map(|(_, container)| container.id.expect("an id")).collect()
}

async fn roll_back(lab: &Lab, to: DeploymentId, settings: &StageSettings) -> DeploymentId {
    let deployment = DeploymentId(runtime::clock::new_id());
    let (to, settings) = (Some(to), Box::new(settings.clone()));
    lab.execute(Command::Rollback { deployment, to, settings, node: "local".into(), by: "ana".into() }).await;
    deployment
}

fn of_two(lab: &Lab) -> StageSettings {
    StageSettings { replicas: 2, ..lab.settings() }
}

#[tokio::test]
async fn the_kept_containers_serve_again_and_those_of_the_other_release_are_kept() {
    for strategy in [Strategy::BlueGreen, Strategy::Recreate] {
        let lab = Lab::new().await;
        let settings = StageSettings { strategy, ..of_two(&lab) };
        let Two { deployments: [first, second], containers } = two(&lab, &settings).await;
        let mut back = roll_back(&lab, first, &settings).await;
        for (on, stopped) in [(0, second), (1, first)] {
            let run = lab.end(back).await;
            assert_eq!(run.outcome, Outcome::Succeeded, "{run:?}");
            let set = [first, second][on];
            let wanted = |standing: &std::collections::BTreeMap<_, _>| {
                standing.len() == 2 && standing.get(&set) == Some(&(2, 2)) && standing.get(&stopped) == Some(&(0, 2))
            };
            lab.stands("the kept set runs, the other is kept", wanted).await;
            assert_eq!(made_by(&lab, set).await, containers[on], "they are the same containers");
            let (live, addresses) = lab.live().await.expect("a live route");
            assert_eq!((live, addresses.len()), (back, 2));
            // Its output is told as that of the deployment that runs on it now.
            lab.printed(back, "listens on").await;
            if on == 0 {
                back = roll_back(&lab, second, &settings).await;
            }
        }
        lab.close().await;
    }
}

#[tokio::test]
async fn a_deployer_that_dies_at_any_step_finds_them_again() {
    let mut lab = Lab::new().await;
    let settings = StageSettings { bake: Span::millis(300), ..of_two(&lab) };
    let Two { deployments, containers } = two(&lab, &settings).await;
    let steps = [Step::Pull, Step::Create, Step::AwaitHealthy, Step::Switch, Step::Bake, Step::Drain];
    for (number, step) in steps.into_iter().enumerate() {
        let on = number % 2;
        let back = roll_back(&lab, deployments[on], &settings).await;
        lab.saw_of(back, "the step", |event| event.step_done().is_some_and(|(done, _)| done == step)).await;
        lab.kill_deployer();
        lab.start_deployer().await;
        let run = lab.end(back).await;
        assert_eq!(run.outcome, Outcome::Succeeded, "killed after {step:?}: {run:?}");
        let (set, other) = (deployments[on], deployments[1 - on]);
        lab.stands("the kept set runs alone", |standing| {
            standing.len() == 2 && standing.get(&set) == Some(&(2, 2)) && standing.get(&other) == Some(&(0, 2))
        })
        .await;
        assert_eq!(made_by(&lab, set).await, containers[on], "killed after {step:?}: they are the same containers");
        assert_eq!(lab.live().await.expect("a live route").0, back);
    }
    lab.close().await;
}

#[tokio::test]
async fn where_they_are_gone_new_ones_are_made() {
    let lab = Lab::new().await;
    let settings = of_two(&lab);
    let Two { deployments: [first, _], containers } = two(&lab, &settings).await;
    let options = bollard::query_parameters::RemoveContainerOptionsBuilder::default().force(true).build();
    let one = containers[0].first().expect("two");
    lab.docker.client().remove_container(one, Some(options)).await.expect("removed by hand");
    let back = roll_back(&lab, first, &settings).await;
    let run = lab.end(back).await;
    assert_eq!(run.outcome, Outcome::Succeeded, "{run:?}");
    let now = made_by(&lab, first).await;
    assert_eq!((now.len(), now.intersection(&containers[0]).count()), (2, 1), "one is new, the other is not");
    assert_eq!(lab.live().await.expect("a live route").1.len(), 2);
    lab.close().await;
}

#[tokio::test]
async fn those_that_cannot_serve_any_more_are_replaced_by_the_next_try() {
    let lab = Lab::new().await;
    let settings = of_two(&lab);
    let Two { deployments: [first, second], containers } = two(&lab, &settings).await;
    for container in &containers[0] {
        SampleImage::spoil(&lab.docker, container).await.expect("spoilt");
    }
    let back = roll_back(&lab, first, &settings).await;
    let run = lab.end(back).await;
    assert_eq!(run.outcome, Outcome::Failed, "{run:?}");
    lab.stands("what served serves on", |standing| standing.len() == 1 && standing.get(&second) == Some(&(2, 2))).await;
    assert_eq!(lab.live().await.expect("a live route").0, second);
    let back = roll_back(&lab, first, &settings).await;
    let run = lab.end(back).await;
    assert_eq!(run.outcome, Outcome::Succeeded, "{run:?}");
    assert!(made_by(&lab, first).await.is_disjoint(&containers[0]), "they are new ones");
    lab.close().await;
}

#[tokio::test]
async fn cancelled_on_the_way_they_are_kept_for_the_next_time() {
    let lab = Lab::new().await;
    let settings = StageSettings { bake: Span::secs(60), ..of_two(&lab) };
    let quick = of_two(&lab);
    let Two { deployments: [first, second], containers } = two(&lab, &quick).await;
    let back = roll_back(&lab, first, &settings).await;
    lab.saw_of(back, "the switch", |event| matches!(event, stage::Event::Switched(_))).await;
    lab.cancel(back).await;
    let run = lab.end(back).await;
    assert_eq!(run.outcome, Outcome::Cancelled, "{run:?}");
    lab.stands("both are as they were", |standing| {
        [first, second].map(|id| standing.get(&id).copied()) == [Some((0, 2)), Some((2, 2))]
    })
    .await;
    assert_eq!(lab.live().await.expect("a live route").0, second);
    let back = roll_back(&lab, first, &quick).await;
    let run = lab.end(back).await;
    assert_eq!(run.outcome, Outcome::Succeeded, "{run:?}");
    assert_eq!(made_by(&lab, first).await, containers[0], "they are the same containers");
    lab.close().await;
}
