//! What a promotion is decided from, and decided again from.

use domain::{
    DeploymentId, Event, Key, PromotionId, Recorded, Slug,
    project::{self, Project},
    promotion::{Case, Rules, Standing, Verification, verify},
    stage::{self, Attempt, Stage},
};

use crate::{
    EventLog, Transaction,
    error::{Error, ExecuteError},
    nats::EVENTS,
};

impl Transaction {
    /// Everything that a look at `promotion` to `stage` needs. If it is accepted, the commit makes sure that nothing
    /// has happened to the source or to the gates meanwhile.
    pub async fn attempt(
        &mut self,
        (project, stage): (&Slug, &Slug),
        promotion: PromotionId,
        deployment: DeploymentId,
        node: &str,
    ) -> Result<Attempt, ExecuteError<project::Rejection>> {
        let key = Key::<Project>::project(project);
        let declared = self.load(&key).await?;
        let from = declared.state.source(stage).map_err(ExecuteError::Rejected)?;
        let settings = declared.state.release(stage).map_err(ExecuteError::Rejected)?;
        let from_key = Key::<Stage>::stage(project, from);
        let source = self.still(&from_key).await?;
        self.still(&key).await?;
        let events = self.log().since_success(&from_key, source.version).await?;
        let case = Case {
            now: self.context().time,
            rules: Rules { from: from.clone(), gates: settings.gates.clone(), version: declared.version },
            source: Standing::of(from, &source.state, source.version, &events),
        };
        let auto_promote = declared.state.auto_promote;
        Ok(Attempt { promotion, deployment, case, settings, auto_promote, node: node.to_owned() })
    }
}

impl EventLog {
    /// The stage's events from its last `deployment.succeeded` up to `position`; none where it never had one.
    async fn since_success(&self, stage: &Key<Stage>, position: u64) -> Result<Vec<Recorded>, Error> {
        let subject = format!("sluice.events.stage.{}.deployment.succeeded", stage.as_str());
        let Some(success) = self.inner.last_on(EVENTS, &subject).await? else { return Ok(vec![]) };
        // One more may have come behind `position`: then all there are tell which was the last before.
        let after = if success.sequence <= position { success.sequence - 1 } else { 0 };
        let mut events = vec![];
        self.each(&stage.filter(), after, |event| {
            if event.sequence <= position {
                events.push(event);
            }
        })
        .await?;
        Ok(events)
    }

    /// Decides an accepted promotion again, from the log alone. None where no such promotion was accepted.
    pub async fn verify_promotion(&self, promotion: PromotionId) -> Result<Option<Verification>, Error> {
        let mut found = None;
        self.each("sluice.events.stage.*.*.promotion.accepted", 0, |event| {
            if matches!(&event.event, Event::Stage(stage::Event::PromotionAccepted { promotion: id, .. }) if *id == promotion)
            {
                found = Some(event);
            }
        })
        .await?;
        let Some(accepted) = found else { return Ok(None) };
        let Event::Stage(stage::Event::PromotionAccepted { proof, .. }) = &accepted.event else { return Ok(None) };
        // Both were slugs when they were written.
        let slug = |name: Option<&str>| name.and_then(|name| name.parse::<Slug>().ok());
        let (Some(project), Some(stage)) = (slug(accepted.project()), slug(accepted.stage())) else { return Ok(None) };
        let mut history = vec![];
        let filters = [
            Key::<Project>::project(&project).filter(),
            Key::<Stage>::stage(&project, &stage).filter(),
            Key::<Stage>::stage(&project, &proof.source.stage).filter(),
        ];
        for filter in filters {
            self.each(&filter, 0, |event| {
                if event.sequence < accepted.sequence {
                    history.push(event);
                }
            })
            .await?;
        }
        history.sort_by_key(|event| event.sequence);
        Ok(verify(&accepted, &history))
    }
}
