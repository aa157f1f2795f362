//! What cannot be seen from outside: the moments between two halves of a sign-in, and how much work one is.

use domain::{
    Context, Grant, Key, Role, Slug, TokenId, UserId,
    address::Source,
    administrators,
    session::Method,
    token::{Command, Holder, Owner},
    user::{self, User},
};
use eventlog::{Config, EventLog};
use testkit::Nats;

use super::{Auth, Identity, People, Profile, Proven, digest, handle_key, new_token};
use crate::{
    leftovers::{self, Suspects},
    problem::Error,
};

const PASSWORD: &str = "the administrator's password";
const FAILURES: u64 = 5;

struct Lab {
    auth: Auth,
    log: EventLog,
    _nats: Nats,
    _directory: tempfile::TempDir,
}

fn settings() -> Identity {
    Identity {
        admin_password: Some(PASSWORD.into()),
        login_max_failures: FAILURES,
        ..Identity::new("a key of at least 32 characters, 0123456789")
    }
}

/// An empty log, and what must not end before it.
async fn log() -> (Nats, tempfile::TempDir, EventLog) {
    let nats = Nats::start().await.expect("NATS starts");
    let directory = tempfile::tempdir().expect("a directory");
    let key = directory.path().join("vault.key");
    eventlog::vault::create_key(&key).expect("a key");
    let config = Config { url: nats.url().into(), name: "test".into(), master_key: Some(key) };
    let log = EventLog::connect(&config).await.expect("the log opens");
    (nats, directory, log)
}

impl Lab {
    async fn start() -> Self {
        let (nats, directory, log) = log().await;
        let auth = Auth::open(&log, settings()).await.expect("opens");
        Self { auth, log, _nats: nats, _directory: directory }
    }

    async fn person(&self, name: &str, password: Option<&str>) -> UserId {
        let id = UserId(runtime::clock::new_id());
        let profile = Profile { name: name.into(), display_name: None, email: None };
        let created = self.auth.create(id, &profile, Grant::everywhere(Role::Viewer), false, &context()).await;
        created.expect("created");
        if let Some(password) = password {
            self.auth.set_password(id, password, &context()).await.expect("set");
        }
        id
    }

    async fn change(&self, id: UserId, command: user::Command) {
        self.auth.change(id, command, &context()).await.expect("changed");
    }

    async fn sign_in_by_token(&self, proven: Proven, secret: &str) -> Result<eventlog::Committed, Error> {
        let id = TokenId(runtime::clock::new_id());
        let create = |version| {
            Command::Create(Holder {
                name: "laptop".parse::<Slug>().expect("a name"),
                grant: Grant::everywhere(Role::Viewer),
                owner: Some(Owner { user: proven.user, epoch: proven.epoch }),
                secret: secret.into(),
                version,
                expires_at: None,
            })
        };
        self.auth.sign_in_by_token(proven, (id, secret, create), digest(&new_token(id)), &context()).await
    }
}

fn context() -> Context {
    runtime::clock::context("test")
}

#[tokio::test]
async fn what_changes_between_the_check_of_a_password_and_the_sign_in_is_noticed() {
    let lab = Lab::start().await;
    let id = lab.person("ann", Some("correct horse battery")).await;
    let mut password = "correct horse battery";
    for change in ["password", "disable"] {
        let proven = lab.auth.verify("ann", password).await.expect("proved");
        if change == "password" {
            password = "another good password";
            lab.auth.set_password(id, password, &context()).await.expect("set");
        } else {
            lab.change(id, user::Command::Disable).await;
            lab.change(id, user::Command::Enable).await;
        }
        let last = lab.log.last_sequence().await.expect("an end");
        let session = lab.auth.sign_in(proven, Method::Password, &context(), None).await;
        assert!(matches!(session, Err(Error::BadCredentials)), "{change}: {:?}", session.err());
        let token = lab.sign_in_by_token(proven, "token/x/1").await;
        assert!(matches!(token, Err(Error::BadCredentials)), "{change}: {token:?}");
        assert_eq!(lab.log.last_sequence().await.expect("an end"), last, "{change}: nothing was written");
        assert_eq!(lab.log.vault().get("token/x/1").await.expect("asked"), None, "{change}: nothing is left");
        let proven = lab.auth.verify("ann", password).await.expect("proved");
        lab.auth.sign_in(proven, Method::Password, &context(), None).await.expect("signed in");
        lab.sign_in_by_token(proven, "token/x/2").await.expect("signed in");
    }
    lab.log.close().await;
}

