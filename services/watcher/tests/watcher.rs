//! The watcher on a real log.

use std::{pin::pin, time::Duration};

use domain::{
    Context, DeploymentId, Event, Key, PromotionId, Slug,
    image::{Image, Source},
    project::{self, Declaration, Project},
    promotion::{Gate, Gates},
    settings::StageSettings,
    stage::{self, Command, Instance, Spec, Stage, next_step},
};
use eventlog::{Config, EventLog};
use futures::StreamExt;
use testkit::Nats;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const NODE: &str = "local";

struct Lab {
    nats: Nats,
    log: EventLog,
    stop: CancellationToken,
    watchers: JoinSet<()>,
}

fn slug(text: &str) -> Slug {
    text.parse().expect("a good name")
}

fn key(stage: &str) -> Key<Stage> {
    Key::stage(&slug("shop"), &slug(stage))
}

fn context() -> Context {
    runtime::clock::context("test")
}

fn soak(ms: u64) -> Gates {
    Gates { soak: domain::Span::millis(ms), ..Gates::default() }
}

impl Lab {
    async fn start(gates: Gates) -> Lab {
        let nats = Nats::start().await.expect("NATS starts");
        let log = connect(&nats).await;
        let lab = Lab { nats, log, stop: CancellationToken::new(), watchers: JoinSet::new() };
        lab.declare(Some("dev"), gates).await;
        lab.deploy(1).await;
        lab
    }

    async fn watch(&mut self) {
        let (log, stop) = (connect(&self.nats).await, self.stop.clone());
        let config = watcher::Config { node: NODE.into(), outgoing: Default::default() };
        self.watchers.spawn(async move { watcher::run(config, log, stop).await.expect("ends in order") });
    }

    async fn declare(&self, from: Option<&str>, gates: Gates) {
        let prod = StageSettings { promote_from: from.map(slug), gates, ..StageSettings::default() };
        let stages = [(slug("dev"), StageSettings::default()), (slug("prod"), prod)].into();
        self.apply(Declaration { stages, ..Declaration::default() }).await;
    }

    async fn apply(&self, declaration: Declaration) {
        let command = project::Command::Apply { slug: slug("shop"), declaration, prune: false };
        self.log.execute(&Key::<Project>::project(&slug("shop")), command, &context()).await.expect("declared");
    }

    /// Puts a release on `dev`.
    async fn deploy(&self, version: u8) {
        let deployment = DeploymentId(runtime::clock::new_id());
        let run = async |command| self.log.execute(&key("dev"), command, &context()).await.expect("accepted");
        let image =
            Image { requested: "shop".into(), digest: format!("sha256:{version:064}"), source: Source::Registry };
        let spec = Spec { image, settings: StageSettings::default() };
        run(Command::Request { deployment, spec, node: NODE.into(), by: "ana".into() }).await;
        self.carry("dev", deployment).await;
    }

    async fn carry(&self, stage: &str, deployment: DeploymentId) {
        let run = async |command| self.log.execute(&key(stage), command, &context()).await.expect("accepted");
        run(Command::Start { deployment, worker: "w".into() }).await;
        while let Some(step) =
            self.log.load(&key(stage)).await.expect("loads").state.active.as_ref().and_then(next_step)
        {
            let instances = vec![Instance { name: "c".into(), container: "c".into(), address: None }];
            run(Command::Complete { deployment, worker: "w".into(), step, elapsed_ms: 1, instances }).await;
        }
    }

    /// Asks for a promotion that has to wait.
    async fn promote(&self) -> PromotionId {
        let promotion = PromotionId(Uuid::from_u128(9));
        let (project, prod) = (slug("shop"), slug("prod"));
        let mut tx = self.log.transaction(&context());
        let deployment = DeploymentId(runtime::clock::new_id());
        let attempt = tx.attempt((&project, &prod), promotion, deployment, NODE).await.expect("looked");
        let command = Command::Promote { digest: None, by: "ann".into(), wait: true, attempt: Box::new(attempt) };
        tx.decide(&key("prod"), command).await.expect("decided");
        let events = tx.commit().await.expect("committed").events;
        assert_eq!(events.len(), 1, "it waits");
        promotion
    }

