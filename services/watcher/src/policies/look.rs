//! One look at what a stage follows: what the registry has, whether the policy wants it, and a request if it does.

use std::{collections::BTreeSet, sync::Arc};

use chrono::{DateTime, Utc};
use domain::{
    Context, DeploymentId, Key,
    image::Reference,
    policy::{Age, newest, plausible},
    project::{self, Project},
    push::Finding,
    stage::{self, Command, Newest, Origin, Rejection, Spec, Stage},
};
use eventlog::{CommitError, EventLog, ExecuteError, Transaction};
use futures::{StreamExt, TryStreamExt, stream};

use super::picture::Follower;
use crate::{
    Config,
    place::Place,
    registry::{self, Client},
};

/// Looks at one stage while others request something there.
const ATTEMPTS: usize = 5;
/// Images whose age is asked for in one look.
const MOST_AGES: usize = 50;
/// Tags that are compared by the age of their images.
const MOST_COMPARED: usize = 1_000;
/// Of one registry, at the same time.
pub(super) const AT_ONCE: usize = 4;

/// The tags that are looked at.
#[derive(Clone)]
pub(super) enum Tags {
    /// Everything that the repository has.
    All(Arc<[String]>),
    /// Those that somebody told of.
    Told(Arc<BTreeSet<String>>),
}

impl Tags {
    fn iter(&self) -> Box<dyn Iterator<Item = &str> + Send + '_> {
        match self {
            Self::All(tags) => Box::new(tags.iter().map(String::as_str)),
            Self::Told(tags) => Box::new(tags.iter().map(String::as_str)),
        }
    }

    fn told(&self, tag: &str) -> bool {
        matches!(self, Self::Told(tags) if tags.contains(tag))
    }

    /// Whether `tag` is to be looked at.
    fn holds(&self, tag: &str) -> bool {
        match self {
            // A followed tag is asked for by its name.
            Self::All(_) => true,
            Self::Told(tags) => tags.contains(tag),
        }
    }
}

