//! People whom the OpenID provider knows: they come to be with their first sign-in, and what they may do is read anew at
//! each, and only there.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use domain::{
    Context, Grant, Key, SessionId, UserId,
    address::Source,
    administrators, handle,
    login::{self, Login},
    session::{Method, Session},
    user,
};
use eventlog::Secret;

use super::{
    Auth, Profile, Proven, SignedIn, Who,
    accounts::{Newcomer, settle},
    handle_key,
};
use crate::{
    oidc::{Refusal, Verified},
    problem::Error,
};

/// Where the ID token of a session lies, which the provider wants to see when somebody signs out.
pub(crate) const ID_TOKENS: &str = "id-token/";

/// Refusals that are written to the event log within [`WINDOW`]: whoever wants to can bring about any number.
const RECORDED: u32 = 60;
const WINDOW: Duration = Duration::from_secs(60);

/// Sign-ins of the same person that may be faster, one after another.
const TRIES: usize = 5;

/// How many refusals were written down since when.
#[derive(Default)]
pub(super) struct Refusals(Mutex<Option<(Instant, u32)>>);

impl Refusals {
    /// Whether one more may be written down.
    fn one_more(&self, now: Instant) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (began, count) = known.filter(|(began, _)| now.duration_since(*began) < WINDOW).unwrap_or((now, 0));
        *known = Some((began, count.saturating_add(1)));
        count < RECORDED
    }
}

