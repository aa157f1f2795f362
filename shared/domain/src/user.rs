//! People: how they came here, what they may do, and what they prove themselves with. Who they are is sealed under a key
//! of their own; passwords and setup tokens lie in the vault as digests. Events hold where.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{Aggregate, FieldError, Grant, Key, SessionId, TokenId, UserId, session::Method};

/// Names reflect the stored format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", content = "data")]
pub enum Event {
    #[serde(rename = "created.v1")]
    Created {
        source: Source,
        /// Key of the [`crate::handle`] that is theirs.
        handle: String,
        profile: Sealed,
        grant: Grant,
    },
    #[serde(rename = "profile_changed.v1")]
    ProfileChanged { profile: Sealed },
    #[serde(rename = "granted.v1")]
    Granted { grant: Grant },
    #[serde(rename = "disabled.v1")]
    Disabled {},
    #[serde(rename = "enabled.v1")]
    Enabled {},
    #[serde(rename = "password_set.v1")]
    PasswordSet {
        /// Key in the vault.
        secret: String,
        /// Revision of that key.
        version: u64,
    },
    #[serde(rename = "setup_issued.v1")]
    SetupIssued {
        /// Key in the vault.
        secret: String,
        /// Revision of that key.
        version: u64,
        expires_at: DateTime<Utc>,
    },
    #[serde(rename = "setup_used.v1")]
    SetupUsed {},
    #[serde(rename = "signed_in.v1")]
    SignedIn {
        #[serde(flatten)]
        opened: Opened,
        method: Method,
    },
    /// The key of the profile is gone, and with it everything that was known of the person.
    #[serde(rename = "erased.v1")]
    Erased {},
}

/// Where somebody is known from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = UserSource)]
pub enum Source {
    /// Signs in with a password that is kept here.
    Local,
    /// Signs in at the OpenID provider.
    Oidc,
}

/// What somebody got by signing in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Opened {
    Session(SessionId),
    /// A personal one, at a command line.
    Token(TokenId),
}

/// What is known of a person, in a form that only the person's key opens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sealed(pub String);

/// Without a person it was never created.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    pub person: Option<Person>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Person {
    pub source: Source,
    pub handle: String,
    pub profile: Sealed,
    pub grant: Grant,
    pub standing: Standing,
    pub password: Option<Kept>,
    pub setup: Option<Setup>,
    /// Counts what ends all that was opened before: a new password, a disable. A session or a token of an earlier epoch
    /// is good for nothing.
    pub epoch: u64,
    signed_in: Option<Opened>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Enabled,
    Disabled,
    Erased,
}

/// A secret in the vault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    pub secret: String,
    pub version: u64,
}

/// A link that lets somebody choose a password, once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setup {
    pub kept: Kept,
    pub expires_at: DateTime<Utc>,
}

#[derive(Debug, Clone)]
pub enum Command {
    Create {
        source: Source,
        handle: String,
        profile: Sealed,
        grant: Grant,
    },
    ChangeProfile {
        profile: Sealed,
    },
    Grant {
        grant: Grant,
    },
    Disable,
    Enable,
    SetPassword(Kept),
    /// Ends the one before.
    IssueSetup(Setup),
    /// Sets the `password` where the setup that lies at `secret` is still open at `now`.
    UseSetup {
        secret: String,
        now: DateTime<Utc>,
        password: Kept,
    },
    /// Of who has proved who they are in this `epoch`: what ended since what was opened before ends this proof, too.
    SignIn {
        opened: Opened,
        method: Method,
        epoch: u64,
    },
    Erase,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    #[error("no such user: `sluice user list` shows them")]
    Unknown,
    #[error("this user is disabled: `sluice user enable` lets them in again")]
    Disabled,
    #[error("this user was erased, for good")]
    Erased,
    #[error("this user signs in at the OpenID provider and has no password here")]
    NoPassword,
    #[error("this setup link is no longer good: ask an administrator for another")]
    SetupOver,
    #[error("what this sign-in was proved by is no longer good: sign in again")]
    Superseded,
    #[error("{}", .0.iter().map(|e| format!("{}: {}", e.field, e.problem)).collect::<Vec<_>>().join("; "))]
    Invalid(Vec<FieldError>),
}

