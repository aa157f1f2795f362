//! Histories as the domain writes them, and databases to fold them into.

use std::collections::BTreeMap;

use chrono::DateTime;
use domain::{
    Aggregate, Context, DeploymentId, Grant, Key, PromotionId, Recorded, Role, SessionId, Slug, Span, TokenId, UserId,
    decode, encode,
    hook::{self, Hook, HookSettings},
    image::{Image, Source},
    project::{self, Declaration, Project},
    promotion::{Approvals, Case, Gates, Rules, Standing},
    proxy::{self, Driver, Mode, Proxy, Settings},
    registry::{self, Registry, RegistrySettings},
    session::{self, Method, Opening, Session},
    settings::StageSettings,
    stage::{self, Attempt, Command, Failure, Instance, Kind, Spec, Stage, Step, next_step},
    token::{self, Holder, Token},
    user::{self, Kept, Sealed, Setup, User},
};
use proptest::prelude::*;
use sqlx::PgPool;
use testkit::{Database, Postgres};
use uuid::Uuid;

use crate::{Checksum, Writer};

pub(crate) const INSTALLATION: Uuid = Uuid::from_u128(7);

/// A database with the schema and nothing in it. It goes when the first of the two is dropped.
pub(crate) async fn database() -> (Database, PgPool) {
    let database = Postgres::database().await.expect("PostgreSQL starts");
    let pool = crate::connect(database.url()).await.expect("it can be reached");
    crate::migrate(&pool).await.expect("the schema is made");
    (database, pool)
}

pub(crate) async fn writer(pool: &PgPool) -> Writer {
    Writer::acquire(pool, INSTALLATION).await.expect("nobody else writes")
}

pub(crate) async fn checksums(pool: &PgPool) -> Vec<Checksum> {
    crate::checksum(pool).await.expect("the checksums are computed")
}

pub(crate) fn slug(text: &str) -> Slug {
    text.parse().expect("a good name")
}

pub(crate) fn id(n: u128) -> DeploymentId {
    DeploymentId(Uuid::from_u128(n))
}

/// A log in memory, written by the real aggregates. Each event comes a second after the one before.
#[derive(Debug, Clone, Default)]
pub(crate) struct History {
    pub(crate) events: Vec<Recorded>,
    pub(crate) stages: BTreeMap<(String, String), Stage>,
    projects: BTreeMap<String, Project>,
    registries: BTreeMap<String, Registry>,
    proxies: BTreeMap<String, Proxy>,
    tokens: BTreeMap<u128, Token>,
    users: BTreeMap<u128, User>,
    sessions: BTreeMap<u128, Session>,
    hooks: BTreeMap<String, Hook>,
}

impl History {
    /// Stage `shop.dev` with a release by deployment 1, in the containers `c1-1` and `c1-2`.
    pub(crate) fn released() -> Self {
        let mut history = Self::default();
        history.declare("shop", "dev", StageSettings::default());
        history.deploy("dev", 1);
        history
    }

    pub(crate) fn declare(&mut self, project: &str, stage: &str, settings: StageSettings) {
        let declaration = Declaration { stages: [(slug(stage), settings)].into(), ..Declaration::default() };
        self.project(project, project::Command::Apply { slug: slug(project), declaration, prune: false });
    }

    pub(crate) fn project(&mut self, project: &str, command: project::Command) {
        let mut state = self.projects.remove(project).unwrap_or_default();
        self.decide(&Key::project(&slug(project)), &mut state, command);
        self.projects.insert(project.to_owned(), state);
    }

    pub(crate) fn registry(&mut self, host: &str, command: registry::Command) {
        let mut state = self.registries.remove(host).unwrap_or_default();
        self.decide(&Key::registry(host).expect("a good host"), &mut state, command);
        self.registries.insert(host.to_owned(), state);
    }

    pub(crate) fn proxy(&mut self, name: &str, command: proxy::Command) {
        let mut state = self.proxies.remove(name).unwrap_or_default();
        self.decide(&Key::proxy(&slug(name)), &mut state, command);
        self.proxies.insert(name.to_owned(), state);
    }

