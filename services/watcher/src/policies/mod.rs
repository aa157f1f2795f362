//! Stages that take images by themselves: registries are asked again and again, and told pushes are looked at at once.

mod clients;
mod desk;
mod look;
mod picture;
mod sharing;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use chrono::{DateTime, TimeDelta, Utc};
use domain::{
    Context, Key,
    push::{self, Finding, Heard, LOOKS, Look, Poll, WATCHERS},
    registry::Registry,
};
use eventlog::EventLog;
use futures::{
    StreamExt,
    future::BoxFuture,
    stream::{self, FuturesUnordered},
};
use tokio::time::{MissedTickBehavior, interval, timeout};

use self::{
    clients::{Clients, Line},
    look::{AT_ONCE, Looker, Tags, Trouble},
    picture::{Follower, Picture, Repository},
    sharing::Sharing,
};
use crate::{Config, place::Place};

const PROJECTS: &str = "sluice.events.project.>";
const REGISTRIES: &str = "sluice.events.registry.>";
const HOLDS: &str = "sluice.events.stage.*.*.hold.lifted";
const UNLOCKS: &str = "sluice.events.stage.*.*.lock.released";
/// How often it is looked whether a registry is due.
const TICK: Duration = Duration::from_millis(250);
/// A registry that was in trouble is asked at least this often.
const LONGEST_PAUSE: Duration = Duration::from_secs(1800);
/// Between two tries where nothing else says how long to wait.
const AFTER_TROUBLE: Duration = Duration::from_secs(5);
/// A registry that is never polled may still get settings that say otherwise; then it is fresh.
const NEVER: Duration = Duration::from_secs(86_400);
/// What is told and worked on at the same time; more waits, with NATS and then with those who tell.
const MOST_TOLD: usize = 256;
/// One repository, with all who follow it.
const LOOK_LIMIT: Duration = Duration::from_secs(120);
/// For writing down what was found: it is not waited for any longer.
const NOTE_LIMIT: Duration = Duration::from_secs(1);

/// What every look shares.
struct Shared {
    looker: Looker,
    clients: Clients,
    desk: desk::Desk,
    /// What was found last, so that only news is written down.
    found: Mutex<HashMap<Place, Finding>>,
    /// When a registry has something that was too young until then.
    ripens: Mutex<BTreeMap<String, DateTime<Utc>>>,
    /// Of one repository.
    look_limit: Duration,
}

/// What is known of a registry between two polls.
struct Pace {
    next: Instant,
    failures: u32,
    busy: bool,
    /// Something has changed here: it is asked even where it is never polled.
    fresh: bool,
}

/// How a poll ended.
struct Polled {
    host: String,
    poll: Duration,
    repositories: usize,
    trouble: Option<Trouble>,
    /// It is asked again, even where it is never polled.
    again: bool,
}

/// Ends only with an error.
pub(crate) async fn run(config: &Config, log: &EventLog) -> Result<()> {
    let me = runtime::clock::new_id();
    tokio::select! {
        () = sharing::present(log, me) => Ok(()),
        ended = watch(config, log, Sharing::new(me)) => ended,
    }
}

