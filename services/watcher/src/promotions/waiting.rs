//! Promotions that wait: each is looked at once a second, until its gates have passed or one has refused it.

use std::{collections::BTreeMap, pin::pin, time::Duration};

use anyhow::{Context as _, Result, bail};
use domain::{
    Event, PromotionId, Recorded, project,
    stage::{self, Command},
};
use eventlog::{EventLog, ExecuteError};
use futures::StreamExt;
use tokio::time::{MissedTickBehavior, interval};

use super::look::look;
use crate::{Config, place::Place, trouble::Trouble};

/// Gates are told in seconds, windows in minutes.
const LOOK: Duration = Duration::from_secs(1);
const SUBJECTS: &str = "sluice.events.stage.*.*.promotion.>";

/// Where each of them would be put.
type Waiting = BTreeMap<PromotionId, Place>;

/// Ends only with an error.
pub(crate) async fn run(config: &Config, log: &EventLog) -> Result<()> {
    let mut events = pin!(log.follow(SUBJECTS, 0));
    let mut waiting = Waiting::new();
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(event) => note(&mut waiting, &event.context("following promotions")?),
                None => bail!("the watcher stopped: the event log was closed"),
            },
            _ = looks.tick() => {
                for (promotion, place) in &waiting {
                    reconsider(config, log, *promotion, place).await;
                }
            }
        }
    }
}

fn note(waiting: &mut Waiting, recorded: &Recorded) {
    let Event::Stage(event) = &recorded.event else { return };
    match event {
        stage::Event::PromotionRequested { promotion, .. } => {
            waiting.extend(Place::of(recorded).map(|place| (*promotion, place)));
        }
        stage::Event::PromotionAccepted { promotion, .. }
        | stage::Event::PromotionRefused { promotion, .. }
        | stage::Event::PromotionWithdrawn { promotion, .. } => {
            waiting.remove(promotion);
        }
        _ => {}
    }
}

async fn reconsider(config: &Config, log: &EventLog, promotion: PromotionId, place: &Place) {
    let looked = look(config, log, promotion, place, |attempt| Command::Reconsider { attempt }).await;
    let ended = match looked {
        // Somebody will set them.
        Err(Trouble::Project(ExecuteError::Rejected(project::Rejection::SecretsMissing(_)))) => Ok(()),
        // What it was to pass is not there any more.
        Err(Trouble::Project(ExecuteError::Rejected(rejection))) => {
            withdraw(log, promotion, place, &rejection).await.map_err(Trouble::Stage)
        }
        looked => looked.map(drop),
    };
    if let Err(trouble) = ended {
        trouble.tell(place);
    }
}

async fn withdraw(
    log: &EventLog,
    promotion: PromotionId,
    place: &Place,
    why: &project::Rejection,
) -> Result<(), ExecuteError<stage::Rejection>> {
    let command = Command::Withdraw { promotion, reason: why.to_string() };
    log.execute(&place.key(), command, &runtime::clock::context(crate::ACTOR)).await.map(drop)
}