    /// The first event of `prod` behind the request that `wanted` takes.
    async fn saw<T>(&self, wanted: impl Fn(&stage::Event) -> Option<T>) -> T {
        let mut events = pin!(self.log.follow(&key("prod").filter(), 0));
        let found = async {
            loop {
                let event = events.next().await.expect("endless").expect("readable").event;
                if let Event::Stage(event) = &event
                    && let Some(found) = wanted(event)
                {
                    return found;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(30), found).await.expect("in time")
    }

    /// Waits until `version` was promoted, and carries its deployment to its end.
    async fn promoted(&self, version: u8) {
        let digest = format!("sha256:{version:064}");
        let deployment = self
            .saw(|event| match event {
                stage::Event::Requested { deployment, spec, .. } if spec.image.digest == digest => Some(*deployment),
                _ => None,
            })
            .await;
        self.carry("prod", deployment).await;
    }

    async fn stop(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.watchers.join_next().await {
            ended.expect("no panic");
        }
    }
}

async fn connect(nats: &Nats) -> EventLog {
    let config = Config { url: nats.url().into(), name: "test".into(), master_key: None };
    EventLog::connect(&config).await.expect("the log opens")
}

#[tokio::test]
async fn a_promotion_that_waits_is_accepted_once_however_many_watch() {
    let mut lab = Lab::start(soak(1500)).await;
    lab.watch().await;
    lab.watch().await;
    let promotion = lab.promote().await;
    lab.saw(|event| {
        matches!(event, stage::Event::PromotionAccepted { promotion: id, .. } if *id == promotion).then_some(())
    })
    .await;
    let verification = lab.log.verify_promotion(promotion).await.expect("read").expect("accepted");
    assert!(verification.verified, "{:?}", verification.contradictions);
    // Another look by each watcher finds nothing left to decide.
    let (mut requested, mut accepted) = (0, 0);
    lab.log
        .each(&key("prod").filter(), 0, |event| match event.event {
            Event::Stage(stage::Event::Requested { .. }) => requested += 1,
            Event::Stage(stage::Event::PromotionAccepted { .. }) => accepted += 1,
            _ => {}
        })
        .await
        .expect("read");
    assert_eq!((requested, accepted), (1, 1));
    lab.stop().await;
}

#[tokio::test]
async fn one_asked_for_before_the_watcher_ran_is_refused_when_its_source_moves_on() {
    let mut lab = Lab::start(soak(3_600_000)).await;
    lab.promote().await;
    lab.deploy(2).await;
    lab.watch().await;
    let gate = lab
        .saw(|event| match event {
            stage::Event::PromotionRefused { gate, .. } => Some(*gate),
            _ => None,
        })
        .await;
    assert_eq!(gate, Gate::Source);
    lab.stop().await;
}

#[tokio::test]
async fn one_whose_stage_promotes_from_nowhere_any_more_is_withdrawn() {
    let mut lab = Lab::start(soak(3_600_000)).await;
    lab.watch().await;
    lab.promote().await;
    lab.declare(None, Gates::default()).await;
    let reason = lab
        .saw(|event| match event {
            stage::Event::PromotionWithdrawn { reason, .. } => Some(reason.clone()),
            _ => None,
        })
        .await;
    assert!(reason.contains("promotes from no other"), "{reason}");
    lab.stop().await;
}

#[tokio::test]
async fn a_project_that_promotes_by_itself_carries_every_release_on_but_not_to_a_stage_on_hold() {
    let mut lab = Lab::start(soak(500)).await;
    lab.watch().await;
    lab.watch().await;
    lab.apply(Declaration { auto_promote: Some(true), ..Declaration::default() }).await;
    lab.promoted(1).await;
    lab.deploy(2).await;
    lab.promoted(2).await;
    let run = async |command| lab.log.execute(&key("prod"), command, &context()).await.expect("accepted");
    run(Command::Hold { by: "ann".into(), reason: "a visit".into() }).await;
    lab.deploy(3).await;
    lab.deploy(4).await;
    run(Command::LiftHold).await;
    lab.promoted(4).await;
    let mut promoted = vec![];
    let each = |event: domain::Recorded| {
        if let Event::Stage(stage::Event::Requested { spec, .. }) = event.event {
            promoted.push(spec.image.digest.trim_start_matches("sha256:").trim_start_matches('0').to_owned());
        }
    };
    lab.log.each(&key("prod").filter(), 0, each).await.expect("read");
    assert_eq!(promoted, ["1", "2", "4"]);
    lab.stop().await;
}
