//! Secrets in the vault that no event points to: of a request that died before its event was written, or before it
//! deleted what it had replaced. A secret comes before its event, so one that nothing points to may be on its way: it
//! goes when it was found so twice, an hour apart by this process's own measure, for no clock can be relied on to say
//! how old it is. One that was written anew meanwhile is on its way again.
//!
//! So also with the key of a person, which is what an erasure is about: one that was cut off is completed here.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use domain::{
    Aggregate, Event, Recorded, UserId,
    hook::Hook,
    project,
    proxy::Proxy,
    registry::Registry,
    session::Session,
    sso::Sso,
    token::Token,
    user::{Standing, User},
};
use eventlog::{Error, EventLog};
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::auth::{self, ID_TOKENS};

/// Between two looks: much longer than any request takes.
const PAUSE: Duration = Duration::from_secs(3600);
/// For one look.
const LIMIT: Duration = Duration::from_secs(300);
/// What the API keeps in the vault: what lies elsewhere is not its to judge.
const PREFIXES: [&str; 10] =
    ["hook/", ID_TOKENS, "password/", "person/", "proxy/", "registry/", "secret/", "setup/", "sso/", "token/"];

/// What nothing pointed to at the last look, with its version.
pub(crate) type Suspects = HashMap<String, u64>;

