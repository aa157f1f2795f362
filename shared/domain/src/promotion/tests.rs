//! Given / when / then over a small history of one project, kept as the log keeps it: with positions and times.

use std::collections::BTreeMap;

use chrono::TimeDelta;
use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::{
    Aggregate, Context, Event, Key, Recorded, Role,
    image::{Image, Source},
    project::{self, Declaration, Project},
    settings::StageSettings,
    stage::{self, Attempt, Command, Instance, Observed, Rejection, Spec, Stage, next_step},
};

const NODE: &str = "local";

fn slug(text: &str) -> Slug {
    text.parse().expect("a good name")
}

fn start() -> DateTime<Utc> {
    // A Wednesday.
    "2026-11-18T12:00:00Z".parse().expect("a time")
}

fn image(version: u128) -> Image {
    Image { requested: format!("shop:v{version}"), digest: format!("sha256:{version:064}"), source: Source::Registry }
}

/// The project `shop`, whose `prod` promotes from `dev`.
struct Shop {
    log: Vec<Recorded>,
    now: DateTime<Utc>,
    next_id: u128,
}

impl Shop {
    fn new(gates: Gates) -> Self {
        let mut shop = Self { log: vec![], now: start(), next_id: 1 };
        shop.declare(gates);
        shop
    }

    fn declare(&mut self, gates: Gates) {
        let prod = StageSettings { promote_from: Some(slug("dev")), gates, ..StageSettings::default() };
        let stages = BTreeMap::from([(slug("dev"), StageSettings::default()), (slug("prod"), prod)]);
        self.apply(Declaration { stages, ..Declaration::default() });
    }

    fn apply(&mut self, declaration: Declaration) {
        let command = project::Command::Apply { slug: slug("shop"), declaration, prune: false };
        let events = self.project().0.decide(command).expect("declared");
        self.append(&Key::project(&slug("shop")), &events);
    }

    fn id(&mut self) -> Uuid {
        self.next_id += 1;
        Uuid::from_u128(self.next_id)
    }

    fn after(&mut self, seconds: i64) {
        self.now += TimeDelta::seconds(seconds);
    }

    /// Through the stored form and back, as everything that is decided upon is.
    fn append<A: Aggregate>(&mut self, key: &Key<A>, events: &[A::Event]) {
        for event in events {
            let id = self.id();
            let context = Context {
                time: self.now,
                actor: "somebody".into(),
                correlation_id: id,
                causation_id: None,
                command_id: id,
                command_hash: None,
                request_id: None,
                traceparent: None,
            };
            let (subject, body) = crate::encode(key, event, id, &context).expect("encodes");
            let sequence = self.log.len() as u64 + 1;
            self.log.push(crate::decode(sequence, &subject, &body).expect("decodes"));
        }
    }

    fn project(&self) -> (Project, u64) {
        let mut state = (Project::default(), 0);
        for recorded in &self.log {
            if let Event::Project(event) = &recorded.event {
                state.0.evolve(event);
                state.1 = recorded.sequence;
            }
        }
        state
    }

    fn stage(&self, name: &str) -> (Stage, u64) {
        let mut state = (Stage::default(), 0);
        for recorded in self.log.iter().filter(|recorded| recorded.stage() == Some(name)) {
            if let Event::Stage(event) = &recorded.event {
                state.0.evolve(event);
                state.1 = recorded.sequence;
            }
        }
        state
    }

    fn run(&mut self, stage: &str, command: Command) -> Result<Vec<stage::Event>, Rejection> {
        let events = self.stage(stage).0.decide(command.clone())?;
        self.append(&Key::stage(&slug("shop"), &slug(stage)), &events);
        // What is observed twice happened twice; only its command's id tells a repetition.
        if !matches!(command, Command::Observe { .. }) {
            let again = self.stage(stage).0.decide(command.clone()).unwrap_or_default();
            assert_eq!(again, [], "a second effect of {command:?}");
        }
        Ok(events)
    }

