//! Who asks, and what they may do: the one choke point, and everything that people and programs prove themselves with.
//!
//! Nothing is remembered between requests but what cannot change: each request asks the event log whether its session,
//! its token and its user still are what they were.

mod address;
mod code;
mod cookie;
mod csrf;
mod guard;
mod handle;
mod limiter;
mod password;
mod people;
mod principal;
mod provided;
mod secret;
mod settings;
#[cfg(test)]
mod tests;
mod uses;
mod watch;

use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use chrono::{DateTime, Utc};
use domain::{
    Context, Grant, Key, Role, SessionId, TokenId, UserId,
    address::Source,
    administrators,
    handle::Handle,
    session::{self, Method, Opening, Session},
    user::{self, Kept, User},
};
use eventlog::{EventLog, ExecuteError, Secret, Transaction};

pub(crate) use cookie::Cookies;
pub(crate) use guard::{Access, Routes, SCHEME};
pub(crate) use limiter::Attempt;
pub(crate) use people::{People, Profile, place as person_place};
pub(crate) use principal::{Principal, Who};
pub(crate) use provided::ID_TOKENS;
pub(crate) use secret::{digest, new_token, random_secret, same_secret};
pub use settings::Identity;
pub(crate) use watch::watched;

use self::{address::Addresses, handle::Handles, limiter::Limiter, password::Hasher, secret::Secrets, uses::Uses};
use crate::problem::Error;

/// What signing in needs, once for a process.
pub(crate) struct Auth {
    log: EventLog,
    settings: Identity,
    addresses: Addresses,
    secrets: Secrets,
    handles: Handles,
    hasher: Hasher,
    pub(crate) limiter: Limiter,
    pub(crate) people: People,
    pub(crate) uses: Uses,
    pub(crate) cookies: Cookies,
    refusals: provided::Refusals,
}

/// Somebody who has proved who they are, and in which epoch of theirs: in no other the proof is good for anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Proven {
    pub(crate) user: UserId,
    pub(crate) epoch: u64,
}

/// What a sign-in came to: the session, and the handle to it.
pub(crate) struct SignedIn {
    pub(crate) principal: Principal,
    pub(crate) handle: String,
}

/// Somebody who comes to be.
struct Newcomer<'a> {
    id: UserId,
    source: user::Source,
    /// What is theirs alone from then on; the first for as long as they are here.
    handles: &'a [String],
    profile: &'a Profile,
    grant: Grant,
}

impl Auth {
    pub(crate) async fn open(log: &EventLog, mut settings: Identity) -> Result<Self> {
        let addresses = settings.check()?;
        let secrets = Secrets::new(log);
        let people = People::open(log).await.context(
            "opening the vault, where passwords and keys lie: DATA_DIR must hold vault.key, as `sluice up` makes it",
        )?;
        let handles = Handles::open(log, &settings).await.context("opening the keys of sessions in the vault")?;
        let auth = Self {
            log: log.clone(),
            addresses,
            secrets,
            handles,
            hasher: Hasher::new()?,
            limiter: Limiter::new(log, settings.limits(), settings.rate()),
            people,
            uses: Uses::new(log),
            cookies: Cookies::new(&settings),
            refusals: provided::Refusals::default(),
            settings,
        };
        auth.found().await?;
        Ok(auth)
    }

    /// Keeps the keys of sessions young, and writes down when tokens were used, until the process ends.
    pub(crate) async fn keep(self: Arc<Self>) {
        tokio::join!(self.handles.keep(), self.uses.keep());
    }

