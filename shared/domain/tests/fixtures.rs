//! The stored form of events is for ever: a fixture of every event type ever written lies in
//! `fixtures/`, and all of them must read. Fixtures are added, never changed: for a new event,
//! run this test once with `NEW_FIXTURES=1`.

use std::{collections::BTreeSet, fs, path::PathBuf};

use chrono::DateTime;
use domain::{
    Aggregate, Context, DeploymentId, Grant, Key, PromotionId, Recorded, Role, SessionId, Slug, TokenId, UserId,
    administrators::{self, Administrators},
    decode, encode,
    env::{EnvValue, SecretRef},
    handle::{self, Handle},
    hook::{self, Hook, HookSettings},
    image::{Image, Source},
    login::{self, Login},
    project::{self, Project},
    promotion::{Approval, Gate, Proof, SourceProof},
    proxy::{self, Driver, Mode, Proxy},
    registry::{self, Registry, RegistrySettings},
    route::{self, Host},
    session::{self, Method, Opening, Reason, Session},
    settings::{RouteSettings, StageSettings},
    sso::{self, Mapped, Sso},
    stage::{self, Failure, Instance, Kind, Origin, Spec, Stage, Step, StepDone},
    token::{self, Token},
    user::{self, Sealed, User},
};
use uuid::Uuid;

fn dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

fn slug(text: &str) -> Slug {
    text.parse().expect("a good name")
}

fn context() -> Context {
    Context {
        time: DateTime::from_timestamp(1_800_000_000, 123_456_000).expect("in range"),
        actor: "admin".into(),
        correlation_id: Uuid::from_u128(1),
        causation_id: Some(Uuid::from_u128(2)),
        command_id: Uuid::from_u128(3),
        command_hash: None,
        request_id: Some("req-1".into()),
        traceparent: None,
    }
}

fn stored<A: Aggregate>(key: &Key<A>, event: &A::Event) -> (String, serde_json::Value) {
    let (subject, body) = encode(key, event, Uuid::from_u128(4), &context()).expect("encodes");
    (subject, serde_json::from_slice(&body).expect("is JSON"))
}

