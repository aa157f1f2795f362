//! Given / when / then for decisions, and the two generic tests over every step of every plan:
//! fail there, run it twice.

mod flip;

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::{
    Span,
    image::{Image, Source},
    settings::{QueuePolicy, RouteSettings, StageSettings, Strategy as Rolling},
};

fn id(n: u128) -> DeploymentId {
    DeploymentId(Uuid::from_u128(n))
}

fn spec(strategy: Rolling, bake: Span) -> Spec {
    Spec {
        image: Image {
            requested: "shop:v1".into(),
            digest: format!("sha256:{}", "a".repeat(64)),
            source: Source::Registry,
        },
        settings: StageSettings {
            strategy,
            bake,
            route: Some(RouteSettings { host: "shop.test".into(), path: "/".into(), proxy: None }),
            ..StageSettings::default()
        },
    }
}

fn plain() -> Spec {
    spec(Rolling::BlueGreen, Span::ZERO)
}

fn request(n: u128, spec: &Spec) -> Command {
    Command::Request { deployment: id(n), spec: spec.clone(), node: "local".into(), by: "ana".into() }
}

fn rollback(n: u128, to: u128) -> Command {
    back_to(n, to, &plain())
}

fn back_to(n: u128, to: u128, spec: &Spec) -> Command {
    let settings = Box::new(spec.settings.clone());
    Command::Rollback { deployment: id(n), to: Some(id(to)), settings, node: "local".into(), by: "ana".into() }
}

fn start(n: u128) -> Command {
    Command::Start { deployment: id(n), worker: "w1".into() }
}

fn complete(n: u128, step: Step) -> Command {
    let instances = match step {
        Step::Create => {
            vec![Instance { name: format!("c{n}"), container: format!("{n}"), address: Some("10.0.0.1:80".into()) }]
        }
        Step::Pull
        | Step::Hold
        | Step::AwaitHealthy
        | Step::Switch
        | Step::Bake
        | Step::Drain
        | Step::Retire
        | Step::Rehold
        | Step::Discard
        | Step::Restore
        | Step::Revert => vec![],
    };
    Command::Complete { deployment: id(n), worker: "w1".into(), step, elapsed_ms: 1, instances }
}

fn failure(step: Step) -> Failure {
    Failure { step, code: "test".into(), message: "it broke".into(), hint: "mend it".into(), log: vec![] }
}

fn fail(n: u128, step: Step) -> Command {
    Command::Fail { deployment: id(n), worker: "w1".into(), elapsed_ms: 1, failure: failure(step) }
}

fn cancel(n: u128) -> Command {
    Command::Cancel { deployment: id(n), reason: None }
}

/// Decides and folds; gives the events.
fn when(stage: &mut Stage, command: Command) -> Result<Vec<Event>, Rejection> {
    let events = stage.decide(command)?;
    events.iter().for_each(|event| stage.evolve(event));
    Ok(events)
}

fn given(commands: impl IntoIterator<Item = Command>) -> Stage {
    let mut stage = Stage::default();
    for command in commands {
        when(&mut stage, command).expect("given commands are accepted");
    }
    stage
}

fn active_step(stage: &Stage) -> Option<Step> {
    stage.active.as_ref().and_then(next_step)
}

/// Carries the active deployment to its end; gives the steps taken.
fn run(stage: &mut Stage, n: u128) -> Vec<Step> {
    let mut steps = vec![];
    when(stage, start(n)).expect("started");
    while let Some(step) = active_step(stage).filter(|_| stage.active.as_ref().is_some_and(|a| a.deployment == id(n))) {
        steps.push(step);
        when(stage, complete(n, step)).expect("the next step is accepted");
    }
    steps
}

fn outcome(stage: &Stage, n: u128) -> Option<Outcome> {
    stage.ended.iter().find(|ended| ended.deployment == id(n)).map(|ended| ended.outcome)
}

/// A stage on which release 1 serves and deployment 2, of `spec`, is started.
fn second(spec: &Spec) -> Stage {
    let mut stage = given([request(1, spec)]);
    run(&mut stage, 1);
    when(&mut stage, request(2, spec)).expect("requested");
    when(&mut stage, start(2)).expect("started");
    stage
}