    pub(crate) fn token(&mut self, id: u128, command: token::Command) {
        let mut state = self.tokens.remove(&id).unwrap_or_default();
        self.decide(&Key::token(TokenId(Uuid::from_u128(id))), &mut state, command);
        self.tokens.insert(id, state);
    }

    pub(crate) fn user(&mut self, id: u128, command: user::Command) {
        let mut state = self.users.remove(&id).unwrap_or_default();
        self.decide(&Key::user(UserId(Uuid::from_u128(id))), &mut state, command);
        self.users.insert(id, state);
    }

    pub(crate) fn session(&mut self, id: u128, command: session::Command) {
        let mut state = self.sessions.remove(&id).unwrap_or_default();
        self.decide(&Key::session(SessionId(Uuid::from_u128(id))), &mut state, command);
        self.sessions.insert(id, state);
    }

    /// User `id` of the role, and nothing more.
    pub(crate) fn person(&mut self, id: u128, role: Role) {
        let (handle, profile, grant) = (format!("{id:064x}"), Sealed("sealed".into()), Grant::everywhere(role));
        self.user(id, user::Command::Create { source: user::Source::Local, handle, profile, grant });
    }

    /// A session of user `id`, of the epoch that they are in.
    pub(crate) fn sign_in(&mut self, id: u128, session: u128) {
        let epoch = self.users.get(&id).and_then(|user| user.person.as_ref()).map_or(0, |person| person.epoch);
        let expires_at = DateTime::from_timestamp(1_900_000_000, 0).expect("in range");
        let opening = Opening { user: UserId(Uuid::from_u128(id)), epoch, method: Method::Password, expires_at };
        self.session(session, session::Command::Open(opening));
        let opened = user::Opened::Session(SessionId(Uuid::from_u128(session)));
        self.user(id, user::Command::SignIn { opened, method: Method::Password, epoch });
    }

    pub(crate) fn hook(&mut self, name: &str, command: hook::Command) {
        let mut state = self.hooks.remove(name).unwrap_or_default();
        self.decide(&Key::hook(&slug(name)), &mut state, command);
        self.hooks.insert(name.to_owned(), state);
    }

    /// On `shop.<stage>`.
    pub(crate) fn stage(&mut self, stage: &str, command: Command) {
        let key = ("shop".to_owned(), stage.to_owned());
        let mut state = self.stages.remove(&key).unwrap_or_default();
        self.decide(&Key::stage(&slug("shop"), &slug(stage)), &mut state, command);
        self.stages.insert(key, state);
    }

    pub(crate) fn request(&mut self, stage: &str, deployment: u128) {
        let image = Image {
            requested: format!("shop:v{deployment}"),
            digest: format!("sha256:{deployment:064}"),
            source: Source::Registry,
        };
        let spec = Spec { image, settings: StageSettings::default() };
        self.stage(
            stage,
            Command::Request { deployment: id(deployment), spec, node: "local".into(), by: "ana".into() },
        );
    }

    /// Requested and, unless another is on its way, carried through to the end.
    pub(crate) fn deploy(&mut self, stage: &str, deployment: u128) {
        self.request(stage, deployment);
        self.start(stage, deployment);
        while self.step(stage, deployment) {}
    }

    /// Stage `shop.prod`, which promotes from `shop.dev` when `count` people agree; a release by deployment 1 in `dev`.
    pub(crate) fn promoting(count: u16) -> Self {
        let mut history = Self::released();
        let gates = Gates { approvals: Some(Approvals { count, roles: [Role::Operator].into() }), ..Gates::default() };
        let settings = StageSettings { promote_from: Some(slug("dev")), gates, ..StageSettings::default() };
        history.declare("shop", "prod", settings);
        history
    }

    /// On `shop.prod`.
    pub(crate) fn promote(&mut self, promotion: u128, by: &str) {
        let attempt = self.attempt(promotion);
        self.stage("prod", Command::Promote { digest: None, by: by.into(), wait: true, attempt });
    }

    pub(crate) fn approve(&mut self, promotion: u128, by: &str) {
        let attempt = self.attempt(promotion);
        self.stage("prod", Command::Approve { by: by.into(), role: Role::Operator, attempt });
    }

