//! Stages that take images by themselves, from a registry that may do anything.

mod lab;
mod registry;

use std::sync::Arc;

use domain::{
    DeploymentId, Span,
    policy::{Order, TagPolicy},
    push::{Answer, Finding, What},
    registry::RegistrySettings,
    stage::Command,
};
use futures::future::join_all;
use lab::{Lab, follow, semver, slug, stage_key};
use registry::{Auth, Fault, Registry};

const LONG_AGO: &str = "2026-01-01T00:00:00Z";

async fn lab() -> Lab {
    Lab::start(Registry::start(Auth::None).await).await
}

#[tokio::test]
async fn a_moving_tag_is_followed_and_what_has_not_changed_is_not_sent_again() {
    let mut lab = lab().await;
    let first = lab.registry.push("shop", "main", LONG_AGO);
    lab.declare("shop", &[("dev", follow("main"))]).await;
    lab.watch().await;
    assert_eq!(lab.requested("dev", &first).await, ("main".into(), "watcher".into()));
    // Nobody asks for anything but whether it has changed.
    lab.asked(1).await;
    let before = lab.registry.counts();
    lab.asked(3).await;
    let after = lab.registry.counts();
    assert!(after.unchanged - before.unchanged >= 2, "{} of {}", after.unchanged, after.requests);
    let second = lab.registry.push("shop", "main", LONG_AGO);
    lab.requested("dev", &second).await;
    assert_eq!(lab.requests("dev").await, ["main", "main"]);
}

#[tokio::test]
async fn the_highest_of_ten_thousand_tags_is_taken() {
    let mut lab = lab().await;
    let tags = (0..10_000).map(|n| format!("v1.{}.{}", n / 100, n % 100));
    lab.registry.push_many("shop", tags.chain(["latest".into(), "v2.0.0-rc.1".into()]));
    let newest = lab.registry.push("shop", "v1.99.99", LONG_AGO);
    lab.declare("shop", &[("dev", semver("^1")), ("next", TagPolicy { prerelease: true, ..semver(">=2") })]).await;
    lab.watch().await;
    assert_eq!(lab.requested("dev", &newest).await.0, "v1.99.99");
    let candidate = lab.registry.digest("shop", "v2.0.0-rc.1").expect("pushed");
    assert_eq!(lab.requested("next", &candidate).await.0, "v2.0.0-rc.1");
    // An older one that comes later is nothing new.
    lab.registry.push("shop", "v1.5.1000", LONG_AGO);
    let newer = lab.registry.push("shop", "v1.100.0", LONG_AGO);
    lab.requested("dev", &newer).await;
    assert_eq!(lab.requests("dev").await, ["v1.99.99", "v1.100.0"]);
}

#[tokio::test]
async fn of_images_by_creation_the_newest_is_taken_and_one_without_a_date_never() {
    let mut lab = lab().await;
    let policy = |cooldown| TagPolicy {
        pattern: Some("main-.*".into()),
        order: Some(Order::Created),
        cooldown,
        ..TagPolicy::default()
    };
    lab.registry.push("shop", "main-a", "2026-02-01T00:00:00Z");
    let newest = lab.registry.push_list("shop", "main-b", "2026-03-01T00:00:00Z");
    lab.registry.push("shop", "main-c", "1970-01-01T00:00:00Z");
    lab.registry.push("shop", "main-d", "never");
    lab.declare("shop", &[("dev", policy(Span::ZERO)), ("prod", policy(Span::secs(86_400)))]).await;
    lab.watch().await;
    assert_eq!(lab.requested("dev", &newest).await.0, "main-b");
    assert_eq!(lab.requested("prod", &newest).await.0, "main-b");
    // A minute old, as an image is that was just built.
    let fresh = (runtime::clock::now() - chrono::TimeDelta::minutes(1)).to_rfc3339();
    let young = lab.registry.push("shop", "main-0", &fresh);
    lab.requested("dev", &young).await;
    let waits = lab.found("prod", |finding| matches!(finding, Finding::CoolingDown { .. })).await;
    let Finding::CoolingDown { image, until: Some(until) } = waits else { panic!("{waits:?}") };
    assert!(image.ends_with(":main-0") && until > runtime::clock::now(), "{image} {until}");
}