fn samples() -> Vec<(String, serde_json::Value)> {
    let settings = StageSettings {
        route: Some(RouteSettings { host: "shop.example.com".into(), path: "/".into(), proxy: None }),
        ..StageSettings::default()
    };
    let project = {
        use project::Event::*;
        let (stage, settings) = (slug("prod"), settings.clone());
        let secret = EnvValue::Secret(SecretRef { secret: "db".into(), version: None, vault: None });
        let all = [
            Created { name: "Shop".into() },
            Renamed { name: "The Shop".into() },
            Archived {},
            AutoPromotionSwitched { on: true },
            EnvChanged { env: [("GREETING".to_owned(), "hello".into()), ("PASSWORD".to_owned(), secret)].into() },
            SecretSet { name: "db".into(), version: 2, vault: "secret/shop/db/x".into() },
            SecretRemoved { name: "db".into() },
            StageAdded { stage: stage.clone(), settings: Box::new(settings.clone()) },
            StageChanged { stage: stage.clone(), settings: Box::new(settings) },
            StageArchived { stage },
        ];
        all.map(|e| stored(&Key::<Project>::project(&slug("shop")), &e)).to_vec()
    };
    let route = {
        let (path, project, stage) = ("/".to_owned(), slug("shop"), slug("prod"));
        let claimed = route::Event::Claimed { path: path.clone(), project: project.clone(), stage: stage.clone() };
        let all = [claimed, route::Event::Released { path, project, stage }];
        all.map(|e| stored(&Key::<Host>::host("shop.example.com"), &e)).to_vec()
    };
    let registry = {
        let host = "registry.example.com:5000".to_owned();
        let key = Key::<Registry>::registry(&host).expect("a registry");
        let set = registry::Event::CredentialsSet {
            host: host.clone(),
            username: "ci".into(),
            secret: key.secret(),
            version: 7,
        };
        let settings = RegistrySettings { username: Some("ci".into()), ..RegistrySettings::default() };
        let all = [
            registry::Event::Configured { host: host.clone(), settings },
            set,
            registry::Event::CredentialsRemoved { host: host.clone() },
            registry::Event::Removed { host },
        ];
        all.map(|e| stored(&key, &e)).to_vec()
    };
    let hook = {
        let settings = HookSettings {
            source: hook::Source::Gitea,
            registry: Some("registry.example.com".into()),
            project: None,
            stage: None,
        };
        let secret = hook::Event::SecretSet { secret: "hook/images/x".into(), version: 3 };
        let all = [hook::Event::Configured { settings }, secret, hook::Event::Removed {}];
        all.map(|e| stored(&Key::<Hook>::hook(&slug("images")), &e)).to_vec()
    };
    let stage = {
        use stage::Event::*;
        let deployment = DeploymentId(Uuid::from_u128(10));
        let done = || StepDone { deployment, elapsed_ms: 42, problem: None };
        let failure = Failure {
            step: Step::AwaitHealthy,
            code: "unhealthy".into(),
            message: "GET /healthz answered 500".into(),
            hint: "look at the container's log".into(),
            log: vec!["listening".into()],
        };
        let image = Image {
            requested: "registry.example.com/shop:v2".into(),
            digest: format!("sha256:{}", "ab".repeat(32)),
            source: Source::Registry,
        };
        let instance = "shop-prod-0000000a-1".to_owned();
        let container =
            Instance { name: instance.clone(), container: "c0ffee".into(), address: Some("172.18.0.2:8080".into()) };
        let promotion = PromotionId(Uuid::from_u128(12));
        let digest = image.digest.clone();
        let proof = Proof {
            digest: digest.clone(),
            source: SourceProof {
                stage: slug("staging"),
                deployment: DeploymentId(Uuid::from_u128(8)),
                succeeded: 70,
                healthy_since: context().time,
                position: 72,
            },
            rules: 3,
            approvals: vec![Approval { by: "bob".into(), role: Role::Operator }],
            decided_at: context().time,
        };
        let late = StepDone { problem: Some(Failure { step: Step::Retire, ..failure.clone() }), ..done() };
        let all = vec![
            Requested {
                deployment,
                kind: Kind::Release,
                node: "local".into(),
                spec: Box::new(Spec { image, settings }),
                origin: Origin::Direct,
            },
            Superseded { deployment, by: DeploymentId(Uuid::from_u128(11)) },
            Dispatched { deployment, node: "local".into(), set: None },
            Dispatched { deployment, node: "local".into(), set: Some(DeploymentId(Uuid::from_u128(9))) },
            Started { deployment, worker: "local-1".into() },
            Pulled(done()),
            Held(done()),
            Created { step: done(), instances: vec![container] },
            Healthy(done()),
            Switched(done()),
            Baked(done()),
            Drained(done()),
            Retired(late),
            StepFailed { deployment, elapsed_ms: 42, failure: failure.clone() },
            CancelRequested { deployment, reason: Some("wrong tag".into()) },
            Reheld(done()),
            Discarded(done()),
            Restored(done()),
            Reverted(done()),
            Succeeded { deployment },
            Failed { deployment, failure: failure.clone() },
            RolledBack { deployment, to: DeploymentId(Uuid::from_u128(9)), failure },
            Cancelled { deployment },
            Locked { owner: "ann".into(), reason: "freeze".into() },
            Unlocked { owner: "ann".into() },
            PromotionRequested { promotion, from: slug("staging"), digest: Some(digest), by: "ann".into() },
            PromotionApproved { promotion, by: "bob".into(), role: Role::Operator },
            PromotionAccepted { promotion, deployment, proof },
            PromotionRefused { promotion, gate: Gate::Soak, reason: "the 10m are over at 12:10".into() },
            PromotionWithdrawn { promotion, reason: "too soon".into() },
            HoldSet { by: "ann".into(), reason: "rolled back to v1".into() },
            HoldLifted {},
            InstanceStarted { deployment, instance: instance.clone(), address: Some("172.18.0.3:8080".into()) },
            InstanceExited { deployment, instance: instance.clone(), exit_code: 137 },
            InstanceOomKilled { deployment, instance: instance.clone() },
            InstanceHealthChanged { deployment, instance, healthy: false },
            Archived {},
            Reopened {},
        ];
        all.iter().map(|e| stored(&Key::<Stage>::stage(&slug("shop"), &slug("prod")), e)).collect::<Vec<_>>()
    };
    let proxy = {
        let settings = proxy::Settings {
            driver: Driver::Npm,
            mode: Mode::Direct,
            url: Some("http://127.0.0.1:81".into()),
            address: Some("127.0.0.1:80".into()),
            edge: None,
        };
        let key = Key::<Proxy>::proxy(&slug("front"));
        let set = proxy::Event::CredentialsSet { username: "admin".into(), secret: key.secret(), version: 9 };
        [proxy::Event::Configured { settings }, set, proxy::Event::Removed {}].map(|e| stored(&key, &e)).to_vec()
    };
    let token = {
        let created = token::Event::Created(token::Holder {
            name: slug("ci"),
            grant: Grant { role: Role::Operator, projects: Some([slug("shop")].into()) },
            owner: Some(token::Owner { user: UserId(Uuid::from_u128(14)), epoch: 1 }),
            secret: "token/x".into(),
            version: 4,
            expires_at: Some(context().time),
        });
        let key = Key::<Token>::token(TokenId(Uuid::from_u128(13)));
        [created, token::Event::Revoked {}].map(|e| stored(&key, &e)).to_vec()
    };
    let sso = {
        let narrowed = Mapped { role: Role::Operator, projects: Some([slug("shop")].into()) };
        let mut settings = sso::Settings::new("https://id.example.com/realms/main", "sluice");
        settings.role_map.insert("shop-team".into(), narrowed);
        let key = Key::<Sso>::sso();
        let set = sso::Event::SecretSet { secret: key.secret("x"), version: 5 };
        [sso::Event::Configured { settings }, set, sso::Event::SecretRemoved {}, sso::Event::Removed {}]
            .map(|e| stored(&key, &e))
            .to_vec()
    };
    [project, route, registry, stage, proxy, token, hook, sso, identity()].concat()
}

