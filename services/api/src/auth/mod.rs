//! Who asks, and what they may do: the one choke point, and everything that people and programs prove themselves with.
//!
//! Nothing is remembered between requests but what cannot change: each request asks the event log whether its session,
//! its token and its user still are what they were.

mod accounts;
mod address;
mod code;
mod cookie;
mod credentials;
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

use anyhow::{Context as _, Result};
use domain::{
    Context, Key, SessionId, TokenId, UserId,
    address::Source,
    handle::Handle,
    session::{self, Method, Opening, Session},
    user::{self, User},
};
use eventlog::{EventLog, ExecuteError, Secret};

pub(crate) use accounts::Setup;
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

fn handle_key(digest: &str) -> Result<Key<Handle>, Error> {
    Key::handle(digest).ok_or(Error::Panicked)
}