#[tokio::test]
async fn of_young_and_old_images_the_newest_that_is_old_enough_is_taken() {
    let mut lab = lab().await;
    let minutes = |ago: i64| (runtime::clock::now() - chrono::TimeDelta::minutes(ago)).to_rfc3339();
    lab.registry.push("shop", "main-1", &minutes(300));
    let ripe = lab.registry.push("shop", "main-2", &minutes(120));
    lab.registry.push("shop", "main-3", &minutes(10));
    lab.registry.push("shop", "main-4", &minutes(1));
    let policy = TagPolicy {
        pattern: Some("main-.*".into()),
        order: Some(Order::Created),
        cooldown: Span::secs(3600),
        ..TagPolicy::default()
    };
    lab.declare("shop", &[("dev", policy)]).await;
    lab.watch().await;
    assert_eq!(lab.requested("dev", &ripe).await.0, "main-2");
    let waits = lab.found("dev", |finding| matches!(finding, Finding::CoolingDown { .. })).await;
    assert!(matches!(&waits, Finding::CoolingDown { image, .. } if image.ends_with(":main-4")), "{waits:?}");
}

#[tokio::test]
async fn what_is_never_polled_is_asked_again_after_trouble() {
    for fault in [Fault::Broken, Fault::TooMany(1)] {
        let mut lab = lab().await;
        lab.configure(RegistrySettings { poll: Span::ZERO, ..RegistrySettings::default() }).await;
        let pushed = lab.registry.push("shop", "main", LONG_AGO);
        lab.registry.shelf().fault = Some(fault);
        lab.declare("shop", &[("dev", follow("main"))]).await;
        lab.watch().await;
        lab.found("dev", |finding| matches!(finding, Finding::Failed { .. })).await;
        lab.registry.shelf().fault = None;
        lab.requested("dev", &pushed).await;
    }
}

#[tokio::test]
async fn an_image_of_unknown_age_waits_and_an_older_one_is_taken_meanwhile() {
    let mut lab = lab().await;
    let ripe = lab.registry.push("shop", "1.0.0", LONG_AGO);
    lab.registry.push("shop", "1.1.0", "1970-01-01T00:00:00Z");
    lab.declare("shop", &[("dev", TagPolicy { cooldown: Span::secs(3600), ..semver("*") })]).await;
    lab.watch().await;
    lab.requested("dev", &ripe).await;
    let waits = lab.found("dev", |finding| matches!(finding, Finding::CoolingDown { .. })).await;
    assert!(matches!(&waits, Finding::CoolingDown { image, until: None } if image.ends_with(":1.1.0")), "{waits:?}");
}

