//! `sluice policy`: what a stage takes by itself, and why it did or did not.

use chrono::{DateTime, Utc};
use domain::push::Finding;

use super::{
    Target,
    exit::{Code, Failure},
    ui::{self, Ui},
};
use crate::client::{self, Client, StagePolicy};

pub(super) async fn run(target: Target, client: &Client, ui: &Ui) -> Result<Code, Failure> {
    let answer = client.get(&target.path("/policy"), &[]).await?;
    if ui.json {
        ui.document(&answer)?;
        return Ok(Code::Ok);
    }
    let StagePolicy { policy, last } = client::read(answer)?;
    let Some(policy) = policy else {
        ui.note(format!("{target} takes nothing by itself: give it a `policy` to change that"));
        return Ok(Code::Ok);
    };
    let yaml = serde_saphyr::to_string(&policy)
        .map_err(|error| Failure::new(Code::Failed, "yaml", format!("cannot be shown as YAML: {error}")))?;
    ui.raw(&yaml)?;
    match last {
        Some(look) => {
            let ago = ui::ago(runtime::clock::now(), look.at);
            ui.line(format!("\nsince {ago}: {}", words(&look.finding)))?;
        }
        None => ui.note("nobody has looked yet: `sluice health` shows whether everything runs"),
    }
    Ok(Code::Ok)
}

/// A finding as a sentence.
pub(super) fn words(finding: &Finding) -> String {
    match finding {
        Finding::Requested { deployment, image } => format!("{image} was requested by deployment {deployment}"),
        Finding::NothingNew => "the newest that it takes was requested here last".to_owned(),
        Finding::NoMatch => "no tag of the repository is one that it takes".to_owned(),
        Finding::CoolingDown { image, until: Some(until) } => format!("{image} is taken {}", at(*until)),
        Finding::CoolingDown { image, until: None } => {
            format!("{image} is not taken: nobody knows how old it is")
        }
        Finding::OnHold { reason } => format!("on hold: {reason}"),
        Finding::Refused { reason, .. } | Finding::Failed { reason, .. } => reason.clone(),
    }
}

fn at(time: DateTime<Utc>) -> String {
    format!("from {} on", ui::date(time))
}