    /// Carries what is active on `stage` to its end.
    fn finish(&mut self, stage: &str) -> DeploymentId {
        let deployment = self.stage(stage).0.active.expect("active").deployment;
        self.run(stage, Command::Start { deployment, worker: "w".into() }).expect("started");
        let next = |shop: &Self| {
            next_step(shop.stage(stage).0.active.as_ref().filter(|active| active.deployment == deployment)?)
        };
        while let Some(step) = next(self) {
            let instances =
                vec![Instance { name: format!("{stage}-{deployment}"), container: "c".into(), address: None }];
            let worker = "w".into();
            self.run(stage, Command::Complete { deployment, worker, step, elapsed_ms: 1, instances }).expect("done");
        }
        deployment
    }

    fn deploy(&mut self, stage: &str, version: u128) -> DeploymentId {
        let deployment = DeploymentId(self.id());
        let settings = self.project().0.stages[&slug(stage)].clone();
        let spec = Spec { image: image(version), settings };
        let command = if stage == "dev" {
            Command::Request { deployment, spec, node: NODE.into(), by: "ana".into() }
        } else {
            Command::Hotfix { deployment, spec, node: NODE.into(), by: "admin".into(), reason: "urgent".into() }
        };
        self.run(stage, command).expect("requested");
        self.finish(stage)
    }

    fn observe(&mut self, stage: &str, observed: Observed) {
        let current = self.stage(stage).0.current.expect("runs");
        let command = Command::Observe { set: current.set, instance: current.instances[0].name.clone(), observed };
        self.run(stage, command).expect("observed");
    }

    fn standing(&self) -> Option<Standing> {
        let (state, position) = self.stage("dev");
        Standing::of(&slug("dev"), &state, position, self.log.iter().filter(|event| event.stage() == Some("dev")))
    }

    fn attempt(&mut self, promotion: PromotionId) -> Box<Attempt> {
        let (project, version) = self.project();
        let settings = project.stages[&slug("prod")].clone();
        let from = settings.promote_from.clone().expect("promotes");
        let rules = Rules { from, gates: settings.gates.clone(), version };
        let case = Case { now: self.now, rules, source: self.standing() };
        let deployment = DeploymentId(self.id());
        Box::new(Attempt {
            promotion,
            deployment,
            case,
            settings,
            auto_promote: project.auto_promote,
            node: NODE.into(),
        })
    }

    fn promote(&mut self, by: &str, wait: bool) -> Result<(PromotionId, Vec<stage::Event>), Rejection> {
        let promotion = PromotionId(self.id());
        let attempt = self.attempt(promotion);
        self.run("prod", Command::Promote { digest: None, by: by.into(), wait, attempt })
            .map(|events| (promotion, events))
    }

    fn approve(&mut self, promotion: PromotionId, by: &str, role: Role) -> Result<Vec<stage::Event>, Rejection> {
        let attempt = self.attempt(promotion);
        self.run("prod", Command::Approve { by: by.into(), role, attempt })
    }

    fn reconsider(&mut self, promotion: PromotionId) -> Vec<stage::Event> {
        let attempt = self.attempt(promotion);
        self.run("prod", Command::Reconsider { attempt }).expect("reconsidered")
    }

    fn automatically(&mut self) -> Result<Vec<stage::Event>, Rejection> {
        let promotion = PromotionId(self.id());
        let attempt = self.attempt(promotion);
        self.run("prod", Command::PromoteAutomatically { by: "watcher".into(), attempt })
    }

    fn verify(&self) -> Verification {
        let accepted = |event: &&Recorded| matches!(&event.event, Event::Stage(stage::Event::PromotionAccepted { .. }));
        let accepted = self.log.iter().rev().find(accepted).expect("one was accepted");
        verify(accepted, &self.log).expect("it is an acceptance")
    }
}