/// A stage on which release 1 replaced release 7, and deployment 2, which goes back to that, is started.
fn back(spec: &Spec) -> Stage {
    let mut stage = Stage::default();
    for n in [7, 1] {
        when(&mut stage, request(n, spec)).expect("requested");
        run(&mut stage, n);
    }
    when(&mut stage, back_to(2, 7, spec)).expect("goes back");
    when(&mut stage, start(2)).expect("started");
    stage
}

fn names(events: &[Event]) -> Vec<String> {
    let name = |e| serde_json::to_value(e).expect("serialises")["type"].as_str().expect("tagged").to_owned();
    events.iter().map(name).collect()
}

#[test]
fn a_request_on_an_idle_stage_is_dispatched_in_the_same_decision() {
    let events = when(&mut Stage::default(), request(1, &plain())).expect("accepted");
    assert_eq!(names(&events), ["deployment.requested.v1", "deployment.dispatched.v1"]);
}

#[test]
fn the_same_request_again_has_no_second_effect_at_any_time() {
    let mut stage = given([request(1, &plain())]);
    assert_eq!(when(&mut stage, request(1, &plain())), Ok(vec![]));
    run(&mut stage, 1);
    assert_eq!(when(&mut stage, request(1, &plain())), Ok(vec![]));
}

#[test]
fn a_busy_stage_queues_and_the_ending_decision_dispatches_the_next() {
    let mut stage = given([request(1, &plain()), request(2, &plain()), start(1)]);
    assert_eq!(stage.queue.len(), 1);
    let mut last = vec![];
    while stage.active.as_ref().is_some_and(|a| a.deployment == id(1)) {
        let step = active_step(&stage).expect("a step");
        last = when(&mut stage, complete(1, step)).expect("accepted");
    }
    assert_eq!(names(&last), ["deployment.retired.v1", "deployment.succeeded.v1", "deployment.dispatched.v1"]);
    assert_eq!(stage.active.as_ref().map(|a| a.deployment), Some(id(2)));
    assert_eq!(stage.active.and_then(|a| a.previous).map(|p| p.deployment), Some(id(1)));
}

#[test]
fn a_newer_request_supersedes_what_waits_but_not_what_runs() {
    let mut stage = given([request(1, &plain()), request(2, &plain()), request(3, &plain())]);
    assert_eq!(outcome(&stage, 2), Some(Outcome::Superseded));
    assert_eq!(stage.active.as_ref().map(|a| a.deployment), Some(id(1)));
    run(&mut stage, 1);
    run(&mut stage, 3);
    assert_eq!(stage.current.map(|c| c.deployment), Some(id(3)));
}

#[test]
fn a_keeping_queue_carries_out_every_request_in_order() {
    let mut keep = plain();
    keep.settings.queue = QueuePolicy::Keep;
    let mut stage = given([request(1, &keep), request(2, &keep), request(3, &keep)]);
    for n in 1..=3 {
        run(&mut stage, n);
        assert_eq!(stage.current.as_ref().map(|c| c.deployment), Some(id(n)));
    }
}

/// As many as a queue takes, on top of one that is on its way.
fn full(keeping: &Spec) -> (Stage, u128) {
    let mut stage = given([request(0, keeping)]);
    let mut number = 1;
    while when(&mut stage, request(number, keeping)).is_ok() {
        number += 1;
    }
    assert!(matches!(stage.decide(request(number, keeping)), Err(Rejection::QueueFull { .. })));
    (stage, number)
}

#[test]
fn no_decision_on_a_full_queue_is_larger_than_a_batch() {
    const BATCH: usize = 1000;
    let mut keeping = plain();
    keeping.settings.queue = QueuePolicy::Keep;
    let (stage, next) = full(&keeping);
    let archived = stage.decide(Command::Archive { removal: id(9999) }).expect("accepted");
    let superseded = stage.decide(request(next, &plain())).expect("accepted");
    let called_off = stage.decide(Command::CancelWaiting { leave: 3 }).expect("accepted");
    for events in [&archived, &superseded, &called_off] {
        assert!(events.len() <= BATCH, "{} events", events.len());
    }
    let mut thinned = stage;
    when(&mut thinned, Command::CancelWaiting { leave: 3 }).expect("accepted");
    let left: Vec<_> = thinned.queue.iter().map(|queued| queued.deployment).collect();
    assert_eq!(left, [id(1), id(2), id(3)], "the oldest stay");
}

