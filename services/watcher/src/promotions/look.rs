//! One look at a stage that may take a release from another.

use domain::{
    DeploymentId, PromotionId,
    stage::{Attempt, Command},
};
use eventlog::{Committed, EventLog, Transaction};

use crate::{ACTOR, Config, place::Place, trouble::Trouble};

/// Decides what `command` makes of the evidence of now.
pub(crate) async fn look(
    config: &Config,
    log: &EventLog,
    promotion: PromotionId,
    place: &Place,
    command: impl Fn(Box<Attempt>) -> Command,
) -> Result<Committed, Trouble> {
    let context = runtime::clock::context(ACTOR);
    let key = &place.key();
    let deployment = DeploymentId(runtime::clock::new_id());
    let command = &command;
    let decide = |mut transaction: Transaction| async move {
        let stage = (&place.project, &place.stage);
        let attempt = transaction.attempt(stage, promotion, deployment, &config.node).await;
        let attempt = Box::new(attempt.map_err(Trouble::Project)?);
        transaction.decide(key, command(attempt)).await.map_err(Trouble::Stage)?;
        Ok::<_, Trouble>(transaction)
    };
    let committed = log.transact(&context, decide).await?;
    if !committed.events.is_empty() {
        tracing::info!(%promotion, %place, "a promotion was moved on");
    }
    Ok(committed)
}