fn names(events: &[stage::Event]) -> Vec<String> {
    let name = |event: &stage::Event| serde_json::to_value(event).expect("encodes")["type"].to_string();
    events.iter().map(|event| name(event).trim_matches('"').trim_end_matches(".v1").to_owned()).collect()
}

fn refusal(events: &[stage::Event]) -> Option<Gate> {
    events.iter().find_map(|event| match event {
        stage::Event::PromotionRefused { gate, .. } => Some(*gate),
        _ => None,
    })
}

fn accepted(events: &[stage::Event]) -> bool {
    events.iter().any(|event| matches!(event, stage::Event::PromotionAccepted { .. }))
}

fn soak(seconds: u64) -> Gates {
    Gates { soak: Span::secs(seconds), ..Gates::default() }
}

fn approvals(count: u16, roles: &[Role]) -> Gates {
    let roles = roles.iter().copied().collect();
    Gates { approvals: Some(Approvals { count, roles }), ..Gates::default() }
}

#[test]
fn the_release_of_the_source_is_deployed_by_its_digest_with_a_proof() {
    let mut shop = Shop::new(Gates::default());
    shop.deploy("dev", 1);
    let (promotion, events) = shop.promote("alice", false).expect("asked");
    assert_eq!(
        names(&events),
        ["promotion.requested", "promotion.accepted", "deployment.requested", "deployment.dispatched"]
    );
    let (state, _) = shop.stage("prod");
    assert_eq!(state.active.expect("on its way").spec.image, image(1));
    assert!(events.iter().any(|event| matches!(
        event,
        stage::Event::Requested { origin: stage::Origin::Promotion { promotion: by }, .. } if *by == promotion
    )));
    let verification = shop.verify();
    assert_eq!(verification.contradictions, [""; 0]);
    assert!(verification.verified && verification.checks.iter().all(|check| check.answer == Answer::Passed));
}

#[test]
fn what_never_ran_in_the_source_is_refused_by_an_event() {
    let mut shop = Shop::new(Gates::default());
    let (_, events) = shop.promote("alice", true).expect("asked");
    assert_eq!(names(&events), ["promotion.requested", "promotion.refused"]);
    assert_eq!(refusal(&events), Some(Gate::Source));
}

#[test]
fn another_digest_than_the_sources_is_refused() {
    let mut shop = Shop::new(Gates::default());
    shop.deploy("dev", 1);
    let attempt = shop.attempt(PromotionId(Uuid::from_u128(900)));
    let digest = Some(image(2).digest);
    let events = shop.run("prod", Command::Promote { digest, by: "alice".into(), wait: true, attempt }).expect("asked");
    assert_eq!(refusal(&events), Some(Gate::Source));
}

#[test]
fn a_deployment_that_did_not_end_well_proves_nothing() {
    let mut shop = Shop::new(Gates::default());
    shop.deploy("dev", 1);
    let deployment = DeploymentId(shop.id());
    let spec = Spec { image: image(2), settings: StageSettings::default() };
    shop.run("dev", Command::Request { deployment, spec, node: NODE.into(), by: "ana".into() }).expect("requested");
    shop.run("dev", Command::Cancel { deployment, reason: None }).expect("cancelled");
    let (_, events) = shop.promote("alice", false).expect("asked");
    assert!(accepted(&events));
    assert_eq!(shop.stage("prod").0.active.expect("on its way").spec.image, image(1));
}