#[test]
fn a_full_queue_is_carried_out_in_order_to_its_end() {
    let mut keeping = plain();
    keeping.settings.queue = QueuePolicy::Keep;
    let (mut stage, requested) = full(&keeping);
    for number in 0..requested {
        run(&mut stage, number);
        assert_eq!(outcome(&stage, number), Some(Outcome::Succeeded));
    }
    assert!(stage.active.is_none() && stage.queue.is_empty());
}

#[test]
fn an_outcome_says_what_could_not_be_undone() {
    let recreate = spec(Rolling::Recreate, Span::ZERO);
    for (trouble, ended) in [(Step::Discard, Outcome::RolledBack), (Step::Restore, Outcome::Failed)] {
        let mut stage = second(&recreate);
        while active_step(&stage) != Some(Step::Create) {
            let step = active_step(&stage).expect("not over yet");
            when(&mut stage, complete(2, step)).expect("accepted");
        }
        when(&mut stage, fail(2, Step::Create)).expect("accepted");
        let mut last = vec![];
        while let Some(step) = active_step(&stage) {
            let report = if step == trouble { fail(2, step) } else { complete(2, step) };
            last = when(&mut stage, report).expect("accepted");
        }
        assert_eq!(outcome(&stage, 2), Some(ended), "{trouble:?}");
        let said = last.iter().find_map(|event| {
            let (Event::Failed { failure, .. } | Event::RolledBack { failure, .. }) = event else { return None };
            Some(failure)
        });
        let said = said.expect("an outcome with its reason");
        assert_eq!(said.step, Step::Create);
        assert!(said.message.starts_with("it broke; and "), "{said:?}");
    }
}

#[test]
fn the_plans_are_what_the_design_says() {
    let mut blue_green = given([request(1, &spec(Rolling::BlueGreen, Span::secs(5)))]);
    use Step::*;
    assert_eq!(run(&mut blue_green, 1), [Pull, Create, AwaitHealthy, Switch, Bake, Retire]);
    when(&mut blue_green, request(2, &plain())).expect("requested");
    assert_eq!(run(&mut blue_green, 2), [Pull, Create, AwaitHealthy, Switch, Drain, Retire]);

    let mut recreate = given([request(1, &spec(Rolling::Recreate, Span::ZERO))]);
    assert_eq!(run(&mut recreate, 1), [Pull, Create, AwaitHealthy, Switch]);
    when(&mut recreate, request(2, &spec(Rolling::Recreate, Span::secs(5)))).expect("requested");
    assert_eq!(run(&mut recreate, 2), [Pull, Hold, Drain, Retire, Create, AwaitHealthy, Switch, Bake]);
}

#[test]
fn a_stage_without_a_route_never_touches_traffic() {
    let mut spec = plain();
    spec.settings.route = None;
    let mut stage = given([request(1, &spec)]);
    run(&mut stage, 1);
    when(&mut stage, request(2, &spec)).expect("requested");
    assert_eq!(run(&mut stage, 2), [Step::Pull, Step::Create, Step::AwaitHealthy, Step::Retire]);
}

#[test]
fn a_lock_refuses_requests_and_names_owner_and_reason() {
    let lock = |owner: &str| Command::Lock { owner: owner.into(), reason: "freeze".into() };
    let mut stage = given([lock("ann")]);
    assert_eq!(when(&mut stage, lock("ann")), Ok(vec![]));
    let error = when(&mut stage, request(1, &plain())).expect_err("locked").to_string();
    assert!(error.contains("ann") && error.contains("freeze"), "{error}");
    assert!(matches!(when(&mut stage, lock("bob")), Err(Rejection::Locked { .. })));
    let unlock = |owner: &str, force| Command::Unlock { owner: owner.into(), force };
    assert_eq!(when(&mut stage, unlock("bob", false)), Err(Rejection::OthersLock { owner: "ann".into() }));
    when(&mut stage, unlock("bob", true)).expect("forced");
    assert_eq!(when(&mut stage, unlock("ann", false)), Err(Rejection::NotLocked));
    when(&mut stage, request(1, &plain())).expect("free again");
}

#[test]
fn a_worker_that_was_replaced_is_fenced_off() {
    let mut stage = given([request(1, &plain()), start(1)]);
    when(&mut stage, Command::Start { deployment: id(1), worker: "w2".into() }).expect("taken over");
    assert_eq!(when(&mut stage, complete(1, Step::Pull)), Err(Rejection::Fenced { worker: "w2".into() }));
    assert_eq!(when(&mut stage, fail(1, Step::Pull)), Err(Rejection::Fenced { worker: "w2".into() }));
}