fn identity() -> Vec<(String, serde_json::Value)> {
    let id = UserId(Uuid::from_u128(14));
    let digest = "0f".repeat(32);
    let user = {
        use user::Event::*;
        let profile = || Sealed("c2VhbGVk".into());
        let all = [
            Created {
                source: user::Source::Local,
                handle: digest.clone(),
                profile: profile(),
                grant: Grant { role: Role::Operator, projects: Some([slug("shop")].into()) },
            },
            ProfileChanged { profile: profile() },
            Granted { grant: Grant::everywhere(Role::Admin) },
            Disabled {},
            Enabled {},
            PasswordSet { secret: "password/x".into(), version: 5 },
            SetupIssued { secret: "setup/x".into(), version: 6, expires_at: context().time },
            SetupUsed {},
            SignedIn { opened: user::Opened::Session(SessionId(Uuid::from_u128(15))), method: Method::Oidc },
            Erased {},
        ];
        all.map(|e| stored(&Key::<User>::user(id), &e)).to_vec()
    };
    let handle = [handle::Event::Claimed { user: id }, handle::Event::Released { user: id }]
        .map(|e| stored(&Key::<Handle>::handle(&digest).expect("a digest"), &e));
    let administrators = [administrators::Event::Joined { user: id }, administrators::Event::Left { user: id }]
        .map(|e| stored(&Key::<Administrators>::administrators(), &e));
    let session = {
        let opening = Opening { user: id, epoch: 2, method: Method::Password, expires_at: context().time };
        let all = [session::Event::Opened(opening), session::Event::Ended { reason: Reason::Logout }];
        all.map(|e| stored(&Key::<Session>::session(SessionId(Uuid::from_u128(15))), &e))
    };
    let login = {
        use login::Event::*;
        let blocked = Blocked { source: "203.0.113.9".into(), until: context().time };
        let all = [Failed {}, blocked, Refused { reason: "no_role".into() }];
        all.map(|e| stored(&Key::<Login>::login(&digest).expect("a digest"), &e)).to_vec()
    };
    [user, handle.to_vec(), administrators.to_vec(), session.to_vec(), login].concat()
}

/// The names in the source: what [`samples`] must cover.
fn declared() -> BTreeSet<String> {
    let sources = [
        ("project", include_str!("../src/project.rs")),
        ("stage", include_str!("../src/stage/event.rs")),
        ("route", include_str!("../src/route.rs")),
        ("registry", include_str!("../src/registry.rs")),
        ("proxy", include_str!("../src/proxy.rs")),
        ("token", include_str!("../src/token.rs")),
        ("hook", include_str!("../src/hook.rs")),
        ("user", include_str!("../src/user.rs")),
        ("handle", include_str!("../src/handle.rs")),
        ("administrators", include_str!("../src/administrators.rs")),
        ("session", include_str!("../src/session.rs")),
        ("login", include_str!("../src/login.rs")),
        ("sso", include_str!("../src/sso.rs")),
    ];
    let names = |aggregate: &'static str, text: &'static str| {
        text.lines()
            .filter_map(|line| line.trim().strip_prefix("#[serde(rename = \"")?.strip_suffix("\")]"))
            .filter(|name| name.rsplit_once(".v").is_some_and(|(_, version)| version.parse::<u32>().is_ok()))
            .map(move |name| format!("dev.sluice.{aggregate}.{name}"))
    };
    sources.into_iter().flat_map(|(aggregate, text)| names(aggregate, text)).collect()
}

