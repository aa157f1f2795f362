//! Which stage follows which repository.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use domain::{
    Aggregate, Event, Recorded, Slug,
    image::Reference,
    policy::{Rules, TagPolicy},
    project::Project,
};

use crate::place::Place;

/// A repository of a registry.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Repository {
    /// `host[:port]`.
    pub(super) registry: String,
    pub(super) path: String,
}

impl Repository {
    /// By its full name.
    pub(super) fn of(reference: &Reference) -> Option<Self> {
        let name = reference.canonical();
        let (registry, path) = name.split_once('/')?;
        Some(Self { registry: registry.to_ascii_lowercase(), path: path.to_owned() })
    }
}

/// A stage that takes images by itself.
#[derive(Debug)]
pub(super) struct Follower {
    pub(super) place: Place,
    pub(super) repository: Repository,
    /// As the stage names it.
    pub(super) image: String,
    pub(super) policy: Box<TagPolicy>,
    pub(super) rules: Rules,
}

/// What the log says about policies.
#[derive(Default)]
pub(super) struct Picture {
    projects: BTreeMap<Slug, Project>,
    followers: BTreeMap<Place, Arc<Follower>>,
    /// Hosts of registries that may have something new for somebody.
    pub(super) fresh: BTreeSet<String>,
    /// Stages that follow nothing any more.
    pub(super) gone: Vec<Place>,
}

impl Picture {
    pub(super) fn note(&mut self, recorded: &Recorded) {
        match &recorded.event {
            Event::Project(event) => {
                let Some(Ok(slug)) = recorded.project().map(str::parse::<Slug>) else { return };
                let project = self.projects.entry(slug.clone()).or_default();
                project.evolve(event);
                let now: BTreeMap<Place, Arc<Follower>> = followers(&slug, project).collect();
                let before = self.followers.extract_if(.., |place, _| place.project == slug);
                let before: BTreeMap<_, _> = before.collect();
                self.gone.extend(before.keys().filter(|place| !now.contains_key(place)).cloned());
                let new = now.values().filter(|follower| {
                    before.get(&follower.place).is_none_or(|before| {
                        before.policy != follower.policy || before.repository != follower.repository
                    })
                });
                self.fresh.extend(new.map(|follower| follower.repository.registry.clone()));
                self.followers.extend(now);
            }
            // Whoever was held back may have missed something.
            Event::Stage(_) => {
                let follower = Place::of(recorded).and_then(|place| self.followers.get(&place));
                self.fresh.extend(follower.map(|follower| follower.repository.registry.clone()));
            }
            Event::Registry(event) => self.fresh.extend([event.host().to_ascii_lowercase()]),
            Event::Route(_)
            | Event::Proxy(_)
            | Event::Token(_)
            | Event::Hook(_)
            | Event::User(_)
            | Event::Handle(_)
            | Event::Administrators(_)
            | Event::Session(_)
            | Event::Login(_)
            | Event::Sso(_) => {}
        }
    }

    /// Hosts that somebody follows something on.
    pub(super) fn registries(&self) -> BTreeSet<&str> {
        self.followers.values().map(|follower| follower.repository.registry.as_str()).collect()
    }

    /// The followers on one registry, by repository.
    pub(super) fn on(&self, registry: &str) -> BTreeMap<Repository, Vec<Arc<Follower>>> {
        let mut on: BTreeMap<Repository, Vec<_>> = BTreeMap::new();
        for follower in self.followers.values().filter(|follower| follower.repository.registry == registry) {
            on.entry(follower.repository.clone()).or_default().push(follower.clone());
        }
        on
    }

    pub(super) fn of(&self, repository: &Repository) -> Vec<Arc<Follower>> {
        self.followers.values().filter(|follower| follower.repository == *repository).cloned().collect()
    }
}

fn followers<'a>(slug: &'a Slug, project: &'a Project) -> impl Iterator<Item = (Place, Arc<Follower>)> + 'a {
    project.stages.iter().filter(|_| !project.archived).filter_map(move |(stage, settings)| {
        let (policy, image) = (settings.policy.clone()?, settings.image.clone()?);
        // Both were good ones when they were declared.
        let (rules, reference) = (policy.compile().ok()?, Reference::parse(&image).ok()?);
        let place = Place { project: slug.clone(), stage: stage.clone() };
        let repository = Repository::of(&reference)?;
        Some((place.clone(), Arc::new(Follower { place, repository, image, policy, rules })))
    })
}