#[test]
fn a_cancel_before_any_work_ends_it_at_once() {
    let mut stage = given([request(1, &plain()), request(2, &plain())]);
    assert_eq!(
        names(&when(&mut stage, cancel(2)).expect("queued")),
        ["deployment.cancel_requested.v1", "deployment.cancelled.v1"]
    );
    when(&mut stage, request(3, &plain())).expect("requested");
    let events = when(&mut stage, cancel(1)).expect("dispatched");
    assert_eq!(
        names(&events),
        ["deployment.cancel_requested.v1", "deployment.cancelled.v1", "deployment.dispatched.v1"]
    );
    assert_eq!(when(&mut stage, cancel(1)), Ok(vec![]), "cancelling twice is one cancel");
    assert_eq!(when(&mut stage, cancel(9)), Err(Rejection::UnknownDeployment));
    assert_eq!(when(&mut stage, start(1)), Err(Rejection::Ended(Outcome::Cancelled)));
}

#[test]
fn once_the_new_release_has_proven_itself_a_cancel_is_too_late() {
    let mut stage = second(&plain());
    for step in [Step::Pull, Step::Create, Step::AwaitHealthy, Step::Switch] {
        when(&mut stage, complete(2, step)).expect("accepted");
    }
    assert_eq!(when(&mut stage, cancel(2)), Err(Rejection::TooLate));
}

#[test]
fn a_failure_while_the_old_release_ends_does_not_undo_the_new_one() {
    let mut stage = second(&plain());
    for step in [Step::Pull, Step::Create, Step::AwaitHealthy, Step::Switch, Step::Drain] {
        when(&mut stage, complete(2, step)).expect("accepted");
    }
    let events = when(&mut stage, fail(2, Step::Retire)).expect("accepted");
    assert_eq!(names(&events), ["deployment.retired.v1", "deployment.succeeded.v1"]);
    assert!(matches!(&events[0], Event::Retired(StepDone { problem: Some(_), .. })));
}

#[test]
fn archiving_calls_off_what_is_on_its_way_and_removes_what_runs() {
    let mut stage = second(&plain());
    let events = when(&mut stage, Command::Archive { removal: id(9) }).expect("accepted");
    assert!(names(&events).contains(&"deployment.cancelled.v1".to_owned()), "nothing had an effect yet: {events:?}");
    assert_eq!(stage.active.as_ref().map(|a| (a.deployment, a.kind)), Some((id(9), Kind::Removal)));
    assert_eq!(run(&mut stage, 9), [Step::Switch, Step::Drain, Step::Retire]);
    assert_eq!(stage.current, None);
    assert_eq!(when(&mut stage, request(10, &plain())), Err(Rejection::Archived));
    assert_eq!(when(&mut stage, Command::Archive { removal: id(11) }), Ok(vec![]));
    when(&mut stage, Command::Reopen).expect("declared again");
    when(&mut stage, request(12, &plain())).expect("deployable again");
}

#[test]
fn retention_keeps_as_many_earlier_releases_as_the_policy_says() {
    let mut spec = plain();
    spec.settings.keep = 2;
    let mut stage = Stage::default();
    for n in 1..=5 {
        when(&mut stage, request(n, &spec)).expect("requested");
        run(&mut stage, n);
    }
    assert_eq!(stage.keeps(id(5)), Keep::Running);
    assert_eq!([4, 3, 2, 1].map(|n| stage.keeps(id(n))), [Keep::Stopped, Keep::Stopped, Keep::Nothing, Keep::Nothing]);
    when(&mut stage, request(6, &spec)).expect("requested");
    assert_eq!(stage.keeps(id(6)), Keep::InProgress);
    assert_eq!(stage.keeps(id(5)), Keep::InProgress, "a rollout may be stopping it");
}

#[test]
fn a_restarted_container_is_found_at_its_new_address() {
    let mut stage = given([request(1, &plain())]);
    run(&mut stage, 1);
    let observed = Observed::Started { address: Some("10.0.0.9:80".into()) };
    when(&mut stage, Command::Observe { set: id(1), instance: "c1".into(), observed }).expect("accepted");
    assert_eq!(stage.current.expect("serving").instances[0].address.as_deref(), Some("10.0.0.9:80"));
}