    fn attempt(&self, promotion: u128) -> Box<Attempt> {
        let project = self.projects.get("shop").cloned().unwrap_or_default();
        let settings = project.stages.get(&slug("prod")).cloned().unwrap_or_default();
        let position = self.events.len() as u64;
        let dev = self.stages.get(&("shop".to_owned(), "dev".to_owned())).cloned().unwrap_or_default();
        let of_dev = self.events.iter().filter(|event| event.stage() == Some("dev"));
        let source = Standing::of(&slug("dev"), &dev, position, of_dev);
        let rules = Rules { from: slug("dev"), gates: settings.gates.clone(), version: position };
        let now = DateTime::from_timestamp(1_700_000_000 + position.cast_signed(), 0).expect("in range");
        Box::new(Attempt {
            promotion: PromotionId(Uuid::from_u128(promotion)),
            deployment: id(1000 + u128::from(position)),
            case: Case { now, rules, source },
            settings,
            auto_promote: false,
            node: "local".into(),
        })
    }

    pub(crate) fn start(&mut self, stage: &str, deployment: u128) {
        self.stage(stage, Command::Start { deployment: id(deployment), worker: "w1".into() });
    }

    /// Carries out the next step, if there is one.
    pub(crate) fn step(&mut self, stage: &str, deployment: u128) -> bool {
        let Some(step) = self.next_step(stage, deployment) else { return false };
        let instance = |n: u128| Instance {
            name: format!("c{deployment}-{n}"),
            container: format!("{deployment:032x}{n:032x}"),
            address: Some(format!("10.0.0.{n}:80")),
        };
        let instances = if step == Step::Create { vec![instance(1), instance(2)] } else { vec![] };
        let (deployment, worker) = (id(deployment), "w1".into());
        self.stage(stage, Command::Complete { deployment, worker, step, elapsed_ms: 5, instances });
        true
    }

    pub(crate) fn fail(&mut self, stage: &str, deployment: u128) {
        let Some(step) = self.next_step(stage, deployment) else { return };
        // As a program may well write it.
        let log = vec!["tick\0tock".into()];
        let failure = Failure { step, code: "exited".into(), message: "it ended".into(), hint: "look".into(), log };
        let (deployment, worker) = (id(deployment), "w1".into());
        self.stage(stage, Command::Fail { deployment, worker, elapsed_ms: 5, failure });
    }

    fn next_step(&self, stage: &str, deployment: u128) -> Option<Step> {
        let active = self.stages.get(&("shop".to_owned(), stage.to_owned()))?.active.as_ref()?;
        next_step(active).filter(|_| active.deployment == id(deployment) && active.worker.is_some())
    }

    fn decide<A: Aggregate>(&mut self, key: &Key<A>, state: &mut A, command: A::Command) {
        // What is refused does not become history.
        for event in state.decide(command).unwrap_or_default() {
            state.evolve(&event);
            self.append(key, &event);
        }
    }

    fn append<A: Aggregate>(&mut self, key: &Key<A>, event: &A::Event) {
        let sequence = self.events.len() as u64 + 1;
        let context = Context {
            time: DateTime::from_timestamp(1_700_000_000 + sequence.cast_signed(), 123_456_789).expect("in range"),
            actor: "admin".into(),
            correlation_id: Uuid::from_u128(sequence.into()),
            causation_id: None,
            command_id: Uuid::from_u128(sequence.into()),
            command_hash: None,
            request_id: None,
            traceparent: None,
        };
        let (subject, body) = encode(key, event, Uuid::from_u128(sequence.into()), &context).expect("it encodes");
        self.events.push(decode(sequence, &subject, &body).expect("it decodes"));
    }
}