#[test]
fn nothing_but_a_promotion_reaches_a_stage_with_a_source() {
    let mut shop = Shop::new(Gates::default());
    let deployment = DeploymentId(shop.id());
    let settings = shop.project().0.stages[&slug("prod")].clone();
    let spec = Spec { image: image(1), settings };
    let request = Command::Request { deployment, spec: spec.clone(), node: NODE.into(), by: "ana".into() };
    assert_eq!(shop.run("prod", request.clone()), Err(Rejection::PromotionOnly { from: slug("dev") }));
    let (by, node) = ("admin".to_owned(), NODE.to_owned());
    let hotfix = |reason: &str| Command::Hotfix {
        deployment,
        spec: spec.clone(),
        node: node.clone(),
        by: by.clone(),
        reason: reason.into(),
    };
    assert_eq!(shop.run("prod", hotfix(" ")), Err(Rejection::NoReason));
    let events = shop.run("prod", hotfix("payments are down")).expect("past the gates");
    assert_eq!(names(&events), ["deployment.requested", "deployment.dispatched", "hold.set"]);
    shop.finish("prod");
    // The same bytes again, with whatever settings are declared by now.
    let deployment = DeploymentId(shop.id());
    let Command::Request { spec, node, by, .. } = request else { unreachable!("as made above") };
    assert!(shop.run("prod", Command::Request { deployment, spec, node, by }).is_ok());
}

#[test]
fn soak_is_over_at_its_last_second_and_not_before() {
    let mut shop = Shop::new(soak(600));
    shop.deploy("dev", 1);
    shop.after(599);
    let (_, events) = shop.promote("alice", false).expect("asked");
    assert_eq!(refusal(&events), Some(Gate::Soak));
    shop.after(1);
    assert!(accepted(&shop.promote("alice", false).expect("asked").1));
    assert!(shop.verify().verified);
}

#[test]
fn trouble_in_the_source_begins_the_soak_anew() {
    let mut shop = Shop::new(soak(600));
    shop.deploy("dev", 1);
    shop.after(500);
    shop.observe("dev", Observed::Exited { exit_code: 1 });
    shop.after(200);
    let (_, events) = shop.promote("alice", false).expect("asked");
    assert_eq!(refusal(&events), Some(Gate::Health));
    shop.observe("dev", Observed::Started { address: None });
    shop.after(599);
    assert_eq!(refusal(&shop.promote("alice", false).expect("asked").1), Some(Gate::Soak));
    shop.after(1);
    assert!(accepted(&shop.promote("alice", false).expect("asked").1));
    let verification = shop.verify();
    assert!(verification.verified, "{:?}", verification.contradictions);
}

#[test]
fn one_that_waits_is_accepted_when_it_is_looked_at_again_and_only_then_once() {
    let mut shop = Shop::new(soak(600));
    shop.deploy("dev", 1);
    let (promotion, events) = shop.promote("alice", true).expect("asked");
    assert_eq!(names(&events), ["promotion.requested"]);
    assert_eq!(shop.reconsider(promotion), []);
    shop.after(600);
    assert!(accepted(&shop.reconsider(promotion)));
    assert_eq!(shop.reconsider(promotion), []);
    assert!(shop.verify().verified);
}

#[test]
fn one_that_waits_is_refused_when_the_source_moves_on() {
    let mut shop = Shop::new(soak(600));
    shop.deploy("dev", 1);
    let (promotion, _) = shop.promote("alice", true).expect("asked");
    shop.deploy("dev", 2);
    shop.after(600);
    let events = shop.reconsider(promotion);
    assert_eq!(refusal(&events), Some(Gate::Source));
    assert_eq!(shop.stage("prod").0.promotion, None);
}

#[test]
fn the_same_bytes_deployed_again_to_the_source_soak_anew_but_stay_the_same_promotion() {
    let mut shop = Shop::new(soak(600));
    shop.deploy("dev", 1);
    let (promotion, _) = shop.promote("alice", true).expect("asked");
    shop.after(500);
    shop.deploy("dev", 1);
    shop.after(599);
    assert_eq!(shop.reconsider(promotion), []);
    shop.after(1);
    assert!(accepted(&shop.reconsider(promotion)));
}