#[tokio::test]
async fn everybody_who_signs_in_costs_the_same_work() {
    let lab = Lab::start().await;
    lab.person("ann", Some("correct horse battery")).await;
    lab.person("invited", None).await;
    let disabled = lab.person("disabled", Some("correct horse battery")).await;
    lab.change(disabled, user::Command::Disable).await;
    let erased = lab.person("erased", Some("correct horse battery")).await;
    lab.auth.erase(erased, &context()).await.expect("erased");
    // Even where one who has no password here is found by a name.
    let elsewhere = UserId(runtime::clock::new_id());
    let handle = lab.auth.people.handle("elsewhere");
    let profile = Profile { name: "elsewhere".into(), display_name: None, email: None };
    let profile = lab.auth.people.seal(elsewhere, &profile).await.expect("sealed");
    let (source, grant) = (user::Source::Oidc, Grant::everywhere(Role::Viewer));
    let create = user::Command::Create { source, handle: handle.clone(), profile, grant };
    lab.log.execute(&Key::<User>::user(elsewhere), create, &context()).await.expect("created");
    let claim = domain::handle::Command::Claim { user: elsewhere };
    lab.log.execute(&super::handle_key(&handle).expect("a key"), claim, &context()).await.expect("claimed");

    for (name, password, proves) in [
        ("ann", "correct horse battery", true),
        ("ann", "wrong", false),
        ("nobody", "wrong", false),
        ("", "", false),
        ("invited", "wrong", false),
        ("disabled", "correct horse battery", false),
        ("disabled", "wrong", false),
        ("erased", "correct horse battery", false),
        ("elsewhere", "correct horse battery", false),
        ("ann", &"x".repeat(5000), false),
    ] {
        let before = lab.auth.hasher.computed();
        let proved = lab.auth.verify(name, password).await;
        match proved {
            Ok(_) if proves => {}
            Err(Error::BadCredentials) if !proves => {}
            other => panic!("{name}: {other:?}"),
        }
        assert_eq!(lab.auth.hasher.computed() - before, 1, "{name}");
    }
    lab.log.close().await;
}

#[tokio::test]
async fn a_sign_in_that_was_not_looked_at_is_no_attempt() {
    let lab = Lab::start().await;
    let source = Source::of("203.0.113.9".parse().expect("an address"));
    let attempt = async || lab.auth.attempt(source, "request").await;
    for _ in 1..FAILURES {
        let attempt = attempt().await.expect("let through");
        let refused = attempt.ended(lab.auth.verify("admin", "wrong").await).await;
        assert!(matches!(refused, Err(Error::BadCredentials)), "{refused:?}");
    }
    for _ in 0..3 * FAILURES {
        // The last place goes while this one is let through, or has gone before.
        let attempt_made = attempt().await.expect("let through");
        let _crowd = lab.auth.hasher.crowd();
        let busy = attempt_made.ended(lab.auth.verify("admin", PASSWORD).await).await;
        assert!(matches!(busy, Err(Error::TooManySignIns)), "{busy:?}");
        assert!(matches!(attempt().await.err(), Some(Error::TooManySignIns)));
    }
    // What was looked at before still counts: this is the fifth.
    let fifth = attempt().await.expect("let through");
    fifth.ended(lab.auth.verify("admin", "wrong").await).await.expect_err("wrong");
    assert!(matches!(attempt().await.err(), Some(Error::LoginRateLimited { .. })));
    let _crowd = lab.auth.hasher.crowd();
    assert!(matches!(attempt().await.err(), Some(Error::LoginRateLimited { .. })), "whoever is blocked hears that");
    lab.log.close().await;
}

