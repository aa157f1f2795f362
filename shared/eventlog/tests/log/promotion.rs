//! Promotions, decided on a real log: what they rest on must not move under them.

use domain::{
    DeploymentId, Event, Key, PromotionId,
    image::{Image, Source},
    project::{self, Declaration, Project},
    promotion::{Answer, Gate},
    settings::StageSettings,
    stage::{self, Command, Instance, Observed, Spec, Stage, next_step},
};
use eventlog::{CommitError, EventLog, ExecuteError, Transaction};

use crate::{connect, context, id, slug, soon, start};

const NODE: &str = "local";

fn stage(name: &str) -> Key<Stage> {
    Key::stage(&slug("shop"), &slug(name))
}

async fn declare(log: &EventLog, keep: u16) {
    let prod = StageSettings { promote_from: Some(slug("dev")), keep, ..StageSettings::default() };
    let stages = [(slug("dev"), StageSettings::default()), (slug("prod"), prod)].into();
    let command = project::Command::Apply {
        slug: slug("shop"),
        declaration: Declaration { stages, ..Declaration::default() },
        prune: false,
    };
    log.execute(&Key::<Project>::project(&slug("shop")), command, &context()).await.expect("declared");
}

async fn deploy(log: &EventLog, version: u8) -> DeploymentId {
    let deployment = DeploymentId(id());
    let run = async |command| log.execute(&stage("dev"), command, &context()).await.expect("accepted").sequence;
    let image = Image {
        requested: format!("shop:v{version}"),
        digest: format!("sha256:{version:064}"),
        source: Source::Registry,
    };
    let spec = Spec { image, settings: StageSettings::default() };
    run(Command::Request { deployment, spec, node: NODE.into(), by: "ana".into() }).await;
    run(Command::Start { deployment, worker: "w".into() }).await;
    while let Some(step) = log.load(&stage("dev")).await.expect("loads").state.active.as_ref().and_then(next_step) {
        let instances = vec![Instance { name: format!("c{version}"), container: "c".into(), address: None }];
        run(Command::Complete { deployment, worker: "w".into(), step, elapsed_ms: 1, instances }).await;
    }
    deployment
}

async fn promote(mut tx: Transaction, promotion: PromotionId) -> Transaction {
    let (project, prod) = (slug("shop"), slug("prod"));
    let attempt = tx.attempt((&project, &prod), promotion, DeploymentId(id()), NODE).await.expect("looked");
    let command = Command::Promote { digest: None, by: "ann".into(), wait: false, attempt: Box::new(attempt) };
    tx.decide(&stage("prod"), command).await.expect("decided");
    tx
}

#[tokio::test]
async fn an_accepted_promotion_is_proven_by_the_log_alone() {
    let (nats, log) = start().await;
    declare(&log, 3).await;
    let promotion = PromotionId(id());
    let deployment = deploy(&log, 1).await;
    let committed = promote(log.transaction(&context()), promotion).await.commit().await.expect("committed");
    assert!(committed.events.iter().any(|event| matches!(
        &event.event,
        Event::Stage(stage::Event::PromotionAccepted { proof, .. }) if proof.source.deployment == deployment
    )));
    // What came later is not looked at.
    deploy(&log, 2).await;
    declare(&log, 4).await;
    let fresh = connect(&nats).await;
    let verification = fresh.verify_promotion(promotion).await.expect("read").expect("accepted");
    assert!(verification.verified, "{:?}", verification.contradictions);
    assert!(verification.checks.iter().all(|check| check.answer == Answer::Passed));
    assert_eq!(fresh.verify_promotion(PromotionId(id())).await.expect("read"), None);
}

#[tokio::test]
async fn nothing_is_accepted_on_what_has_changed_since_it_was_looked_at() {
    let (nats, log) = start().await;
    let other = connect(&nats).await;
    declare(&log, 3).await;
    let release = deploy(&log, 1).await;
    for change in ["a container exits", "a deployment", "the gates"] {
        let tx = promote(log.transaction(&context()), PromotionId(id())).await;
        match change {
            "a container exits" => {
                let observed = Observed::Exited { exit_code: 1 };
                let command = Command::Observe { set: release, instance: "c1".into(), observed };
                other.execute(&stage("dev"), command, &context()).await.expect("observed");
            }
            "a deployment" => {
                deploy(&other, 2).await;
            }
            _ => declare(&other, 5).await,
        }
        assert!(matches!(tx.commit().await, Err(CommitError::Conflict)), "{change} went unnoticed");
    }
    assert_eq!(log.load(&stage("prod")).await.expect("loads").version, 0);
}

#[tokio::test]
async fn promotions_that_race_with_deployments_to_the_source_are_all_proven() {
    let (nats, log) = start().await;
    declare(&log, 3).await;
    deploy(&log, 1).await;
    let (promoting, deploying) = (connect(&nats).await, connect(&nats).await);
    let deployments = async {
        for version in 2..12 {
            deploy(&deploying, version).await;
        }
    };
    let promotions = async {
        let mut promotions = vec![];
        for _ in 0..20 {
            let promotion = PromotionId(id());
            let decide = |tx| async move { Ok::<_, CommitError>(promote(tx, promotion).await) };
            promoting.transact(&context(), decide).await.expect("decided");
            promotions.push(promotion);
        }
        promotions
    };
    let ((), promotions) = soon(Box::pin(async { tokio::join!(deployments, promotions) })).await;
    let mut proven = 0;
    for promotion in promotions {
        if let Some(verification) = log.verify_promotion(promotion).await.expect("read") {
            assert!(verification.verified, "{:?}", verification.contradictions);
            proven += 1;
        }
    }
    assert!(proven > 0, "none was accepted");
}

#[tokio::test]
async fn a_look_says_what_is_missing() {
    let (_nats, log) = start().await;
    let look = async |name: &str| {
        let (project, name) = (slug("shop"), slug(name));
        let mut tx = log.transaction(&context());
        tx.attempt((&project, &name), PromotionId(id()), DeploymentId(id()), NODE).await
    };
    assert!(matches!(look("prod").await, Err(ExecuteError::Rejected(project::Rejection::Unknown))));
    declare(&log, 3).await;
    assert!(matches!(look("dev").await, Err(ExecuteError::Rejected(project::Rejection::NoSource))));
    assert!(look("prod").await.expect("declared").case.source.is_none());
    let committed = promote(log.transaction(&context()), PromotionId(id())).await.commit().await.expect("committed");
    let refused = committed.events.last().map(|event| event.event.clone());
    assert!(matches!(refused, Some(Event::Stage(stage::Event::PromotionRefused { gate: Gate::Source, .. }))));
}