#[test]
fn approvals_are_counted_once_each_by_role_and_never_the_requesters() {
    let mut shop = Shop::new(approvals(2, &[Role::Operator]));
    shop.deploy("dev", 1);
    // Without `wait`: approvals are what a request is for.
    let (promotion, events) = shop.promote("alice", false).expect("asked");
    assert_eq!(names(&events), ["promotion.requested"]);
    assert_eq!(shop.approve(promotion, "alice", Role::Admin), Err(Rejection::OwnPromotion));
    let needed = Role::Operator;
    assert_eq!(shop.approve(promotion, "eve", Role::Viewer), Err(Rejection::ApprovalDoesNotCount { needed }));
    assert_eq!(names(&shop.approve(promotion, "bob", Role::Operator).expect("counts")), ["promotion.approved"]);
    assert_eq!(shop.approve(promotion, "bob", Role::Operator), Ok(vec![]));
    let events = shop.approve(promotion, "carol", Role::Admin).expect("counts");
    assert!(accepted(&events));
    assert_eq!(shop.approve(promotion, "dave", Role::Admin), Err(Rejection::Decided(stage::Decision::Accepted)));
    let verification = shop.verify();
    assert!(verification.verified);
    assert_eq!(verification.proof.approvals.len(), 2);
}

#[test]
fn approvals_that_no_longer_count_by_the_gates_of_now_do_not_count() {
    let mut shop = Shop::new(approvals(2, &[]));
    shop.deploy("dev", 1);
    let (promotion, _) = shop.promote("alice", false).expect("asked");
    shop.approve(promotion, "bob", Role::Operator).expect("counts");
    shop.declare(approvals(2, &[Role::Admin]));
    let events = shop.approve(promotion, "carol", Role::Admin).expect("counts");
    assert!(!accepted(&events), "bob's approval still counted");
}

#[test]
fn a_frozen_window_and_a_lock_stand_in_the_way_as_long_as_they_last() {
    let window = Window {
        schedule: "0 10 * * WED".into(),
        duration: Span::secs(4 * 3600),
        time_zone: "UTC".into(),
        reason: Some("the weekly sale".into()),
    };
    let mut shop = Shop::new(Gates { frozen: vec![window], ..Gates::default() });
    shop.deploy("dev", 1);
    let (_, events) = shop.promote("alice", false).expect("asked");
    let Some(stage::Event::PromotionRefused { gate: Gate::Frozen, reason, .. }) = events.last() else {
        panic!("not refused: {events:?}");
    };
    assert!(reason.contains("2026-11-18T14:00:00Z") && reason.contains("the weekly sale"), "{reason}");
    let (promotion, _) = shop.promote("alice", true).expect("asked");
    shop.after(2 * 3600 - 1);
    assert_eq!(shop.reconsider(promotion), []);
    shop.run("prod", Command::Lock { owner: "bob".into(), reason: "moving".into() }).expect("locked");
    shop.after(1);
    assert_eq!(shop.reconsider(promotion), []);
    shop.run("prod", Command::Unlock { owner: "bob".into(), force: false }).expect("unlocked");
    assert!(accepted(&shop.reconsider(promotion)));
    assert!(shop.verify().verified);
}

#[test]
fn a_newer_request_takes_the_place_of_one_for_other_bytes_and_of_no_other() {
    let mut shop = Shop::new(approvals(1, &[]));
    shop.deploy("dev", 1);
    let (first, _) = shop.promote("alice", false).expect("asked");
    assert_eq!(shop.promote("bob", false), Err(Rejection::PromotionWaits(first)));
    shop.deploy("dev", 2);
    let (second, events) = shop.promote("bob", false).expect("asked");
    assert_eq!(names(&events), ["promotion.withdrawn", "promotion.requested"]);
    assert_eq!(shop.approve(first, "carol", Role::Admin), Err(Rejection::Decided(stage::Decision::Withdrawn)));
    assert!(accepted(&shop.approve(second, "carol", Role::Admin).expect("counts")));
    assert_eq!(shop.stage("prod").0.active.expect("on its way").spec.image, image(2));
}

