//! What a request comes with: whose it is, and whether it still counts. Asked of the event log each time.

use chrono::{DateTime, Utc};
use domain::{Key, SessionId, TokenId, UserId, session::Session, user::User};

use super::{Auth, Principal, Who, digest, principal, secret};
use crate::problem::Error;

impl Auth {
    /// Who holds this API token. None for whom nobody knows.
    pub(super) async fn bearer(&self, presented: &str, now: DateTime<Utc>) -> Result<Option<Principal>, Error> {
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
        let key = Key::<domain::token::Token>::token(id);
        // Whose it is never changes: where that is known both are asked for at once.
        let owner = self.log.remembered(&key).and_then(|token| token.state.holder.as_ref()?.owner);
        let ahead = async {
            match owner {
                Some(owner) => self.log.fold(&Key::<User>::user(owner.user)).await.map(Some),
                None => Ok(None),
            }
        };
        let (token, ahead) = tokio::try_join!(self.log.fold(&key), ahead)?;
        let Some(holder) = token.state.valid(now) else { return Ok(None) };
        let (actor, grant, user) = match holder.owner {
            None => (holder.name.as_str().into(), holder.grant.clone(), None),
            Some(owner) => {
                let user = match ahead {
                    Some(user) => user,
                    None => self.log.fold(&Key::<User>::user(owner.user)).await?,
                };
                let Some(grant) = holder.effective(&user.state) else { return Ok(None) };
                (principal::actor(owner.user), grant, Some(owner.user))
            }
        };
        let who = Who::Token { user, token: id };
        Ok(Some((holder.secret.clone(), Principal { actor, grant, who, until: holder.expires_at })))
    }

    /// Who holds this session, and the handle to go on with where theirs gets old.
    pub(super) async fn session(
        &self,
        presented: &str,
        now: DateTime<Utc>,
    ) -> Result<Option<(Principal, Option<String>)>, Error> {
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

    pub(super) async fn session_holder(
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
    pub(super) async fn still(&self, principal: &Principal) -> Result<bool, Error> {
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
}
