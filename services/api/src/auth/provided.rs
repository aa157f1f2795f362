//! People whom the OpenID provider knows: they come to be with their first sign-in, and what they may do is read anew at
//! each.

use domain::{Context, Grant, Key, SessionId, UserId, handle, session::Method, user};
use eventlog::Secret;

use super::{Auth, Profile, SignedIn, handle_key, settle};
use crate::{oidc::Verified, problem::Error};

/// Where the ID token of a session lies, which the provider wants to see when somebody signs out.
pub(crate) const ID_TOKENS: &str = "id-token/";

impl Auth {
    /// Signs in whom the provider has verified.
    pub(crate) async fn sign_in_provided(
        &self,
        verified: &Verified,
        context: &Context,
        before: Option<SessionId>,
    ) -> Result<SignedIn, Error> {
        let id = self.provision(verified, context).await?;
        let context = Context { request_id: context.request_id.clone(), ..runtime::clock::context("system") };
        let signed_in = self.sign_in(id, Method::Oidc, &context, before).await?;
        if let super::Who::Session { session, .. } = signed_in.principal.who {
            self.log.vault().put(&id_token(session), &verified.id_token).await?;
        }
        Ok(signed_in)
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

    /// Who it is here. A name that is another's is refused, whoever that is: nobody comes to somebody's name by what the
    /// provider calls them.
    async fn provision(&self, verified: &Verified, context: &Context) -> Result<UserId, Error> {
        let identity = self.people.identity(&verified.issuer, &verified.subject);
        let profile =
            Profile { name: verified.display_name.clone(), display_name: None, email: verified.email.clone() };
        let grant = Grant { role: verified.role.role, projects: verified.role.projects.clone() };
        match self.log.fold(&handle_key(&identity)?).await?.state.user {
            Some(id) => self.update(id, &profile, grant, context).await.map(|()| id),
            None => {
                let id = UserId(context.command_id);
                let command = |profile| user::Command::Create {
                    source: user::Source::Oidc,
                    handle: identity.clone(),
                    profile,
                    grant: grant.clone(),
                };
                let names = [identity.clone(), self.people.handle(&profile.name)];
                self.admit(id, &profile, command, &names, false, context).await?;
                Ok(id)
            }
        }
    }

    /// Brings a known user to what the provider says of them now, all at once or not at all.
    async fn update(&self, id: UserId, profile: &Profile, grant: Grant, context: &Context) -> Result<(), Error> {
        let key = &Key::<user::User>::user(id);
        let person = self.log.load(key).await?.state.enabled().ok_or(user::Rejection::Disabled)?.clone();
        let known = self.people.open_profile(id, &person.profile).await?;
        let renamed = known.as_ref() != Some(profile);
        if !renamed && person.grant == grant {
            return Ok(());
        }
        let sealed = if renamed { Some(self.people.seal(id, profile).await?) } else { None };
        let old = match known {
            Some(known) => Some(handle_key(&self.people.handle(&known.name))?),
            None => None,
        };
        let (sealed, grant, old, new) = (&sealed, &grant, &old, &handle_key(&self.people.handle(&profile.name))?);
        self.log
            .transact::<Error, _, _>(context, |mut tx| async move {
                if let Some(profile) = sealed {
                    if let Some(old) = old.as_ref().filter(|old| *old != new) {
                        tx.decide(old, handle::Command::Release { user: id }).await?;
                    }
                    tx.decide(new, handle::Command::Claim { user: id }).await?;
                    tx.decide(key, user::Command::ChangeProfile { profile: profile.clone() }).await?;
                }
                tx.decide(key, user::Command::Grant { grant: grant.clone() }).await?;
                settle(tx, id).await
            })
            .await?;
        Ok(())
    }
}

fn id_token(session: SessionId) -> String {
    format!("{ID_TOKENS}{session}")
}