impl Key<User> {
    pub fn user(id: UserId) -> Self {
        Key::new(id.to_string())
    }
}

impl User {
    /// Who may sign in.
    pub fn enabled(&self) -> Option<&Person> {
        self.person.as_ref().filter(|person| person.standing == Standing::Enabled)
    }

    fn known(&self) -> Result<&Person, Rejection> {
        let person = self.person.as_ref().ok_or(Rejection::Unknown)?;
        if person.standing == Standing::Erased { Err(Rejection::Erased) } else { Ok(person) }
    }

    fn able(&self) -> Result<&Person, Rejection> {
        let person = self.known()?;
        if person.standing == Standing::Disabled { Err(Rejection::Disabled) } else { Ok(person) }
    }
}

impl Person {
    pub fn administers(&self) -> bool {
        self.standing == Standing::Enabled && self.grant.administers()
    }

    /// The setup that is still open at `now`.
    pub fn open_setup(&self, now: DateTime<Utc>) -> Option<&Setup> {
        self.setup.as_ref().filter(|setup| now < setup.expires_at)
    }

    fn local(&self) -> Result<(), Rejection> {
        match self.source {
            Source::Local => Ok(()),
            Source::Oidc => Err(Rejection::NoPassword),
        }
    }

    fn forget_credentials(&mut self) {
        self.password = None;
        self.setup = None;
    }
}

fn good(grant: &Grant) -> Result<(), Rejection> {
    let errors = grant.check();
    if errors.is_empty() { Ok(()) } else { Err(Rejection::Invalid(errors)) }
}

fn set(Kept { secret, version }: Kept) -> Event {
    Event::PasswordSet { secret, version }
}

impl Aggregate for User {
    const NAME: &'static str = "user";
    type Event = Event;
    type Command = Command;
    type Rejection = Rejection;

    fn decide(&self, command: Command) -> Result<Vec<Event>, Rejection> {
        match command {
            Command::Create { source, handle, profile, grant } => {
                good(&grant)?;
                match self.person {
                    None => Ok(vec![Event::Created { source, handle, profile, grant }]),
                    Some(_) => Ok(vec![]),
                }
            }
            Command::ChangeProfile { profile } => {
                let changed = self.known()?.profile != profile;
                Ok(if changed { vec![Event::ProfileChanged { profile }] } else { vec![] })
            }
            Command::Grant { grant } => {
                good(&grant)?;
                let changed = self.known()?.grant != grant;
                Ok(if changed { vec![Event::Granted { grant }] } else { vec![] })
            }
            Command::Disable => match self.known()?.standing {
                Standing::Enabled => Ok(vec![Event::Disabled {}]),
                Standing::Disabled | Standing::Erased => Ok(vec![]),
            },
            Command::Enable => match self.known()?.standing {
                Standing::Disabled => Ok(vec![Event::Enabled {}]),
                Standing::Enabled | Standing::Erased => Ok(vec![]),
            },
            Command::SetPassword(password) => {
                let person = self.able()?;
                person.local()?;
                Ok(if person.password.as_ref() == Some(&password) { vec![] } else { vec![set(password)] })
            }
            Command::IssueSetup(setup) => {
                let person = self.able()?;
                person.local()?;
                if person.setup.as_ref() == Some(&setup) {
                    return Ok(vec![]);
                }
                let Setup { kept: Kept { secret, version }, expires_at } = setup;
                Ok(vec![Event::SetupIssued { secret, version, expires_at }])
            }
            Command::UseSetup { secret, now, password } => {
                // One answer for all: whoever has no good link learns nothing of the user.
                let person = self.able().map_err(|_| Rejection::SetupOver)?;
                let open = person.open_setup(now).filter(|setup| setup.kept.secret == secret);
                open.ok_or(Rejection::SetupOver)?;
                Ok(vec![Event::SetupUsed {}, set(password)])
            }
            Command::SignIn { opened, method, epoch } => {
                let person = self.able()?;
                match person.signed_in == Some(opened) {
                    true => Ok(vec![]),
                    false if person.epoch == epoch => Ok(vec![Event::SignedIn { opened, method }]),
                    false => Err(Rejection::Superseded),
                }
            }
            Command::Erase => match self.person.as_ref().ok_or(Rejection::Unknown)?.standing {
                Standing::Enabled | Standing::Disabled => Ok(vec![Event::Erased {}]),
                Standing::Erased => Ok(vec![]),
            },
        }
    }