    /// Makes the first administrator, where there is none.
    async fn found(&self) -> Result<()> {
        let key = Key::<administrators::Administrators>::administrators();
        if !self.log.fold(&key).await?.state.users.is_empty() {
            return Ok(());
        }
        let Some(password) = &self.settings.admin_password else {
            bail!(
                "ADMIN_PASSWORD is not set, and there is no administrator yet: set it to the password that the first \
                 one, called `admin`, is to sign in with"
            );
        };
        let problem = password::problem(password, Some("admin"));
        if let Some(problem) = problem {
            bail!("ADMIN_PASSWORD {problem}");
        }
        let context = runtime::clock::context("system");
        let id = UserId(context.command_id);
        let profile = Profile { name: "admin".into(), display_name: None, email: None };
        let made = self.create(id, &profile, Grant::everywhere(Role::Admin), true, &context).await;
        match made {
            // Another process was faster.
            Err(Error::Administrators(administrators::Rejection::Founded)) | Err(Error::Handle(_)) => return Ok(()),
            made => drop(made.context("making the first administrator")?),
        }
        self.set_password(id, password, &runtime::clock::context("system")).await?;
        tracing::info!("the first administrator, `admin`, was made: ADMIN_PASSWORD is not needed any more");
        Ok(())
    }

    /// A new user with all that belongs to them, or nothing of it. With `first`, only where there is no administrator.
    pub(crate) async fn create(
        &self,
        id: UserId,
        profile: &Profile,
        grant: Grant,
        first: bool,
        context: &Context,
    ) -> Result<eventlog::Committed, Error> {
        let handles = [self.people.handle(&profile.name)];
        let newcomer = Newcomer { id, source: user::Source::Local, handles: &handles, profile, grant };
        self.admit(newcomer, first, context).await
    }

    async fn admit(
        &self,
        newcomer: Newcomer<'_>,
        first: bool,
        context: &Context,
    ) -> Result<eventlog::Committed, Error> {
        let Newcomer { id, source, handles, profile, grant } = newcomer;
        let handle = handles.first().cloned().unwrap_or_default();
        let names = handles.iter().map(|digest| handle_key(digest)).collect::<Result<Vec<_>, _>>()?;
        let profile = self.people.seal(id, profile).await?;
        let command = user::Command::Create { source, handle, profile, grant };
        let (command, key, names) = (&command, &Key::user(id), &names);
        let made = self
            .log
            .transact(context, |mut tx| async move {
                tx.decide(key, command.clone()).await?;
                for name in names {
                    tx.decide(name, domain::handle::Command::Claim { user: id }).await?;
                }
                if first {
                    tx.decide(&Key::administrators(), administrators::Command::Found { user: id }).await?;
                }
                settle(tx, id).await
            })
            .await;
        if matches!(made, Err(Error::Handle(_) | Error::User(_) | Error::Administrators(_))) {
            // Nobody has come to be whose key it is.
            self.people.forget(id).await?;
        }
        made
    }

    /// Changes a user, and with them who administers.
    pub(crate) async fn change(
        &self,
        id: UserId,
        command: user::Command,
        context: &Context,
    ) -> Result<eventlog::Committed, Error> {
        let (key, command) = (&Key::user(id), &command);
        self.log
            .transact(context, |mut tx| async move {
                tx.decide(key, command.clone()).await?;
                settle(tx, id).await
            })
            .await
    }

    /// Ends a user for good: the name is free again, and what was known of the person cannot be read by anybody.
    pub(crate) async fn erase(&self, id: UserId, context: &Context) -> Result<eventlog::Committed, Error> {
        let key = &Key::user(id);
        let person = self.log.load(key).await?.state.person.ok_or(user::Rejection::Unknown)?;
        // Whom the provider knows has a name beside.
        let profile = self.people.open_profile(id, &person.profile).await?;
        let name = profile.map(|profile| self.people.handle(&profile.name)).filter(|name| *name != person.handle);
        let names = [Some(person.handle.clone()), name].into_iter().flatten();
        let names = &names.map(|digest| handle_key(&digest)).collect::<Result<Vec<_>, _>>()?;
        let seen = &person.profile;
        let erased = self
            .log
            .transact(context, |mut tx| async move {
                // Renamed meanwhile: the other name would stay taken.
                if tx.load(key).await?.state.person.is_some_and(|person| person.profile != *seen) {
                    return Err(Error::Conflict);
                }
                tx.decide(key, user::Command::Erase).await?;
                for name in names {
                    tx.decide(name, domain::handle::Command::Release { user: id }).await?;
                }
                settle(tx, id).await
            })
            .await?;
        // The same again completes what was cut off here.
        self.people.forget(id).await?;
        let credentials = [person.password.map(|kept| kept.secret), person.setup.map(|setup| setup.kept.secret)];
        for place in credentials.into_iter().flatten() {
            self.secrets.delete(&place).await?;
        }
        Ok(erased)
    }

