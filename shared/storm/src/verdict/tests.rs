//! A clean world, and every way to spoil it.

use domain::{
    Aggregate, Context, DeploymentId, Event, Recorded,
    image::{Image, Source},
    settings::{RouteSettings, StageSettings},
    stage::{self, Command, Instance, Spec, Stage, next_step},
    traffic::{Route, Target, Upstream, UpstreamSet},
};
use readmodel::{Checksum, deployments::Status};
use uuid::Uuid;

use super::*;

const SHOP: &str = "shop.dev";

fn id(number: u128) -> DeploymentId {
    DeploymentId(Uuid::from_u128(number))
}

fn spec() -> Spec {
    let image = Image { requested: "r/shop:v1".into(), digest: "sha256:1".into(), source: Source::Registry };
    let route = Some(RouteSettings { host: "shop.test".into(), path: "/".into(), proxy: None });
    Spec { image, settings: StageSettings { route, ..StageSettings::default() } }
}

/// One stage and its log.
#[derive(Default)]
struct Log {
    stage: Stage,
    events: Vec<Recorded>,
    commands: u128,
}

impl Log {
    fn run(&mut self, command: Command) {
        self.commands += 1;
        for event in self.stage.decide(command).expect("accepted") {
            self.append(event, self.commands);
        }
    }

    fn append(&mut self, event: stage::Event, command: u128) {
        self.stage.evolve(&event);
        let sequence = self.events.len() as u64 + 1;
        let id = Uuid::from_u128(1000 + u128::from(sequence));
        let context = Context {
            time: "2026-01-01T00:00:00Z".parse().expect("a time"),
            actor: "test".into(),
            correlation_id: id,
            causation_id: None,
            command_id: Uuid::from_u128(command),
            command_hash: None,
            request_id: None,
            traceparent: None,
        };
        let key = vec!["shop".into(), "dev".into()];
        let (subject, kind, event) = (String::new(), String::new(), Event::Stage(event));
        self.events.push(Recorded { sequence, id, subject, key, kind, context, event, body: String::new() });
    }

    fn request(&mut self, number: u128) {
        self.run(Command::Request { deployment: id(number), spec: spec(), node: "local".into(), by: "ana".into() });
        self.run(Command::Start { deployment: id(number), worker: format!("w{number}") });
    }

    fn deploy(&mut self, number: u128) {
        self.request(number);
        let (deployment, worker) = (id(number), format!("w{number}"));
        let instance = Instance { name: format!("shop-{number}"), container: "c".into(), address: None };
        while let Some(step) = self.stage.active.as_ref().and_then(next_step) {
            let (worker, instances) = (worker.clone(), vec![instance.clone()]);
            self.run(Command::Complete { deployment, worker, step, elapsed_ms: 1, instances });
        }
    }
}

fn container(number: u128, running: bool) -> Container {
    Container { name: format!("shop-{number}"), stage: SHOP.into(), set: Some(id(number)), replica: 1, running }
}

fn route(number: u128) -> Route {
    let upstreams = vec![Upstream { instance: format!("shop-{number}"), address: "10.0.0.1:80".into() }];
    let settings = spec().settings;
    let set = UpstreamSet { deployment: id(number), upstreams, health: settings.health, drain: settings.drain };
    let slug = |text: &str| text.parse().expect("a good name");
    Route {
        project: slug("shop"),
        stage: slug("dev"),
        host: "shop.test".into(),
        path: "/".into(),
        target: Target::Live(set),
        fence: 1,
        front: None,
    }
}

fn sums(checksum: &str) -> Vec<Checksum> {
    vec![Checksum { model: "stages".into(), sequence: 9, rows: 1, checksum: checksum.into() }]
}

fn row(log: &Log) -> readmodel::stages::Stage {
    let current = log.stage.current.as_ref().map(|current| current.deployment.0);
    serde_json::from_value(serde_json::json!({
        "project": "shop", "stage": "dev", "settings": spec().settings, "archived": false, "active": null, "queue": [],
        "current": current.map(|id| serde_json::json!({
            "deployment": id, "image": spec().image, "since": "2026-01-01T00:00:00Z",
        })),
        "lock": null, "sequence": 1,
    }))
    .expect("a row")
}