/// Looks for ever.
pub(crate) async fn sweep(log: EventLog) {
    let mut ticks = interval(PAUSE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut suspects = Suspects::new();
    loop {
        ticks.tick().await;
        match timeout(LIMIT, look(&log, &mut suspects)).await {
            Ok(Ok(0)) => {}
            Ok(Ok(deleted)) => tracing::info!(deleted, "secrets that nothing points to are gone from the vault"),
            Ok(Err(error)) => tracing::warn!(%error, "the vault could not be swept; it is tried again in an hour"),
            Err(_) => tracing::warn!("the vault was not swept in time; it is tried again in an hour"),
        }
    }
}

/// Deletes what nothing points to now and at the look before, and says how many that were.
pub(crate) async fn look(log: &EventLog, suspects: &mut Suspects) -> Result<usize, Error> {
    // Before the events: whatever lies there by now and was accepted, an event that is read points to.
    let names = log.vault().names().await?;
    let pointed = pointed(log).await?;
    let ours = |name: &str| PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    let found = names.into_iter().filter(|(name, _)| ours(name) && !pointed.contains(name));
    let before = std::mem::take(suspects);
    let mut deleted = 0;
    for (name, version) in found {
        if before.get(&name) != Some(&version) {
            suspects.insert(name, version);
            continue;
        }
        match log.vault().delete_version(&name, version).await {
            Ok(()) => deleted += 1,
            // Written anew in this moment: its event may be on its way.
            Err(Error::WrongRevision { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(deleted)
}

/// Every place that something may still be read from.
async fn pointed(log: &EventLog) -> Result<HashSet<String>, Error> {
    let mut places = HashSet::new();
    // Earlier values of a project's secrets are those of releases that may be gone back to.
    let each = |recorded: Recorded| {
        if let Event::Project(project::Event::SecretSet { vault, .. }) = recorded.event {
            places.insert(vault);
        }
    };
    log.each("sluice.events.project.>", 0, each).await?;
    places.extend(current::<Registry, _>(log, |_, state| Some(state.credentials?.secret)).await?);
    places.extend(current::<Proxy, _>(log, |_, state| Some(state.credentials?.secret)).await?);
    places.extend(current::<Hook, _>(log, |_, state| Some(state.secret?.secret)).await?);
    let held = |_: &[String], state: Token| Some(state.holder.filter(|_| !state.revoked)?.secret);
    places.extend(current::<Token, _>(log, held).await?);
    places.extend(current::<Sso, _>(log, |_, state| Some(state.secret?.secret)).await?);
    let now = runtime::clock::now();
    let open = |key: &[String], state: Session| state.open(now).map(|_| format!("{ID_TOKENS}{}", key.join(".")));
    places.extend(current::<Session, _>(log, open).await?);
    places.extend(current::<User, _>(log, persons).await?);
    Ok(places)
}

/// The key of who was not erased, and what they prove themselves with.
fn persons(key: &[String], state: User) -> Vec<String> {
    let Some(person) = state.person.filter(|person| person.standing != Standing::Erased) else { return vec![] };
    let id = key.first().and_then(|id| id.parse::<UserId>().ok());
    let credentials = [person.password.map(|kept| kept.secret), person.setup.map(|setup| setup.kept.secret)];
    id.map(auth::person_place).into_iter().chain(credentials.into_iter().flatten()).collect()
}

/// Where the aggregates of one kind point, as they stand.
async fn current<A, P>(log: &EventLog, places: impl Fn(&[String], A) -> P) -> Result<Vec<String>, Error>
where
    A: Aggregate<Event: TryFrom<Event>>,
    P: IntoIterator<Item = String>,
{
    let mut states: HashMap<Vec<String>, A> = HashMap::new();
    let each = |recorded: Recorded| {
        if let Ok(event) = recorded.event.try_into() {
            states.entry(recorded.key).or_default().evolve(&event);
        }
    };
    log.each(&format!("sluice.events.{}.>", A::NAME), 0, each).await?;
    Ok(states.into_iter().flat_map(|(key, state)| places(&key, state)).collect())
}

#[cfg(test)]
mod tests {
    use domain::{
        Key, SessionId, Slug, UserId,
        project::Project,
        registry::{Command, RegistrySettings},
        session::{self, Method, Opening},
    };
    use eventlog::{Config, Secret};
    use testkit::Nats;

    use super::*;

    #[tokio::test]
    async fn what_nothing_points_to_goes_with_the_second_look_and_all_else_stays() {
        let nats = Nats::start().await.expect("NATS starts");
        let directory = tempfile::tempdir().expect("a directory");
        let master_key = directory.path().join("key");
        eventlog::vault::create_key(&master_key).expect("a key");
        let config = Config { url: nats.url().into(), name: "test".into(), master_key: Some(master_key) };
        let log = EventLog::connect(&config).await.expect("the log opens");
        let keep = async |place: &str| log.vault().put(place, &Secret::new("x")).await.expect("sealed");
        let context = || runtime::clock::context("test");

        // A password that was replaced by a request that died before it deleted the old one.
        let key = Key::<Registry>::registry("r.test:5000").expect("a registry");
        let host = "r.test:5000".to_owned();
        let declare = Command::Configure { host: host.clone(), settings: RegistrySettings::default() };
        log.execute(&key, declare, &context()).await.expect("declared");
        for place in ["registry/r_test=5000/old", "registry/r_test=5000/new"] {
            let version = keep(place).await;
            let (host, username, secret) = (host.clone(), "ci".into(), place.into());
            let set = Command::SetCredentials { host, username, secret, version };
            log.execute(&key, set, &context()).await.expect("set");
        }
        // Two values of a secret, of which a release may run with the first; and one whose event never came.
        let slug: Slug = "shop".parse().expect("a slug");
        let key = Key::<Project>::project(&slug);
        let create =
            project::Command::Apply { slug: slug.clone(), declaration: project::Declaration::default(), prune: false };
        log.execute(&key, create, &context()).await.expect("created");
        for place in ["secret/shop/db/1", "secret/shop/db/2"] {
            keep(place).await;
            let set = project::Command::SetSecret { name: "db".into(), vault: place.into() };
            log.execute(&key, set, &context()).await.expect("set");
        }
        keep("secret/shop/db/never").await;
        keep("elsewhere/x").await;

        let mut suspects = Suspects::new();
        assert_eq!(look(&log, &mut suspects).await.expect("swept"), 0, "their events may be on their way");
        keep("hook/late/1").await;
        assert_eq!(look(&log, &mut suspects).await.expect("swept"), 2);
        let names = log.vault().names().await.expect("listed");
        let mut left: Vec<String> = names.into_iter().map(|(name, _)| name).collect();
        left.sort();
        let kept = ["elsewhere/x", "hook/late/1", "registry/r_test=5000/new", "secret/shop/db/1", "secret/shop/db/2"];
        assert_eq!(left, kept);
    }

    #[tokio::test]
    async fn an_id_token_is_kept_as_long_as_its_session() {
        let nats = Nats::start().await.expect("NATS starts");
        let directory = tempfile::tempdir().expect("a directory");
        let master_key = directory.path().join("key");
        eventlog::vault::create_key(&master_key).expect("a key");
        let config = Config { url: nats.url().into(), name: "test".into(), master_key: Some(master_key) };
        let log = EventLog::connect(&config).await.expect("the log opens");
        let now = runtime::clock::now();
        let [open, ended, over, unheard] = [1, 2, 3, 4].map(|n| SessionId(uuid::Uuid::from_u128(n)));
        for (id, hours) in [(open, 1), (ended, 1), (over, -1)] {
            let expires_at = now + chrono::TimeDelta::hours(hours);
            let opening = Opening { user: UserId(uuid::Uuid::nil()), epoch: 0, method: Method::Oidc, expires_at };
            let open = session::Command::Open(opening);
            log.execute(&Key::<Session>::session(id), open, &runtime::clock::context("test")).await.expect("opened");
        }
        let end = session::Command::End { reason: session::Reason::Logout };
        log.execute(&Key::<Session>::session(ended), end, &runtime::clock::context("test")).await.expect("ended");
        for id in [open, ended, over, unheard] {
            log.vault().put(&format!("{ID_TOKENS}{id}"), &Secret::new("x")).await.expect("sealed");
        }
        let mut suspects = Suspects::new();
        look(&log, &mut suspects).await.expect("swept");
        assert_eq!(look(&log, &mut suspects).await.expect("swept"), 3);
        let left = log.vault().names().await.expect("listed").into_iter().map(|(name, _)| name);
        assert_eq!(left.collect::<Vec<_>>(), [format!("{ID_TOKENS}{open}")]);
    }
}