/// One thing that happens on a stage; what the domain refuses does not.
#[derive(Debug, Clone)]
pub(crate) enum Happening {
    Declare(u16),
    Request,
    Start,
    Step,
    Fail,
    Cancel,
    Lock,
    Unlock,
    Promote(u128),
    Approve(bool),
    Withdraw,
    Hold,
    LiftHold,
    Started(u8),
    Exited(u8),
    OomKilled(u8),
    Health(u8, bool),
    Archive,
    Credentials(bool),
    Proxy(bool),
    Token(bool),
    Registry(u8),
    Hook(u8),
    User(u8),
    Session(u8),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        1 => (1..4_u16).prop_map(Happening::Declare),
        3 => Just(Happening::Request),
        4 => Just(Happening::Start),
        12 => Just(Happening::Step),
        2 => Just(Happening::Fail),
        1 => Just(Happening::Cancel),
        1 => Just(Happening::Lock),
        1 => Just(Happening::Unlock),
        2 => (1..9_u128).prop_map(Happening::Promote),
        2 => any::<bool>().prop_map(Happening::Approve),
        1 => Just(Happening::Withdraw),
        1 => Just(Happening::Hold),
        1 => Just(Happening::LiftHold),
        1 => any::<u8>().prop_map(Happening::Started),
        1 => any::<u8>().prop_map(Happening::Exited),
        1 => any::<u8>().prop_map(Happening::OomKilled),
        1 => any::<(u8, bool)>().prop_map(|(n, healthy)| Happening::Health(n, healthy)),
        1 => Just(Happening::Archive),
        1 => any::<bool>().prop_map(Happening::Credentials),
        1 => any::<bool>().prop_map(Happening::Proxy),
        1 => any::<bool>().prop_map(Happening::Token),
        1 => any::<u8>().prop_map(Happening::Registry),
        1 => any::<u8>().prop_map(Happening::Hook),
        2 => any::<u8>().prop_map(Happening::User),
        1 => any::<u8>().prop_map(Happening::Session),
    ]
}

/// Any history of two stages.
pub(crate) fn histories() -> impl Strategy<Value = History> {
    proptest::collection::vec((prop_oneof![3 => Just("dev"), 1 => Just("prod")], happening()), 1..150).prop_map(|all| {
        let mut history = History::default();
        let mut deployments = 0;
        for (stage, happening) in all {
            happen(&mut history, stage, happening, &mut deployments);
        }
        history
    })
}