/// Every kind of rollout there is.
fn rollouts() -> Vec<(String, Stage)> {
    let mut all = vec![];
    for strategy in [Rolling::BlueGreen, Rolling::Recreate] {
        for bake in [Span::ZERO, Span::secs(5)] {
            for routed in [true, false] {
                let mut spec = spec(strategy, bake);
                if !routed {
                    spec.settings.route = None;
                }
                all.push((
                    format!("{strategy:?}, bake {bake}, routed {routed}, first"),
                    given([request(2, &spec), start(2)]),
                ));
                all.push((format!("{strategy:?}, bake {bake}, routed {routed}, second"), second(&spec)));
                all.push((format!("{strategy:?}, bake {bake}, routed {routed}, back"), back(&spec)));
            }
        }
    }
    all
}

fn steps_of(stage: &Stage) -> Vec<Step> {
    run(&mut stage.clone(), 2)
}

/// At every step of every rollout: what was done must be undone, and what served must serve on.
fn undo_at_every_step(interrupt: impl Fn(Step) -> Command, outcomes: &[Outcome]) {
    for (name, stage) in rollouts() {
        let served = stage.current.clone();
        for (at, step) in steps_of(&stage).into_iter().enumerate() {
            let mut stage = stage.clone();
            let steps = steps_of(&stage);
            for done in &steps[..at] {
                when(&mut stage, complete(2, *done)).expect("accepted");
            }
            let rollout = stage.active.clone().expect("still on its way");
            if !rollout.reversible(step) {
                continue;
            }
            when(&mut stage, interrupt(step)).unwrap_or_else(|e| panic!("{name}: {step:?}: {e}"));
            let undone = run_rest(&mut stage);
            let ended = outcome(&stage, 2).unwrap_or_else(|| panic!("{name}: stuck after {step:?}"));
            assert!(outcomes.contains(&ended), "{name}: {step:?} ended {ended:?}");
            assert_eq!(stage.current, served, "{name}: {step:?}: what served no longer does");
            let touched = &steps[..=at];
            let has = |s: &Step| touched.contains(s);
            assert_eq!(
                has(&Step::Create),
                undone.contains(&Step::Discard),
                "{name}: {step:?}: new containers: {undone:?}"
            );
            let traffic_touched = has(&Step::Switch) || has(&Step::Hold);
            assert_eq!(traffic_touched, undone.contains(&Step::Revert), "{name}: {step:?}: traffic: {undone:?}");
            let old_stopped = has(&Step::Retire);
            assert_eq!(old_stopped, undone.contains(&Step::Restore), "{name}: {step:?}: the old set: {undone:?}");
            // Nothing may take traffic from containers that are about to go, nor give it to ones not yet back.
            let position = |s| undone.iter().position(|u| *u == s);
            if let (Some(revert), Some(restore)) = (position(Step::Revert), position(Step::Restore)) {
                assert!(restore < revert, "{name}: {step:?}: traffic went back before the old set did: {undone:?}");
            } else if let (Some(revert), Some(discard)) = (position(Step::Revert), position(Step::Discard)) {
                let held = position(Step::Rehold).is_some() || (has(&Step::Hold) && !has(&Step::Switch));
                assert!(
                    revert < discard || held || served.is_none(),
                    "{name}: {step:?}: discarded under traffic: {undone:?}"
                );
            }
        }
    }
}

fn run_rest(stage: &mut Stage) -> Vec<Step> {
    let mut steps = vec![];
    while let Some(step) = active_step(stage) {
        steps.push(step);
        when(stage, complete(2, step)).expect("accepted");
    }
    steps
}

#[test]
fn failing_at_every_step_leaves_what_served_serving() {
    undo_at_every_step(|step| fail(2, step), &[Outcome::Failed, Outcome::RolledBack]);
}

#[test]
fn cancelling_at_every_step_leaves_what_served_serving() {
    undo_at_every_step(|_| cancel(2), &[Outcome::Cancelled]);
}

