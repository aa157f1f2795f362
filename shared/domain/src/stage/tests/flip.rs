//! Back to an earlier release, on the containers that were kept of it.

use super::*;

fn keeping(keep: u16) -> Spec {
    let mut spec = plain();
    spec.settings.keep = keep;
    spec
}

/// A stage on which releases 1 to `newest` served one after another.
fn history(newest: u128, spec: &Spec) -> Stage {
    let mut stage = Stage::default();
    for n in 1..=newest {
        when(&mut stage, request(n, spec)).expect("requested");
        run(&mut stage, n);
    }
    stage
}

fn set(stage: &Stage) -> Option<DeploymentId> {
    stage.active.as_ref().map(|active| active.set)
}

#[test]
fn a_kept_release_serves_again_on_its_own_containers() {
    let mut stage = history(2, &plain());
    let events = when(&mut stage, rollback(3, 1)).expect("goes back");
    assert!(events.contains(&Event::Dispatched { deployment: id(3), node: "local".into(), set: Some(id(1)) }));
    assert!(stage.active.as_ref().is_some_and(Rollout::flips));
    assert_eq!([1, 2, 3].map(|n| stage.keeps(id(n))), [Keep::InProgress, Keep::InProgress, Keep::Nothing]);
    run(&mut stage, 3);
    assert_eq!(stage.current.as_ref().map(|current| (current.deployment, current.set)), Some((id(3), id(1))));
    assert_eq!([1, 2, 3].map(|n| stage.keeps(id(n))), [Keep::Running, Keep::Stopped, Keep::Nothing]);
}

#[test]
fn back_and_forth_is_a_flip_each_time_and_keeps_no_less() {
    let spec = keeping(2);
    let mut stage = history(3, &spec);
    for (n, to, of) in [(4, 2, 2), (5, 3, 3), (6, 4, 2), (7, 3, 3)] {
        when(&mut stage, back_to(n, to, &spec)).expect("goes back");
        assert_eq!(set(&stage), Some(id(of)), "deployment {n}");
        run(&mut stage, n);
        assert_eq!(stage.keeps(id(1)), Keep::Stopped, "containers of others' releases do not count twice");
    }
}

#[test]
fn new_containers_are_made_where_none_are_kept_or_they_serve_already() {
    let spec = keeping(1);
    let mut gone = history(3, &spec);
    when(&mut gone, back_to(4, 1, &spec)).expect("goes back");
    assert_eq!(set(&gone), Some(id(4)), "those of release 1 were removed");

    let mut serving = history(2, &plain());
    when(&mut serving, rollback(3, 1)).expect("goes back");
    run(&mut serving, 3);
    when(&mut serving, rollback(4, 1)).expect("goes back");
    assert_eq!(set(&serving), Some(id(4)), "a set cannot take over from itself");
}

#[test]
fn what_a_rollback_finds_kept_is_judged_when_its_turn_comes() {
    let spec = keeping(1);
    let mut stage = history(2, &spec);
    when(&mut stage, request(3, &spec)).expect("requested");
    when(&mut stage, back_to(4, 1, &spec)).expect("waits");
    run(&mut stage, 3);
    assert_eq!(set(&stage), Some(id(4)), "release 3 took the place of release 1 among the kept");
}

#[test]
fn what_is_seen_of_a_container_belongs_to_who_runs_on_it() {
    let mut stage = history(2, &plain());
    when(&mut stage, rollback(3, 1)).expect("goes back");
    let exited = Command::Observe { set: id(1), instance: "c1".into(), observed: Observed::Exited { exit_code: 1 } };
    let of = |stage: &mut Stage| match when(stage, exited.clone()).expect("accepted").as_slice() {
        [Event::InstanceExited { deployment, .. }] => *deployment,
        other => panic!("{other:?}"),
    };
    assert_eq!(of(&mut stage), id(3));
    when(&mut stage, start(3)).expect("started");
    when(&mut stage, fail(3, Step::Pull)).expect("failed");
    run_rest(&mut stage);
    assert_eq!((of(&mut stage), stage.keeps(id(1))), (id(1), Keep::Stopped), "it was not taken over");
}