    async fn set_password(&self, id: UserId, password: &str, context: &Context) -> Result<(u64, Proven), Error> {
        let before = self.log.load(&Key::user(id)).await?.state.person.and_then(|person| person.password);
        let set = self.with_password(id, password, context, user::Command::SetPassword).await?;
        if let Some(before) = before {
            self.secrets.delete(&before.secret).await?;
        }
        Ok(set)
    }

    /// The password that somebody chose for themselves: it ends what they had signed in by, and proves them anew.
    pub(crate) async fn choose_password(
        &self,
        id: UserId,
        password: &str,
        context: &Context,
    ) -> Result<(u64, Proven), Error> {
        let folded = self.log.fold(&Key::<User>::user(id)).await?;
        let person = folded.state.enabled().ok_or(user::Rejection::Disabled)?;
        let name = self.people.open_profile(id, &person.profile).await?.map(|profile| profile.name);
        password::require("new", password, name.as_deref())?;
        self.set_password(id, password, context).await
    }

    /// Has the command decided that takes where the password lies. Gives its position, and whom it proves.
    async fn with_password(
        &self,
        id: UserId,
        password: &str,
        context: &Context,
        command: impl FnOnce(Kept) -> user::Command,
    ) -> Result<(u64, Proven), Error> {
        let hash = self.hasher.hash(password).await?;
        let place = format!("password/{id}/{}", runtime::clock::new_id());
        let secret = place.clone();
        let command = |version| command(Kept { secret, version });
        let key = Key::<User>::user(id);
        let committed = crate::sealed::keep(&self.log, &place, hash, &key, command, context).await?;
        let person = self.log.load(&key).await?.state.person;
        // Another password may have followed already: this one is nobody's then.
        let own = person.filter(|person| person.password.as_ref().is_some_and(|kept| kept.secret == place));
        let epoch = own.ok_or(Error::Conflict)?.epoch;
        Ok((committed.sequence, Proven { user: id, epoch }))
    }

    /// A link of one hour for this user, the only one that is good.
    pub(crate) async fn issue_setup(&self, id: UserId, context: &Context) -> Result<(u64, Option<Setup>), Error> {
        let key = Key::<User>::user(id);
        let before = self.log.load(&key).await?.state.person.and_then(|person| person.setup);
        let token = format!("{}_{}", id.0.simple(), random_secret());
        let place = format!("setup/{id}/{}", runtime::clock::new_id());
        let expires_at = context.time + settings::SETUP;
        let secret = place.clone();
        let command = |version| user::Command::IssueSetup(user::Setup { kept: Kept { secret, version }, expires_at });
        let committed = crate::sealed::keep(&self.log, &place, digest(&token), &key, command, context).await?;
        if let Some(before) = before {
            self.secrets.delete(&before.kept.secret).await?;
        }
        let fresh = !committed.events.is_empty();
        Ok((committed.sequence, fresh.then_some(Setup { token, expires_at })))
    }