async fn watch(config: &Config, log: &EventLog, mut sharing: Sharing) -> Result<()> {
    let shared = Arc::new(Shared {
        looker: Looker { config: config.clone(), log: log.clone() },
        clients: Clients::new(config.outgoing.clone()),
        desk: desk::Desk::default(),
        found: Mutex::default(),
        ripens: Mutex::default(),
        look_limit: LOOK_LIMIT,
    });
    let mut picture = Picture::default();
    // Before anything is told: a push of what nobody seems to follow would be forgotten.
    let read = log.last_sequence().await.context("reading the end of the event log")?;
    log.each(PROJECTS, 0, |recorded| picture.note(&recorded)).await.context("reading what stages follow")?;
    let follow = |subject| Box::pin(log.follow(subject, read));
    let mut events = pin!(stream::select_all([PROJECTS, REGISTRIES, HOLDS, UNLOCKS].map(follow)));
    let mut others = pin!(log.bucket(WATCHERS).watch());
    let mut told = pin!(log.share(push::SUBJECT).await.context("listening for webhooks")?);
    let mut paces: BTreeMap<String, Pace> = BTreeMap::new();
    let mut polls: FuturesUnordered<BoxFuture<'static, Polled>> = FuturesUnordered::new();
    let mut answers: FuturesUnordered<BoxFuture<'static, ()>> = FuturesUnordered::new();
    // Each ends at its limit, and a registry or a stage has one at a time.
    let mut notes: FuturesUnordered<BoxFuture<'static, ()>> = FuturesUnordered::new();
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(event) => picture.note(&event.context("following projects and registries")?),
                None => bail!("the watcher stopped: the event log was closed"),
            },
            change = others.next() => match change {
                Some(change) => sharing.note(change.context("following the other watchers")?),
                None => bail!("the watcher stopped: the event log was closed"),
            },
            request = told.next(), if answers.len() < MOST_TOLD => match request {
                Some(request) => answers.push(desk::answer(&shared, &picture, request)),
                None => bail!("the watcher stopped: the event log was closed"),
            },
            Some(()) = answers.next() => {}
            Some(()) = notes.next() => {}
            Some(polled) = polls.next() => {
                let Polled { host, poll, repositories, trouble, again } = polled;
                if let Some(pace) = paces.get_mut(&host) {
                    pace.busy = false;
                    pace.failures = if again { pace.failures.saturating_add(1) } else { 0 };
                    let pause = pause(poll, pace.failures, trouble.as_ref());
                    if !pace.fresh {
                        pace.next = Instant::now() + pause;
                        pace.fresh = again;
                    }
                    notes.push(Box::pin(note_poll(log.clone(), host, pause, repositories, trouble)));
                }
            }
            _ = ticks.tick() => {
                for place in std::mem::take(&mut picture.gone) {
                    notes.push(Box::pin(forget(shared.clone(), place)));
                }
                picture.fresh.extend(ripe(&shared));
                for host in std::mem::take(&mut picture.fresh) {
                    if let Some(pace) = paces.get_mut(&host) {
                        *pace = Pace { next: Instant::now(), failures: 0, fresh: true, ..*pace };
                    }
                }
                let followed = picture.registries();
                paces.retain(|host, pace| pace.busy || followed.contains(host.as_str()));
                for host in followed.into_iter().filter(|host| sharing.mine(host)) {
                    let pace = paces.entry(host.to_owned()).or_insert_with(|| {
                        // Many registries at once are asked one after another.
                        let first = TICK.mul_f64(rand::random());
                        Pace { next: Instant::now() + first, failures: 0, fresh: true, busy: false }
                    });
                    if !pace.busy && pace.next <= Instant::now() {
                        pace.busy = true;
                        let fresh = std::mem::take(&mut pace.fresh);
                        polls.push(Box::pin(poll(shared.clone(), host.to_owned(), picture.on(host), fresh)));
                    }
                }
            }
        }
    }
}

/// Asks a registry for everything that stages follow there.
async fn poll(
    shared: Arc<Shared>,
    host: String,
    followed: BTreeMap<Repository, Vec<Arc<Follower>>>,
    fresh: bool,
) -> Polled {
    let repositories = followed.len();
    let line = match shared.clients.get(&shared.looker.log, &host).await {
        Ok(line) => line,
        Err(trouble) => {
            let context = runtime::clock::context(crate::ACTOR);
            for follower in followed.into_values().flatten() {
                note(&shared, &follower.place, failed(&trouble), &context).await;
            }
            let missing = matches!(trouble, Trouble::Registry(crate::registry::Trouble::PasswordMissing { .. }));
            let poll = if missing { LONGEST_PAUSE } else { AFTER_TROUBLE };
            return Polled { host, poll, repositories, trouble: Some(trouble), again: true };
        }
    };
    let poll = if line.poll.is_zero() { NEVER } else { line.poll.duration() };
    if line.poll.is_zero() && !fresh {
        return Polled { host, poll, repositories: 0, trouble: None, again: false };
    }
    let looks = stream::iter(followed).map(|(repository, followers)| {
        let (shared, line) = (&shared, &line);
        async move {
            let context = runtime::clock::context(crate::ACTOR);
            look_at(shared, line, &repository, &followers, None, &context).await
        }
    });
    let mut looks = pin!(looks.buffer_unordered(AT_ONCE));
    let (mut trouble, mut failed) = (None, false);
    while let Some((heard, of_all)) = looks.next().await {
        failed |= heard.iter().any(|heard| matches!(heard.finding, Finding::Failed { .. }));
        if of_all.is_some() {
            trouble = of_all;
            break;
        }
    }
    // What is never polled is asked again after trouble all the same.
    let again = trouble.is_some() || (failed && line.poll.is_zero());
    let poll = if again && line.poll.is_zero() { AFTER_TROUBLE } else { poll };
    Polled { host, poll, repositories, trouble, again }
}