#[test]
fn a_promotion_is_withdrawn_once_with_a_reason() {
    let mut shop = Shop::new(approvals(1, &[]));
    shop.deploy("dev", 1);
    let (promotion, _) = shop.promote("alice", false).expect("asked");
    let withdraw = |promotion, reason: &str| Command::Withdraw { promotion, reason: reason.into() };
    assert_eq!(shop.run("prod", withdraw(promotion, "")), Err(Rejection::NoReason));
    assert_eq!(names(&shop.run("prod", withdraw(promotion, "too soon")).expect("withdrawn")), ["promotion.withdrawn"]);
    assert_eq!(shop.run("prod", withdraw(promotion, "too soon")), Ok(vec![]));
    let unknown = PromotionId(Uuid::from_u128(900));
    assert_eq!(shop.run("prod", withdraw(unknown, "too soon")), Err(Rejection::UnknownPromotion));
}

#[test]
fn a_rollback_holds_the_stage_until_a_person_promotes_again() {
    let mut shop = Shop::new(Gates::default());
    for version in 1..=2 {
        shop.deploy("dev", version);
        shop.promote("alice", false).expect("asked");
        shop.finish("prod");
    }
    let rollback = |shop: &mut Shop, to| {
        let deployment = DeploymentId(shop.id());
        let settings = Box::new(shop.project().0.stages[&slug("prod")].clone());
        shop.run("prod", Command::Rollback { deployment, to, settings, node: NODE.into(), by: "bob".into() })
    };
    let current = shop.stage("prod").0.current.expect("runs").deployment;
    assert_eq!(rollback(&mut shop, Some(current)), Err(Rejection::AlreadyCurrent));
    let unknown = DeploymentId(Uuid::from_u128(900));
    assert_eq!(rollback(&mut shop, Some(unknown)), Err(Rejection::ReleaseForgotten));
    let events = rollback(&mut shop, None).expect("goes back");
    assert_eq!(names(&events), ["deployment.requested", "deployment.dispatched", "hold.set"]);
    shop.finish("prod");
    let (state, _) = shop.stage("prod");
    assert_eq!(state.current.expect("runs").spec.image, image(1));
    assert_eq!(state.hold.expect("on hold").by, "bob");
    let (_, events) = shop.promote("alice", false).expect("asked");
    assert!(names(&events).contains(&"hold.lifted".to_owned()), "{events:?}");
    assert_eq!(shop.stage("prod").0.hold, None);
}

#[test]
fn automation_promotes_each_release_once_when_its_time_has_come_and_not_on_a_stage_on_hold() {
    let mut shop = Shop::new(soak(600));
    assert_eq!(shop.automatically(), Err(Rejection::NotAutomatic));
    shop.apply(Declaration { auto_promote: Some(true), ..Declaration::default() });
    assert_eq!(shop.automatically(), Err(Rejection::NothingToPromote), "the source runs nothing");
    shop.deploy("dev", 1);
    assert_eq!(shop.automatically(), Ok(vec![]), "too soon");
    shop.after(600);
    assert!(accepted(&shop.automatically().expect("asked")));
    assert_eq!(shop.automatically(), Err(Rejection::NothingToPromote), "on its way");
    let deployment = shop.stage("prod").0.active.expect("on its way").deployment;
    shop.run("prod", Command::Cancel { deployment, reason: None }).expect("cancelled");
    assert_eq!(shop.automatically(), Err(Rejection::NothingToPromote), "a person called it off");
    shop.deploy("dev", 2);
    shop.after(600);
    shop.run("prod", Command::Hold { by: "bob".into(), reason: "a visit".into() }).expect("held");
    assert!(matches!(shop.automatically(), Err(Rejection::OnHold { .. })));
    shop.run("prod", Command::LiftHold).expect("lifted");
    assert!(accepted(&shop.automatically().expect("asked")));
    shop.finish("prod");
    assert_eq!(shop.automatically(), Err(Rejection::NothingToPromote), "it runs");
}