    /// Lets the bearer of a setup link choose a password, once, and signs them in.
    pub(crate) async fn set_up(&self, token: &str, password: &str, context: &Context) -> Result<SignedIn, Error> {
        let over = || Error::User(user::Rejection::SetupOver);
        let id: UserId = token.split_once('_').and_then(|(id, _)| id.parse().ok()).ok_or_else(over)?;
        let folded = self.log.fold(&Key::<User>::user(id)).await?;
        let person = folded.state.enabled().ok_or_else(over)?;
        let place = person.open_setup(context.time).ok_or_else(over)?.kept.secret.clone();
        let kept = self.secrets.get(&place).await?.ok_or_else(over)?;
        if !secret::same(kept.expose(), &digest(token)) {
            return Err(over());
        }
        let name = self.people.open_profile(id, &person.profile).await?.map(|profile| profile.name);
        password::require("password", password, name.as_deref())?;
        let context = &Context { actor: principal::actor(id).to_string(), ..context.clone() };
        let command = |password| user::Command::UseSetup { secret: place.clone(), now: context.time, password };
        let (_, proven) = self.with_password(id, password, context, command).await?;
        self.secrets.delete(&place).await?;
        let context = Context { request_id: context.request_id.clone(), ..runtime::clock::context("nobody") };
        self.sign_in(proven, Method::Setup, &context, None).await
    }

    /// Whose name and password these are. An unknown name costs as much as a wrong password.
    pub(crate) async fn verify(&self, name: &str, password: &str) -> Result<Proven, Error> {
        let handle = handle_key(&self.people.handle(name))?;
        let holder = self.log.fold::<Handle>(&handle).await?.state.user;
        let id = holder.unwrap_or(UserId(uuid::Uuid::nil()));
        self.proves(id, password).await?.ok_or(Error::BadCredentials)
    }

    /// Whom this password proves, if it is the user's. That of nobody is checked, too.
    pub(crate) async fn proves(&self, id: UserId, password: &str) -> Result<Option<Proven>, Error> {
        let folded = self.log.fold(&Key::<User>::user(id)).await?;
        let person = folded.state.enabled();
        let hash = match person.and_then(|person| person.password.as_ref()) {
            Some(kept) => self.secrets.get(&kept.secret).await?,
            None => None,
        };
        let right = self.hasher.verify(password, hash.as_ref().map(Secret::expose)).await?;
        Ok(person.filter(|_| right).map(|person| Proven { user: id, epoch: person.epoch }))
    }