#[test]
fn reporting_every_step_twice_has_no_second_effect() {
    for (name, mut stage) in rollouts() {
        while let Some(step) = active_step(&stage) {
            when(&mut stage, complete(2, step)).expect("accepted");
            let before = stage.clone();
            match when(&mut stage, complete(2, step)) {
                Ok(events) => assert_eq!(events, [], "{name}: {step:?}"),
                Err(rejection) => assert!(matches!(rejection, Rejection::Ended(_)), "{name}: {step:?}: {rejection}"),
            }
            assert_eq!(stage, before, "{name}: {step:?}");
        }
        assert_eq!(outcome(&stage, 2), Some(Outcome::Succeeded), "{name}");
    }
}

#[test]
fn failing_every_undo_step_still_comes_to_an_end() {
    for (name, stage) in rollouts() {
        for (at, step) in steps_of(&stage).into_iter().enumerate() {
            let mut stage = stage.clone();
            for done in &steps_of(&stage)[..at] {
                when(&mut stage, complete(2, *done)).expect("accepted");
            }
            when(&mut stage, fail(2, step)).expect("accepted");
            let mut left = 20;
            while let Some(step) = active_step(&stage) {
                when(&mut stage, fail(2, step)).expect("accepted");
                left -= 1;
                assert!(left > 0, "{name}: {step:?} goes on for ever");
            }
            assert!(outcome(&stage, 2).is_some(), "{name}: {step:?}");
        }
    }
}

fn any_command() -> impl Strategy<Value = Command> {
    let n = 1..6u128;
    let step = prop::sample::select(vec![
        Step::Pull,
        Step::Hold,
        Step::Create,
        Step::AwaitHealthy,
        Step::Switch,
        Step::Bake,
        Step::Drain,
        Step::Retire,
        Step::Rehold,
        Step::Discard,
        Step::Restore,
        Step::Revert,
    ]);
    let rolling = prop::sample::select(vec![Rolling::BlueGreen, Rolling::Recreate]);
    let queue = prop::sample::select(vec![QueuePolicy::Supersede, QueuePolicy::Keep]);
    prop_oneof![
        3 => (n.clone(), rolling, queue, any::<bool>()).prop_map(|(n, rolling, queue, bake)| {
            let mut spec = spec(rolling, if bake { Span::secs(1) } else { Span::ZERO });
            spec.settings.queue = queue;
            request(n, &spec)
        }),
        3 => n.clone().prop_map(start),
        8 => (n.clone(), step.clone()).prop_map(|(n, step)| complete(n, step)),
        2 => (n.clone(), step).prop_map(|(n, step)| fail(n, step)),
        1 => n.clone().prop_map(cancel),
        1 => n.prop_map(|n| Command::Archive { removal: id(100 + n) }),
        1 => Just(Command::Reopen),
        1 => Just(Command::Lock { owner: "ann".into(), reason: "r".into() }),
        1 => Just(Command::Unlock { owner: "ann".into(), force: false }),
    ]
}

proptest! {
    /// Whatever is asked in whatever order: the laws hold after each decision.
    #[test]
    fn the_laws_hold_for_any_history(commands in prop::collection::vec(any_command(), 1..120)) {
        let mut stage = Stage::default();
        let mut requested = std::collections::BTreeSet::new();
        let mut ended = std::collections::BTreeSet::new();
        for command in commands {
            let before = stage.clone();
            let Ok(events) = when(&mut stage, command.clone()) else {
                prop_assert_eq!(&stage, &before);
                continue;
            };
            for event in &events {
                if let Event::Requested { deployment, .. } = event {
                    prop_assert!(requested.insert(*deployment), "requested twice");
                }
                if let Event::Succeeded { deployment } | Event::Failed { deployment, .. } | Event::RolledBack { deployment, .. }
                    | Event::Cancelled { deployment } | Event::Superseded { deployment, .. } = event {
                    prop_assert!(ended.insert(*deployment), "ended twice");
                }
            }
            if let Ok(again) = stage.decide(command) {
                prop_assert_eq!(again, vec![], "deciding again had an effect");
            }
            prop_assert!(stage.active.is_some() || stage.queue.is_empty(), "someone waits and nobody works");
            if let Some(active) = &stage.active {
                prop_assert!(active.worker.is_none() || next_step(active).is_some(), "active without a next step");
                prop_assert!(!ended.contains(&active.deployment));
            }
            let open = requested.difference(&ended).count();
            prop_assert_eq!(open, stage.queue.len() + usize::from(stage.active.is_some()), "a deployment was lost");
        }
    }
}