#[test]
fn automation_asks_for_approvals_and_not_again_for_what_was_withdrawn() {
    let mut shop = Shop::new(approvals(1, &[]));
    shop.apply(Declaration { auto_promote: Some(true), ..Declaration::default() });
    shop.deploy("dev", 1);
    assert_eq!(names(&shop.automatically().expect("asked")), ["promotion.requested"]);
    assert_eq!(shop.automatically(), Err(Rejection::NothingToPromote), "it waits");
    let promotion = shop.stage("prod").0.promotion.expect("waits").id;
    shop.run("prod", Command::Withdraw { promotion, reason: "not this one".into() }).expect("withdrawn");
    assert_eq!(shop.automatically(), Err(Rejection::NothingToPromote), "withdrawn");
    shop.deploy("dev", 2);
    assert_eq!(names(&shop.automatically().expect("asked")), ["promotion.requested"]);
    shop.deploy("dev", 3);
    assert_eq!(names(&shop.automatically().expect("asked")), ["promotion.withdrawn", "promotion.requested"]);
    let promotion = shop.stage("prod").0.promotion.expect("waits").id;
    assert!(accepted(&shop.approve(promotion, "bob", Role::Operator).expect("counts")));
}

#[test]
fn nothing_to_go_back_to_is_said_so() {
    let mut shop = Shop::new(Gates::default());
    shop.deploy("dev", 1);
    shop.deploy("dev", 1);
    let deployment = DeploymentId(shop.id());
    let settings = Box::new(StageSettings::default());
    let command = Command::Rollback { deployment, to: None, settings, node: NODE.into(), by: "bob".into() };
    assert_eq!(shop.run("dev", command), Err(Rejection::NoEarlierRelease));
}

#[test]
fn a_proof_that_was_tampered_with_is_found_out() {
    let mut shop = Shop::new(soak(600));
    shop.deploy("dev", 1);
    shop.after(600);
    shop.promote("alice", false).expect("asked");
    let at = shop.log.iter().position(|event| event.kind.ends_with("promotion.accepted.v1")).expect("accepted");
    type Forgery = fn(&mut Proof);
    let forgeries: [(&str, Forgery); 7] = [
        ("another digest", |proof| proof.digest = image(2).digest),
        ("another success", |proof| proof.source.succeeded -= 1),
        ("healthy for longer", |proof| proof.source.healthy_since -= TimeDelta::seconds(60)),
        ("an older look", |proof| proof.source.position -= 1),
        ("other gates", |proof| proof.rules += 1),
        ("an approval more", |proof| proof.approvals.push(Approval { by: "bob".into(), role: Role::Admin })),
        ("another time", |proof| proof.decided_at += TimeDelta::seconds(1)),
    ];
    for (name, forge) in forgeries {
        let mut forged = shop.log[at].clone();
        let Event::Stage(stage::Event::PromotionAccepted { proof, .. }) = &mut forged.event else { panic!("{name}") };
        forge(proof);
        let verification = verify(&forged, &shop.log).expect("an acceptance");
        assert!(!verification.verified && !verification.contradictions.is_empty(), "{name} passed");
    }
}

#[test]
fn a_history_from_which_an_event_is_missing_is_found_out() {
    let mut shop = Shop::new(approvals(1, &[]));
    shop.deploy("dev", 1);
    let (promotion, _) = shop.promote("alice", false).expect("asked");
    shop.approve(promotion, "bob", Role::Operator).expect("counts");
    let accepted = shop.log.iter().position(|event| event.kind.ends_with("promotion.accepted.v1")).expect("accepted");
    for missing in ["promotion.approved.v1", "promotion.requested.v1", "stage.added.v1", "deployment.succeeded.v1"] {
        let history: Vec<Recorded> = shop.log.iter().filter(|event| !event.kind.ends_with(missing)).cloned().collect();
        let verification = verify(&shop.log[accepted], &history).expect("an acceptance");
        assert!(!verification.verified, "{missing} was not missed");
    }
}