fn accepted(key: &str, number: u128) -> Accepted {
    Accepted { idempotency_key: key.into(), asked: Asked::Deploy, deployment: id(number), sequence: 1 }
}

/// Deployment 2 has replaced deployment 1, and all is well.
fn clean(log: &Log) -> Evidence {
    Evidence {
        accepted: vec![accepted("one", 1), accepted("two", 2), accepted("two", 2)],
        events: log.events.clone(),
        containers: vec![container(1, false), container(2, true)],
        made: [1, 2].map(|n| Made { set: id(n), replica: 1, container: format!("c{n}") }).into(),
        networks: vec![Network { name: "sluice-shop".into(), project: "shop".into() }],
        volumes: vec![],
        routes: [(SHOP.to_owned(), route(2))].into(),
        answers: [(SHOP.to_owned(), Ok(id(2)))].into(),
        commands: 0,
        stages: [(SHOP.to_owned(), row(log))].into(),
        deployments: [1, 2].map(|n| Deployed { deployment: id(n), status: Status::Succeeded }).into(),
        live: sums("a"),
        rebuilt: sums("a"),
    }
}

fn two() -> Log {
    let mut log = Log::default();
    log.deploy(1);
    log.deploy(2);
    log
}

/// `(lost, doubled, diverged, orphaned)` after `spoil`.
fn counts(spoil: impl FnOnce(&mut Log, &mut Evidence)) -> (u64, u64, u64, u64) {
    let mut log = two();
    let mut evidence = clean(&log);
    spoil(&mut log, &mut evidence);
    evidence.events = log.events;
    let verdict = judge(&evidence);
    assert_eq!(
        verdict.findings.len() as u64,
        verdict.lost + verdict.doubled + verdict.diverged + verdict.orphaned,
        "{verdict:?}"
    );
    (verdict.lost, verdict.doubled, verdict.diverged, verdict.orphaned)
}

#[test]
fn a_world_in_order_is_clean() {
    let verdict = judge(&clean(&two()));
    assert!(verdict.is_clean(), "{verdict:?}");
    assert_eq!(verdict.accepted, 2, "a request that was sent again counts once");
}

#[test]
fn an_accepted_request_must_be_in_the_log_and_come_to_an_end() {
    assert_eq!(counts(|_, evidence| evidence.accepted.push(accepted("three", 3))), (1, 0, 0, 0));
    assert_eq!(counts(|_, evidence| evidence.accepted[0].sequence = 1000), (1, 0, 0, 0));
    let cancel = |_: &mut Log, evidence: &mut Evidence| {
        evidence.accepted.push(Accepted { asked: Asked::Cancel, ..accepted("cancel", 2) });
    };
    assert_eq!(counts(cancel), (1, 0, 0, 0));
    // On its way for ever: the deployment has no outcome, the stage no rest, its read model another idea.
    assert_eq!(counts(|log, _| log.request(3)), (2, 0, 1, 0));
}

#[test]
fn nothing_happens_twice() {
    let again = |what: fn(&stage::Event) -> bool| {
        counts(move |log, _| {
            let event = log.events.iter().find_map(|recorded| match &recorded.event {
                Event::Stage(event) if what(event) => Some(event.clone()),
                _ => None,
            });
            log.append(event.expect("it happened once"), 777);
        })
    };
    assert_eq!(again(|event| matches!(event, stage::Event::Switched(_))), (0, 1, 0, 0));
    assert_eq!(again(|event| matches!(event, stage::Event::Succeeded { .. })), (0, 1, 0, 0));
    assert_eq!(again(|event| matches!(event, stage::Event::Started { .. })), (0, 1, 0, 0));
    let decided_again = |log: &mut Log, _: &mut Evidence| {
        let unlocked = stage::Event::Unlocked { owner: "me".into() };
        log.append(unlocked, 1);
    };
    assert_eq!(counts(decided_again), (0, 1, 0, 0), "a command that was carried out long ago");
    let twice_in_one = |log: &mut Log, _: &mut Evidence| {
        let unlocked = stage::Event::Unlocked { owner: "me".into() };
        log.append(unlocked.clone(), 888);
        log.append(unlocked, 888);
    };
    assert_eq!(counts(twice_in_one), (0, 1, 0, 0), "a command whose events were written twice");
    assert_eq!(counts(|_, evidence| evidence.accepted.push(accepted("two", 1))), (0, 1, 0, 0), "a key, two answers");
}