#[tokio::test]
async fn two_watchers_and_webhooks_that_see_the_same_push_at_once_make_one_deployment() {
    let mut lab = lab().await;
    lab.declare("shop", &[("dev", follow("main")), ("qa", semver("*"))]).await;
    lab.watch().await;
    lab.watch().await;
    for n in 0..10 {
        let (moved, tag) = (lab.registry.push("shop", "main", LONG_AGO), format!("1.{n}.0"));
        let version = lab.registry.push("shop", &tag, LONG_AGO);
        let told = (0..8).map(|_| async {
            lab.tell_of("shop", "main").await;
            lab.tell_of("shop", &tag).await;
        });
        join_all(told).await;
        lab.requested("dev", &moved).await;
        lab.requested("qa", &version).await;
    }
    // Whoever is still on the way finds nothing new: a last look by each, and then the books.
    lab.asked(4).await;
    assert_eq!(lab.requests("dev").await, ["main"; 10]);
    assert_eq!(lab.requests("qa").await, (0..10).map(|n| format!("1.{n}.0")).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_pin_stays_until_it_is_lifted() {
    let mut lab = lab().await;
    let old = lab.registry.push("shop", "old", LONG_AGO);
    let first = lab.registry.push("shop", "main", LONG_AGO);
    lab.declare("shop", &[("dev", follow("main"))]).await;
    lab.watch().await;
    lab.requested("dev", &first).await;
    lab.deploy("dev", "shop", "old").await;
    lab.requested("dev", &old).await;
    lab.registry.push("shop", "main", LONG_AGO);
    assert!(lab.tell_of("shop", "main").await.iter().all(|heard| matches!(heard.finding, Finding::OnHold { .. })));
    let last = lab.registry.push("shop", "main", LONG_AGO);
    lab.run("dev", Command::LiftHold).await;
    lab.requested("dev", &last).await;
    assert_eq!(lab.requests("dev").await, ["main", "old", "main"]);
}

#[tokio::test]
async fn whatever_a_registry_answers_is_told_and_survived() {
    let mut lab = lab().await;
    lab.registry.push("shop", "main", LONG_AGO);
    lab.registry.push("shop", "1.0.0", LONG_AGO);
    lab.declare("shop", &[("dev", follow("main")), ("qa", semver("*"))]).await;
    lab.watch().await;
    lab.found("qa", |finding| matches!(finding, Finding::NothingNew)).await;
    for (n, (fault, stage, code)) in [
        (Fault::Unauthorized, "dev", "registry_unauthorized"),
        (Fault::TooMany(1), "dev", "registry_rate_limited"),
        (Fault::Broken, "dev", "registry_error"),
        (Fault::Garbage, "qa", "registry_error"),
        (Fault::Circle, "qa", "registry_error"),
        (Fault::Elsewhere, "qa", "registry_error"),
        (Fault::Endless, "qa", "registry_error"),
    ]
    .into_iter()
    .enumerate()
    {
        lab.registry.shelf().fault = Some(fault);
        let failed = |finding: &Finding| matches!(finding, Finding::Failed { code: found, .. } if found == code);
        lab.found(stage, failed).await;
        let (moved, version) = {
            lab.registry.shelf().fault = None;
            let version = lab.registry.push("shop", &format!("1.{}.0", n + 1), LONG_AGO);
            (lab.registry.push("shop", "main", LONG_AGO), version)
        };
        lab.requested("dev", &moved).await;
        lab.requested("qa", &version).await;
        lab.found("qa", |finding| matches!(finding, Finding::NothingNew)).await;
    }
}

#[tokio::test]
async fn a_registry_that_asks_for_peace_gets_it_and_one_that_hangs_holds_up_no_other() {
    let mut lab = lab().await;
    lab.registry.push("shop", "main", LONG_AGO);
    lab.declare("shop", &[("dev", follow("main"))]).await;
    lab.registry.shelf().fault = Some(Fault::TooMany(3600));
    lab.watch().await;
    lab.found("dev", |finding| matches!(finding, Finding::Failed { .. })).await;
    let before = lab.registry.counts().requests;
    // Another registry hangs, and a third one works.
    let (hanging, other) = (Registry::start(Auth::None).await, Registry::start(Auth::None).await);
    hanging.shelf().fault = Some(Fault::Silent);
    let pushed = other.push("web", "main", LONG_AGO);
    let quick = RegistrySettings { poll: Span::secs(1), ..RegistrySettings::default() };
    for (project, registry) in [("hanging", &hanging), ("web", &other)] {
        let key = domain::Key::registry(&registry.address.to_string()).expect("a registry");
        let host = registry.address.to_string();
        let command = domain::registry::Command::Configure { host, settings: quick.clone() };
        lab.log.execute(&key, command, &runtime::clock::context("test")).await.expect("declared");
        let settings = domain::settings::StageSettings {
            image: Some(registry.image("web")),
            policy: Some(Box::new(follow("main"))),
            ..Default::default()
        };
        let stages = [(slug("dev"), settings)].into();
        let declaration = domain::project::Declaration { stages, ..Default::default() };
        let command = domain::project::Command::Apply { slug: slug(project), declaration, prune: false };
        let key = domain::Key::<domain::project::Project>::project(&slug(project));
        lab.log.execute(&key, command, &runtime::clock::context("test")).await.expect("declared");
    }
    let asked = async {
        while other.counts().unchanged < 3 {
            tokio::task::yield_now().await;
        }
    };
    // Its node does not know the image, so it is looked at again each second.
    let _ = pushed;
    // What changes here is no reason to ask before the hour is over.
    lab.run("dev", Command::Hold { by: "ana".into(), reason: "a visit".into() }).await;
    lab.run("dev", Command::LiftHold).await;
    tokio::time::timeout(registry::PATIENCE, asked).await.expect("the third is asked on");
    assert_eq!(lab.registry.counts().requests, before, "an hour is not over");
}

#[tokio::test]
async fn a_webhook_is_no_reason_to_ask_a_registry_that_wants_peace_whichever_watcher_it_reaches() {
    let mut lab = lab().await;
    // Only what is told counts.
    lab.configure(RegistrySettings { poll: Span::ZERO, ..RegistrySettings::default() }).await;
    let first = lab.registry.push("shop", "main", LONG_AGO);
    lab.declare("shop", &[("dev", follow("main"))]).await;
    lab.watch().await;
    lab.requested("dev", &first).await;
    lab.registry.push("shop", "main", LONG_AGO);
    lab.registry.shelf().fault = Some(Fault::TooMany(3600));
    let later = |heard: &[domain::push::Heard]| matches!(&heard[0].finding, Finding::Failed { code, .. } if code == "registry_rate_limited");
    assert!(later(&lab.tell_of("shop", "main").await), "whoever tells it is told to come back");
    lab.registry.shelf().fault = None;
    let before = lab.registry.counts().requests;
    assert!(later(&lab.tell_of("shop", "main").await));
    // Another one knows it as well, from its first look on. Each is told of some.
    lab.watch().await;
    for _ in 0..20 {
        assert!(later(&lab.tell_of("shop", "main").await));
    }
    assert_eq!(lab.registry.counts().requests, before, "an hour is not over");
    // Another server under the same name has asked for nothing.
    let url = Some(format!("http://localhost:{}", lab.registry.address.port()));
    lab.configure(RegistrySettings { url, poll: Span::ZERO, ..RegistrySettings::default() }).await;
    lab.asked(1).await;
}

#[tokio::test]
async fn notes_that_nats_does_not_take_hold_nothing_up() {
    let mut lab = lab().await;
    lab.registry.push("shop", "1.0.0", LONG_AGO);
    lab.declare("shop", &[("dev", semver(">=2"))]).await;
    lab.watch().await;
    lab.found("dev", |finding| matches!(finding, Finding::NoMatch)).await;
    let unanswered = lab.keep_notes().await;
    // Within the patience of a test only if no round waits for its notes as long as a request may take.
    lab.asked(7).await;
    drop(unanswered);
}

#[tokio::test]
async fn every_way_of_signing_in_works_and_a_wrong_password_is_told() {
    for auth in [Auth::Basic, Auth::Bearer] {
        let mut lab = Lab::start(Registry::start(auth).await).await;
        let pushed = lab.registry.push("team/shop", "main", LONG_AGO);
        let version = lab.registry.push("team/shop", "1.0.0", LONG_AGO);
        let cooled = TagPolicy { cooldown: Span::secs(60), ..semver("*") };
        lab.declare("team/shop", &[("dev", follow("main")), ("qa", cooled)]).await;
        lab.watch().await;
        let refused =
            |finding: &Finding| matches!(finding, Finding::Failed { code, .. } if code == "registry_unauthorized");
        lab.found("dev", refused).await;
        lab.sign_in("wrong").await;
        lab.asked(1).await;
        lab.found("dev", refused).await;
        lab.sign_in_well().await;
        lab.requested("dev", &pushed).await;
        lab.requested("qa", &version).await;
        // A user without a password is not the same as nobody.
        let poll = Span::secs(1);
        lab.configure(RegistrySettings { url: None, username: Some("somebody".into()), poll }).await;
        lab.found("dev", |f| matches!(f, Finding::Failed { code, .. } if code == "credentials_missing")).await;
        if auth == Auth::Bearer {
            assert!(lab.registry.counts().tokens > 1, "a token that is not good any more is replaced");
        }
    }
}

#[tokio::test]
async fn when_a_watcher_goes_another_asks_its_registries() {
    let mut lab = lab().await;
    let first = lab.registry.push("shop", "main", LONG_AGO);
    lab.declare("shop", &[("dev", follow("main"))]).await;
    let stops = [lab.watch().await, lab.watch().await, lab.watch().await];
    lab.requested("dev", &first).await;
    for stop in &stops[..2] {
        stop.cancel();
        let next = lab.registry.push("shop", "main", LONG_AGO);
        lab.requested("dev", &next).await;
    }
    assert_eq!(lab.requests("dev").await.len(), 3);
}

#[tokio::test]
async fn a_flood_is_looked_at_a_few_times_and_every_message_is_answered() {
    let mut lab = lab().await;
    // Only what is told counts.
    lab.configure(RegistrySettings { poll: Span::ZERO, ..RegistrySettings::default() }).await;
    let first = lab.registry.push("shop", "main", LONG_AGO);
    lab.declare("shop", &[("dev", follow("main"))]).await;
    lab.watch().await;
    lab.tell_of("shop", "main").await;
    lab.requested("dev", &first).await;
    let pushed = lab.registry.push("shop", "main", LONG_AGO);
    let before = lab.registry.counts().requests;
    let lab = Arc::new(lab);
    let answers = join_all((0..1000).map(|_| {
        let lab = lab.clone();
        tokio::spawn(async move { lab.tell(lab.pushed("shop", "main")).await })
    }))
    .await;
    let heard = |answer: Answer| match answer {
        Answer::Heard(heard) => heard.into_iter().map(|heard| heard.finding).collect(),
        Answer::Busy => vec![],
    };
    let findings: Vec<Finding> = answers.into_iter().flat_map(|answer| heard(answer.expect("no panic"))).collect();
    let ids: std::collections::BTreeSet<DeploymentId> = findings
        .iter()
        .filter_map(|finding| match finding {
            Finding::Requested { deployment, .. } => Some(*deployment),
            _ => None,
        })
        .collect();
    assert_eq!(ids.len(), 1, "one deployment, whoever told of it");
    lab.requested("dev", &pushed).await;
    assert_eq!(lab.requests("dev").await, ["main", "main"]);
    let looks = lab.registry.counts().requests - before;
    assert!(looks < 100, "{looks} looks for 1000 messages");
}

#[tokio::test]
async fn a_build_deploys_what_it_asks_for_once() {
    let mut lab = lab().await;
    lab.configure(RegistrySettings { poll: Span::ZERO, ..RegistrySettings::default() }).await;
    let one = lab.registry.push("shop", "v1", LONG_AGO);
    lab.declare("shop", &[("dev", follow("main"))]).await;
    lab.watch().await;
    let deploy = |image: &str, deployment: u128| What::Deploy {
        project: slug("shop"),
        stage: slug("dev"),
        image: image.into(),
        hook: slug("ci"),
        deployment: DeploymentId(uuid::Uuid::from_u128(deployment)),
    };
    let tell = async |image, deployment| match lab.tell(deploy(image, deployment)).await {
        Answer::Heard(heard) => heard[0].finding.clone(),
        Answer::Busy => panic!("nobody else tells of anything"),
    };
    assert!(matches!(tell("v1", 1).await, Finding::Requested { .. }));
    assert_eq!(tell("v1", 1).await, Finding::NothingNew, "the same message");
    assert_eq!(tell("v1", 2).await, Finding::NothingNew, "the same bytes");
    lab.requested("dev", &one).await;
    for (image, code) in [("v2", "image_not_found"), ("other.test/x:v1", "bad_reference"), ("a b", "bad_reference")] {
        assert!(matches!(tell(image, 3).await, Finding::Refused { code: found, .. } if found == code), "{image}");
    }
    lab.run("dev", Command::Lock { owner: "ana".into(), reason: "a visit".into() }).await;
    lab.registry.push("shop", "v3", LONG_AGO);
    assert!(matches!(tell("v3", 4).await, Finding::Refused { code, .. } if code == "locked"));
    assert_eq!(lab.log.load(&stage_key("dev")).await.expect("loads").state.hold, None, "a build is no person");
}