    /// Opens a session, where what was proved still holds; the one `before`, which the same browser held, ends.
    pub(crate) async fn sign_in(
        &self,
        Proven { user: id, epoch }: Proven,
        method: Method,
        context: &Context,
        before: Option<SessionId>,
    ) -> Result<SignedIn, Error> {
        let now = context.time;
        let actor = principal::actor(id);
        let context = &Context { actor: actor.to_string(), ..context.clone() };
        let session = SessionId(runtime::clock::new_id());
        let (user, opened) = (&Key::<User>::user(id), &Key::<Session>::session(session));
        let expires_at = now + self.settings.session_max();
        self.log
            .transact::<Error, _, _>(context, |mut tx| async move {
                let opened_by = user::Opened::Session(session);
                tx.decide(user, user::Command::SignIn { opened: opened_by, method, epoch }).await?;
                let opening = Opening { user: id, epoch, method, expires_at };
                tx.decide(opened, session::Command::Open(opening)).await?;
                Ok(tx)
            })
            .await
            .map_err(no_longer)?;
        if let Some(before) = before {
            let replaced = session::Command::End { reason: session::Reason::Replaced };
            let context = runtime::clock::context(&*actor);
            match self.log.execute(&Key::<Session>::session(before), replaced, &context).await {
                Ok(_) | Err(ExecuteError::Rejected(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let grant = self.log.fold(user).await?.state.enabled().ok_or(user::Rejection::Disabled)?.grant.clone();
        let handle = self.handles.write(session, id, now, expires_at)?;
        let principal = Principal { actor, grant, who: Who::Session { user: id, session }, until: Some(expires_at) };
        Ok(SignedIn { principal, handle })
    }

    /// Makes a personal token for who has proved who they are: a sign-in at a command line.
    pub(crate) async fn sign_in_by_token(
        &self,
        Proven { user: id, epoch }: Proven,
        (token, secret, command): (TokenId, &str, impl FnOnce(u64) -> domain::token::Command),
        digest: Vec<u8>,
        context: &Context,
    ) -> Result<eventlog::Committed, Error> {
        let (user, made) = (&Key::<User>::user(id), &Key::<domain::token::Token>::token(token));
        let write = |version| {
            let create = command(version);
            async move {
                let create = &create;
                let signed_in = self.log.transact::<Error, _, _>(context, |mut tx| async move {
                    let (opened, method) = (user::Opened::Token(token), Method::Password);
                    tx.decide(user, user::Command::SignIn { opened, method, epoch }).await?;
                    tx.decide(made, create.clone()).await?;
                    Ok(tx)
                });
                signed_in.await.map_err(no_longer)
            }
        };
        crate::sealed::keep_by(&self.log, secret, digest, write).await
    }

    /// Who holds this API token. None for whom nobody knows.
    async fn bearer(&self, presented: &str, now: DateTime<Utc>) -> Result<Option<Principal>, Error> {
        let Some(id) = secret::token_id(presented) else { return Ok(None) };
        let Some((secret, principal)) = self.token_holder(id, now).await? else { return Ok(None) };
        let Some(kept) = self.secrets.get(&secret).await? else { return Ok(None) };
        if !secret::same(kept.expose(), &digest(presented)) {
            return Ok(None);
        }
        self.uses.note(id, now);
        Ok(Some(principal))
    }

    /// What a token is good for now, and where its digest lies.
    async fn token_holder(&self, id: TokenId, now: DateTime<Utc>) -> Result<Option<(String, Principal)>, Error> {
        let token = self.log.fold(&Key::<domain::token::Token>::token(id)).await?;
        let Some(holder) = token.state.valid(now) else { return Ok(None) };
        let (actor, grant, user) = match holder.owner {
            None => (holder.name.as_str().into(), holder.grant.clone(), None),
            Some(owner) => {
                let user = self.log.fold(&Key::<User>::user(owner.user)).await?;
                let Some(grant) = holder.effective(&user.state) else { return Ok(None) };
                (principal::actor(owner.user), grant, Some(owner.user))
            }
        };
        let who = Who::Token { user, token: id };
        Ok(Some((holder.secret.clone(), Principal { actor, grant, who, until: holder.expires_at })))
    }

    /// Who holds this session, and the handle to go on with where theirs gets old.
    async fn session(&self, presented: &str, now: DateTime<Utc>) -> Result<Option<(Principal, Option<String>)>, Error> {
        let Some(handle) = self.handles.read(presented, now).await else { return Ok(None) };
        let Some((principal, end)) = self.session_holder(handle.user, handle.session, now).await? else {
            return Ok(None);
        };
        let principal = Principal { until: Some(end.min(handle.expires_at)), ..principal };
        let renewed = if self.handles.due(&handle, now) {
            Some(self.handles.write(handle.session, handle.user, now, end)?)
        } else {
            None
        };
        Ok(Some((principal, renewed)))
    }

    async fn session_holder(
        &self,
        id: UserId,
        session: SessionId,
        now: DateTime<Utc>,
    ) -> Result<Option<(Principal, DateTime<Utc>)>, Error> {
        let (user, opened) = (Key::<User>::user(id), Key::<Session>::session(session));
        let (user, opened) = tokio::try_join!(self.log.fold(&user), self.log.fold(&opened))?;
        let Some(opening) = opened.state.open(now).filter(|opening| opening.user == id) else { return Ok(None) };
        let Some(person) = opened.state.holder(&user.state, now) else { return Ok(None) };
        let who = Who::Session { user: id, session };
        let (actor, grant) = (principal::actor(id), person.grant.clone());
        Ok(Some((Principal { actor, grant, who, until: Some(opening.expires_at) }, opening.expires_at)))
    }

    /// Whether `principal` may still do what they may when they were let in.
    async fn still(&self, principal: &Principal) -> Result<bool, Error> {
        let now = runtime::clock::now();
        if principal.until.is_some_and(|until| until <= now) {
            return Ok(false);
        }
        let found = match principal.who {
            Who::Token { token, .. } => self.token_holder(token, now).await?.map(|(_, found)| found),
            Who::Session { user, session } => self.session_holder(user, session, now).await?.map(|(found, _)| found),
        };
        Ok(found.is_some_and(|found| found.grant == principal.grant))
    }

    /// Ends what the caller came with.
    pub(crate) async fn sign_out(&self, caller: &Principal, context: &Context) -> Result<u64, Error> {
        match caller.who {
            Who::Session { session, .. } => {
                let logout = session::Command::End { reason: session::Reason::Logout };
                Ok(self.log.execute(&Key::<Session>::session(session), logout, context).await?.sequence)
            }
            Who::Token { user: Some(_), token } => self.revoke(token, context).await,
            Who::Token { user: None, .. } => Err(Error::NotSignedIn),
        }
    }

    /// Makes a token useless.
    pub(crate) async fn revoke(&self, id: TokenId, context: &Context) -> Result<u64, Error> {
        let key = Key::<domain::token::Token>::token(id);
        let committed = self.log.execute(&key, domain::token::Command::Revoke, context).await?;
        if let Some(holder) = self.log.load(&key).await?.state.holder {
            self.secrets.delete(&holder.secret).await?;
        }
        Ok(committed.sequence)
    }

    /// Counts an attempt to prove something, before anything is looked at.
    pub(crate) async fn attempt(&self, source: Source, request_id: &str) -> Result<Attempt<'_>, Error> {
        let id = self.people.source(source);
        if self.hasher.crowded() {
            return Err(self.limiter.busy(&id).await);
        }
        self.limiter.attempt(id, source, request_id).await
    }

    /// Refuses a sign-in that another site's page sends.
    pub(crate) fn same_site(&self, parts: &http::request::Parts) -> Result<(), Error> {
        csrf::origin(parts, self.public_url(), false)
    }

    /// The session that the browser held before it signed in anew.
    pub(crate) async fn held(&self, headers: &http::HeaderMap) -> Option<SessionId> {
        let handle = self.cookies.read(headers)?;
        Some(self.handles.read(handle, runtime::clock::now()).await?.session)
    }

    /// Where a link for people begins.
    pub(crate) fn public_url(&self) -> Option<&str> {
        self.settings.public_url.as_deref()
    }
}

/// Whoever proved themselves by what ended meanwhile is told no more than anybody else.
fn no_longer(error: Error) -> Error {
    match error {
        Error::User(user::Rejection::Superseded | user::Rejection::Disabled | user::Rejection::Erased) => {
            Error::BadCredentials
        }
        error => error,
    }
}

/// A link by which somebody chooses a password.
pub(crate) struct Setup {
    /// Shown once.
    pub(crate) token: String,
    pub(crate) expires_at: DateTime<Utc>,
}

/// Who administers follows from what was decided on the user, in the same batch.
async fn settle(mut tx: Transaction, id: UserId) -> Result<Transaction, Error> {
    let administers = tx.load(&Key::<User>::user(id)).await?.state.person.is_some_and(|person| person.administers());
    let command = if administers {
        administrators::Command::Join { user: id }
    } else {
        administrators::Command::Leave { user: id }
    };
    tx.decide(&Key::administrators(), command).await?;
    Ok(tx)
}

fn handle_key(digest: &str) -> Result<Key<Handle>, Error> {
    Key::handle(digest).ok_or(Error::Panicked)
}