/// Looks at a repository for all who follow it: at everything it has, or at the tags that somebody told of. Beside what
/// came of it, trouble of the registry as a whole.
async fn look_at(
    shared: &Shared,
    line: &Line,
    repository: &Repository,
    followers: &[Arc<Follower>],
    told: Option<Arc<BTreeSet<String>>>,
    context: &Context,
) -> (Vec<Heard>, Option<Trouble>) {
    let client = &*line.client;
    let work = async {
        let listed = followers.iter().any(|follower| follower.rules.moving().is_none());
        let tags = match told {
            Some(told) => Ok(Tags::Told(told)),
            None if listed => client.tags(&repository.path).await.map(Tags::All),
            None => Ok(Tags::All(Arc::default())),
        };
        let (mut heard, mut worst) = (Vec::new(), None);
        for follower in followers {
            let looked = match &tags {
                Ok(tags) => Box::pin(shared.looker.look(client, follower, tags, context)).await,
                Err(trouble) => Err(trouble.clone().into()),
            };
            let finding = looked.unwrap_or_else(|trouble| {
                let finding = failed(&trouble);
                if matches!(&trouble, Trouble::Registry(trouble) if trouble.of_the_whole_registry()) {
                    worst = Some(trouble);
                }
                finding
            });
            note(shared, &follower.place, finding.clone(), context).await;
            if let Finding::CoolingDown { until: Some(until), .. } = &finding {
                let mut ripens = shared.ripens.lock().unwrap_or_else(PoisonError::into_inner);
                let first = ripens.entry(repository.registry.clone()).or_insert(*until);
                *first = (*first).min(*until);
            }
            let Place { project, stage } = follower.place.clone();
            heard.push(Heard { project, stage, finding });
        }
        (heard, worst)
    };
    if let Ok(looked) = timeout(shared.look_limit, work).await {
        let pause = asked_for(looked.1.as_ref());
        if !pause.is_zero() {
            clients::leave_alone(&shared.looker.log, &repository.registry, &line.origin, pause).await;
        }
        return looked;
    }
    let reason = format!("{} was not looked through within {}s", repository.path, shared.look_limit.as_secs());
    let mut heard = Vec::new();
    for follower in followers {
        let finding = Finding::Failed { code: "deadline".into(), reason: reason.clone() };
        note(shared, &follower.place, finding.clone(), context).await;
        let Place { project, stage } = follower.place.clone();
        heard.push(Heard { project, stage, finding });
    }
    (heard, None)
}

/// Registries on which something has come of age.
fn ripe(shared: &Shared) -> Vec<String> {
    let now = runtime::clock::now();
    let mut ripens = shared.ripens.lock().unwrap_or_else(PoisonError::into_inner);
    ripens.extract_if(.., |_, until| *until <= now).map(|(host, _)| host).collect()
}

fn failed(trouble: &Trouble) -> Finding {
    let code = match trouble {
        Trouble::Registry(trouble) => trouble.code(),
        Trouble::Log(_) | Trouble::Project(_) | Trouble::Stage(_) | Trouble::Commit(_) => "unavailable",
    };
    Finding::Failed { code: code.into(), reason: trouble.to_string() }
}

/// Until a registry is asked again: as it was declared, longer after trouble, and never sooner than it said.
fn pause(poll: Duration, failures: u32, trouble: Option<&Trouble>) -> Duration {
    let backed_off = poll.saturating_mul(1 << failures.min(16)).min(LONGEST_PAUSE.max(poll));
    // So that not everybody who began together asks together for ever.
    let jitter = 0.9 + 0.2 * rand::random::<f64>();
    backed_off.mul_f64(jitter).max(asked_for(trouble))
}

/// How long the registry itself wants to be left alone.
fn asked_for(trouble: Option<&Trouble>) -> Duration {
    match trouble {
        Some(Trouble::Registry(trouble)) => trouble.pause().unwrap_or_default(),
        Some(Trouble::Log(_) | Trouble::Project(_) | Trouble::Stage(_) | Trouble::Commit(_)) | None => Duration::ZERO,
    }
}

/// Writes down what was found at a stage, if that is news.
async fn note(shared: &Shared, place: &Place, finding: Finding, context: &Context) {
    if shared.found.lock().unwrap_or_else(PoisonError::into_inner).get(place) == Some(&finding) {
        return;
    }
    if let Finding::Failed { code, reason } = &finding {
        tracing::warn!(%place, code, reason, "a registry could not be asked");
    }
    let look = Look { at: context.time, finding };
    if write(&shared.looker.log, &push::stage_key(&place.project, &place.stage), &look).await {
        shared.found.lock().unwrap_or_else(PoisonError::into_inner).insert(place.clone(), look.finding);
    }
}

async fn forget(shared: Arc<Shared>, place: Place) {
    shared.found.lock().unwrap_or_else(PoisonError::into_inner).remove(&place);
    let key = push::stage_key(&place.project, &place.stage);
    let bucket = shared.looker.log.bucket(LOOKS);
    match timeout(NOTE_LIMIT, bucket.delete(&key, None)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, %place, "what was found last still stands there"),
        Err(_) => tracing::debug!(%place, "what was found last may still stand there: NATS does not answer"),
    }
}