#[test]
fn one_set_serves_and_was_made_once() {
    assert_eq!(counts(|_, evidence| evidence.containers[0].running = true), (0, 1, 0, 0));
    assert_eq!(counts(|_, evidence| evidence.containers.push(container(2, true))), (0, 1, 0, 0));
    assert_eq!(counts(|_, evidence| evidence.containers.push(container(9, true))), (0, 1, 0, 0));
    let third = Made { set: id(2), replica: 1, container: "c3".into() };
    assert_eq!(counts(|_, evidence| evidence.made.push(third)), (0, 1, 0, 0));
    // Stands still: it does not run, no replica does, and the route leads to nobody.
    assert_eq!(counts(|_, evidence| evidence.containers[1].running = false), (0, 0, 3, 0));
}

#[test]
fn everything_agrees_on_what_serves() {
    let route_to =
        |n: u128| move |_: &mut Log, evidence: &mut Evidence| evidence.routes.values_mut().for_each(|r| *r = route(n));
    assert_eq!(counts(route_to(1)), (0, 0, 1, 0));
    assert_eq!(counts(|_, evidence| evidence.routes.clear()), (0, 0, 1, 0));
    assert_eq!(counts(|_, evidence| evidence.answers.values_mut().for_each(|by| *by = Ok(id(1)))), (0, 0, 1, 0));
    assert_eq!(
        counts(|_, evidence| evidence.answers.values_mut().for_each(|by| *by = Err("502".into()))),
        (0, 0, 1, 0)
    );
    assert_eq!(counts(|_, evidence| evidence.stages.clear()), (0, 0, 1, 0));
    assert_eq!(counts(|_, evidence| evidence.stages.values_mut().for_each(|row| row.current = None)), (0, 0, 1, 0));
    assert_eq!(counts(|_, evidence| evidence.deployments[0].status = Status::Running), (0, 0, 1, 0));
    assert_eq!(counts(|_, evidence| evidence.deployments[0].deployment = id(8)), (0, 0, 2, 0));
    assert_eq!(counts(|_, evidence| evidence.rebuilt = sums("b")), (0, 0, 1, 0));
    assert_eq!(counts(|_, evidence| evidence.rebuilt.clear()), (0, 0, 1, 0));
}

#[test]
fn nothing_is_left_over() {
    assert_eq!(counts(|_, evidence| evidence.containers.push(container(9, false))), (0, 0, 0, 1));
    let stranger = Container { stage: "other.dev".into(), ..container(9, true) };
    assert_eq!(counts(|_, evidence| evidence.containers.push(stranger)), (0, 0, 0, 1));
    assert_eq!(counts(|_, evidence| evidence.networks[0].project = "other".into()), (0, 0, 0, 1));
    assert_eq!(counts(|_, evidence| evidence.volumes.push("v".into())), (0, 0, 0, 1));
    assert_eq!(counts(|_, evidence| evidence.commands = 1), (0, 0, 0, 1));
    let lost_route = |_: &mut Log, evidence: &mut Evidence| {
        evidence.routes.insert("other.dev".into(), route(2));
    };
    assert_eq!(counts(lost_route), (0, 0, 0, 1));
    let held = |_: &mut Log, evidence: &mut Evidence| {
        let target = Target::Held { limit: domain::Span::secs(1) };
        evidence.routes.values_mut().for_each(|route| route.target = target.clone());
    };
    assert_eq!(counts(held), (0, 0, 0, 1));
}