    fn evolve(&mut self, event: &Event) {
        if let Event::Created { source, handle, profile, grant } = event {
            self.person = Some(Person {
                source: *source,
                handle: handle.clone(),
                profile: profile.clone(),
                grant: grant.clone(),
                standing: Standing::Enabled,
                password: None,
                setup: None,
                epoch: 0,
                signed_in: None,
            });
            return;
        }
        let Some(person) = &mut self.person else { return };
        match event {
            Event::Created { .. } => {}
            Event::SignedIn { opened, .. } => person.signed_in = Some(*opened),
            Event::ProfileChanged { profile } => person.profile = profile.clone(),
            Event::Granted { grant } => person.grant = grant.clone(),
            Event::Disabled {} => {
                person.standing = Standing::Disabled;
                person.setup = None;
                person.epoch += 1;
            }
            Event::Enabled {} => person.standing = Standing::Enabled,
            Event::PasswordSet { secret, version } => {
                person.password = Some(Kept { secret: secret.clone(), version: *version });
                // A link that was made for the one before must not undo it.
                person.setup = None;
                person.epoch += 1;
            }
            Event::SetupIssued { secret, version, expires_at } => {
                let kept = Kept { secret: secret.clone(), version: *version };
                person.setup = Some(Setup { kept, expires_at: *expires_at });
            }
            Event::SetupUsed {} => person.setup = None,
            Event::Erased {} => {
                person.standing = Standing::Erased;
                person.forget_credentials();
                person.epoch += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::Role;

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(second, 0).expect("in range")
    }

    fn kept(n: u64) -> Kept {
        Kept { secret: format!("place/{n}"), version: n }
    }

    fn create(source: Source) -> Command {
        let (handle, profile) = ("h".into(), Sealed("x".into()));
        Command::Create { source, handle, profile, grant: Grant::everywhere(Role::Operator) }
    }

    fn issue(n: u64, expires: i64) -> Command {
        Command::IssueSetup(Setup { kept: kept(n), expires_at: at(expires) })
    }

    fn use_setup(n: u64, now: i64) -> Command {
        Command::UseSetup { secret: kept(n).secret, now: at(now), password: kept(100 + n) }
    }

    fn sign_in(n: u128, epoch: u64) -> Command {
        Command::SignIn { opened: Opened::Session(SessionId(Uuid::from_u128(n))), method: Method::Password, epoch }
    }

    fn run(user: &mut User, command: Command) -> Result<usize, Rejection> {
        let events = user.decide(command)?;
        events.iter().for_each(|event| user.evolve(event));
        Ok(events.len())
    }

    fn after(commands: impl IntoIterator<Item = Command>) -> User {
        let mut user = User::default();
        for command in commands {
            run(&mut user, command).expect("accepted");
        }
        user
    }

    #[test]
    fn a_setup_link_is_good_once_and_for_its_time() {
        let open = after([create(Source::Local), issue(1, 3600)]);
        let mut used = open.clone();
        assert_eq!(run(&mut used, use_setup(1, 3599)), Ok(2));
        assert_eq!(used.enabled().and_then(|p| p.password.clone()), Some(kept(101)));
        assert_eq!(run(&mut used, use_setup(1, 3599)), Err(Rejection::SetupOver), "used up");
        assert_eq!(open.decide(use_setup(1, 3600)).err(), Some(Rejection::SetupOver), "expired");
        assert_eq!(open.decide(use_setup(2, 1)).err(), Some(Rejection::SetupOver), "another's");
        let mut reissued = open.clone();
        assert_eq!(run(&mut reissued, issue(2, 7200)), Ok(1));
        assert_eq!(reissued.decide(use_setup(1, 1)).err(), Some(Rejection::SetupOver), "revoked by the next");
        assert_eq!(run(&mut reissued, use_setup(2, 1)), Ok(2));
        for ending in [Command::Disable, Command::SetPassword(kept(9)), Command::Erase] {
            let mut ended = open.clone();
            run(&mut ended, ending.clone()).expect("accepted");
            run(&mut ended, Command::Enable).ok();
            assert_eq!(ended.decide(use_setup(1, 1)).err(), Some(Rejection::SetupOver), "{ending:?}");
        }
    }

    #[test]
    fn what_was_opened_before_a_new_password_or_a_disable_is_of_another_epoch() {
        let epoch = |user: &User| user.person.as_ref().expect("a person").epoch;
        let before = after([create(Source::Local), Command::SetPassword(kept(1))]);
        for (command, ends) in [
            (Command::SetPassword(kept(2)), true),
            (Command::SetPassword(kept(1)), false),
            (Command::Disable, true),
            (Command::Erase, true),
            (Command::Enable, false),
            (Command::Grant { grant: Grant::everywhere(Role::Viewer) }, false),
            (issue(7, 9), false),
        ] {
            let mut user = before.clone();
            run(&mut user, command.clone()).expect("accepted");
            assert_eq!(epoch(&user) > epoch(&before), ends, "{command:?}");
        }
    }

    #[test]
    fn who_has_proved_themselves_before_a_new_password_or_a_disable_does_not_come_in_after_it() {
        let user = after([create(Source::Local), Command::SetPassword(kept(1))]);
        let epoch = user.enabled().expect("enabled").epoch;
        for between in [vec![Command::SetPassword(kept(2))], vec![Command::Disable, Command::Enable]] {
            let mut changed = user.clone();
            for command in between {
                run(&mut changed, command).expect("accepted");
            }
            assert_eq!(changed.decide(sign_in(1, epoch)).err(), Some(Rejection::Superseded));
        }
        let mut signed_in = user.clone();
        assert_eq!(run(&mut signed_in, sign_in(1, epoch)), Ok(1));
        assert_eq!(run(&mut signed_in, sign_in(1, epoch)), Ok(0), "once");
    }

    #[test]
    fn who_signs_in_elsewhere_has_no_password_here() {
        let user = after([create(Source::Oidc)]);
        for command in [Command::SetPassword(kept(1)), issue(1, 9)] {
            assert_eq!(user.decide(command).err(), Some(Rejection::NoPassword));
        }
    }

    #[test]
    fn an_erased_user_stays_erased_and_has_nothing_left() {
        let mut user = after([create(Source::Local), Command::SetPassword(kept(1)), issue(1, 9), Command::Erase]);
        let person = user.person.clone().expect("the row stays");
        assert_eq!((person.password, person.setup, person.standing), (None, None, Standing::Erased));
        assert_eq!(run(&mut user, Command::Erase), Ok(0));
        for command in [
            Command::Enable,
            Command::Disable,
            Command::SetPassword(kept(2)),
            issue(2, 9),
            sign_in(1, 0),
            Command::Grant { grant: Grant::everywhere(Role::Admin) },
            Command::ChangeProfile { profile: Sealed("y".into()) },
        ] {
            assert_eq!(user.decide(command.clone()).err(), Some(Rejection::Erased), "{command:?}");
        }
    }

    fn command() -> impl Strategy<Value = Command> {
        prop_oneof![
            Just(create(Source::Local)),
            Just(Command::Disable),
            Just(Command::Enable),
            Just(Command::Erase),
            (0..3_u64).prop_map(|n| Command::SetPassword(kept(n))),
            (0..3_u64).prop_map(|n| issue(n, 10)),
            (0..3_u64, 0..20_i64).prop_map(|(n, now)| use_setup(n, now)),
            (0..3_u128, 0..3_u64).prop_map(|(n, epoch)| sign_in(n, epoch)),
            any::<bool>().prop_map(|admin| Command::Grant {
                grant: Grant::everywhere(if admin { Role::Admin } else { Role::Viewer })
            }),
        ]
    }

    proptest! {
        #[test]
        fn the_same_command_again_has_no_second_effect(
            commands in proptest::collection::vec(command(), 0..30), command in command(),
        ) {
            let mut user = User::default();
            for command in commands {
                run(&mut user, command).ok();
            }
            if run(&mut user, command.clone()).is_ok() {
                let again = user.decide(command.clone());
                prop_assert!(again.is_err() || again == Ok(vec![]), "{:?}", again);
            }
            // A disabled or erased person signs in with nothing.
            if user.enabled().is_none() {
                prop_assert!(user.decide(use_setup(1, 0)).is_err());
            }
        }
    }
}