pub(crate) fn happen(history: &mut History, stage: &str, happening: Happening, deployments: &mut u128) {
    let active = history.stages.get(&("shop".to_owned(), stage.to_owned())).and_then(|s| s.active.clone());
    let active = active.map_or(0, |active| active.deployment.0.as_u128());
    let prod = history.stages.get(&("shop".to_owned(), "prod".to_owned()));
    let waiting = prod.and_then(|s| s.promotion.as_ref()).map_or(0, |waiting| waiting.id.0.as_u128());
    let observe = |history: &mut History, n: u8, observed| {
        let deployment = 1 + u128::from(n) % (*deployments).max(1);
        let instance = format!("c{deployment}-{}", 1 + n % 2);
        history.stage(stage, Command::Observe { set: id(deployment), instance, observed });
    };
    match happening {
        Happening::Declare(replicas) => {
            history.declare("shop", stage, StageSettings { replicas, ..StageSettings::default() });
        }
        Happening::Request => {
            *deployments += 1;
            history.request(stage, *deployments);
        }
        Happening::Start => history.start(stage, active),
        Happening::Step => {
            history.step(stage, active);
        }
        Happening::Fail => history.fail(stage, active),
        Happening::Cancel => history.stage(stage, Command::Cancel { deployment: id(active), reason: None }),
        Happening::Lock => history.stage(stage, Command::Lock { owner: "ada".into(), reason: "freeze".into() }),
        Happening::Unlock => history.stage(stage, Command::Unlock { owner: "ada".into(), force: false }),
        Happening::Promote(promotion) => history.promote(promotion, "ada"),
        Happening::Approve(bob) => history.approve(waiting, if bob { "bob" } else { "carol" }),
        Happening::Withdraw => {
            let promotion = PromotionId(Uuid::from_u128(waiting));
            history.stage("prod", Command::Withdraw { promotion, reason: "too soon".into() });
        }
        Happening::Hold => history.stage(stage, Command::Hold { by: "ada".into(), reason: "by hand".into() }),
        Happening::LiftHold => history.stage(stage, Command::LiftHold),
        Happening::Started(n) => observe(history, n, stage::Observed::Started { address: Some("10.0.0.9:80".into()) }),
        Happening::Exited(n) => observe(history, n, stage::Observed::Exited { exit_code: n.into() }),
        Happening::OomKilled(n) => observe(history, n, stage::Observed::OomKilled),
        Happening::Health(n, healthy) => observe(history, n, stage::Observed::HealthChanged { healthy }),
        Happening::Archive => {
            *deployments += 1;
            history.stage(stage, Command::Archive { removal: id(*deployments) });
            history.stage(stage, Command::Reopen);
        }
        Happening::Token(create) => history.token(
            1,
            if create {
                let (name, secret) = (slug("ci"), "token/x".into());
                let grant = Grant::everywhere(Role::Operator);
                token::Command::Create(Holder { name, grant, owner: None, secret, version: 1, expires_at: None })
            } else {
                token::Command::Revoke
            },
        ),
        Happening::User(n) => {
            let kept = Kept { secret: "place".into(), version: n.into() };
            let expires_at = DateTime::from_timestamp(1_900_000_000, 0).expect("in range");
            match n % 8 {
                0 | 1 => history.person(1, Role::Operator),
                2 => history.user(1, user::Command::Grant { grant: Grant::everywhere(Role::Admin) }),
                3 => history.user(1, user::Command::Disable),
                4 => history.user(1, user::Command::Enable),
                5 => history.user(1, user::Command::SetPassword(kept)),
                6 => history.user(1, user::Command::IssueSetup(Setup { kept, expires_at })),
                _ => history.user(1, user::Command::ChangeProfile { profile: Sealed(n.to_string()) }),
            }
        }
        Happening::Session(n) => match n % 3 {
            0 => history.session(1 + u128::from(n % 2), session::Command::End { reason: session::Reason::Logout }),
            _ => history.sign_in(1, 1 + u128::from(n % 2)),
        },
        Happening::Hook(n) => history.hook(
            "images",
            match n % 3 {
                0 => hook::Command::Configure {
                    settings: HookSettings { source: hook::Source::Github, registry: None, project: None, stage: None },
                },
                1 => hook::Command::SetSecret { secret: "hook/x".into(), version: n.into() },
                _ => hook::Command::Remove,
            },
        ),
        Happening::Registry(n) => {
            let host = "registry.test:5000".to_owned();
            let settings = RegistrySettings { poll: Span::secs(n.into()), ..RegistrySettings::default() };
            let remove = n % 4 == 0;
            let command = if remove {
                registry::Command::Remove { host: host.clone() }
            } else {
                registry::Command::Configure { host: host.clone(), settings }
            };
            history.registry(&host, command);
        }
        Happening::Proxy(set) => history.proxy(
            "front",
            if set {
                proxy::Command::Configure(proxy_settings(&format!("http://127.0.0.1:{}", 80 + stage.len())))
            } else {
                proxy::Command::Remove
            },
        ),
        Happening::Credentials(set) => history.registry(
            "registry.test:5000",
            if set {
                registry::Command::SetCredentials {
                    host: "Registry.test:5000".into(),
                    username: "ci".into(),
                    secret: "registry/x".into(),
                    version: u64::from(stage == "dev"),
                }
            } else {
                registry::Command::RemoveCredentials { host: "registry.test:5000".into() }
            },
        ),
    }
}

pub(crate) fn proxy_settings(url: &str) -> Settings {
    let (url, address) = (Some(url.to_owned()), Some("127.0.0.1:80".to_owned()));
    Settings { driver: Driver::Npm, mode: Mode::Direct, url, address, edge: None }
}

/// Kind and image of what a stage holds, in the words of the read model.
pub(crate) fn images<'a>(specs: impl Iterator<Item = (DeploymentId, Kind, &'a Spec)>) -> Vec<(Uuid, Kind, Image)> {
    specs.map(|(deployment, kind, spec)| (deployment.0, kind, spec.image.clone())).collect()
}