/// Why a look came to nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    #[error(transparent)]
    Registry(#[from] registry::Trouble),
    #[error(transparent)]
    Log(#[from] eventlog::Error),
    #[error(transparent)]
    Project(ExecuteError<project::Rejection>),
    #[error(transparent)]
    Stage(ExecuteError<stage::Rejection>),
    #[error(transparent)]
    Commit(#[from] CommitError),
}

/// What the policy wants.
enum Choice {
    Take { tag: String, digest: Option<String> },
    Nothing(Finding),
}

/// Whoever looks.
pub(super) struct Looker {
    pub(super) config: Config,
    pub(super) log: EventLog,
}

impl Looker {
    /// Looks at `follower` and requests what its policy wants.
    pub(super) async fn look(
        &self,
        client: &Client,
        follower: &Follower,
        tags: &Tags,
        context: &Context,
    ) -> Result<Finding, Trouble> {
        let deployment = DeploymentId(runtime::clock::new_id());
        for _ in 0..ATTEMPTS {
            let stage = self.log.load(&follower.place.key()).await?.state;
            if let Some(refused) = closed(&stage) {
                return Ok(refused);
            }
            let (tag, digest) = match choose(client, follower, tags, stage.newest.as_ref(), context.time).await? {
                Choice::Take { tag, digest } => (tag, digest),
                Choice::Nothing(finding) => return Ok(finding),
            };
            let reference = Reference { repository: follower.image.clone(), tag: Some(tag.clone()), digest };
            let after = stage.newest.map(|newest| newest.deployment);
            let wanted = Some(follower);
            let asked = Request { deployment, after, origin: Origin::Policy { tag }, wanted };
            if let Some(finding) = self.request(&follower.place, reference, asked, context).await? {
                return Ok(finding);
            }
        }
        Ok(overtaken())
    }

    /// Requests what a program asks for.
    pub(super) async fn deploy(
        &self,
        place: &Place,
        image: &str,
        hook: &str,
        deployment: DeploymentId,
        context: &Context,
    ) -> Result<Finding, Trouble> {
        let stage = self.log.load(&place.key()).await?.state;
        if stage.knows(deployment) {
            return Ok(Finding::NothingNew);
        }
        if let Some(refused) = closed(&stage) {
            return Ok(refused);
        }
        let project = self.log.load(&Key::<Project>::project(&place.project)).await?.state;
        let home = match project.stage(&place.stage) {
            Ok(settings) => settings.image.as_deref(),
            Err(rejection) => return Ok(refused("not_found", &rejection)),
        };
        let reference = match Reference::within(home, image) {
            Ok(reference) => reference,
            Err(error) => return Ok(refused("bad_reference", &error)),
        };
        let after = stage.newest.map(|newest| newest.deployment);
        let asked = Request { deployment, after, origin: Origin::Hook { hook: hook.into() }, wanted: None };
        // Who was overtaken by a newer wish is not to come back over it.
        let asked = self.request(place, reference, asked, context).await?;
        Ok(asked.unwrap_or_else(|| refused("overtaken", &Rejection::Overtaken)))
    }

    /// None where something else was requested meanwhile, so that the registry has to be asked again.
    async fn request(
        &self,
        place: &Place,
        reference: Reference,
        Request { deployment, after, origin, wanted }: Request<'_>,
        context: &Context,
    ) -> Result<Option<Finding>, Trouble> {
        let mut image = match self.log.resolve(&self.config.node, &reference).await? {
            Ok(image) => image,
            Err(error) => return Ok(Some(Finding::Refused { code: error.code, reason: error.message })),
        };
        if reference.tag.is_some() {
            // The digest stands beside it: the name is as a person would have given it.
            image.requested = Reference { digest: None, ..reference }.to_string();
        }
        let (project, key) = (&Key::<Project>::project(&place.project), &place.key());
        let (image, origin, node) = (&image, &origin, &self.config.node);
        let decide = |mut transaction: Transaction| async move {
            let declared = transaction.still(project).await?.state;
            let now = declared.stage(&place.stage).map_err(|e| Trouble::Project(ExecuteError::Rejected(e)))?;
            let changed = wanted.is_some_and(|wanted| now.policy.as_ref() != Some(&wanted.policy));
            let moved = wanted.is_some_and(|wanted| now.image.as_ref() != Some(&wanted.image));
            if changed || moved {
                return Err(Trouble::Stage(ExecuteError::Rejected(Rejection::Overtaken)));
            }
            let settings = declared.release(&place.stage).map_err(|e| Trouble::Project(ExecuteError::Rejected(e)))?;
            let spec = Spec { image: image.clone(), settings };
            let command = Command::Follow { deployment, spec, node: node.clone(), after, origin: origin.clone() };
            transaction.decide(key, command).await.map_err(Trouble::Stage)?;
            Ok(transaction)
        };
        match Box::pin(self.log.transact(context, decide)).await {
            Ok(committed) if committed.events.is_empty() => Ok(Some(Finding::NothingNew)),
            Ok(_) => {
                tracing::info!(%place, %deployment, image = image.requested, "requested");
                Ok(Some(Finding::Requested { deployment, image: image.requested.clone() }))
            }
            Err(Trouble::Stage(ExecuteError::Rejected(rejection))) => Ok(match rejection {
                Rejection::Overtaken => None,
                Rejection::NothingNew => Some(Finding::NothingNew),
                Rejection::OnHold { reason, .. } => Some(Finding::OnHold { reason }),
                Rejection::Locked { .. } => Some(refused("locked", &rejection)),
                rejection => Some(refused("refused", &rejection)),
            }),
            Err(Trouble::Project(ExecuteError::Rejected(rejection))) => Ok(Some(refused("refused", &rejection))),
            Err(trouble) => Err(trouble),
        }
    }
}

/// What is to be asked of a stage.
struct Request<'a> {
    deployment: DeploymentId,
    after: Option<DeploymentId>,
    origin: Origin,
    /// Whose policy it is; as it was when the registry was asked, so it must still be.
    wanted: Option<&'a Follower>,
}

/// Why nothing that is found could be taken.
fn closed(stage: &Stage) -> Option<Finding> {
    if let Some(hold) = &stage.hold {
        return Some(Finding::OnHold { reason: hold.reason.clone() });
    }
    stage.archived.then(|| refused("archived", &Rejection::Archived))
}

fn refused(code: &str, error: &dyn std::error::Error) -> Finding {
    Finding::Refused { code: code.into(), reason: error.to_string() }
}

fn overtaken() -> Finding {
    Finding::Failed { code: "overtaken".into(), reason: Rejection::Overtaken.to_string() }
}

/// Asks the registry what the policy wants. `newest` is what the stage was asked for last.
async fn choose(
    client: &Client,
    follower: &Follower,
    tags: &Tags,
    newest: Option<&Newest>,
    now: DateTime<Utc>,
) -> Result<Choice, registry::Trouble> {
    let Follower { rules, repository, .. } = follower;
    let path = repository.path.as_str();
    if let Some(moving) = rules.moving() {
        if !tags.holds(moving) {
            return Ok(Choice::Nothing(Finding::NothingNew));
        }
        let digest = client.digest(path, moving).await?;
        if newest.is_some_and(|newest| newest.image.digest == digest) {
            return Ok(Choice::Nothing(Finding::NothingNew));
        }
        return match ripe(client, follower, moving, &digest, now).await? {
            None => Ok(Choice::Take { tag: moving.to_owned(), digest: Some(digest) }),
            Some(too_young) => Ok(Choice::Nothing(too_young)),
        };
    }
    let here = newest.and_then(|newest| Reference::parse(&newest.image.requested).ok());
    let here = here.filter(|here| super::picture::Repository::of(here).as_ref() == Some(repository));
    let current = here.and_then(|here| here.tag);
    let candidates = rules.candidates(tags.iter(), current.as_deref());
    if candidates.is_empty() {
        let nothing = newest.is_none() && !tags.iter().any(|tag| rules.matches(tag));
        return Ok(Choice::Nothing(if nothing { Finding::NoMatch } else { Finding::NothingNew }));
    }
    if rules.by_creation() {
        return by_creation(client, follower, tags, candidates, newest, now).await;
    }
    let mut youngest = None;
    for tag in candidates.into_iter().take(MOST_AGES) {
        if !rules.cools_down() {
            return Ok(Choice::Take { tag: tag.to_owned(), digest: None });
        }
        let digest = match client.digest(path, tag).await {
            // Listed, and deleted.
            Err(registry::Trouble::NotFound { .. }) => continue,
            asked => asked?,
        };
        match ripe(client, follower, tag, &digest, now).await? {
            None => return Ok(Choice::Take { tag: tag.to_owned(), digest: Some(digest) }),
            Some(finding) => youngest = youngest.or(Some(finding)),
        }
    }
    Ok(Choice::Nothing(youngest.unwrap_or(Finding::NothingNew)))
}

/// The newest of `candidates` by the creation of their images.
async fn by_creation(
    client: &Client,
    follower: &Follower,
    tags: &Tags,
    candidates: Vec<&str>,
    newest_here: Option<&Newest>,
    now: DateTime<Utc>,
) -> Result<Choice, registry::Trouble> {
    let path = follower.repository.path.as_str();
    if candidates.len() > MOST_COMPARED {
        let reason = format!(
            "{} tags would have to be compared by the age of their images, and {MOST_COMPARED} is the most: narrow the policy's `pattern`",
            candidates.len()
        );
        return Ok(Choice::Nothing(Finding::Refused { code: "too_many_tags".into(), reason }));
    }
    let candidates: Vec<String> = candidates.into_iter().map(str::to_owned).collect();
    for _ in 0..ATTEMPTS {
        let aged = aged(client, path, tags, &candidates, now).await?;
        let ripe = |(_, _, created): &&Aged| follower.rules.age(*created, now) == Age::Ripe;
        let best = best(aged.iter().filter(ripe));
        if let Some((tag, digest, created)) = best
            && is_newer(client, path, digest, *created, newest_here, now).await?
        {
            // What was known of a tag may be old news.
            if client.digest(path, tag).await? != *digest {
                continue;
            }
            return Ok(Choice::Take { tag: tag.clone(), digest: Some(digest.clone()) });
        }
        // Nothing to take; perhaps there will be.
        let image = |tag: &str| format!("{}:{tag}", follower.image);
        let finding = match self::best(&aged) {
            None => Finding::CoolingDown {
                image: aged.first().map(|(tag, ..)| image(tag)).unwrap_or_else(|| follower.image.clone()),
                until: None,
            },
            Some((tag, digest, created)) => match follower.rules.age(*created, now) {
                Age::Until(until) if is_newer(client, path, digest, *created, newest_here, now).await? => {
                    Finding::CoolingDown { image: image(tag), until: Some(until) }
                }
                Age::Ripe | Age::Until(_) | Age::Unknown => Finding::NothingNew,
            },
        };
        return Ok(Choice::Nothing(finding));
    }
    Ok(Choice::Nothing(overtaken()))
}

/// A tag, its digest, and when its image was created as far as that can be believed.
type Aged = (String, String, Option<DateTime<Utc>>);

async fn aged(
    client: &Client,
    path: &str,
    tags: &Tags,
    candidates: &[String],
    now: DateTime<Utc>,
) -> Result<Vec<Aged>, registry::Trouble> {
    let aged = stream::iter(candidates.to_vec()).map(|tag| async move {
        // Of tags that nobody told of, what was known before is taken: else each look would ask for every one of them.
        let digest =
            if tags.told(&tag) { client.digest(path, &tag).await } else { client.known_digest(path, &tag).await };
        let digest = match digest {
            Ok(digest) => digest,
            // Gone between the list and now.
            Err(registry::Trouble::NotFound { .. }) => return Ok(None),
            Err(trouble) => return Err(trouble),
        };
        let created = client.created(path, &digest).await?.and_then(|created| plausible(created, now));
        Ok(Some((tag, digest, created)))
    });
    Ok(aged.buffered(AT_ONCE).try_collect::<Vec<_>>().await?.into_iter().flatten().collect())
}

fn best<'a>(aged: impl IntoIterator<Item = &'a Aged>) -> Option<&'a Aged> {
    let aged: Vec<&Aged> = aged.into_iter().collect();
    let found = newest(aged.iter().map(|(tag, _, created)| (tag.as_str(), *created)))?;
    aged.into_iter().find(|(tag, ..)| tag == found)
}