#[tokio::test]
async fn an_erasure_that_was_cut_off_is_completed_and_the_living_keep_their_keys() {
    let lab = Lab::start().await;
    let ann = lab.person("ann", Some("correct horse battery")).await;
    lab.auth.issue_setup(ann, &context()).await.expect("issued");
    let bob = lab.person("bob", Some("correct horse battery")).await;
    lab.auth.issue_setup(bob, &context()).await.expect("issued");
    let of = async |id: UserId| {
        let names = lab.log.vault().names().await.expect("listed");
        names.into_iter().filter(|(name, _)| name.contains(&id.to_string())).count()
    };
    assert_eq!((of(ann).await, of(bob).await), (3, 3), "a key, a password, a link");
    // As `erase` decides it, and dies.
    lab.log.execute(&Key::<User>::user(ann), user::Command::Erase, &context()).await.expect("erased");
    lab.change(bob, user::Command::Disable).await;

    let mut suspects = Suspects::new();
    assert_eq!(leftovers::look(&lab.log, &mut suspects).await.expect("swept"), 0, "their events may be on their way");
    assert_eq!(leftovers::look(&lab.log, &mut suspects).await.expect("swept"), 4, "hers, and his link");
    assert_eq!((of(ann).await, of(bob).await), (0, 2));
    lab.change(bob, user::Command::Enable).await;
    lab.auth.verify("bob", "correct horse battery").await.expect("he signs in as before");
    let person = lab.log.load(&Key::<User>::user(bob)).await.expect("loaded").state.person.expect("a person");
    assert!(lab.auth.people.open_profile(bob, &person.profile).await.expect("asked").is_some());
    lab.log.close().await;
}

#[tokio::test]
async fn the_key_of_who_is_let_in_at_last_is_not_swept() {
    let lab = Lab::start().await;
    let id = UserId(runtime::clock::new_id());
    let profile = Profile { name: "ann".into(), display_name: None, email: None };
    lab.auth.people.seal(id, &profile).await.expect("sealed");
    let mut suspects = Suspects::new();
    assert_eq!(leftovers::look(&lab.log, &mut suspects).await.expect("swept"), 0);
    // The same request again, which seals, and is slow.
    let sealed = lab.auth.people.seal(id, &profile).await.expect("sealed");
    assert_eq!(leftovers::look(&lab.log, &mut suspects).await.expect("swept"), 0, "it was used since");
    let read = lab.auth.people.open_profile(id, &sealed).await.expect("asked");
    assert_eq!(read.as_ref(), Some(&profile));
    assert_eq!(leftovers::look(&lab.log, &mut suspects).await.expect("swept"), 1, "nobody came");
    lab.log.close().await;
}

#[tokio::test]
async fn a_first_administrator_whose_making_was_cut_off_is_completed_by_the_next_start() {
    let (_nats, _directory, log) = log().await;
    let open = async |password: Option<&str>| {
        Auth::open(&log, Identity { admin_password: password.map(Into::into), ..settings() }).await
    };
    // As far as it came: there is an administrator, who has no password.
    let people = People::open(&log).await.expect("opens");
    let id = UserId(runtime::clock::new_id());
    let profile = Profile { name: "admin".into(), display_name: None, email: None };
    let (handle, profile) = (people.handle("admin"), people.seal(id, &profile).await.expect("sealed"));
    let (name, grant) = (handle_key(&handle).expect("a key"), Grant::everywhere(Role::Admin));
    let create = user::Command::Create { source: user::Source::Local, handle, profile, grant };
    log.execute(&Key::user(id), create, &context()).await.expect("created");
    log.execute(&name, domain::handle::Command::Claim { user: id }, &context()).await.expect("claimed");
    let found = administrators::Command::Found { user: id };
    log.execute(&Key::administrators(), found, &context()).await.expect("founded");

    let refused = open(None).await.err().expect("refused");
    assert!(refused.to_string().starts_with("ADMIN_PASSWORD is not set"), "{refused:#}");
    let auth = open(Some(PASSWORD)).await.expect("opens");
    assert_eq!(auth.verify("admin", PASSWORD).await.expect("verified").user, id);
    // From then on the variable says nothing any more.
    for password in [None, Some("the password of somebody else")] {
        let auth = open(password).await.expect("opens");
        assert_eq!(auth.verify("admin", PASSWORD).await.expect("verified").user, id);
    }
    log.close().await;
}
