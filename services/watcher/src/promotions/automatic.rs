//! Projects that promote by themselves: each release that succeeds in a source is offered to the stages that promote from
//! there, until their gates let it pass or there is nothing left to offer.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::pin,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use domain::{
    Aggregate, Event, PromotionId, Recorded, Slug,
    project::Project,
    stage::{self, Command, Rejection},
};
use eventlog::{EventLog, ExecuteError};
use futures::{StreamExt, stream};
use tokio::time::{MissedTickBehavior, interval};

use super::look::look;
use crate::{Config, place::Place, trouble::Trouble};

const LOOK: Duration = Duration::from_secs(2);
const PROJECTS: &str = "sluice.events.project.>";
const SUCCESSES: &str = "sluice.events.stage.*.*.deployment.succeeded";
const HOLDS: &str = "sluice.events.stage.*.*.hold.lifted";

/// What the log says about automation.
#[derive(Default)]
struct Picture {
    projects: BTreeMap<Slug, Project>,
    /// Stages to which something may have to be promoted.
    open: BTreeSet<Place>,
}

impl Picture {
    fn note(&mut self, recorded: &Recorded) {
        match &recorded.event {
            Event::Project(event) => {
                let Some(Ok(slug)) = recorded.project().map(str::parse::<Slug>) else { return };
                let project = self.projects.entry(slug.clone()).or_default();
                project.evolve(event);
                // Whatever was changed may have opened the way.
                let takers = takers(&slug, project, None);
                self.open.retain(|place| place.project != slug);
                self.open.extend(takers);
            }
            Event::Stage(stage::Event::HoldLifted {}) => {
                let place = Place::of(recorded).filter(|place| self.takes(place));
                self.open.extend(place);
            }
            Event::Stage(_) => {
                let Some(source) = Place::of(recorded) else { return };
                if let Some(project) = self.projects.get(&source.project) {
                    self.open.extend(takers(&source.project, project, Some(&source.stage)));
                }
            }
            Event::Route(_)
            | Event::Registry(_)
            | Event::Token(_)
            | Event::Proxy(_)
            | Event::Hook(_)
            | Event::User(_)
            | Event::Handle(_)
            | Event::Administrators(_)
            | Event::Session(_)
            | Event::Login(_)
            | Event::Sso(_) => {}
        }
    }

    fn takes(&self, place: &Place) -> bool {
        let project = self.projects.get(&place.project);
        project.is_some_and(|project| takers(&place.project, project, None).any(|taker| taker == *place))
    }
}

/// Stages that take by themselves what runs in `from`, or in any other stage.
fn takers<'a>(slug: &'a Slug, project: &'a Project, from: Option<&'a Slug>) -> impl Iterator<Item = Place> + 'a {
    let stages = project.stages.iter().filter(|_| project.auto_promote && !project.archived);
    let takes = move |source: &Slug| from.is_none_or(|from| from == source);
    let takers = stages.filter(move |(_, settings)| settings.promote_from.as_ref().is_some_and(takes));
    takers.map(|(stage, _)| Place { project: slug.clone(), stage: stage.clone() })
}

/// Ends only with an error.
pub(crate) async fn run(config: &Config, log: &EventLog) -> Result<()> {
    let follow = |subject| Box::pin(log.follow(subject, 0));
    let mut events = pin!(stream::select_all([follow(PROJECTS), follow(SUCCESSES), follow(HOLDS)]));
    let mut picture = Picture::default();
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(event) => picture.note(&event.context("following releases")?),
                None => bail!("the watcher stopped: the event log was closed"),
            },
            _ = looks.tick() => {
                let mut still = BTreeSet::new();
                for place in std::mem::take(&mut picture.open) {
                    if !offer(config, log, &place).await {
                        still.insert(place);
                    }
                }
                picture.open.extend(still);
            }
        }
    }
}

/// Whether there is nothing left to offer until something happens.
async fn offer(config: &Config, log: &EventLog, place: &Place) -> bool {
    let promotion = PromotionId(runtime::clock::new_id());
    let command = |attempt| Command::PromoteAutomatically { by: crate::ACTOR.into(), attempt };
    match look(config, log, promotion, place, command).await {
        Ok(committed) => !committed.events.is_empty(),
        // What is known here may be older than the decision.
        Err(Trouble::Stage(ExecuteError::Rejected(
            Rejection::NothingToPromote | Rejection::NotAutomatic | Rejection::OnHold { .. },
        ))) => true,
        Err(trouble) => {
            trouble.tell(place);
            false
        }
    }
}