impl Auth {
    /// Takes down that somebody who came back from the provider was not let in, and why.
    pub(crate) async fn refused(&self, source: Source, refusal: &Refusal, request_id: &str) {
        if !refusal.ends_a_sign_in() {
            return;
        }
        let reason = refusal.code();
        let recorded = self.refusals.one_more(Instant::now());
        tracing::warn!(%source, reason, recorded, "somebody who came back from the provider was not let in");
        let Some(key) = Key::<Login>::login(&self.people.source(source)).filter(|_| recorded) else { return };
        let context = Context { actor: "anonymous".into(), ..context(request_id) };
        if let Err(error) = self.log.execute(&key, login::Command::Refuse { reason }, &context).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "a refused sign-in was not recorded");
        }
    }

    /// Signs in whom the provider has verified.
    pub(crate) async fn sign_in_provided(
        &self,
        verified: &Verified,
        request_id: &str,
        before: Option<SessionId>,
    ) -> Result<SignedIn, Error> {
        let id = self.provision(verified, request_id).await?;
        let user = self.log.fold(&Key::<user::User>::user(id)).await?;
        let epoch = user.state.enabled().ok_or(Error::NotLetIn(Refusal::Disabled))?.epoch;
        let proven = Proven { user: id, epoch };
        let signed_in =
            self.sign_in(proven, Method::Oidc, &context(request_id), before).await.map_err(in_their_words)?;
        if let Who::Session { session, .. } = signed_in.principal.who {
            // Without it they sign out all the same; the provider may ask whether they mean it.
            if let Err(error) = self.log.vault().put(&id_token(session), &verified.id_token).await {
                tracing::warn!(%error, "an ID token was not kept for the sign-out");
            }
        }
        Ok(signed_in)
    }

    /// Whether the session was opened by a sign-in at the provider.
    pub(crate) async fn came_from_provider(&self, session: SessionId) -> Result<bool, Error> {
        let session = self.log.fold(&Key::<Session>::session(session)).await?;
        Ok(session.state.opening.as_ref().is_some_and(|opening| opening.method == Method::Oidc))
    }

    /// The ID token of a session, for its last use.
    pub(crate) async fn take_id_token(&self, session: SessionId) -> Result<Option<Secret>, Error> {
        let (vault, place) = (self.log.vault(), id_token(session));
        let token = vault.get(&place).await?;
        if token.is_some() {
            vault.delete(&place).await?;
        }
        Ok(token)
    }

    /// Who it is here, as the provider describes them now. A name that is another's is refused, whoever that is: nobody
    /// comes to somebody's name by what the provider calls them.
    async fn provision(&self, verified: &Verified, request_id: &str) -> Result<UserId, Error> {
        let identity = self.people.identity(&verified.issuer, &verified.subject);
        let profile =
            Profile { name: verified.display_name.clone(), display_name: None, email: verified.email.clone() };
        let grant = Grant { role: verified.role.role, projects: verified.role.projects.clone() };
        for _ in 0..TRIES {
            let context = context(request_id);
            let known = self.log.fold(&handle_key(&identity)?).await?.state.user;
            let done = match known {
                Some(id) => self.update(id, &profile, &grant, &context).await.map(|()| id),
                None => self.come_to_be(&identity, &profile, &grant, &context).await,
            };
            match done {
                // The same person in another tab.
                Err(Error::Conflict) => {}
                Err(Error::Handle(handle::Rejection::Taken)) if known.is_none() && self.knows(&identity).await? => {}
                done => return done.map_err(in_their_words),
            }
        }
        Err(Error::Conflict)
    }

    async fn knows(&self, identity: &str) -> Result<bool, Error> {
        Ok(self.log.fold(&handle_key(identity)?).await?.state.user.is_some())
    }

    async fn come_to_be(
        &self,
        identity: &str,
        profile: &Profile,
        grant: &Grant,
        context: &Context,
    ) -> Result<UserId, Error> {
        let id = UserId(context.command_id);
        let handles = [identity.to_owned(), self.people.handle(&profile.name)];
        let newcomer = Newcomer { id, source: user::Source::Oidc, handles: &handles, profile, grant: grant.clone() };
        self.admit(newcomer, false, context).await?;
        Ok(id)
    }

    /// Brings a known user to what the provider says of them now, all at once or not at all.
    async fn update(&self, id: UserId, profile: &Profile, grant: &Grant, context: &Context) -> Result<(), Error> {
        let key = &Key::<user::User>::user(id);
        let person = self.log.load(key).await?.state.enabled().ok_or(user::Rejection::Disabled)?.clone();
        let known = self.people.open_profile(id, &person.profile).await?;
        let renamed = known.as_ref() != Some(profile);
        if !renamed && person.grant == *grant {
            return Ok(());
        }
        let sealed = if renamed { self.people.seal(id, profile).await? } else { person.profile.clone() };
        let old = known.map(|known| handle_key(&self.people.handle(&known.name))).transpose()?;
        let new = handle_key(&self.people.handle(&profile.name))?;
        let (person, sealed, old, new) = (&person, &sealed, &old, &new);
        self.log
            .transact::<Error, _, _>(context, |mut tx| async move {
                // What they are called was read outside: it decides which name is let go.
                let now = tx.load(key).await?.state.enabled().ok_or(user::Rejection::Disabled)?.profile.clone();
                if now != person.profile && now != *sealed {
                    return Err(Error::Conflict);
                }
                if let Some(old) = old.as_ref().filter(|old| *old != new) {
                    tx.decide(old, handle::Command::Release { user: id }).await?;
                }
                tx.decide(new, handle::Command::Claim { user: id }).await?;
                tx.decide(key, user::Command::ChangeProfile { profile: sealed.clone() }).await?;
                tx.decide(key, user::Command::Grant { grant: grant.clone() }).await?;
                settle(tx, id).await
            })
            .await?;
        Ok(())
    }
}

/// Nobody asks for it but the provider's word.
fn context(request_id: &str) -> Context {
    Context { request_id: Some(request_id.to_owned()), ..runtime::clock::context("system") }
}

/// The same for somebody who comes back from the provider, and can change nothing here.
fn in_their_words(error: Error) -> Error {
    match error {
        Error::Handle(handle::Rejection::Taken) => Error::NotLetIn(Refusal::NameTaken),
        Error::User(user::Rejection::Disabled | user::Rejection::Erased) => Error::NotLetIn(Refusal::Disabled),
        Error::Administrators(administrators::Rejection::LastAdministrator) => {
            Error::NotLetIn(Refusal::LastAdministrator)
        }
        error => error,
    }
}

fn id_token(session: SessionId) -> String {
    format!("{ID_TOKENS}{session}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_flood_of_refusals_gets_into_the_event_log() {
        let (refusals, began) = (Refusals::default(), Instant::now());
        let written = |now| (0..1000).filter(|_| refusals.one_more(now)).count();
        assert_eq!(written(began), RECORDED as usize);
        assert_eq!(written(began + WINDOW / 2), 0);
        assert_eq!(written(began + WINDOW), RECORDED as usize);
    }
}