/// Whether an image is newer than what was requested last.
async fn is_newer(
    client: &Client,
    path: &str,
    digest: &str,
    created: Option<DateTime<Utc>>,
    newest_here: Option<&Newest>,
    now: DateTime<Utc>,
) -> Result<bool, registry::Trouble> {
    let Some(here) = newest_here else { return Ok(true) };
    if here.image.digest == digest {
        return Ok(false);
    }
    // What runs may have gone from the registry; then anything is newer.
    match client.created(path, &here.image.digest).await {
        Ok(ours) => Ok(created > ours.and_then(|ours| plausible(ours, now))),
        Err(registry::Trouble::NotFound { .. }) => Ok(true),
        Err(trouble) => Err(trouble),
    }
}

/// None where the image is old enough.
async fn ripe(
    client: &Client,
    follower: &Follower,
    tag: &str,
    digest: &str,
    now: DateTime<Utc>,
) -> Result<Option<Finding>, registry::Trouble> {
    if !follower.rules.cools_down() {
        return Ok(None);
    }
    let created = client.created(&follower.repository.path, digest).await?;
    let image = format!("{}:{tag}", follower.image);
    Ok(match follower.rules.age(created, now) {
        Age::Ripe => None,
        Age::Until(until) => Some(Finding::CoolingDown { image, until: Some(until) }),
        Age::Unknown => Some(Finding::CoolingDown { image, until: None }),
    })
}