#[derive(Debug, Clone, Copy)]
enum Move {
    Deploy(u128),
    Promote(u8, bool),
    Approve(u8),
    Reconsider,
    Wait(i64),
    Exit,
    Restart,
    Lock,
    Unlock,
    Declare(u8),
    Finish,
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        (1_u128..4).prop_map(Move::Deploy),
        (0_u8..3, any::<bool>()).prop_map(|(by, wait)| Move::Promote(by, wait)),
        (0_u8..3).prop_map(Move::Approve),
        Just(Move::Reconsider),
        (1_i64..900).prop_map(Move::Wait),
        Just(Move::Exit),
        Just(Move::Restart),
        Just(Move::Lock),
        Just(Move::Unlock),
        (0_u8..4).prop_map(Move::Declare),
        Just(Move::Finish),
    ];
    prop::collection::vec(one, 1..40)
}

fn gates(number: u8) -> Gates {
    match number {
        0 => Gates::default(),
        1 => soak(300),
        2 => approvals(1, &[]),
        _ => Gates { soak: Span::secs(120), ..approvals(2, &[Role::Operator]) },
    }
}

proptest! {
    /// Whatever happens in whatever order: every acceptance is proven by the events before it, and no other bytes
    /// reach the stage.
    #[test]
    fn every_acceptance_in_any_history_verifies(moves in moves()) {
        let mut shop = Shop::new(soak(60));
        let people = ["alice", "bob", "carol"];
        for one in moves {
            shop.after(1);
            let pending = shop.stage("prod").0.promotion.map(|pending| pending.id);
            match (one, pending) {
                (Move::Deploy(version), _) => { shop.deploy("dev", version); }
                (Move::Promote(by, wait), _) => { let _ = shop.promote(people[usize::from(by)], wait); }
                (Move::Approve(by), Some(pending)) => {
                    let _ = shop.approve(pending, people[usize::from(by)], Role::Operator);
                }
                (Move::Reconsider, Some(pending)) => { shop.reconsider(pending); }
                (Move::Approve(_) | Move::Reconsider, None) => {}
                (Move::Wait(seconds), _) => shop.after(seconds),
                (Move::Exit, _) if shop.stage("dev").0.current.is_some() => {
                    shop.observe("dev", Observed::Exited { exit_code: 1 });
                }
                (Move::Restart, _) if shop.stage("dev").0.current.is_some() => {
                    shop.observe("dev", Observed::Started { address: None });
                }
                (Move::Exit | Move::Restart, _) => {}
                (Move::Lock, _) => {
                    let _ = shop.run("prod", Command::Lock { owner: "ops".into(), reason: "test".into() });
                }
                (Move::Unlock, _) => {
                    let _ = shop.run("prod", Command::Unlock { owner: "ops".into(), force: false });
                }
                (Move::Declare(number), _) => shop.declare(gates(number)),
                (Move::Finish, _) if shop.stage("prod").0.active.is_some() => { shop.finish("prod"); }
                (Move::Finish, _) => {}
            }
        }
        let mut proven = vec![];
        for event in &shop.log {
            if let Some(verification) = verify(event, &shop.log) {
                prop_assert!(verification.verified, "{:?}", verification.contradictions);
                proven.push(verification.proof.digest);
            }
        }
        let reached = shop.log.iter().filter_map(|recorded| match &recorded.event {
            Event::Stage(stage::Event::Requested { spec, .. }) if recorded.stage() == Some("prod") => {
                Some(spec.image.digest.clone())
            }
            _ => None,
        });
        prop_assert_eq!(reached.collect::<Vec<_>>(), proven);
    }
}
