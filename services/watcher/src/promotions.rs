//! Promotions that wait: each is looked at once a second, until its gates have passed or one has refused it.

use std::{collections::BTreeMap, pin::pin, time::Duration};

use anyhow::{Context as _, Result, bail};
use domain::{
    Context, DeploymentId, Event, Key, PromotionId, Recorded, Slug, project,
    stage::{self, Command, Stage},
};
use eventlog::{CommitError, EventLog, ExecuteError, Transaction};
use futures::StreamExt;
use tokio::time::{MissedTickBehavior, interval};

use crate::Config;

/// Gates are told in seconds, windows in minutes.
const LOOK: Duration = Duration::from_secs(1);
const SUBJECTS: &str = "sluice.events.stage.*.*.promotion.>";

/// Where each of them would be put.
type Waiting = BTreeMap<PromotionId, (Slug, Slug)>;

/// Why a look came to nothing.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Project(ExecuteError<project::Rejection>),
    #[error(transparent)]
    Stage(ExecuteError<stage::Rejection>),
    #[error(transparent)]
    Commit(#[from] CommitError),
}

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
                for (promotion, (project, stage)) in &waiting {
                    look(config, log, *promotion, (project, stage)).await;
                }
            }
        }
    }
}

fn note(waiting: &mut Waiting, recorded: &Recorded) {
    let Event::Stage(event) = &recorded.event else { return };
    match event {
        stage::Event::PromotionRequested { promotion, .. } => {
            // Both were slugs when they were written.
            let slug = |name: Option<&str>| name.and_then(|name| name.parse().ok());
            if let (Some(project), Some(stage)) = (slug(recorded.project()), slug(recorded.stage())) {
                waiting.insert(*promotion, (project, stage));
            }
        }
        stage::Event::PromotionAccepted { promotion, .. }
        | stage::Event::PromotionRefused { promotion, .. }
        | stage::Event::PromotionWithdrawn { promotion, .. } => {
            waiting.remove(promotion);
        }
        _ => {}
    }
}

async fn look(config: &Config, log: &EventLog, promotion: PromotionId, stage: (&Slug, &Slug)) {
    let context = runtime::clock::context("watcher");
    let key = &Key::<Stage>::stage(stage.0, stage.1);
    let looked = match reconsider(config, log, promotion, stage, &context).await {
        // What it was to pass is not there any more.
        Err(Trouble::Project(ExecuteError::Rejected(rejection))) => {
            let command = Command::Withdraw { promotion, reason: rejection.to_string() };
            log.execute(key, command, &context).await.map(drop).map_err(Trouble::Stage)
        }
        looked => looked,
    };
    match looked {
        // Somebody else has ended it, or the queue is full: the next look tells.
        Ok(()) | Err(Trouble::Stage(ExecuteError::Rejected(_)) | Trouble::Commit(CommitError::Conflict)) => {}
        Err(trouble) => {
            let error = format!("{:#}", anyhow::Error::new(trouble));
            tracing::warn!(%promotion, error, "a promotion could not be looked at; trying again");
        }
    }
}

async fn reconsider(
    config: &Config,
    log: &EventLog,
    promotion: PromotionId,
    stage: (&Slug, &Slug),
    context: &Context,
) -> Result<(), Trouble> {
    let key = &Key::<Stage>::stage(stage.0, stage.1);
    let deployment = DeploymentId(runtime::clock::new_id());
    let decide = |mut transaction: Transaction| async move {
        let attempt = transaction.attempt(stage, promotion, deployment, &config.node).await;
        let attempt = Box::new(attempt.map_err(Trouble::Project)?);
        transaction.decide(key, Command::Reconsider { attempt }).await.map_err(Trouble::Stage)?;
        Ok::<_, Trouble>(transaction)
    };
    let committed = log.transact(context, decide).await?;
    if !committed.events.is_empty() {
        tracing::info!(%promotion, project = %stage.0, stage = %stage.1, "a promotion that waited was decided");
    }
    Ok(())
}
