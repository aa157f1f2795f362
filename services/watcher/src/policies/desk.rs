//! Where webhooks are told: each repository is looked at by one at a time, and whoever tells of it meanwhile shares the
//! next look. However many messages come, a registry is not asked more often about one repository than `BREATH` allows.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    mem,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use domain::{
    Context,
    image::Reference,
    push::{Answer, Heard, Told, What},
};
use eventlog::Request;
use futures::future::{BoxFuture, join_all};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep_until},
};

use super::{
    Shared, failed, look_at,
    picture::{Follower, Picture, Repository},
};
use crate::place::Place;

/// Messages about one repository that wait for the same look.
const MOST_WAITING: usize = 256;
/// Between two looks at one repository.
const BREATH: Duration = Duration::from_millis(50);

#[derive(Default)]
pub(super) struct Desk(Mutex<HashMap<Repository, Arc<Turn>>>);

#[derive(Default)]
struct Turn {
    /// Held by whoever looks: when the last look ended.
    looking: tokio::sync::Mutex<Option<Instant>>,
    waiting: Mutex<Vec<Waiting>>,
}

struct Waiting {
    tags: BTreeSet<String>,
    context: Context,
    heard: oneshot::Sender<Vec<Heard>>,
}

impl Turn {
    fn looked_just_now(&self) -> bool {
        self.looking.try_lock().is_ok_and(|looked| looked.is_some_and(|looked| looked.elapsed() < BREATH))
    }
}

/// The answer to one message, on its way.
pub(super) fn answer(shared: &Arc<Shared>, picture: &Picture, request: Request) -> BoxFuture<'static, ()> {
    let told: Option<Told> = serde_json::from_slice(&request.payload).ok();
    let shared = shared.clone();
    // As things stand at this moment: who follows what must not be asked while it changes.
    let work: BoxFuture<'static, Answer> = match told {
        None => Box::pin(async { Answer::Heard(vec![]) }),
        Some(Told { context, what: What::Pushed(pushed) }) => {
            let mut repositories: BTreeMap<Repository, BTreeSet<String>> = BTreeMap::new();
            for pushed in pushed {
                let reference = Reference::parse(&pushed.repository).ok();
                if let Some(repository) = reference.as_ref().and_then(Repository::of) {
                    repositories.entry(repository).or_default().insert(pushed.tag);
                }
            }
            let told: Vec<_> = repositories
                .into_iter()
                .map(|(repository, tags)| (picture.of(&repository), repository, tags))
                .filter(|(followers, ..)| !followers.is_empty())
                .collect();
            Box::pin(async move {
                let looks = told
                    .into_iter()
                    .map(|(followers, repository, tags)| hear(&shared, repository, followers, tags, context.clone()));
                let heard: Option<Vec<Vec<Heard>>> = join_all(looks).await.into_iter().collect();
                heard.map_or(Answer::Busy, |heard| Answer::Heard(heard.concat()))
            })
        }
        Some(Told { context, what: What::Deploy { project, stage, image, hook, deployment } }) => {
            Box::pin(async move {
                let place = Place { project, stage };
                let asked = shared.looker.deploy(&place, &image, hook.as_str(), deployment, &context).await;
                let finding = asked.unwrap_or_else(|trouble| failed(&trouble));
                Answer::Heard(vec![Heard { project: place.project, stage: place.stage, finding }])
            })
        }
    };
    Box::pin(async move {
        let answer = serde_json::to_vec(&work.await).unwrap_or_default();
        if let Err(error) = request.reply(answer).await {
            tracing::debug!(%error, "a webhook was not answered");
        }
    })
}

/// None where too many wait for this repository.
async fn hear(
    shared: &Shared,
    repository: Repository,
    followers: Vec<Arc<Follower>>,
    tags: BTreeSet<String>,
    context: Context,
) -> Option<Vec<Heard>> {
    let (heard, mut answer) = oneshot::channel();
    let turn = {
        let mut turns = shared.desk.0.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| Arc::strong_count(turn) > 1 || turn.looked_just_now());
        turns.entry(repository.clone()).or_default().clone()
    };
    {
        let mut waiting = turn.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() >= MOST_WAITING {
            return None;
        }
        waiting.push(Waiting { tags, context, heard });
    }
    {
        let mut looked = tokio::select! {
            biased;
            // A look that began after this one was told has spoken for it.
            heard = &mut answer => return heard.ok(),
            looked = turn.looking.lock() => looked,
        };
        if let Some(looked) = *looked {
            sleep_until(looked + BREATH).await;
        }
        let waiting = mem::take(&mut *turn.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        if let Some(first) = waiting.first() {
            let context = first.context.clone();
            let tags = Arc::new(waiting.iter().flat_map(|waiting| waiting.tags.clone()).collect());
            let heard = match shared.clients.get(&shared.looker.log, &repository.registry).await {
                Ok(line) => look_at(shared, &line, &repository, &followers, Some(tags), &context).await.0,
                Err(trouble) => {
                    let place = |follower: &Arc<Follower>| follower.place.clone();
                    let heard = |Place { project, stage }| Heard { project, stage, finding: failed(&trouble) };
                    followers.iter().map(place).map(heard).collect()
                }
            };
            *looked = Some(Instant::now());
            for waiting in waiting {
                // Whoever does not wait any more does not need it.
                let _ = waiting.heard.send(heard.clone());
            }
        }
    }
    answer.await.ok()
}