#[test]
fn every_declared_event_has_a_fixture() {
    let mut sampled = BTreeSet::new();
    for (subject, body) in samples() {
        let kind = body["type"].as_str().expect("typed").to_owned();
        let path = dir().join(format!("{kind}.json"));
        if !path.exists() && std::env::var("NEW_FIXTURES").is_ok() {
            fs::create_dir_all(dir()).expect("a directory");
            let fixture = serde_json::json!({ "subject": subject, "body": body });
            fs::write(&path, format!("{fixture:#}\n")).expect("written");
        }
        assert!(path.exists(), "no fixture for {kind}: run with NEW_FIXTURES=1 and commit it");
        sampled.insert(kind);
    }
    assert_eq!(sampled, declared(), "samples() must build every event that is declared");
}

#[test]
fn every_fixture_reads_and_says_the_same_when_stored_again() {
    let mut read = 0;
    for entry in fs::read_dir(dir()).expect("fixtures") {
        let path = entry.expect("readable").path();
        let fixture: serde_json::Value = serde_json::from_slice(&fs::read(&path).expect("readable")).expect("is JSON");
        let subject = fixture["subject"].as_str().expect("a subject");
        let body = serde_json::to_vec(&fixture["body"]).expect("encodes");
        let recorded = decode(7, subject, &body).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert_eq!(recorded.context, context(), "{}", path.display());
        assert_eq!(restored(&recorded), (subject.to_owned(), fixture["body"].clone()), "{}", path.display());
        read += 1;
    }
    assert!(read >= declared().len());
}

fn restored(recorded: &Recorded) -> (String, serde_json::Value) {
    let [first, rest @ ..] = recorded.key.as_slice() else { panic!("no key") };
    match &recorded.event {
        domain::Event::Project(event) => stored(&Key::<Project>::project(&slug(first)), event),
        domain::Event::Stage(event) => stored(&Key::<Stage>::stage(&slug(first), &slug(&rest[0])), event),
        domain::Event::Route(event) => stored(&Key::<Host>::host(&first.replace('_', ".")), event),
        domain::Event::Proxy(event) => stored(&Key::<Proxy>::proxy(&slug(first)), event),
        domain::Event::Token(event) => stored(&Key::<Token>::token(TokenId(first.parse().expect("an id"))), event),
        domain::Event::Hook(event) => stored(&Key::<Hook>::hook(&slug(first)), event),
        domain::Event::User(event) => stored(&Key::<User>::user(UserId(first.parse().expect("an id"))), event),
        domain::Event::Handle(event) => stored(&Key::<Handle>::handle(first).expect("a digest"), event),
        domain::Event::Administrators(event) => stored(&Key::<Administrators>::administrators(), event),
        domain::Event::Session(event) => {
            stored(&Key::<Session>::session(SessionId(first.parse().expect("an id"))), event)
        }
        domain::Event::Login(event) => stored(&Key::<Login>::login(first).expect("a digest"), event),
        domain::Event::Sso(event) => stored(&Key::<Sso>::sso(), event),
        domain::Event::Registry(event) => {
            stored(&Key::<Registry>::registry(&first.replace('_', ".")).expect("a registry"), event)
        }
    }
}

#[test]
fn the_dispatch_names_its_node_in_the_subject_and_nothing_else_does() {
    for (subject, body) in samples() {
        let kind = body["type"].as_str().expect("typed");
        assert_eq!(subject.ends_with(".local"), kind.contains("dispatched"), "{subject}");
    }
}

#[test]
fn an_unknown_event_or_subject_is_an_error_that_names_it() {
    let (subject, mut body) = samples().remove(0);
    body["type"] = "dev.sluice.project.exploded.v1".into();
    let error = decode(12, &subject, &serde_json::to_vec(&body).expect("encodes")).expect_err("unknown event");
    assert!(error.to_string().contains("12") && error.to_string().contains(&subject), "{error}");
    assert!(decode(1, "sluice.events.planet.x.created", b"{}").is_err());
    assert!(decode(1, "elsewhere", b"{}").is_err());
}
