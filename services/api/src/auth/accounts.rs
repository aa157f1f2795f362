//! People's accounts: how they come to be, change and end, and the passwords and links that belong to them.

use anyhow::{Context as _, Result, bail};
use chrono::{DateTime, Utc};
use domain::{
    Context, Grant, Key, Role, UserId,
    administrators::{self, Administrators},
    user::{self, Kept, User},
};
use eventlog::Transaction;

use super::{Auth, Profile, Proven, digest, handle_key, password, random_secret, settings};
use crate::problem::Error;

/// Somebody who comes to be.
pub(super) struct Newcomer<'a> {
    pub(super) id: UserId,
    pub(super) source: user::Source,
    /// What is theirs alone from then on; the first for as long as they are here.
    pub(super) handles: &'a [String],
    pub(super) profile: &'a Profile,
    pub(super) grant: Grant,
}

/// A link by which somebody chooses a password.
pub(crate) struct Setup {
    /// Shown once.
    pub(crate) token: String,
    pub(crate) expires_at: DateTime<Utc>,
}

impl Auth {
    /// Makes the first administrator, where there is none, and completes one whose making was cut off.
    pub(super) async fn found(&self) -> Result<()> {
        let users = self.log.fold(&Key::<Administrators>::administrators()).await?.state.users.clone();
        let half_made = match users.first() {
            Some(only) if users.len() == 1 => self.has_no_way_in(*only).await?.then_some(*only),
            Some(_) | None => None,
        };
        if !users.is_empty() && half_made.is_none() {
            return Ok(());
        }
        let Some(password) = &self.settings.admin_password else {
            bail!(
                "ADMIN_PASSWORD is not set, and there is no administrator yet who could sign in: set it to the password \
                 that the first one, called `admin`, is to sign in with"
            );
        };
        if let Some(problem) = password::problem(password, Some("admin")) {
            bail!("ADMIN_PASSWORD {problem}");
        }
        let context = runtime::clock::context("system");
        let id = half_made.unwrap_or(UserId(context.command_id));
        if half_made.is_none() {
            let profile = Profile { name: "admin".into(), display_name: None, email: None };
            let made = self.create(id, &profile, Grant::everywhere(Role::Admin), true, &context).await;
            match made {
                // Another process was faster.
                Err(Error::Administrators(administrators::Rejection::Founded)) | Err(Error::Handle(_)) => return Ok(()),
                made => drop(made.context("making the first administrator")?),
            }
        }
        self.set_password(id, password, &runtime::clock::context("system")).await?;
        tracing::info!("the first administrator, `admin`, was made: ADMIN_PASSWORD is not needed any more");
        Ok(())
    }

    /// Whether they are to sign in by a password, and never had one nor a link to choose it.
    async fn has_no_way_in(&self, id: UserId) -> Result<bool, Error> {
        let user = self.log.fold(&Key::<User>::user(id)).await?;
        let person = user.state.person.as_ref();
        Ok(person.is_some_and(|person| {
            person.source == user::Source::Local && person.password.is_none() && person.setup.is_none()
        }))
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

    pub(super) async fn admit(
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

    pub(super) async fn set_password(
        &self,
        id: UserId,
        password: &str,
        context: &Context,
    ) -> Result<(u64, Proven), Error> {
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
    pub(super) async fn with_password(
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
}

/// Who administers follows from what was decided on the user, in the same batch.
pub(super) async fn settle(mut tx: Transaction, id: UserId) -> Result<Transaction, Error> {
    let administers = tx.load(&Key::<User>::user(id)).await?.state.person.is_some_and(|person| person.administers());
    let command = if administers {
        administrators::Command::Join { user: id }
    } else {
        administrators::Command::Leave { user: id }
    };
    tx.decide(&Key::administrators(), command).await?;
    Ok(tx)
}