async fn note_poll(log: EventLog, host: String, pause: Duration, repositories: usize, trouble: Option<Trouble>) {
    let Ok(key) = Key::<Registry>::registry(&host) else { return };
    let at = runtime::clock::now();
    let next = at + TimeDelta::from_std(pause).unwrap_or_default();
    let problem = trouble.map(|trouble| trouble.to_string());
    write(&log, &push::registry_key(&key), &Poll { at, next, repositories, problem }).await;
}

/// For people, who look again: what cannot be written is written the next time.
async fn write(log: &EventLog, key: &str, value: &impl serde::Serialize) -> bool {
    let value = serde_json::to_vec(value).unwrap_or_default();
    match timeout(NOTE_LIMIT, log.bucket(LOOKS).put(key, value)).await {
        Ok(Ok(_)) => return true,
        Ok(Err(error)) => tracing::debug!(%error, key, "what was found could not be written down"),
        Err(_) => tracing::debug!(key, "what was found could not be written down in time"),
    }
    false
}

#[cfg(test)]
mod tests {
    use domain::settings::StageSettings;
    use runtime::outgoing::Outgoing;
    use testkit::Nats;

    use super::*;
    use crate::registry;

    #[tokio::test]
    async fn a_look_that_runs_out_of_its_time_is_answered_and_written_down() {
        let nats = Nats::start().await.expect("NATS starts");
        let config = eventlog::Config { url: nats.url().into(), name: "test".into(), master_key: None };
        let log = EventLog::connect(&config).await.expect("the log opens");
        // Takes connections, and says nothing.
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let host = silent.local_addr().expect("an address").to_string();
        let policy = domain::policy::TagPolicy { semver: Some("*".into()), ..Default::default() };
        let settings = StageSettings {
            image: Some(format!("{host}/shop")),
            policy: Some(Box::new(policy)),
            ..StageSettings::default()
        };
        let context = runtime::clock::context("test");
        let stages = [("dev".parse().expect("a slug"), settings)].into();
        let declaration = domain::project::Declaration { stages, ..Default::default() };
        let slug: domain::Slug = "shop".parse().expect("a slug");
        let command = domain::project::Command::Apply { slug: slug.clone(), declaration, prune: false };
        let key = Key::<domain::project::Project>::project(&slug);
        log.execute(&key, command, &context).await.expect("declared");
        let mut picture = Picture::default();
        log.each(PROJECTS, 0, |recorded| picture.note(&recorded)).await.expect("read");
        let shared = Shared {
            looker: Looker { config: Config { node: "local".into(), outgoing: Outgoing::default() }, log: log.clone() },
            clients: Clients::new(Outgoing::default()),
            desk: desk::Desk::default(),
            found: Mutex::default(),
            ripens: Mutex::default(),
            look_limit: Duration::from_millis(200),
        };
        let line = shared.clients.get(&log, &host).await.expect("a line");
        let (repository, followers) = picture.on(&host).pop_first().expect("followed");
        let (heard, _) = look_at(&shared, &line, &repository, &followers, None, &context).await;
        let entry = log.bucket(LOOKS).get(&push::stage_key(&slug, &heard[0].stage)).await.expect("read");
        let look: Look = serde_json::from_slice(&entry.expect("it is written down").value).expect("a look");
        assert!(matches!(&look.finding, Finding::Failed { code, .. } if code == "deadline"), "{look:?}");
        assert_eq!(heard[0].finding, look.finding);
    }

    fn range(poll: u64, failures: u32, trouble: Option<registry::Trouble>) -> (u64, u64) {
        let trouble = trouble.map(Trouble::from);
        let pauses = (0..200).map(|_| pause(Duration::from_secs(poll), failures, trouble.as_ref()).as_millis() as u64);
        let pauses: Vec<u64> = pauses.collect();
        (*pauses.iter().min().expect("some"), *pauses.iter().max().expect("some"))
    }

    #[test]
    fn a_registry_in_trouble_is_asked_less_and_never_sooner_than_it_says() {
        let (least, most) = range(60, 0, None);
        assert!(least >= 54_000 && most <= 66_000 && least < most, "{least} to {most}");
        assert!(range(60, 3, None).0 >= 8 * 54_000);
        assert!(range(60, 60, None).1 <= 1_980_000);
        let limited = registry::Trouble::TooMany { pause: Some(Duration::from_secs(3000)) };
        assert!(range(1, 1, Some(limited)).0 >= 3_000_000);
        assert!(range(86_400, 1, None).0 >= 77_760_000, "a slow pace stays slow");
    }
}
